"""Convert a pretrained model, from a recipe to a checkpoint, as a job that can be killed and resumed."""

from __future__ import annotations

import copy
import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tqdm import tqdm

from .checkpoint import (
    Int8Rest,
    Placement,
    quantise_rest,
    round_rest,
    save_checkpoint,
    write_report,
)
from .data import EvalData, check_data
from .devices import choose_device
from .distill.job import STAGES, Job
from .distill.progress import Progress, save_tensors
from .distill.stages import Stages
from .distill.writing import State, is_unwritten, pack_state, unpack_state, write_corpus
from .durable import room_for, size_text
from .errors import DiskFullError, JobError, RecipeError
from .evaluate import Report, evaluate
from .models import Pretrained, load_pretrained
from .packing import pack_narrowest, site_inputs
from .plan import Plan
from .preparation import Prepared, prepare
from .recipe import Recipe, load_recipe, restore_recipe
from .sites import listed, swap
from .streams import accepted
from .students import Student, pack

_PACK_EXAMPLES = 4  # held-out examples that show how narrow a student may be

Announce = Callable[[Plan], None]
Stop = Callable[[], bool]


def convert(
    model: str, recipe: str | Path | Recipe, out: str | Path, *, data: str | None = None, overrides: Sequence[str] = (),
    device: str | None = None, threads: int | None = None, dry_run: bool = False, trust_remote_code: bool = False,
    announce: Announce = lambda plan: None, stop: Stop = lambda: False,
) -> Report | None:  # fmt: skip
    """Convert `model` (hub id or folder) by `recipe` (path, bundled name or read) into the checkpoint folder `out`.

    data: a path or hub:NAME in place of the recipe's.  overrides: `key=value` as with --set.  announce: told the plan
    once everything is checked.  stop: asked at every step of training; where it says so, the job ends behind a durable
    state and Stopped is raised.  With `dry_run` nothing is written and None comes back; otherwise the final report.
    Raises a CompressError for whatever a user can mend, before any training has begun, and DiskFullError whenever there
    is no room; the job can be resumed then.
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
    prepared = prepare(model, chosen, options)
    _check_room(out, prepared.plan)
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
    job.stop = stop
    with job.lock():
        return _run(job, prepared)


def resume(
    out: str | Path, *, overrides: Sequence[str] = (), device: str | None = None, threads: int | None = None,
    trust_remote_code: bool = False, announce: Announce = lambda plan: None, stop: Stop = lambda: False,
) -> Report | None:  # fmt: skip
    """Go on with the job in `out`, on the device and threads it began with unless told otherwise.

    overrides: settings of the stages behind the layer-wise one, which are done again from there, or of all where none
    has begun.  announce, stop: as in `convert`.  None comes back where the job is finished already.
    Raises JobError where there is no job, it runs elsewhere, it is finished and `overrides` would change it, or model,
    tokenizer, data, recipe or the library's format changed since it began.
    """
    job = Job.open(Path(out))
    with job.lock():  # before the journal is read for good: another process may just have added to it
        job = Job.open(Path(out))
        if job.journal["state"] == "finished":
            if overrides:
                raise JobError(
                    "the conversion is finished: no setting can change it", where=str(out),
                    remedy="convert again, into another folder",
                )  # fmt: skip
            job.tidy()
            return None
        job.stop = stop
        recorded = job.journal["options"]
        job.check_trusted(trust_remote_code)
        options = _use_machine(
            device or recorded["device"], threads or recorded["threads"], recorded["trust_remote_code"]
        )
        stored = job.journal["recipe"]
        recipe = restore_recipe(stored["values"], stored["text"], stored["name"], overrides)
        prepared = prepare(job.journal["source"], recipe, options)
        _check_unchanged(job, prepared.fingerprints, changes=bool(overrides))
        announce(prepared.plan)
        for problem in job.verify():
            tqdm.write(f"{problem}; what depends on it is done again")
        job.journal["recipe"]["values"] = recipe.stored()
        job.journal["options"] = options
        job.journal["fingerprints"] = prepared.fingerprints
        job.write()
        return _run(job, prepared)


def _check_room(out: Path, plan: Plan) -> None:
    folder = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(folder).free
    if plan.needs is not None and plan.needs.disk > free:
        raise DiskFullError(
            f"the conversion needs up to {size_text(plan.needs.disk)} of disk, {size_text(free)} are free",
            where=str(folder), remedy="make room, or choose a folder on another disk with -o",
        )  # fmt: skip


def _check_unchanged(job: Job, current: dict[str, Any], changes: bool) -> None:
    """Raise JobError naming what changed since the job began; stages whose settings are changed on purpose restart."""
    recorded = job.journal["fingerprints"]
    changed = [stage for stage in STAGES if recorded.get(stage) != current[stage]]
    may_change = {*STAGES[1:], *(() if job.begun("distill") else STAGES[:1])} if changes else set()
    ignored = may_change | ({"evaluation data"} if "evaluate" in may_change.intersection(changed) else set())
    job.check_fingerprints(current, ignored)
    if changed:
        job.restart_from(changed[0])


def _lasting_name(model: str, revision: str | None) -> str:
    """A model's name that means the same in any working directory, and at any later time."""
    if revision is None:
        return str(Path(model).expanduser().resolve())
    return f"{model.partition('@')[0]}@{revision}"


