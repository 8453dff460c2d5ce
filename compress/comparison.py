"""A compressed model beside the same budget spent otherwise, on the same data, with the same number of steps."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .baselines import BASELINES
from .distill.job import FOLDER, Job
from .errors import CheckpointError, JobError
from .recipe import Recipe, restore_recipe
from .studies import Outcome
from .studies.conversions import Conversions, Wanted, read_report
from .studies.runner import run_grid

LOOKUP = "LookupFFN"
_SIZES = ("student", "tables", "bits", "rank", "neurons")


def against_baselines(
    checkpoint: str | Path, out: str | Path, budgets: Sequence[float] = (), *, threads: int | None = None,
    trust_remote_code: bool = False, tell: Callable[[str], None] = lambda line: None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:  # fmt: skip
    """Convert the checkpoint's dense model again by its own recipe, without tables, each site at the cost that it has.

    The runs are cells of a study in `out`, beside the dense model in float32 and int8; what is finished there is not
    done again. Neurons come in sixteens, so a baseline may cost a few neurons less.
    budgets: costs at which all are compared, the checkpoint's design too, in place of its own cost.  tell: told of each
    run.  stop: asked at every step.
    Raises CheckpointError where the checkpoint's finished job is not in its folder, JobError where its model or data
    changed since, or `out` holds another study.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    job = _job(checkpoint)
    job.check_trusted(trust_remote_code)
    journal = job.journal
    options = journal["options"]
    grid = Conversions(
        journal["source"], list(_wanted(checkpoint, journal, budgets)), f"# {checkpoint.resolve().name} and baselines",
        device=options["device"], threads=threads or options["threads"], trust_remote_code=trust_remote_code,
    )  # fmt: skip
    recorded = journal["fingerprints"]
    if recorded["model"] != grid.fingerprints["model"] or set(grid.corpora.values()) != {recorded["data"]}:
        raise JobError(
            "the model or the data is no longer what the checkpoint was made from", where=str(checkpoint),
            remedy="put it back as it was, or convert again",
        )  # fmt: skip
    return run_grid(grid, out, tell=tell, stop=stop)


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
            remedy=f"go on with it: compress resume {shlex.quote(str(checkpoint))}",
        )  # fmt: skip
    return job


def _wanted(checkpoint: Path, journal: dict[str, Any], budgets: Sequence[float]) -> Iterator[Wanted]:
    own = _recipe(journal, None, None)
    for width in ("float32", "int8"):
        yield Wanted(f"dense-{width}", f"dense {width}", f"dense {width}", own, width=width)
    if not budgets:
        yield Wanted(LOOKUP, LOOKUP, LOOKUP, own, finished=checkpoint)
    own_design: list[tuple[str, None]] = [(LOOKUP, None)] if budgets else []
    cost = read_report(checkpoint).cost or 0.0
    for budget in budgets or (None,):
        for name, settings in [*own_design, *BASELINES.items()]:
            share = cost if budget is None else budget
            recipe = _recipe(journal, budget, settings)
            yield Wanted(f"{name.replace(' ', '-')}-{share:.3f}", f"{name}, cost {share:.3f}", name, recipe)


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
