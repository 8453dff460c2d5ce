"""Convert a pretrained model, from a recipe to a checkpoint, as a job that can be killed and resumed."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from .checkpoint import Placement, round_rest, save_checkpoint, write_report
from .data import Corpus, EvalData, check_data, load_corpus, load_examples
from .distill.activations import Tap
from .distill.job import Job, hash_file
from .distill.objectives import check_outputs
from .distill.stages import SAVE_SECONDS, Stages, save_state
from .distill.writing import State, is_unwritten, pack_state, unpack_state, write_corpus
from .errors import RecipeError
from .evaluate import Report, evaluate
from .lookup import LookupFFN, pack
from .models import Pretrained, load_pretrained
from .plan import Plan, make_plan
from .recipe import Recipe, load_recipe, restore_recipe
from .sites import find_norms, find_sites, swap
from .streams import accepted, stream_of

Announce = Callable[[Plan], None]
_WEIGHTS = ("*.safetensors", "*.bin", "config.json")


@dataclass
class _Prepared:
    """Everything a conversion works with, loaded and checked."""

    recipe: Recipe
    pretrained: Pretrained
    corpus: Corpus
    examples: EvalData
    plan: Plan
    taps: list[Tap]  # of the sites that are converted
    fingerprints: dict[str, str]


def convert(
    model: str, recipe: str | Path | Recipe, out: str | Path, *, data: str | None = None, overrides: Sequence[str] = (),
    device: str | None = None, threads: int | None = None, dry_run: bool = False, trust_remote_code: bool = False,
    announce: Announce = lambda plan: None,
) -> Report | None:  # fmt: skip
    """Convert `model` (hub id or folder) by `recipe` (path, bundled name or read) into the checkpoint folder `out`.

    data: a path or hub:NAME in place of the recipe's.  overrides: `key=value` as with --set.  announce: told the plan
    once everything is checked.  With `dry_run` nothing is written and None comes back; otherwise the final report.
    Raises a CompressError for whatever a user can mend, before any training has begun.
    """
    out = Path(out)
    name = "the recipe" if isinstance(recipe, Recipe) else str(recipe)
    if isinstance(recipe, Recipe):
        chosen = restore_recipe(recipe.stored(), recipe.text, name, overrides)
    else:
        chosen = load_recipe(recipe, overrides)
    chosen = chosen if data is None else chosen.with_data(data)
    if not chosen.has_data:
        raise RecipeError(
            "the recipe names no data to distil on", where=f"{name}, data.path",
            remedy="pass --data PATH (or hub:NAME), or put data.path into the recipe",
        )  # fmt: skip
    if not dry_run:
        Job.check_free(out)
    check_data(chosen.data)
    options = _use_machine(device, threads, trust_remote_code)
    prepared = _prepare(model, chosen, options)
    announce(prepared.plan)
    if dry_run:
        return None
    job = Job.create(
        out,
        {
            "source": _lasting_name(model, prepared.pretrained.revision),
            "recipe": {"name": name, "text": chosen.text, "values": chosen.stored()},
            "options": options,
            "fingerprints": prepared.fingerprints,
            "plan": prepared.plan.to_dict(),
            "writes": is_unwritten(prepared.corpus),
        },
    )
    with job.lock():
        return _run(job, prepared)


def resume(
    out: str | Path, *, overrides: Sequence[str] = (), device: str | None = None, threads: int | None = None,
    announce: Announce = lambda plan: None,
) -> Report | None:  # fmt: skip
    """Go on with the job in `out`, on the device and threads it began with unless told otherwise.

    overrides: settings of stages that have not begun. None comes back where the job is finished already.
    Raises JobError where there is no job, it runs elsewhere, or model, data or recipe changed since it began.
    """
    job = Job.open(Path(out))
    if job.journal["state"] == "finished":
        return None
    with job.lock():  # before the journal is read for good: another process may just have added to it
        job = Job.open(Path(out))
        recorded = job.journal["options"]
        options = _use_machine(
            device or recorded["device"], threads or recorded["threads"], recorded["trust_remote_code"]
        )
        stored = job.journal["recipe"]
        recipe = restore_recipe(stored["values"], stored["text"], stored["name"], overrides)
        prepared = _prepare(job.journal["source"], recipe, options)
        job.check_fingerprints(prepared.fingerprints, ignore=set(_stage_fingerprints(recipe)) - job.stages_begun())
        announce(prepared.plan)
        job.journal["recipe"]["values"] = recipe.stored()
        job.journal["options"] = options
        job.journal["fingerprints"] = prepared.fingerprints
        job.write()
        return _run(job, prepared)


def _lasting_name(model: str, revision: str | None) -> str:
    """A model's name that means the same in any working directory, and at any later time."""
    if revision is None:
        return str(Path(model).expanduser().resolve())
    return f"{model.partition('@')[0]}@{revision}"


def _use_machine(device: str | None, threads: int | None, trust_remote_code: bool) -> dict[str, Any]:
    if threads is not None:
        torch.set_num_threads(threads)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return {"device": device, "threads": torch.get_num_threads(), "trust_remote_code": trust_remote_code}


