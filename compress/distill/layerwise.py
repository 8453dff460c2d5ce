"""Fit and distil one site: closed form first, then mini-batches against the dense model's answers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Corpus
from ..dense import DenseWeights
from ..devices import autocast
from ..lookup.fit import TABLE_STEPS, SiteData
from ..recipe import DistillSettings, FitSettings
from ..students import Student, fit
from .activations import Activations, Tap
from .divergence import RESTARTS, SMALLER, Diverged, Errors, diverged
from .objectives import BehindNorm
from .optimisation import AUTO_LEARNING_RATE, Schedule, adam, clip, moments, restore_moments, student_groups
from .progress import Progress
from .recording import Recorder

CACHE_BYTES = 2 << 30  # recorded activations held at once
VISITS = 4  # of each recorded token: recording one costs about as much as training on it a few times
HELD_OUT_TOKENS = 16_384
EVALUATIONS = 8  # of the held-out error over a site's training; the best state is kept
TRAINED_FROM_ZERO = 200  # steps behind which tables end at the same error without a closed form
BETTER_WITHOUT = 0.97  # of the error with tables: training lowers that by more than the error without (docs/results.md)
_CLIP = 1.0
_STATE = "state"


@dataclass(frozen=True)
class Distilled:
    """Held-out errors of a site's fits and of its training, and how often that began again with smaller steps.

    fits: of each student's closed form; `chosen`: which of them was trained.
    """

    fits: Sequence[float]
    chosen: int
    distilled: float
    restarts: int

    @property
    def fitted(self) -> float:
        """Of the chosen one."""
        return self.fits[self.chosen]


class SiteDistiller:
    """Fits and distils the student of one site; `dense` is untouched, `converted` has its earlier sites replaced.

    Step counts and seeds alone decide the result, so a site that is started again, or goes on from what `progress`
    kept of it, ends with the same bytes.
    """

    def __init__(
        self, dense: nn.Module, converted: nn.Module, tap: Tap, corpus: Corpus, settings: DistillSettings,
        fit_settings: FitSettings, seed: int, progress: Progress,
    ) -> None:  # fmt: skip
        self.tap, self.corpus, self.progress = tap, corpus, progress
        self.settings, self.fit_settings, self.seed = settings, fit_settings, seed
        # Of a batch's tokens, those that come by here: a decoder's sites see fewer than the encoder's.
        self.share = corpus.train.tokens_in(tap.stream) / corpus.train.tokens
        norm = dense.get_submodule(tap.norm) if tap.norm is not None and settings.objective == "block" else None
        self.objective = BehindNorm(norm)
        prefix = converted if settings.inputs == "student" else None
        self.recorder = Recorder(dense, prefix, tap, settings.batch_tokens, seed, progress)
        self.beginning: Activations | None = None  # the first batches, recorded once for the fit and the first visits
        self.ends = [0]  # tokens of it before each batch, and of all
        self.held_out = self._collect_held_out()
        self.objective.calibrate(self.held_out)
        wanted = self.held_out.goal - self.held_out.residual
        self.answer_scale = float(wanted.std(0).square().mean().sqrt())  # deviation of the answers, over channels

    def _steps(self, tokens: int) -> int:
        """Batches of the corpus that bring about so many tokens to the site."""
        return max(1, int(tokens / (self.share * self.settings.batch_tokens)))

    def _collect(self, steps: range) -> Activations:
        if steps.start:
            return Activations.join(self.recorder.record(self.corpus.train, steps, _slot(steps)))
        parts = [] if self.beginning is None else [self.beginning]
        for part in self.recorder.record(self.corpus.train, range(len(self.ends) - 1, steps.stop), _slot(steps)):
            parts.append(part)
            self.ends.append(self.ends[-1] + len(part))
        self.beginning = Activations.join(parts) if len(parts) > 1 else parts[0]
        return self.beginning.first(self.ends[steps.stop])

    def _collect_held_out(self) -> Activations:
        steps = range(self._steps(min(HELD_OUT_TOKENS, self.corpus.holdout.tokens_in(self.tap.stream))))
        return Activations.join(self.recorder.record(self.corpus.holdout, steps, "held"))

    @torch.no_grad()
    def held_out_error(self, student: Student) -> float:
        """Error on tokens that training does not see."""
        total, size = 0.0, self.settings.batch_tokens
        for start in range(0, len(self.held_out), size):
            part = self.held_out.rows(torch.arange(start, min(start + size, len(self.held_out))))
            total += float(self.objective(student(part.x), part)) * len(part)
        return total / len(self.held_out)

    def fit(self, student: Student, dense_weights: DenseWeights, table_steps: int = TABLE_STEPS) -> float:
        """Closed-form start from the first `fit.tokens` tokens; returns the held-out error."""
        there = self.corpus.train.tokens_in(self.tap.stream)
        data = self._collect(range(self._steps(min(self.fit_settings.tokens, there))))
        token_weight, channel_weight = self.objective.weights(data)
        site_data = SiteData(data.x, data.goal - data.residual, token_weight, channel_weight)
        generator = torch.Generator().manual_seed(self.seed)
        fit(
            student, site_data, dense_weights, ridge=self.fit_settings.ridge, generator=generator,
            table_steps=table_steps,
        )  # fmt: skip
        return self.held_out_error(student)

    def run(
        self, students: Sequence[Student], dense_weights: DenseWeights,
        told: Callable[[int, float | None], None] = lambda step, error: None,
    ) -> Distilled:  # fmt: skip
        """Fit, then train one of `students` on `distill.steps` mini-batches: that whose closed form is best.

        The first has tables, and others must be better by more than `BETTER_WITHOUT` says. The one that is trained ends
        in the state that is best on held-out tokens. `told` hears each step, and its training error where that is read.
        Where the error is no number or explodes, training begins again from the best state with smaller steps; raises
        Diverged where that does not help.
        """
        training = self._training(students, dense_weights)
        student = training.student
        chunk: range | None = None
        while training.step < self.settings.steps:
            part = next(part for part in self._parts() if training.step < part.stop)
            if part.chunk != chunk:
                if chunk is not None:
                    self.progress.drop(_slot(chunk))
                chunk, data = part.chunk, self._collect(part.chunk)
                self.beginning, self.ends = None, [0]
                visits = _Visits(len(data), self.settings.batch_tokens, self.seed * 7919 + chunk.start)
            rows = data.rows(visits.batch(training.step - part.start))
            error = training.train_step(lambda: self._error(student, rows))  # noqa: B023  # called at once
            told(training.step, error)
            if training.step < self.settings.steps and self.progress.due():
                self.progress.keep(_STATE, *training.state())
        student.load_state_dict(training.best)
        return Distilled(training.fits, training.chosen, training.best_error, training.restarts)

    def _error(self, student: Student, rows: Activations) -> Tensor:
        with autocast(rows.x.device, self.settings.dtype):
            answer = student(rows.x)
        return self.objective(answer, rows)

    def _training(self, students: Sequence[Student], dense_weights: DenseWeights) -> _Training:
        rate = self.settings.learning_rate
        rate = AUTO_LEARNING_RATE if rate == "auto" else float(rate)
        kept = self.progress.get(_STATE)
        if kept is not None:
            return _Training.resumed(students, self, kept)
        # Where students are compared, tables must be what they can be.
        from_zero = len(students) == 1 and self.settings.steps >= TRAINED_FROM_ZERO
        try:
            fits = [self.fit(student, dense_weights, 0 if from_zero else TABLE_STEPS) for student in students]
        except torch.linalg.LinAlgError as error:
            raise Diverged(f"the closed form has no solution: {error}") from None
        chosen = _chosen(fits)
        if diverged(fits[chosen], 0.0):
            raise Diverged(f"the closed form has error {fits[chosen]:.3g}")
        groups = student_groups(students[chosen], rate, self.answer_scale)
        peaks = [float(group["lr"]) for group in groups]  # type: ignore[arg-type]
        training = _Training(students[chosen], self, peaks, fits, chosen)
        if self.settings.steps and self.progress.due():
            self.progress.keep(_STATE, *training.state())
        return training

    def _chunks(self) -> list[range]:
        """Batches of the corpus to record, in chunks that fit the cache; together visited `VISITS` times."""
        wanted = self.settings.steps // VISITS * self.settings.batch_tokens
        unique = self._steps(min(wanted, self.corpus.train.tokens_in(self.tap.stream)))
        site = self.tap.site
        cached = self._steps(CACHE_BYTES // (4 * (site.d_in + 2 * site.d_out)))
        return [range(start, min(start + cached, unique)) for start in range(0, unique, cached)]

    def _parts(self) -> list[_Part]:
        """Which steps are taken on which chunk."""
        chunks, steps = self._chunks(), self.settings.steps
        parts, start = [], 0
        for chunk in chunks:
            stop = min(steps, start + max(1, round(steps * len(chunk) / chunks[-1].stop)))
            parts.append(_Part(chunk, start, steps if chunk is chunks[-1] else stop))
            start = parts[-1].stop
        return parts


@dataclass(frozen=True)
class _Part:
    """Steps `start` to `stop` of a site's training, on the chunk of batches that is recorded for them."""

    chunk: range
    start: int
    stop: int