def _use_machine(device: str | None, threads: int | None, trust_remote_code: bool) -> dict[str, Any]:
    if threads is not None:
        torch.set_num_threads(threads)
    return {"device": choose_device(device), "threads": torch.get_num_threads(), "trust_remote_code": trust_remote_code}


def _run(job: Job, prepared: Prepared) -> Report:
    started = time.monotonic()
    try:
        prepared = _written(job, prepared)
        converted = _converted(job, prepared)
        report = _evaluate(job, prepared, converted)
        job.journal["seconds"] = job.journal.get("seconds", 0.0) + time.monotonic() - started
        write_report(job.out, {**report.to_dict(), "seconds": job.journal["seconds"]})
        job.finish()
    except DiskFullError as error:
        needs = prepared.plan.needs
        whole = f" (the whole conversion needs up to {size_text(needs.disk)})" if needs else ""
        raise DiskFullError(
            error.message, where=error.where,
            remedy=f"make room{whole}, then go on with `compress resume {shlex.quote(str(job.out))}`",
        ) from error  # fmt: skip
    return report


def _converted(job: Job, prepared: Prepared) -> Pretrained:
    """The converted model, packed and on disk: made by what is left of the stages, or read back where all is done."""
    if job.unit("pack") is not None:
        return load_pretrained(str(job.out), trust_remote_code=job.journal["options"]["trust_remote_code"])
    converted = replace(prepared.pretrained, model=copy.deepcopy(prepared.pretrained.model))
    stages = Stages(job, prepared.recipe, prepared.plan, prepared.taps, prepared.pretrained, converted, prepared.corpus)
    stages.distill()
    stages.finetune()
    for model in (converted.model, prepared.pretrained.model):
        torch.nn.Module.to(model, "cpu")
    _pack(job, replace(prepared, plan=stages.plan, taps=list(stages.taps)), converted)
    return converted


def _written(job: Job, prepared: Prepared) -> Prepared:
    """Let the dense model write what is distilled on, where the data does not say; once for the job."""
    corpus, file = prepared.corpus, job.unit_file("write", ".safetensors")
    if not is_unwritten(corpus):
        return prepared
    progress, finished = Progress(job, "write"), job.unit("write") is not None
    kept = (load_file(file), {}) if finished else progress.get("state")

    def keep(state: State) -> None:
        if progress.due():
            progress.keep("state", pack_state(state), {})

    corpus, state = write_corpus(prepared.pretrained, corpus, unpack_state(kept[0]) if kept else (0, []), keep)
    if not finished:
        save_tensors(file, pack_state(state))
        job.finish_unit("write", {"sequences": len(state[1])}, [file])
    held_out = prepared.recipe.eval.data is None
    examples = EvalData.held_out(corpus.holdout, prepared.pretrained.task, corpus.description)
    return replace(prepared, corpus=corpus, examples=examples if held_out else prepared.examples)


