"""Distil the whole converted model: hidden states behind every site and the final output, against the dense model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Split
from ..lookup import LookupFFN
from ..recipe import FinetuneSettings
from ..streams import accepted
from ..tasks import Task
from .activations import Tap, Trace, observe
from .objectives import hidden_error, output_error
from .optimisation import AUTO_LEARNING_RATE, Schedule, adam, clip, relative_groups, student_groups

FINETUNE_FACTOR = 0.3  # of the layer-wise step size: the students are already near their goals
REST_FACTOR = 0.5  # of the rate of the students: the weights of the dense model are near where they should be
_CLIP = 1.0


class EndToEnd:
    """Trains all students of a converted model together, with the rest of it where the recipe says so.

    The dense model and the converted one are two modules; only the converted one changes. `state` and `load` carry
    everything that the next step depends on.
    """

    def __init__(
        self, dense: nn.Module, converted: nn.Module, taps: Sequence[Tap], task: Task, settings: FinetuneSettings,
        answer_scales: dict[str, float],
    ) -> None:  # fmt: skip
        self.dense, self.converted, self.taps, self.task, self.settings = dense, converted, taps, task, settings
        self.device = next(dense.parameters()).device
        rate = settings.learning_rate
        rate = FINETUNE_FACTOR * AUTO_LEARNING_RATE if rate == "auto" else float(rate)
        groups: list[dict[str, object]] = []
        students: set[int] = set()
        for tap in taps:
            student = converted.get_submodule(tap.site.entry)
            if isinstance(student, LookupFFN):
                groups += student_groups(student, rate, answer_scales[tap.site.name])
                students.update(id(p) for p in student.parameters())
        for parameter in converted.parameters():
            if id(parameter) not in students:
                parameter.requires_grad_(False)
        rest = [p for p in self._rest() if id(p) not in students]
        for parameter in rest:
            parameter.requires_grad_(True)
        groups += relative_groups(rest, REST_FACTOR * rate)
        self.optimiser = adam(groups)
        self.parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        self.schedule = Schedule(self.optimiser, settings.steps)
        self.step = 0

    def _rest(self) -> Iterator[nn.Parameter]:
        if self.settings.train == "all":
            yield from self.converted.parameters()
        elif self.settings.train == "norms":
            for module in self.converted.modules():
                if "norm" in type(module).__name__.lower():
                    yield from module.parameters(recurse=False)

    def error(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean hidden error behind the sites plus the output's error, for one batch."""
        batch = {key: value.to(self.device) for key, value in batch.items()}
        with torch.no_grad(), observe(self.dense, self.taps) as wanted:
            teacher = self.dense(**accepted(self.dense, batch))
        with observe(self.converted, self.taps) as traces:
            student = self.converted(**accepted(self.dense, batch))
        hidden = [self._behind(tap, traces[tap.site.name], wanted[tap.site.name], batch) for tap in self.taps]
        output = output_error(self.task, self.dense, batch, student, teacher, self.settings.temperature)
        return torch.stack(hidden).mean() + output

    def _behind(self, tap: Tap, student: Trace, teacher: Trace, batch: dict[str, Tensor]) -> Tensor:
        ours, theirs = (trace.rows(self.dense, batch, tap.stream)[2] for trace in (student, teacher))
        if tap.norm is None:
            return hidden_error(ours, theirs)
        return hidden_error(self.converted.get_submodule(tap.norm)(ours), self.dense.get_submodule(tap.norm)(theirs))

    def train_step(self, batch: dict[str, Tensor]) -> float:
        """One optimiser step on one batch; returns its error."""
        self.schedule.set(self.step)
        self.optimiser.zero_grad()
        error = self.error(batch)
        error.backward()
        clip(self.parameters, _CLIP)
        self.optimiser.step()
        self.step += 1
        return float(error.detach())

    @torch.no_grad()
    def held_out_error(self, split: Split, batch_tokens: int, tokens: int) -> float:
        """Mean error over up to `tokens` held-out tokens."""
        total, seen = 0.0, 0
        for batch in split.batches(batch_tokens):
            total += float(self.error(batch))
            seen += 1
            if seen * batch_tokens >= tokens:
                break
        return total / max(1, seen)

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        trained = {name: p.detach() for name, p in self.converted.named_parameters() if p.requires_grad}
        return {"step": self.step, "parameters": trained, "optimiser": self.optimiser.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from what `state` gave."""
        self.step = int(state["step"])
        parameters = dict(self.converted.named_parameters())
        with torch.no_grad():
            for name, value in state["parameters"].items():
                parameters[name].copy_(value)
        self.optimiser.load_state_dict(state["optimiser"])