def _prepare(source: str, recipe: Recipe, options: dict[str, Any]) -> _Prepared:
    pretrained = load_pretrained(
        source, trust_remote_code=options["trust_remote_code"], device=options["device"]
    )  # fmt: skip
    sites = find_sites(pretrained.model)
    corpus = load_corpus(recipe.data, pretrained, recipe.seed)
    check_outputs(pretrained, next(iter(corpus.holdout.batches(1))))
    streams = {site.name: stream_of(pretrained.model, site.output) for site in sites}
    plan = make_plan(sites, recipe, corpus, streams)
    if recipe.eval.data is None:
        examples = EvalData.held_out(corpus.holdout, pretrained.task, corpus.description)
    else:
        sides = (recipe.data.field, recipe.data.target_field)
        examples = load_examples(
            recipe.eval.data, pretrained, sequence_length=recipe.data.sequence_length, sides=sides,
            fields=recipe.data.fields,
        )  # fmt: skip
    norms = find_norms(pretrained.model, sites)
    taps = [Tap(entry.site, norms[entry.site.name], streams[entry.site.name]) for entry in plan.converted]
    weights = sorted(path for pattern in _WEIGHTS for path in pretrained.folder.glob(pattern))
    fingerprints = {
        "model": "".join(hash_file(path) for path in weights),
        "data": corpus.fingerprint,
        **_stage_fingerprints(recipe),
    }
    return _Prepared(recipe, pretrained, corpus, examples, plan, taps, fingerprints)


def _stage_fingerprints(recipe: Recipe) -> dict[str, str]:
    """What each stage of the recipe depends on: a stage that has not begun may still be changed."""
    return {
        "distill": recipe.fingerprint("version", "sites", "lookup", "overrides", "fit", "distill", "seed"),
        "finetune": recipe.fingerprint("finetune"),
        "pack": recipe.fingerprint("pack"),
        "evaluate": recipe.fingerprint("eval"),
    }


def _run(job: Job, prepared: _Prepared) -> Report:
    started = time.monotonic()
    prepared = _written(job, prepared)
    converted = replace(prepared.pretrained, model=copy.deepcopy(prepared.pretrained.model))
    stages = Stages(job, prepared.recipe, prepared.plan, prepared.taps, prepared.pretrained, converted, prepared.corpus)
    stages.distill()
    stages.finetune()
    for model in (converted.model, prepared.pretrained.model):
        torch.nn.Module.to(model, "cpu")
    _pack(job, prepared, converted)
    report = _evaluate(job, prepared, converted)
    job.journal["seconds"] = job.journal.get("seconds", 0.0) + time.monotonic() - started
    write_report(job.out, {**report.to_dict(), "seconds": job.journal["seconds"]})
    job.finish()
    return report


def _written(job: Job, prepared: _Prepared) -> _Prepared:
    """Let the dense model write what is distilled on, where the data does not say; once for the job."""
    corpus, file = prepared.corpus, job.unit_file("write", ".safetensors")
    if not is_unwritten(corpus):
        return prepared
    saved = time.monotonic()

    def keep(state: State) -> None:
        nonlocal saved
        if time.monotonic() - saved > SAVE_SECONDS:
            save_state(file, pack_state(state))
            saved = time.monotonic()

    begun = unpack_state(load_file(file)) if file.exists() else (0, [])
    corpus, state = write_corpus(prepared.pretrained, corpus, begun, keep)
    if job.unit("write") is None:
        save_state(file, pack_state(state))
        job.finish_unit("write", {"sequences": len(state[1])})
    held_out = prepared.recipe.eval.data is None
    examples = EvalData.held_out(corpus.holdout, prepared.pretrained.task, corpus.description)
    return replace(prepared, corpus=corpus, examples=examples if held_out else prepared.examples)


def _pack(job: Job, prepared: _Prepared, converted: Pretrained) -> None:
    """Round all weights to their storage dtypes; write the checkpoint beside the journal, then move it into place."""
    placements = []
    for entry, tap in zip(prepared.plan.converted, prepared.taps, strict=True):
        student = converted.model.get_submodule(tap.site.entry)
        assert isinstance(student, LookupFFN)
        packed = pack(student, prepared.plan.table_dtype, entry.hash_dtype).eval()  # type: ignore[arg-type]
        swap(converted.model, replace(tap.site, identities=()), packed)
        placements.append(Placement.of(converted.model, tap.site, packed))
    round_rest(converted.model, prepared.pretrained)
    if job.unit("pack"):
        return
    staging = job.folder / "checkpoint"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    save_checkpoint(
        staging, model=converted.model, source=prepared.pretrained, placements=placements,
        recipe_text=prepared.recipe.text, resolved_recipe=prepared.recipe.dump(), report=None,
        probe_batch=accepted(converted.model, next(iter(prepared.corpus.holdout.batches(1)))),
    )  # fmt: skip
    job.publish(staging)
    job.finish_unit("pack", {})


def _evaluate(job: Job, prepared: _Prepared, converted: Pretrained) -> Report:
    compressed = replace(converted, source=str(job.out), folder=job.out)
    return evaluate((prepared.pretrained, compressed), data=prepared.examples)
