"""A compressed model beside the same budget spent otherwise, on the same data, with the same number of steps."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .baselines import BASELINES
from .conversion import convert, resume
from .distill.job import FOLDER, Job
from .errors import CheckpointError
from .evaluate.report import Report
from .recipe import Recipe, restore_recipe

if TYPE_CHECKING:
    from rich.table import Table

LOOKUP = "LookupFFN"


@dataclass(frozen=True)
class Contestant:
    """One way to spend a budget, and the report of the model that came out."""

    name: str
    budget: float
    report: Report

    def loss(self) -> tuple[str, dict[str, Any]]:
        """Name and row of the metric that contestants are compared by, the first that the report has."""
        return next(iter(self.report.quality.items()))


def against_baselines(
    checkpoint: str | Path, out: str | Path, budgets: Sequence[float] = (), *, threads: int | None = None,
    announce: Callable[[str, float], None] = lambda name, budget: None,
) -> list[Contestant]:  # fmt: skip
    """Convert the checkpoint's dense model again by its own recipe, without tables, at the cost that it has.

    Every run is a job in a folder of its own under `out`; what is finished there is not done again, so a call that was
    stopped goes on. budgets: costs at which all are compared, the checkpoint's design too; by default its own cost.
    Writes `comparison.json`, and `comparison.png` where matplotlib is installed. announce: told of each run.
    Raises CheckpointError where the checkpoint's job is not in its folder.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    if not (checkpoint / FOLDER / "journal.json").is_file():
        raise CheckpointError(
            "the folder does not know the data that it was distilled on, so nothing can be compared on equal terms",
            where=str(checkpoint), remedy="give the folder in which `compress convert` made the checkpoint",
        )  # fmt: skip
    journal = Job.open(checkpoint).journal
    own = Report.from_json((checkpoint / "report.json").read_text(encoding="utf-8"))
    assert own.cost is not None
    found = []
    for budget in budgets or [own.cost]:
        for name, settings in {LOOKUP: None, **BASELINES}.items():
            if settings is None and not budgets:
                found.append(Contestant(name, budget, own))
                continue
            announce(name, budget)
            recipe = _recipe(journal["recipe"], budget, settings)
            folder = out / f"{name.replace(' ', '-')}-{budget:.3f}"
            found.append(Contestant(name, budget, _run(journal, recipe, folder, threads)))
    out.mkdir(parents=True, exist_ok=True)
    rows = [{"name": c.name, "budget": c.budget, "report": c.report.to_dict()} for c in found]
    (out / "comparison.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    draw(found, out / "comparison.png")
    return found


def _recipe(stored: dict[str, Any], budget: float, settings: dict[str, int] | None) -> Recipe:
    """The checkpoint's recipe at another budget; a baseline sets its own sizes for every site that is converted."""
    values = dict(stored["values"])
    lookup = {**values.get("lookup", {}), "budget": budget}
    if settings is not None:
        sizes = ("tables", "bits", "rank", "neurons")
        lookup = {**{key: value for key, value in lookup.items() if key not in sizes}, **settings}
        values["overrides"] = [entry for entry in values.get("overrides", []) if entry.get("keep_dense")]
    return restore_recipe({**values, "lookup": lookup}, stored["text"], stored["name"])


def _run(journal: dict[str, Any], recipe: Recipe, folder: Path, threads: int | None) -> Report:
    if (folder / FOLDER / "journal.json").is_file():
        report = resume(folder, threads=threads)
    else:
        options = journal["options"]
        report = convert(
            journal["source"], recipe, folder, device=options["device"], threads=threads or options["threads"],
            trust_remote_code=options["trust_remote_code"],
        )  # fmt: skip
    return report or Report.from_json((folder / "report.json").read_text(encoding="utf-8"))


def table(contestants: Sequence[Contestant]) -> Table:
    """One row a contestant: cost, bytes, quality with its interval, and the FFNs' time beside dense int8."""
    from .evaluate import tables

    return tables.comparison([(c.name, c.report) for c in contestants])


def draw(contestants: Sequence[Contestant], path: Path) -> None:
    """Draw quality over cost, a line for each way to spend the budget; nothing is drawn without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    metric, row = contestants[0].loss()
    axes.axhline(row["dense"], color="grey", linestyle="--", label="dense")
    for name in dict.fromkeys(c.name for c in contestants):
        chosen = sorted((c for c in contestants if c.name == name), key=lambda c: c.report.cost or 0.0)
        values = [c.loss()[1]["compressed"] for c in chosen]
        errors = [c.loss()[1].get("stderr") or 0.0 for c in chosen]
        axes.errorbar([c.report.cost or 0.0 for c in chosen], values, errors, marker="o", capsize=3, label=name)
    axes.set_xlabel("multiply-adds of the FFNs, dense = 1")
    axes.set_ylabel(metric.replace("_", " "))
    axes.legend()
    figure.savefig(path, dpi=150)
