"""Studies: a grid of runs read from YAML, made resumably, and shown as a table and pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .load import bundled_studies, load_study, parse_study
from .runner import Grid, Outcome, run_grid
from .settings import ConversionStudy, PretrainingStudy, Study

__all__ = [
    "ConversionStudy", "Outcome", "PretrainingStudy", "Study", "bundled_studies", "grid_of", "load_study",
    "parse_study", "run_study",
]  # fmt: skip


def run_study(
    study: str | Path | Study, out: str | Path, *, overrides: Sequence[str] = (), data: str | None = None,
    tell: Callable[[str], None] = lambda line: None, stop: Callable[[], bool] = lambda: False, **options: Any,
) -> Outcome:  # fmt: skip
    """Run a study (a file, a bundled one's name or read), or what is left of it, in the folder `out`.

    overrides: `key=value` as with --set.  data: a path in place of the study's.  tell: told of each cell before it
    runs.  stop: asked at every step.  options: device, threads and trust_remote_code.
    Raises a CompressError for whatever a user can mend; a cell that fails is recorded, and the rest goes on.
    """
    chosen = load_study(study, overrides) if isinstance(study, str | Path) else study
    return run_grid(grid_of(chosen, data=data, **options), Path(out), tell=tell, stop=stop)


def grid_of(study: Study, *, data: str | None = None, **options: Any) -> Grid:
    """Load and check what a study needs."""
    if isinstance(study, ConversionStudy):
        from .conversions import Conversions

        chosen = study if data is None else study.model_copy(update={"data": data})
        return Conversions.of_study(chosen, **options)
    from .pretraining import Pretraining

    if data is not None:
        study = study.model_copy(update={"data": study.data.model_copy(update={"path": str(Path(data).absolute())})})
    return Pretraining(study, **options)
