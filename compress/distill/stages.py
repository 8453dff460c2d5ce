"""The training stages of a job: every site in order of execution, then all of them together."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import torch
from safetensors.torch import load_file
from tqdm import tqdm

from ..data import Ahead, Corpus
from ..errors import SiteError
from ..models import Pretrained
from ..plan import Plan, SitePlan
from ..recipe import Recipe
from ..sites import site_weights, swap
from ..students import StudentGeometry, build
from .activations import Tap
from .divergence import Diverged
from .endtoend import EndToEnd, answers_compared
from .job import Job
from .layerwise import Distilled, SiteDistiller
from .progress import Progress, save_tensors
from .steps import Steps

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
        """Fit and distil every site behind the converted prefix; a finished site is read back from its file.

        A site whose training diverges stays dense, and leaves `plan` and `taps`. Raises SiteError where all do.
        """
        for entry, tap in list(zip(self.plan.converted, self.taps, strict=True)):
            name = f"distill/{entry.site.name}"
            file = self.job.unit_file(name, ".safetensors")
            result = self.job.unit(name)
            if result is None:
                result = self._distill_site(entry, tap, name)
            if "dense" in result:
                self.plan = self.plan.keeping_dense(entry.site.name, result["dense"])
                self.taps = [other for other in self.taps if other is not tap]
                continue
            if "without_tables" in result:
                self.plan = self.plan.without_tables(entry.site.name)
            student = build(_geometries(entry)["without_tables" in result])
            student.load_state_dict(load_file(file))
            swap(self.converted, entry.site, student.to(self.device).eval())
        if not self.taps:
            raise SiteError(
                "training diverged at every site, so that all would stay dense", where=str(self.job.out),
                remedy="start anew with a smaller distill.learning_rate; check the model's own outputs on this data",
            )  # fmt: skip

    def _distill_site(self, entry: SitePlan, tap: Tap, name: str) -> dict[str, Any]:
        seed = stage_seed(self.recipe.seed, "distill", entry.site.name)
        torch.manual_seed(seed)
        students = [build(geometry).to(self.device) for geometry in _geometries(entry)]
        steps, site = self.recipe.distill.steps, entry.site.name
        distiller = SiteDistiller(
            self.dense, self.converted, tap, self.corpus, self.recipe.distill, self.recipe.fit, seed,
            Progress(self.job, name),
        )  # fmt: skip
        with Steps(site, steps) as told:
            try:
                done = distiller.run(students, site_weights(self.dense, entry.site), told.tell)
            except Diverged as reason:
                tqdm.write(f"{site}: stays dense, as training diverged: {reason}")
                result: dict[str, Any] = {"dense": str(reason)}
                self.job.journal["plan"] = self.plan.keeping_dense(site, str(reason)).to_dict()
                self.job.finish_unit(name, result)
                return result
        tqdm.write(
            f"{site}: error {done.fitted:.4f} fitted" + _compared(done)
            + (f", {done.distilled:.4f} distilled" if steps else "")
            + _speed(told, self.recipe.distill.batch_tokens)
            + (f", begun again {done.restarts} times with smaller steps" if done.restarts else "")
        )  # fmt: skip
        result = {"fitted": done.fitted, "distilled": done.distilled, "scale": distiller.answer_scale}
        result |= {"restarts": done.restarts} if done.restarts else {}
        if done.chosen:  # written with the result: a job that goes on must not choose anew
            result["without_tables"] = {"fitted_with_tables": done.fits[0]}
            self.job.journal["plan"] = self.plan.without_tables(site).to_dict()
        file = self.job.unit_file(name, ".safetensors")
        save_tensors(file, students[done.chosen].state_dict())
        self.job.finish_unit(name, result, [file])
        return result

    def finetune(self) -> None:
        """Train all students together, from the last durable state where there is one."""
        if not self.recipe.finetune.steps:
            return
        file = self.job.unit_file("finetune", ".safetensors")
        result = self.job.unit("finetune")
        if result is None:
            result, trained = self._finetune()
            if trained:
                save_tensors(file, trained)
            self.job.finish_unit("finetune", result, [file] if trained else [])
        self._restore(load_file(file) if result["kept"] else {})

    def _finetune(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        settings, batch_tokens = self.recipe.finetune, self.recipe.finetune.batch_tokens
        seed = stage_seed(self.recipe.seed, "finetune", "")
        units = self.job.journal["units"]
        scales = {tap.site.name: units[f"distill/{tap.site.name}"]["scale"] for tap in self.taps}
        answers = answers_compared(self.corpus.train, self.task, settings)
        trainer = EndToEnd(self.dense, self.converted, self.taps, self.task, settings, scales, answers)
        progress, note = Progress(self.job, "finetune"), None
        kept = progress.get("state")
        if kept is not None:
            trainer.load(*kept)
        else:
            trainer.before = trainer.held_out_error(self.corpus.holdout, batch_tokens, HELD_OUT_TOKENS)
        before = trainer.before
        assert before is not None
        ahead = Ahead(self.corpus.train, batch_tokens, seed, self.device, settings.steps)
        with ahead, Steps("end to end", settings.steps, trainer.step) as told:
            while trainer.step < settings.steps:
                if progress.due():
                    progress.keep("state", *trainer.state())
                try:
                    error = trainer.train_step(ahead.batch(trainer.step))
                except Diverged as reason:
                    note = str(reason)
                    break
                told.tell(trainer.step, error)
        after = trainer.held_out_error(self.corpus.holdout, batch_tokens, HELD_OUT_TOKENS)
        trained = trainer.trained() if after < before else {}
        tqdm.write(
            f"end to end: error {before:.4f} before, {after:.4f} after" + ("" if trained else ": not kept")
            + _speed(told, batch_tokens)
            + (f"; training diverged: {note}" if note else "")
        )  # fmt: skip
        result: dict[str, Any] = {"before": before, "after": after, "kept": bool(trained)}
        result |= {"restarts": trainer.restarts} if trainer.restarts else {}
        return result | ({"diverged": note} if note else {}), trained

    @torch.no_grad()
    def _restore(self, trained: dict[str, torch.Tensor]) -> None:
        """Set the converted model to what the layer-wise stage left, with `trained` in its place where there is any."""
        parameters = dict(self.converted.named_parameters())
        students = tuple(f"{tap.site.entry}." for tap in self.taps)  # where one stands for a linear, both have a bias
        for name, dense in self.dense.named_parameters():
            if name in parameters and not name.startswith(students):
                parameters[name].copy_(dense)
        for tap in self.taps:
            state = load_file(self.job.unit_file(f"distill/{tap.site.name}", ".safetensors"))
            self.converted.get_submodule(tap.site.entry).load_state_dict(state)
        for name, value in trained.items():
            parameters[name].copy_(value)


def _geometries(entry: SitePlan) -> list[StudentGeometry]:
    """What is fitted at a site: the planned student, and that of the same budget without tables."""
    assert entry.geometry is not None
    return [entry.geometry, *([entry.plain] if entry.plain else [])]


def _compared(done: Distilled) -> str:
    if len(done.fits) == 1:
        return ""
    other = done.fits[1 - done.chosen]
    return f" without tables, {other:.4f} with them" if done.chosen else f", {other:.4f} without tables"


def _speed(told: Steps, batch_tokens: int) -> str:
    return "" if told.rate is None else f"; {told.rate * batch_tokens:,.0f} tokens a second"


def stage_seed(seed: int, stage: str, site: str) -> int:
    """A seed of its own for every stage and site."""
    return zlib.crc32(f"{seed}/{stage}/{site}".encode())
