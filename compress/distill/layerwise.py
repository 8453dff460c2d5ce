"""Fit and distil one site: closed form first, then mini-batches against the dense model's answers."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from ..data import Corpus, Split
from ..dense import DenseWeights
from ..lookup import LookupFFN
from ..lookup.fit import TABLE_STEPS, SiteData, fit
from ..recipe import DistillSettings, FitSettings
from .activations import Activations, Tap, collect
from .objectives import BehindNorm
from .optimisation import AUTO_LEARNING_RATE, Schedule, adam, clip, student_groups

CACHE_BYTES = 2 << 30  # recorded activations held at once
VISITS = 4  # of each recorded token: recording one costs about as much as training on it a few times
HELD_OUT_TOKENS = 16_384
EVALUATIONS = 8  # of the held-out error over a site's training; the best state is kept
TRAINED_FROM_ZERO = 200  # steps behind which tables end at the same error without a closed form
_CLIP = 1.0


class SiteDistiller:
    """Fits and distils the student of one site; `dense` is untouched, `converted` has its earlier sites replaced.

    Step counts and seeds alone decide the result, so a site that is started again ends with the same bytes.
    """

    def __init__(
        self, dense: nn.Module, converted: nn.Module, tap: Tap, corpus: Corpus, settings: DistillSettings,
        fit_settings: FitSettings, seed: int,
    ) -> None:  # fmt: skip
        self.dense, self.tap, self.corpus = dense, tap, corpus
        self.converted = converted if settings.inputs == "student" else None
        self.settings, self.fit_settings, self.seed = settings, fit_settings, seed
        # Of a batch's tokens, those that come by here: a decoder's sites see fewer than the encoder's.
        self.share = corpus.train.tokens_in(tap.stream) / corpus.train.tokens
        norm = dense.get_submodule(tap.norm) if tap.norm is not None and settings.objective == "block" else None
        self.objective = BehindNorm(norm)
        self.beginning: Activations | None = None  # the first batches, recorded once for the fit and the first visits
        self.ends = [0]  # tokens of it before each batch, and of all
        self.held_out = self._collect_held_out()
        self.objective.calibrate(self.held_out)
        wanted = self.held_out.goal - self.held_out.residual
        self.answer_scale = float(wanted.std(0).square().mean().sqrt())  # deviation of the answers, over channels

    def _steps(self, tokens: int) -> int:
        """Batches of the corpus that bring about so many tokens to the site."""
        return max(1, int(tokens / (self.share * self.settings.batch_tokens)))

    def _record(self, split: Split, steps: range) -> list[Activations]:
        return collect(self.dense, self.converted, self.tap, split, steps, self.settings.batch_tokens, self.seed)

    def _collect(self, steps: range) -> Activations:
        if steps.start:
            return Activations.join(self._record(self.corpus.train, steps))
        parts = [] if self.beginning is None else [self.beginning]
        for part in self._record(self.corpus.train, range(len(self.ends) - 1, steps.stop)):
            parts.append(part)
            self.ends.append(self.ends[-1] + len(part))
        self.beginning = Activations.join(parts) if len(parts) > 1 else parts[0]
        return self.beginning.first(self.ends[steps.stop])

    def _collect_held_out(self) -> Activations:
        steps = range(self._steps(min(HELD_OUT_TOKENS, self.corpus.holdout.tokens_in(self.tap.stream))))
        return Activations.join(self._record(self.corpus.holdout, steps))

    @torch.no_grad()
    def held_out_error(self, student: LookupFFN) -> float:
        """Error on tokens that training does not see."""
        total, size = 0.0, self.settings.batch_tokens
        for start in range(0, len(self.held_out), size):
            part = self.held_out.rows(torch.arange(start, min(start + size, len(self.held_out))))
            total += float(self.objective(student(part.x), part)) * len(part)
        return total / len(self.held_out)

    def fit(self, student: LookupFFN, dense_weights: DenseWeights) -> float:
        """Closed-form start from the first `fit.tokens` tokens; returns the held-out error."""
        there = self.corpus.train.tokens_in(self.tap.stream)
        data = self._collect(range(self._steps(min(self.fit_settings.tokens, there))))
        token_weight, channel_weight = self.objective.weights(data)
        site_data = SiteData(data.x, data.goal - data.residual, token_weight, channel_weight)
        generator = torch.Generator().manual_seed(self.seed)
        table_steps = 0 if self.settings.steps >= TRAINED_FROM_ZERO else TABLE_STEPS
        fit(
            student, site_data, dense_weights, ridge=self.fit_settings.ridge, generator=generator,
            table_steps=table_steps,
        )  # fmt: skip
        return self.held_out_error(student)

    def distill(self, student: LookupFFN, progress: Callable[[int, float], None] = lambda step, error: None) -> float:
        """Train on `distill.steps` mini-batches and keep the state that was best on held-out tokens.

        `progress` is told each step and its training error. Returns the best held-out error.
        """
        settings = self.settings
        rate = AUTO_LEARNING_RATE if settings.learning_rate == "auto" else float(settings.learning_rate)
        optimiser = adam(student_groups(student, rate, self.answer_scale))
        schedule = Schedule(optimiser, settings.steps)
        best_error, best = self.held_out_error(student), copy.deepcopy(student.state_dict())

        step, every = 0, max(1, settings.steps // EVALUATIONS)
        for chunk in self._chunks():
            data = self._collect(chunk)
            self.beginning, self.ends = None, [0]
            for index in self._visit(len(data), chunk, settings.steps - step):
                rows = data.rows(index)
                schedule.set(step)
                optimiser.zero_grad()
                error = self.objective(student(rows.x), rows)
                error.backward()
                clip(student.parameters(), _CLIP)
                optimiser.step()
                step += 1
                progress(step, float(error.detach()))
                if step % every == 0 or step == settings.steps:
                    held_out = self.held_out_error(student)
                    if held_out < best_error:
                        best_error, best = held_out, copy.deepcopy(student.state_dict())
        student.load_state_dict(best)
        return best_error

    def _chunks(self) -> list[range]:
        """Batches of the corpus to record, in chunks that fit the cache; together visited `VISITS` times."""
        wanted = self.settings.steps // VISITS * self.settings.batch_tokens
        unique = self._steps(min(wanted, self.corpus.train.tokens_in(self.tap.stream)))
        site = self.tap.site
        cached = self._steps(CACHE_BYTES // (4 * (site.d_in + 2 * site.d_out)))
        return [range(start, min(start + cached, unique)) for start in range(0, unique, cached)]

    def _visit(self, tokens: int, chunk: range, steps_left: int) -> list[torch.Tensor]:
        """Mini-batches of token indices over a recorded chunk, reshuffled at each pass."""
        unique = sum(len(part) for part in self._chunks())
        steps = min(steps_left, max(1, round(self.settings.steps * len(chunk) / unique)))
        if chunk.stop == unique:
            steps = steps_left
        generator = torch.Generator().manual_seed(self.seed * 7919 + chunk.start)
        size = min(self.settings.batch_tokens, tokens)
        batches: list[torch.Tensor] = []
        while len(batches) < steps:
            batches.extend(torch.randperm(tokens, generator=generator).split(size)[: max(1, tokens // size)])
        return batches[:steps]
