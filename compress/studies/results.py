"""What the cells of a study gave, and the points that cells with different seeds make together."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

STDERR = "_stderr"


@dataclass(frozen=True)
class Cell:
    """One run of a study. `identity`, plain values, is everything that decides its result.

    Cells with the same `point` differ in the seed alone; a line of a picture joins the points of one `system`.
    """

    name: str
    point: str
    system: str
    identity: Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """What became of a cell: values, or why it failed."""

    cell: Cell
    values: Mapping[str, Any]
    error: str | None
    seconds: float


@dataclass(frozen=True)
class Point:
    """Means over the cells of a point.

    values: key -> mean, or a text all have.  `KEY_stderr` is the standard error of the mean over `cells` seeds, of a
    single cell what it gave itself.
    """

    name: str
    system: str
    cells: int
    values: Mapping[str, Any]
    errors: tuple[str, ...] = ()

    def number(self, key: str) -> float | None:
        """A value where it is a finite number."""
        value = self.values.get(key)
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def points_of(results: Sequence[Result]) -> list[Point]:
    """Bring the cells of each point together, in the order of the cells."""
    points = []
    for name in dict.fromkeys(result.cell.point for result in results):
        own = [result for result in results if result.cell.point == name]
        done = [result.values for result in own if result.error is None]
        errors = tuple(f"{result.cell.name}: {result.error}" for result in own if result.error is not None)
        keys = dict.fromkeys(key for values in done for key in values)
        values = {key: _joined([one[key] for one in done if key in one]) for key in keys}
        if len(done) > 1:
            for key in [key for key in keys if key + STDERR in keys]:
                values[key + STDERR] = _stderr([one[key] for one in done])
        points.append(Point(name, own[0].cell.system, len(done), values, errors))
    return points


def _joined(values: list[Any]) -> Any:
    if all(isinstance(value, int | float) for value in values):
        return values[0] if len(set(values)) == 1 else statistics.fmean(values)
    return values[0] if all(value == values[0] for value in values) else None


def _stderr(values: list[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))
