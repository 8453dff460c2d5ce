"""Pictures of a trade-off: loss over a cost, a line a system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..durable import replace_file
from .results import STDERR, Point

Series = Mapping[str, Sequence[tuple[float, float, float]]]  # name -> (x, y, standard error of y)


@dataclass(frozen=True)
class Picture:
    """What is drawn over what, and the file's name."""

    file: str
    x: str
    x_label: str
    y: str
    y_label: str
    level: tuple[str, str] | None = None  # key and label of a level that is drawn across


def draw_points(points: Sequence[Point], picture: Picture, folder: Path) -> bool:
    """Draw one picture of a study; False where no point has both values, or without matplotlib."""
    series: dict[str, list[tuple[float, float, float]]] = {}
    for point in points:
        x, y = point.number(picture.x), point.number(picture.y)
        if x is not None and y is not None:
            series.setdefault(point.system, []).append((x, y, point.number(picture.y + STDERR) or 0.0))
    level = None
    if picture.level is not None:
        key, label = picture.level
        level = next(((label, value) for point in points if (value := point.number(key)) is not None), None)
    return bool(series) and draw(series, picture.x_label, picture.y_label, folder / picture.file, level, log=True)


def draw(
    series: Series, x_label: str, y_label: str, path: Path, level: tuple[str, float] | None, *, log: bool = False
) -> bool:
    """Draw lines with error bars into a PNG, and a named level across; False without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    if level is not None:
        axes.axhline(level[1], color="grey", linestyle="--", label=level[0])
    for name, values in series.items():
        x, y, errors = zip(*sorted(values), strict=True)
        axes.errorbar(x, y, errors, marker="o", capsize=3, label=name)
    if log:
        axes.set_xscale("log")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.legend()
    replace_file(path, lambda temporary: figure.savefig(temporary, dpi=150, format="png"))
    return True
