"""A benchmark's numbers as ratios, tables and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CompressError
from ..evaluate.tables import table
from ..evaluate.wording import bytes_text, counted, time_text
from .contestants import DENSE, DENSE_INT8

if TYPE_CHECKING:
    from rich.table import Table

REFERENCE = "torch_float32"


def label(name: str) -> str:
    """Write a variant's name for people."""
    return name.replace("_", " ")


def best_int8(seconds: Mapping[str, float]) -> float | None:
    """Time of the fastest dense int8 variant, None without one."""
    return min((seconds[name] for name in DENSE_INT8 if name in seconds), default=None)


def tables(result: Mapping[str, Any]) -> Iterator[Table]:
    """One table a batch size."""
    rate = result["machine"]["streaming_rate"]
    for row in result["rows"]:
        tokens = row["batch"]
        made = table(
            f"A layer at {counted(tokens, 'token')}, median of {row['rounds']} rounds",
            ["", "time", "against dense float32", "against the best dense int8", "must read", "of the streaming rate"],
        )
        seconds = row["seconds"]
        for name, taken in seconds.items():
            made.add_row(
                label(name), time_text(taken), _ratio(seconds.get(REFERENCE), taken), _ratio(best_int8(seconds), taken),
                bytes_text(row["bytes"][name]), f"{100 * row['bytes'][name] / taken / rate:.0f} %",
            )  # fmt: skip
        yield made


def _ratio(reference: float | None, taken: float) -> str:
    return "-" if reference is None else f"{reference / taken:.2f}x"


def can_draw() -> None:
    """Raise CompressError without matplotlib."""
    if find_spec("matplotlib") is None:
        raise CompressError(
            "pictures need matplotlib", where="--report", remedy="pip install 'compress-lookup[plot]', or leave it out"
        )


def draw(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write `times.png` (a bar chart) and `roofline.png` into a folder, which is made; returns their paths."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    rows, rate = result["rows"], result["machine"]["streaming_rate"]
    names = list(rows[0]["seconds"])
    bars = Figure(figsize=(1.5 + 3.2 * len(rows), 4), layout="constrained")
    for axes, row in zip(bars.subplots(1, len(rows), squeeze=False)[0], rows, strict=True):
        colours = ["tab:grey" if name in DENSE else "tab:blue" for name in names]
        drawn = axes.barh(
            [label(name) for name in names], [1e6 * row["seconds"][name] for name in names], color=colours
        )
        axes.bar_label(drawn, fmt="%.0f", padding=2, fontsize=7)
        axes.set(xscale="log", xlabel="microseconds a layer", title=f"batch {row['batch']}")
        axes.invert_yaxis()
    roof = Figure(figsize=(6, 4), layout="constrained")
    axes = roof.add_subplot()
    for name in names:
        axes.plot(
            [row["bytes"][name] for row in rows], [row["seconds"][name] for row in rows],
            marker="s" if name in DENSE else "o", label=label(name),
        )  # fmt: skip
    ends = [min(min(row["bytes"].values()) for row in rows), max(max(row["bytes"].values()) for row in rows)]
    axes.plot(ends, [end / rate for end in ends], color="black", linestyle="--", label=f"{rate / 1e9:.1f} GB/s")
    axes.set(xscale="log", yscale="log", xlabel="bytes that a layer must read", ylabel="seconds a layer")
    axes.legend(fontsize=7)
    paths = [folder / "times.png", folder / "roofline.png"]
    for figure, path in zip((bars, roof), paths, strict=True):
        figure.savefig(path, dpi=150)
    return paths
