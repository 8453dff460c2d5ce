"""Pictures of a trade-off: loss over a cost, a line a system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..durable import replace_file
from ..evaluate.wording import count_text
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


def draw_points(points: Sequence[Point], picture: Picture, folder: Path) -> bool:
    """Draw one picture of a study; False where no point has both values, or without matplotlib."""
    series: dict[str, list[tuple[float, float, float]]] = {}
    for point in points:
        x, y = point.number(picture.x), point.number(picture.y)
        if x is not None and y is not None:
            series.setdefault(point.system, []).append((x, y, point.number(picture.y + STDERR) or 0.0))
    return bool(series) and _draw(series, picture, folder / picture.file)


def _draw(series: Series, picture: Picture, path: Path) -> bool:
    """Draw lines with error bars into a PNG; False without matplotlib."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
    except ImportError:
        return False
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, values in series.items():
        x, y, errors = zip(*sorted(values), strict=True)
        axes.errorbar(x, y, errors, marker="o", capsize=3, label=name)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}" if x < 1000 else count_text(x)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(picture.x_label)
    axes.set_ylabel(picture.y_label)
    axes.legend()
    replace_file(path, lambda temporary: figure.savefig(temporary, dpi=150, format="png"))
    return True
