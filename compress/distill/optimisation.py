"""Adam over a student's parameters, with step sizes that follow each parameter's own scale."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..lookup import LookupFFN
from ..students import Student

BETAS = (0.9, 0.99)  # a row is read by about 1 % of the tokens, so table gradients are noisy
TABLE_FACTOR = 3.0  # tables learn faster than what feeds them (docs/method.md)
AUTO_LEARNING_RATE = 2e-2  # of a parameter's own scale, a step


def student_groups(student: Student, rate: float, answer_scale: float) -> list[dict[str, object]]:
    """Parameter groups for one student: step size = rate times the parameter's scale.

    The scale is the root mean square at the start; for tables, which may start near zero, the size of rows that
    together would make an answer of deviation `answer_scale`.
    """
    groups: list[dict[str, object]] = []
    for name, parameter in student.named_parameters():
        scale = float(parameter.detach().square().mean().sqrt())
        if name == "tables":
            assert isinstance(student, LookupFFN)
            scale = TABLE_FACTOR * answer_scale / math.sqrt(student.geometry.tables)
        elif name in ("bias", "down.bias"):
            scale = answer_scale
        elif name == "log_temperature" or name.startswith("hash.projection.bias") or name == "code.bias":
            scale = 1.0
        groups.append({"params": [parameter], "lr": rate * max(scale, 1e-8)})
    return groups


def relative_groups(parameters: Iterable[nn.Parameter], rate: float) -> list[dict[str, object]]:
    """Parameter groups for weights of the dense model that are trained along."""
    return [{"params": [p], "lr": rate * max(float(p.detach().square().mean().sqrt()), 1e-8)} for p in parameters]


def adam(groups: list[dict[str, object]]) -> torch.optim.Adam:
    """One fused pass over parameters, gradients and moments; on a GPU its step can be recorded."""
    optimiser = torch.optim.Adam(groups, betas=BETAS, fused=True)
    for group in optimiser.param_groups:
        group["capturable"] = group["params"][0].is_cuda
    return optimiser


def scheduled(step: int, steps: int, warmup: float = 0.05) -> float:
    """Share of the peak step size at a step: linear warm-up, then a half cosine to zero."""
    warm = max(1.0, warmup * steps)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1.0, steps - warm)))


class Schedule:
    """Scales every group's step size by `scheduled`, and all of them by `factor`, which is 1 unless training diverged.

    `peaks` are the groups' own step sizes, which a resumed job takes from where it began. Where the optimiser's step
    can be recorded, step sizes are on its device, so that each step reads its own.
    """

    def __init__(
        self, optimiser: torch.optim.Optimizer, steps: int, peaks: Sequence[float] | None = None, warmup: float = 0.05
    ) -> None:
        self.optimiser, self.steps, self.warmup, self.factor = optimiser, steps, warmup, 1.0
        self.peaks = [float(group["lr"]) for group in optimiser.param_groups] if peaks is None else list(peaks)
        self.there: tuple[Tensor, Tensor, tuple[Tensor, ...]] | None = None
        first = optimiser.param_groups[0]
        if first.get("capturable"):
            rates = first["params"][0].new_zeros(len(self.peaks))
            self.there = rates.new_tensor(self.peaks), rates, rates.unbind()

    def set(self, step: int) -> None:
        """Set the step sizes for a step."""
        share = scheduled(step, self.steps, self.warmup)
        rates: Sequence[float | Tensor] = [self.factor * peak * share for peak in self.peaks]
        if self.there is not None:
            peaks, together, rates = self.there
            torch.mul(peaks, self.factor * share, out=together)
        for group, rate in zip(self.optimiser.param_groups, rates, strict=True):
            group["lr"] = rate


def moments(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's running averages and step counts, under flat names."""
    state = optimiser.state_dict()["state"]
    return {f"adam.{index}.{key}": value for index, values in state.items() for key, value in values.items()}


def restore_moments(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `moments` gave, from among other tensors."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("adam."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})


def clip(parameters: Iterable[Tensor], limit: float) -> None:
    """Bound the gradient's norm, so that one odd batch cannot throw the student off."""
    torch.nn.utils.clip_grad_norm_(list(parameters), limit)
