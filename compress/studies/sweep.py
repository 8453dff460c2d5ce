"""A sweep: a study of conversions along axes that are given beside the recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..recipe.document import read_document
from .runner import Outcome
from .settings import ConversionStudy, Value


def sweep(
    model: str, recipe: str | Path, out: str | Path, *, overrides: Sequence[str], data: str | None = None,
    max_loss: float | None = None, tell: Callable[[str], None] = lambda line: None,
    stop: Callable[[], bool] = lambda: False, **options: Any,
) -> Outcome:  # fmt: skip
    """Convert `model` at every combination of the values in `overrides` (`lookup.budget=0.125,0.25`), in `out`.

    max_loss: the outcome's table names the cheapest point whose loss is at most this.  options: device, threads and
    trust_remote_code.  Raises a CompressError for whatever a user can mend.
    """
    from . import run_study

    study = sweep_study(model, str(recipe), overrides, max_loss=max_loss)
    return run_study(study, out, data=data, tell=tell, stop=stop, **options)


def sweep_study(model: str, recipe: str, overrides: Sequence[str], *, max_loss: float | None = None) -> ConversionStudy:
    """Read `key=value,value,...`; what has one value is set for all. Raises RecipeError."""
    axes: dict[str, tuple[Value, ...]] = {}
    for assignment in overrides:
        key, equals, text = (part.strip() for part in assignment.partition("="))
        where = f"--set {assignment}"
        if not key or not equals or not text:
            raise RecipeError(
                "not of the form key=value", where=where, remedy="write it as --set lookup.budget=0.1,0.2"
            )
        if key in axes:
            raise RecipeError(f"`{key}` is given twice", where=where, remedy="list all its values in one --set")
        values = read_document(f"values: [{text}]", where).values["values"]
        axes[key] = tuple(tuple(value) if isinstance(value, list) else value for value in values)
        if any(isinstance(value, dict) for value in values) or len({repr(value) for value in values}) < len(values):
            raise RecipeError(
                "a value is a section, or given twice", where=where, remedy="list single values, each once"
            )
    if not any(len(values) > 1 for values in axes.values()):
        raise RecipeError(
            "nothing to sweep over: no --set has several values", where="--set",
            remedy="give some, as in --set lookup.budget=0.125,0.25,0.5",
        )  # fmt: skip
    return ConversionStudy(
        version=1, kind="conversion", model=model, recipe=recipe, axes=axes, max_loss=max_loss
    )  # fmt: skip
