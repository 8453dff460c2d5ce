"""A compressed model beside the same budget spent otherwise, on the same data, with the same number of steps."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .baselines import BASELINES
from .conversion import convert, resume
from .distill.job import FOLDER, Job
from .errors import CheckpointError, JobError
from .evaluate.report import Report
from .recipe import Recipe, restore_recipe

LOOKUP = "LookupFFN"
_SIZES = ("student", "tables", "bits", "rank", "neurons")


@dataclass(frozen=True)
class Candidate:
    """One way to spend a budget, and the report of the model that came out."""

    name: str
    budget: float
    report: Report

    def quality(self) -> tuple[str, dict[str, Any]]:
        """Name and row of the metric that candidates are compared by, the first that the report has."""
        return next(iter(self.report.quality.items()))


def against_baselines(
    checkpoint: str | Path, out: str | Path, budgets: Sequence[float] = (), *, threads: int | None = None,
    trust_remote_code: bool = False, announce: Callable[[str, float], None] = lambda name, budget: None,
) -> list[Candidate]:  # fmt: skip
    """Convert the checkpoint's dense model again by its own recipe, without tables, each site at the cost that it has.

    Every run is a job in a folder of its own under `out`; what is finished there is not done again, so a call that was
    stopped goes on. Neurons come in sixteens, so a baseline may cost a few neurons less.
    budgets: costs at which all are compared, the checkpoint's design too, in place of its own cost.
    Writes `comparison.json`, and `comparison.png` where matplotlib is installed. announce: told of each run.
    Raises CheckpointError where the checkpoint's finished job is not in its folder, JobError where `out` holds runs of
    another recipe, model or data.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    job = _job(checkpoint)
    job.check_trusted(trust_remote_code)
    journal, found = job.journal, []
    if not budgets:
        own = _report(checkpoint)
        found.append(Candidate(LOOKUP, own.cost or 0.0, own))
    for budget in budgets or [found[0].budget]:
        for name, settings in ({LOOKUP: None, **BASELINES} if budgets else BASELINES).items():
            announce(name, budget)
            recipe = _recipe(journal, budget if budgets else None, settings)
            folder = out / f"{name.replace(' ', '-')}-{budget:.3f}"
            found.append(Candidate(name, budget, _run(journal, recipe, folder, threads)))
    out.mkdir(parents=True, exist_ok=True)
    rows = [{"name": c.name, "budget": c.budget, "report": c.report.to_dict()} for c in found]
    (out / "comparison.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    draw(found, out / "comparison.png")
    return found


def _job(checkpoint: Path) -> Job:
    """The checkpoint's finished job, which knows the model and the data that it was made from."""
    if not (checkpoint / FOLDER / "journal.json").is_file():
        raise CheckpointError(
            "the folder does not know the data that it was distilled on, so nothing can be compared on equal terms",
            where=str(checkpoint), remedy="give the folder in which `compress convert` made the checkpoint",
        )  # fmt: skip
    job = Job.open(checkpoint)
    if job.journal["state"] != "finished":
        raise CheckpointError(
            "the conversion in this folder is not finished", where=str(checkpoint),
            remedy=f"go on with it: compress resume {checkpoint}",
        )  # fmt: skip
    return job


def _report(folder: Path) -> Report:
    return Report.from_json((folder / "report.json").read_text(encoding="utf-8"))


def _recipe(journal: dict[str, Any], budget: float | None, settings: dict[str, int | str] | None) -> Recipe:
    """The checkpoint's recipe at another budget (None: at every site's own cost), a baseline's sizes in it."""
    stored = journal["recipe"]
    values = dict(stored["values"])
    lookup = dict(values.get("lookup", {}))
    if budget is not None:
        lookup["budget"] = budget
    if settings is not None:
        lookup = {key: value for key, value in lookup.items() if key not in _SIZES}
        lookup |= settings
        kept = [entry for entry in values.get("overrides", []) if entry.get("keep_dense")]
        own = journal["plan"]["costs"] if budget is None else {}
        values["overrides"] = [*kept, *({"sites": [name], "budget": share} for name, share in own.items())]
    return restore_recipe({**values, "lookup": lookup}, stored["text"], stored["name"])


def _run(journal: dict[str, Any], recipe: Recipe, folder: Path, threads: int | None) -> Report:
    if (folder / FOLDER / "journal.json").is_file():
        begun = Job.open(folder).journal
        same = all(begun["fingerprints"][key] == journal["fingerprints"][key] for key in ("model", "data"))
        if not same or begun["recipe"]["values"] != recipe.stored():
            raise JobError(
                "the folder holds a run of another recipe, model or data", where=str(folder),
                remedy="choose another folder with -o, or remove this one",
            )  # fmt: skip
        report = resume(folder, threads=threads, trust_remote_code=journal["options"]["trust_remote_code"])
    else:
        options = journal["options"]
        report = convert(
            journal["source"], recipe, folder, device=options["device"], threads=threads or options["threads"],
            trust_remote_code=options["trust_remote_code"],
        )  # fmt: skip
    return report or _report(folder)


def draw(candidates: Sequence[Candidate], path: Path) -> None:
    """Draw quality over cost, a line for each way to spend the budget; nothing is drawn without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    metric, row = candidates[0].quality()
    axes.axhline(row["dense"], color="grey", linestyle="--", label="dense")
    for name in dict.fromkeys(c.name for c in candidates):
        chosen = sorted((c for c in candidates if c.name == name), key=lambda c: c.report.cost or 0.0)
        values = [c.quality()[1]["compressed"] for c in chosen]
        errors = [c.quality()[1].get("stderr") or 0.0 for c in chosen]
        axes.errorbar([c.report.cost or 0.0 for c in chosen], values, errors, marker="o", capsize=3, label=name)
    axes.set_xlabel("multiply-adds of the FFNs, dense = 1")
    axes.set_ylabel(metric.replace("_", " "))
    axes.legend()
    figure.savefig(path, dpi=150)