class _Visits:
    """Mini-batches of token indices over a recorded chunk, reshuffled at each pass."""

    def __init__(self, tokens: int, size: int, seed: int) -> None:
        self.tokens, self.size, self.seed = tokens, min(size, tokens), seed
        self.passes = 0

    def batch(self, number: int) -> Tensor:
        """The batch of any number, from 0; quick where numbers rise."""
        wanted, position = divmod(number, max(1, self.tokens // self.size))
        if self.passes == 0 or self.passes > wanted + 1:
            self.generator, self.passes = torch.Generator().manual_seed(self.seed), 0
        while self.passes <= wanted:
            self.order = torch.randperm(self.tokens, generator=self.generator)
            self.passes += 1
        return self.order[position * self.size : (position + 1) * self.size]


def _chosen(fits: Sequence[float]) -> int:
    """Which student is trained: the first, which has tables, unless another is better by what they gain in training."""
    best = min(range(len(fits)), key=lambda index: math.inf if math.isnan(fits[index]) else fits[index])
    return 0 if fits[best] > BETTER_WITHOUT * fits[0] else best


def _slot(chunk: range) -> str:
    return f"train-{chunk.start}-"


class _Training:
    """Where a site's training stands: all that the next step depends on, and the best state so far."""

    def __init__(
        self, student: Student, distiller: SiteDistiller, peaks: list[float], fits: list[float], chosen: int
    ) -> None:  # fmt: skip
        self.student, self.distiller, self.peaks = student, distiller, peaks
        self.fits, self.chosen, self.fitted = fits, chosen, fits[chosen]
        self.steps = distiller.settings.steps
        self.every = max(1, self.steps // EVALUATIONS)
        self.errors = Errors()
        self.step, self.restarts = 0, 0
        self.best_step, self.best_error, self.best = 0, self.fitted, copy.deepcopy(student.state_dict())
        self._start()

    def _start(self) -> None:
        groups = [{"params": [p], "lr": peak} for p, peak in zip(self.student.parameters(), self.peaks, strict=True)]
        self.optimiser = adam(groups)
        self.schedule = Schedule(self.optimiser, self.steps)
        self.schedule.factor = SMALLER**self.restarts

    def train_step(self, compute: Callable[[], Tensor]) -> float | None:
        """One step, and the held-out error where it is its turn; back to the best state where the error diverges.

        Returns the error of the step where it is read.
        """
        self.schedule.set(self.step)
        self.optimiser.zero_grad()
        loss = compute()
        evaluating = (self.step + 1) % self.every == 0 or self.step + 1 == self.steps
        errors = self.errors.read(loss, now=evaluating)
        bad = next((error for error in errors if diverged(error, self.fitted)), None)
        if bad is None:
            loss.backward()
            clip(self.student.parameters(), _CLIP)
            self.optimiser.step()
            self.step += 1
            if not evaluating:
                return errors[-1] if errors else None
            error_now = self.distiller.held_out_error(self.student)
            if not diverged(error_now, self.fitted):
                if error_now < self.best_error:
                    self.best_step, self.best_error = self.step, error_now
                    self.best = copy.deepcopy(self.student.state_dict())
                return errors[-1]
            bad = error_now
        self._restart(bad)
        return bad

    def _restart(self, error: float) -> None:
        if self.restarts == RESTARTS:
            raise Diverged(f"error {error:.3g} at step {self.step} of {self.steps}, and with smaller steps before")
        self.restarts += 1
        self.step = self.best_step
        self.student.load_state_dict(self.best)
        self._start()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and values to go on from."""
        tensors = {f"student.{name}": value for name, value in self.student.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        values = {
            "step": self.step, "restarts": self.restarts, "fits": self.fits, "chosen": self.chosen, "peaks": self.peaks,
            "best_step": self.best_step, "best_error": self.best_error,
        }  # fmt: skip
        return {**tensors, **moments(self.optimiser)}, values

    @classmethod
    def resumed(
        cls, students: Sequence[Student], distiller: SiteDistiller, kept: tuple[dict[str, Tensor], dict[str, Any]]
    ) -> _Training:
        """Go on from what `state` gave."""
        tensors, values = kept
        student = students[values["chosen"]]
        student.load_state_dict(_named(tensors, "student."))
        training = cls(student, distiller, values["peaks"], values["fits"], values["chosen"])
        training.step, training.restarts = values["step"], values["restarts"]
        training.best_step, training.best_error = values["best_step"], values["best_error"]
        training.best = _named(tensors, "best.")
        training._start()
        restore_moments(training.optimiser, tensors)
        return training


def _named(tensors: dict[str, Tensor], beginning: str) -> dict[str, Tensor]:
    return {name.removeprefix(beginning): value for name, value in tensors.items() if name.startswith(beginning)}
