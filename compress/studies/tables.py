"""The points of a study as CSV, every value, and as a Markdown table for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .results import STDERR, Point


@dataclass(frozen=True)
class Column:
    """A column of the Markdown table; a column that no point has a value for is left out."""

    key: str
    title: str
    text: Callable[[float], str]


def to_csv(points: Sequence[Point]) -> str:
    """Write every value of every point, numbers in full."""
    keys = list(dict.fromkeys(key for point in points for key in point.values))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["point", "system", "cells", *keys, "error"])
    for point in points:
        values = ["" if point.values.get(key) is None else point.values[key] for key in keys]
        writer.writerow([point.name, point.system, point.cells, *values, "; ".join(point.errors)])
    return stream.getvalue()


def to_markdown(points: Sequence[Point], columns: Sequence[Column]) -> str:
    """Write the columns of every point, a mean with its standard error behind it where there is one."""
    shown = [column for column in columns if any(point.number(column.key) is not None for point in points)]
    rows = [["", *(column.title for column in shown)], ["---", *("---:" for _ in shown)]]
    rows += [[point.name, *(_cell(point, column) for column in shown)] for point in points if point.cells]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cell(point: Point, column: Column) -> str:
    value, error = point.number(column.key), point.number(column.key + STDERR)
    if value is None:
        return "-"
    return column.text(value) + ("" if error is None else f" ± {column.text(error)}")
