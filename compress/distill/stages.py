"""The training stages of a job: every site in order of execution, then all of them together."""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from ..data import Corpus
from ..lookup import LookupFFN
from ..models import Pretrained
from ..plan import Plan, SitePlan
from ..recipe import Recipe
from ..sites import site_weights, swap
from .activations import Tap
from .endtoend import EndToEnd
from .job import Job, write_durable
from .layerwise import SiteDistiller

SAVE_SECONDS = 120.0  # between durable states of the end-to-end stage
HELD_OUT_TOKENS = 16_384


class Stages:
    """Runs the stages of a job that are still to do; students end in their places in `converted.model`."""

    def __init__(
        self, job: Job, recipe: Recipe, plan: Plan, taps: Sequence[Tap], dense: Pretrained, converted: Pretrained,
        corpus: Corpus,
    ) -> None:  # fmt: skip
        self.job, self.recipe, self.plan, self.taps, self.corpus = job, recipe, plan, taps, corpus
        self.dense, self.converted = dense.model.requires_grad_(False), converted.model.requires_grad_(False)
        self.task = dense.task
        for model in (self.dense, self.converted):
            model.config.use_cache = False  # keys and values of a cache would only cost memory here
        self.device = next(self.dense.parameters()).device

    def distill(self) -> None:
        """Fit and distil every site behind the converted prefix; a finished site is read back from its file."""
        for entry, tap in zip(self.plan.converted, self.taps, strict=True):
            name = f"distill/{entry.site.name}"
            file = self.job.unit_file(name, ".safetensors")
            assert entry.geometry is not None
            student = LookupFFN.from_geometry(entry.geometry)
            if self.job.unit(name) is None:
                result = self._distill_site(student, entry, tap)
                save_state(file, student.state_dict())
                self.job.finish_unit(name, result)
            student.load_state_dict(load_file(file))
            swap(self.converted, entry.site, student.to(self.device).eval())

    def _distill_site(self, student: LookupFFN, entry: SitePlan, tap: Tap) -> dict[str, Any]:
        seed = stage_seed(self.recipe.seed, "distill", entry.site.name)
        torch.manual_seed(seed)
        student.to(self.device)
        distiller = SiteDistiller(
            self.dense, self.converted, tap, self.corpus, self.recipe.distill, self.recipe.fit, seed
        )
        fitted = distiller.fit(student, site_weights(self.dense, entry.site))
        steps = self.recipe.distill.steps
        with tqdm(total=steps, desc=entry.site.name, unit="step", disable=None) as bar:

            def progress(step: int, error: float) -> None:
                bar.update()
                bar.set_postfix(error=f"{error:.4f}", refresh=False)

            distilled = distiller.distill(student, progress) if steps else fitted
        tqdm.write(f"{entry.site.name}: error {fitted:.4f} fitted" + (f", {distilled:.4f} distilled" if steps else ""))
        return {"fitted": fitted, "distilled": distilled, "scale": distiller.answer_scale}

    def finetune(self) -> None:
        """Train all students together; states are made durable every `SAVE_SECONDS`."""
        settings = self.recipe.finetune
        if not settings.steps:
            return
        file = self.job.unit_file("finetune", ".safetensors")
        if self.job.unit("finetune") is None:
            result, trained = self._finetune()
            save_state(file, trained)
            self.job.finish_unit("finetune", result)
        self._restore({} if not self.job.journal["units"]["finetune"]["kept"] else load_file(file))

    def _finetune(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        settings, batch_tokens = self.recipe.finetune, self.recipe.finetune.batch_tokens
        seed = stage_seed(self.recipe.seed, "finetune", "")
        units = self.job.journal["units"]
        scales = {tap.site.name: units[f"distill/{tap.site.name}"]["scale"] for tap in self.taps}
        trainer = EndToEnd(self.dense, self.converted, self.taps, self.task, settings, scales)
        saved_state = self.job.unit_file("finetune", ".partial.pt")
        if saved_state.exists():
            state = torch.load(saved_state, map_location=self.device, weights_only=True)
            before = state["before"]
            trainer.load(state["trainer"])
        else:
            before = trainer.held_out_error(self.corpus.holdout, batch_tokens, HELD_OUT_TOKENS)
        saved = time.monotonic()
        with tqdm(total=settings.steps, initial=trainer.step, desc="end to end", unit="step", disable=None) as bar:
            while trainer.step < settings.steps:
                batch = self.corpus.train.batch(trainer.step, batch_tokens, seed)
                error = trainer.train_step(batch)
                bar.update()
                bar.set_postfix(error=f"{error:.4f}", refresh=False)
                if time.monotonic() - saved > SAVE_SECONDS:
                    write_durable(saved_state, partial(torch.save, {"before": before, "trainer": trainer.state()}))
                    saved = time.monotonic()
        after = trainer.held_out_error(self.corpus.holdout, batch_tokens, HELD_OUT_TOKENS)
        trained = trainer.state()["parameters"] if after < before else {}
        tqdm.write(f"end to end: error {before:.4f} before, {after:.4f} after" + ("" if trained else ": not kept"))
        return {"before": before, "after": after, "kept": bool(trained)}, trained

    @torch.no_grad()
    def _restore(self, trained: dict[str, torch.Tensor]) -> None:
        """Set the converted model to what the layer-wise stage left, with `trained` in its place where there is any."""
        parameters = dict(self.converted.named_parameters())
        students = tuple(f"{tap.site.entry}." for tap in self.taps)  # one may share the name of a bias with its FFN
        for name, dense in self.dense.named_parameters():
            if name in parameters and not name.startswith(students):
                parameters[name].copy_(dense)
        for tap in self.taps:
            state = load_file(self.job.unit_file(f"distill/{tap.site.name}", ".safetensors"))
            self.converted.get_submodule(tap.site.entry).load_state_dict(state)
        for name, value in trained.items():
            parameters[name].copy_(value)


def stage_seed(seed: int, stage: str, site: str) -> int:
    """A seed of its own for every stage and site."""
    return zlib.crc32(f"{seed}/{stage}/{site}".encode())


def save_state(path: Path, state: dict[str, torch.Tensor]) -> None:
    """Write tensors durably."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    write_durable(path, lambda temporary: save_file(tensors, temporary))
