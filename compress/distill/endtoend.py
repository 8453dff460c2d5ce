"""Distil the whole converted model: hidden states behind every site and the final output, against the dense model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Split
from ..devices import autocast, upload
from ..padding import RealRows
from ..plan import dense_geometry
from ..recipe import FinetuneSettings
from ..sites import Site
from ..streams import accepted
from ..students import Student
from ..tasks import HEADS, Task
from .activations import Tap, observe
from .divergence import RESTARTS, SMALLER, Diverged, Errors, diverged
from .objectives import hidden_error, output_error
from .optimisation import (
    AUTO_LEARNING_RATE,
    Schedule,
    adam,
    clip,
    moments,
    relative_groups,
    restore_moments,
    student_groups,
)
from .replay import Replay

EVALUATIONS = 8  # times over the training that its state is held to be good, where all weights are finite
FINETUNE_FACTOR = 0.3  # of the layer-wise step size: the students are already near their goals
REST_FACTOR = 0.5  # of the rate of the students: the weights of the dense model are near where they should be
MOST_HIDDEN_WEIGHT = 10.0  # of the hidden states' error, that of the output being 1
ANSWERS_A_WEIGHT = 3.0  # of the dense FFNs, at which both errors count alike (docs/results.md)
_CLIP = 0.1  # gradients of 512 tokens are 0.05 to 0.5, and noisy: large ones count by their direction


def answers_compared(split: Split, task: Task, settings: FinetuneSettings) -> float:
    """Count the answers of the model in the training: one at every token, or one an example (a class, an embedding)."""
    if HEADS[task].answer == "tokens":
        return float(settings.steps * settings.batch_tokens)
    return settings.steps * len(split) / split.steps_per_epoch(settings.batch_tokens)


def hidden_weight(settings: FinetuneSettings, sites: Sequence[Site], answers: float) -> float:
    """Weight of the hidden states' error, that of the output being 1.

    By itself the more, the fewer answers there are for each weight that is replaced: the output is one error for all
    students, the hidden states are one for each, but what little they leave is not what the output needs.
    """
    if settings.hidden_weight != "auto":
        return float(settings.hidden_weight)
    weights = sum(dense_geometry(site).parameters for site in sites)
    return min(MOST_HIDDEN_WEIGHT, ANSWERS_A_WEIGHT * weights / max(1.0, answers))


class EndToEnd:
    """Trains all students of a converted model together, with the rest of it where the recipe says so.

    The dense model and the converted one are two modules; only the converted one changes. `state` and `load` carry
    everything that the next step depends on. Where the error is no number or explodes, training goes back to the last
    good state, with smaller steps. `answers`: of the model in the whole training.
    """

    def __init__(
        self, dense: nn.Module, converted: nn.Module, taps: Sequence[Tap], task: Task, settings: FinetuneSettings,
        answer_scales: dict[str, float], answers: float,
    ) -> None:  # fmt: skip
        self.dense, self.converted, self.taps, self.task, self.settings = dense, converted, taps, task, settings
        self.device = next(dense.parameters()).device
        self.hidden_weight = hidden_weight(settings, [tap.site for tap in taps], answers)
        rate = settings.learning_rate
        rate = FINETUNE_FACTOR * AUTO_LEARNING_RATE if rate == "auto" else float(rate)
        groups: list[dict[str, object]] = []
        students: set[int] = set()
        for tap in taps:
            student = converted.get_submodule(tap.site.entry)
            if isinstance(student, Student):
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
        self.every = max(1, settings.steps // EVALUATIONS)
        self.errors = Errors()
        self.replay = Replay(self.device)
        self.step, self.restarts = 0, 0
        self.before: float | None = None  # held-out error where training starts
        self._mark()

    def _rest(self) -> Iterator[nn.Parameter]:
        if self.settings.train == "all":
            yield from self.converted.parameters()
        elif self.settings.train == "norms":
            for module in self.converted.modules():
                if "norm" in type(module).__name__.lower():
                    yield from module.parameters(recurse=False)

    def error(self, batch: Mapping[str, Tensor], dtype: str = "float32") -> Tensor:
        """Weighted mean of the hidden error behind the sites and of the output's error, for one batch.

        dtype: of the models' matrix products, as `autocast` takes it.
        """
        real = RealRows(self.dense, batch)
        batch = accepted(self.dense, {key: upload(value, self.device) for key, value in batch.items()})
        with autocast(self.device, dtype):
            with torch.no_grad(), observe(self.dense, self.taps) as wanted:
                teacher = self.dense(**batch)
            with observe(self.converted, self.taps) as traces:
                student = self.converted(**batch)
        hidden = [
            hidden_error(*(seen[tap.site.name].rows_normed(real, tap.stream) for seen in (traces, wanted)))
            for tap in self.taps
        ]
        output = output_error(self.task, real, student, teacher, self.settings.temperature)
        weight = self.hidden_weight
        return (weight * torch.stack(hidden).mean() + output) / (weight + 1.0)

    def train_step(self, batch: dict[str, Tensor]) -> float | None:
        """One optimiser step on one batch; returns its error where it is read. Raises Diverged, in a good state."""
        assert self.before is not None
        self.schedule.set(self.step)
        loss = self.replay.take(batch, self._whole_step)
        replayed = loss is not None
        if loss is None:
            loss = self._gradients(batch)
        marking = (self.step + 1) % self.every == 0 or self.step + 1 == self.settings.steps
        errors = self.errors.read(loss, now=marking)
        bad = next((error for error in errors if diverged(error, self.before)), None)
        if bad is None:
            if not replayed:
                self._update()
            self.step += 1
            if not marking:
                return errors[-1] if errors else None
            if all(bool(p.isfinite().all()) for p in self.parameters):
                self._mark()
                return errors[-1]
            bad = float("nan")
        self._restart(bad)
        return bad

    def _gradients(self, batch: Mapping[str, Tensor]) -> Tensor:
        self.optimiser.zero_grad()
        loss = self.error(batch, self.settings.dtype)
        loss.backward()
        return loss.detach()

    def _update(self) -> None:
        clip(self.parameters, _CLIP)
        self.optimiser.step()

    def _whole_step(self, batch: Mapping[str, Tensor]) -> Tensor:
        loss = self._gradients(batch)
        self._update()
        return loss

    @torch.no_grad()
    def _mark(self) -> None:
        """Take the present state as the last good one."""
        self.good_step, self.good = self.step, [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def _restart(self, error: float) -> None:
        failed, self.step = self.step, self.good_step
        for parameter, value in zip(self.parameters, self.good, strict=True):
            parameter.copy_(value)
        if self.restarts == RESTARTS:
            raise Diverged(
                f"error {error:.3g} at step {failed} of {self.settings.steps}, and with smaller steps before; "
                f"it ended at step {self.step}"
            )
        self.restarts += 1
        self.optimiser.state.clear()
        self.replay.forget()
        self.schedule.factor = SMALLER**self.restarts

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

    def trained(self) -> dict[str, Tensor]:
        """All trained parameters by name."""
        return {name: p.detach() for name, p in self.converted.named_parameters() if p.requires_grad}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and values to go on from."""
        tensors = {f"now.{index}": p.detach() for index, p in enumerate(self.parameters)}
        if self.good_step:  # the start is what the layer-wise stage left
            tensors |= {f"good.{index}": value for index, value in enumerate(self.good)}
        values = {"step": self.step, "restarts": self.restarts, "before": self.before, "good_step": self.good_step}
        return {**tensors, **moments(self.optimiser)}, values

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Go on from what `state` gave, in a model as it was at the start."""
        self.step, self.restarts = values["step"], values["restarts"]
        self.before, self.good_step = values["before"], values["good_step"]
        for index, parameter in enumerate(self.parameters):
            if self.good_step:
                self.good[index].copy_(tensors[f"good.{index}"])
            parameter.copy_(tensors[f"now.{index}"])
        self.schedule.factor = SMALLER**self.restarts
        restore_moments(self.optimiser, tensors)
