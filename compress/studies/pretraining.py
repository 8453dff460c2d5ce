"""Studies of training from scratch: the paper's systems in masked-language models, on the same tokens."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..baselines.costs import costs
from ..baselines.slide import SlideFFN
from ..devices import choose_device
from ..errors import CompressError, RecipeError
from ..evaluate.setting import processor
from ..evaluate.wording import bytes_text, count_text, counted
from .masked_text import load_masked_text
from .pictures import Picture
from .results import Cell, Point
from .runner import Stop
from .settings import PretrainingStudy, SystemCell
from .tables import Column
from .timing import measure_times, packed, recorded_inputs
from .training import forget_state, held_out_loss, model_of, train

_RETRIEVAL = ("computed", "computed_in_training", "retrieved_per_token", "recall", "rebuilds", "largest_over_mean",
              "buckets_used", "busiest_over_mean", "outdated", "rebuild_multiply_adds")  # fmt: skip
_SYSTEMS = {"vanilla": "vanilla", "slide": "SLIDE", "mongoose": "MONGOOSE", "lookup": "LookupFFN"}


class Pretraining:
    """The cells of a pretraining study; the text is read and every model built once, so that mistakes show now.

    device: of training; times are the CPU's.  Raises a CompressError for whatever a user can mend.
    """

    def __init__(
        self, study: PretrainingStudy, *, device: str | None = None, threads: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:  # fmt: skip
        if threads is not None:
            torch.set_num_threads(threads)
        self.study = study
        self.device = choose_device(device)
        self.text = load_masked_text(study.data)
        self.systems: dict[str, tuple[SystemCell, int]] = {}
        self.cells: list[Cell] = []
        shared = {
            "library": {name: version(name) for name in ("compress-lookup", "torch", "transformers")},
            "data": self.text.fingerprint,
            "model": study.model.model_dump(mode="json"),
            "training": study.training.model_dump(mode="json", exclude={"learning_rate"}),
        }
        for number, cell in enumerate(study.cells):
            try:
                model_of(study, cell, 0, self.text.vocabulary)
            except CompressError as error:
                raise RecipeError(error.message, where=f"cells.{number}, {cell.name}", remedy=error.remedy) from None
            for seed in study.seeds if cell.seeds is None else cell.seeds:
                name = f"{cell.name}-seed{seed}"
                rates = study.training.learning_rate.model_dump()
                own = {"ffn": cell.ffn, "settings": cell.settings, "seed": seed, "learning rate": rates[cell.ffn]}
                if cell.ffn == "lookup":
                    own |= {f"{part} learning rate": rates[part] for part in ("tables", "hash")}
                self.systems[name] = cell, seed
                self.cells.append(Cell(name, cell.name, _system(cell), {**shared, **own}))
        self.reference = _reference(study)

    @property
    def title(self) -> str:
        """Sizes, text and schedule."""
        m, t = self.study.model, self.study.training
        tokens = t.steps * t.batch * self.study.data.sequence_length
        return (
            f"Masked-language pretraining: {m.layers} layers of width {m.hidden}, {t.steps:,} steps of {t.batch} x "
            f"{self.study.data.sequence_length} tokens ({tokens:,}), on {self.text.description}."
        )

    @property
    def columns(self) -> list[Column]:
        """Loss, costs of one FFN, times, what the hash tables do."""

        def times(value: float) -> str:
            return f"{value:.2f}x"

        def plain(value: float) -> str:
            return f"{value:.3g}"

        made = [
            Column("loss", "held-out loss", lambda value: f"{value:.3f}"),
            Column("multiply_adds", "multiply-adds", count_text),
            Column("bytes_read", "bytes read", bytes_text),
            Column("parameters", "parameters", count_text),
        ]
        for batch in self.study.timing.batches:
            made += [
                Column(f"ffn_us_{batch}", f"FFNs, batch {batch}, µs/token", plain),
                Column(f"ffn_relative_{batch}", "/ reference", times),
                Column(f"model_relative_{batch}", f"model, batch {batch} / reference", times),
            ]
        made += [
            Column("int8_loss", "loss in int8", lambda value: f"{value:.3f}"),
            Column("int8_ffn_relative_1", "int8 FFNs, batch 1 / reference in int8", times),
            Column("training_seconds", "training, s", lambda value: f"{value:.0f}"),
            Column("computed", "neurons computed", lambda value: f"{value:.0f}"),
            Column("recall", "recall of the largest 2 %", lambda value: f"{100 * value:.0f} %"),
            Column("rebuilds", "rebuilds", lambda value: f"{value:.1f}"),
            Column("rebuild_multiply_adds", "rebuilds, multiply-adds", count_text),
            Column("largest_over_mean", "largest bucket / mean", lambda value: f"{value:.1f}"),
        ]
        return made

    @property
    def pictures(self) -> list[Picture]:
        """The loss over each cost."""
        found = [("flops", "multiply_adds", "multiply-adds per token of one FFN"),
                 ("bytes", "bytes_read", "bytes read per token by one FFN, float32")]  # fmt: skip
        found += [
            (f"time-{batch}", f"ffn_relative_{batch}", f"CPU time of the FFNs at batch {batch}, reference = 1")
            for batch in self.study.timing.batches
        ]
        return [Picture(f"loss-over-{n}.png", key, label, "loss", "held-out loss, nats") for n, key, label in found]

    def run(self, cell: Cell, folder: Path, stop: Stop) -> dict[str, Any]:
        """Train, and measure loss, costs and times."""
        system, seed = self.systems[cell.name]
        model, names = model_of(self.study, system, seed, self.text.vocabulary)
        model.to(self.device)
        training = train(
            model, self.study, system, seed, self.text, folder=folder, device=self.device, stop=stop
        )  # fmt: skip
        share = self.study.training.mask
        loss, stderr = held_out_loss(model, self.text, share, self.device)
        model.to("cpu").eval()
        values: dict[str, Any] = {"loss": loss, "loss_stderr": None if math.isnan(stderr) else stderr}
        values["unigram_loss"] = self.text.unigram_loss
        values |= self._costs(model, names)
        values |= _retrieval(model, names, self.text.held_out)
        if system.ffn == "lookup":
            values["int8_loss"] = held_out_loss(packed(model, names, "int8").to("cpu"), self.text, share, "cpu")[0]
        values["training_seconds"] = training
        if self.study.timing.seconds > 0:
            reference, _ = model_of(self.study, self.reference, seed, self.text.vocabulary)
            values |= measure_times(model, names, reference, self.text.held_out, self.study.timing)
        forget_state(folder)
        return values

    def _costs(self, model: nn.Module, names: Sequence[str]) -> dict[str, float]:
        """Of one FFN, the mean over layers."""
        found = [costs(model.get_submodule(name)) for name in names]
        return {
            key: statistics.fmean(getattr(one, key) for one in found)
            for key in ("multiply_adds", "bytes_read", "parameters")
        }

    def notes(self, points: Sequence[Point]) -> list[str]:
        """What the columns mean, and the setting."""
        t, rates = self.study.training, self.study.training.learning_rate
        stated = ", ".join(f"{_SYSTEMS[kind]} {getattr(rates, kind):g}" for kind in _SYSTEMS)
        return [
            "Held-out loss: nats at masked tokens, the same mask for all; ± is the standard error over seeds, of a "
            "single seed over blocks of text. A model that knows only how frequent each token is has "
            f"{self.text.unigram_loss:.3f}.",
            "Multiply-adds, bytes (float32) and parameters are of one FFN, per token at batch 1; an exponential counts "
            "10. SLIDE and MONGOOSE count the neurons that they computed on held-out text; what rebuilding took in the "
            "whole training, MONGOOSE's looks at drift included, is a column of its own.",
            f"Times are medians on the CPU ({processor()}, {counted(torch.get_num_threads(), 'thread')}), interleaved "
            f"with the reference, {self.reference.name}, in the same process, in float32; LookupFFN by its kernel.",
            f"Every cell: the same tokens in the same order, AdamW, {t.warmup:.0%} warm-up, then a half cosine; peak "
            f"step sizes: {stated} (tables {rates.tables:g}, "
            f"hash {rates.hash:g} of its weights' root mean square).",
        ]


def _system(cell: SystemCell) -> str:
    """The line of a picture."""
    if cell.ffn != "lookup":
        return _SYSTEMS[cell.ffn]
    return f"LookupFFN, {str(cell.settings.get('projection', 'bh4')).upper().replace('DENSE', 'dense')}"


def _reference(study: PretrainingStudy) -> SystemCell:
    """What times are compared with."""
    found = {cell.name: cell for cell in study.cells}
    if study.reference is not None:
        if study.reference not in found or found[study.reference].ffn != "vanilla":
            raise RecipeError(
                f"`{study.reference}` is no vanilla cell", where="reference", remedy="name one of the study's cells"
            )
        return found[study.reference]
    wide = 4 * study.model.hidden
    return SystemCell(name=f"vanilla-{wide}", ffn="vanilla", settings={"d_hidden": wide})


def _retrieval(model: nn.Module, names: Sequence[str], blocks: Tensor) -> dict[str, float]:
    """What hash tables of neurons do on held-out text, the mean over layers."""
    ffns = [model.get_submodule(name) for name in names]
    if not all(isinstance(ffn, SlideFFN) and ffn.buckets.bits for ffn in ffns):
        return {}
    inputs = recorded_inputs(model, names, blocks)
    found = [dataclasses.asdict(ffn.statistics(x)) for ffn, x in zip(ffns, inputs, strict=True)]  # type: ignore[operator]
    return {
        key: statistics.fmean(values)
        for key in _RETRIEVAL
        if (values := [one[key] for one in found if one.get(key) is not None])
    }