def _pack(job: Job, prepared: Prepared, converted: Pretrained) -> None:
    """Round all weights to their storage dtypes; write the checkpoint beside the journal, then move it into place."""
    placements, wide = [], []
    pairs = list(zip(prepared.plan.converted, prepared.taps, strict=True))
    entries = [tap.site.entry for entry, tap in pairs if entry.hash_dtype == "auto"]
    examples = islice(prepared.corpus.holdout.batches(1), _PACK_EXAMPLES if entries else 0)
    inputs = site_inputs(converted.model, entries, (accepted(converted.model, batch) for batch in examples))
    for entry, tap in pairs:
        student = converted.model.get_submodule(tap.site.entry)
        assert isinstance(student, Student)
        if entry.hash_dtype == "auto":
            packed = pack_narrowest(student, prepared.plan.table_dtype, inputs.get(tap.site.entry))
            wide += [entry.site.name] if packed.hash_dtype != "w8a8" else []
        else:
            packed = pack(student, prepared.plan.table_dtype, entry.hash_dtype).eval()
        swap(converted.model, replace(tap.site, identities=()), packed)
        placements.append(Placement.of(converted.model, tap.site, packed))
    round_rest(converted.model, prepared.pretrained)
    int8 = quantise_rest(converted.model) if prepared.recipe.pack.rest == "int8" else Int8Rest()
    recipe = prepared.recipe.keeping_dense([name for name, result in _sites(job) if "dense" in result])
    staging = job.folder / "checkpoint"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        with room_for(staging, prepared.plan.needs.checkpoint if prepared.plan.needs else None):
            save_checkpoint(
                staging, model=converted.model, source=prepared.pretrained, placements=placements,
                int8=int8, recipe_text=prepared.recipe.text, resolved_recipe=recipe.dump(), report=None,
                probe_batch=accepted(converted.model, next(iter(prepared.corpus.holdout.batches(1)))),
            )  # fmt: skip
            job.publish(staging)
    except DiskFullError:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    job.finish_unit("pack", {"wide": wide})


def _evaluate(job: Job, prepared: Prepared, converted: Pretrained) -> Report:
    compressed = replace(converted, source=str(job.out), folder=job.out)
    report = evaluate((prepared.pretrained, compressed), data=prepared.examples, tasks=prepared.recipe.eval.tasks)
    return replace(report, notes=_notes(job))


def _sites(job: Job) -> list[tuple[str, dict[str, Any]]]:
    """Names and results of the distilled sites."""
    units = job.journal["units"].items()
    return [(name.partition("/")[2], result) for name, result in units if name.startswith("distill/")]


def _notes(job: Job) -> list[str]:
    """What went otherwise than planned."""
    again = "training diverged and began again from its last good state with smaller steps"
    notes = []
    for name, result in _sites(job):
        if "dense" in result:
            notes.append(f"{name} stayed dense, as its training diverged: {result['dense']}.")
        elif "restarts" in result:
            notes.append(f"{name}: {again}, {result['restarts']} time(s).")
    if plain := [name for name, result in _sites(job) if "without_tables" in result]:
        notes.append(f"No tables at {listed(plain)}: the closed form without them has less error.")
    finetuned = job.unit("finetune") or {}
    if "diverged" in finetuned:
        notes.append(f"End to end, training diverged: {finetuned['diverged']}.")
    elif "restarts" in finetuned:
        notes.append(f"End to end, {again}, {finetuned['restarts']} time(s).")
    if finetuned.get("kept") is False:
        notes.append("The end-to-end stage was dropped: it did not lower the error on held-out data.")
    notes += [
        f"{name} applies its int8 matrices to 16-bit integers: 8 bits would change its answers too much."
        for name in (job.unit("pack") or {}).get("wide", ())
    ]
    return notes
