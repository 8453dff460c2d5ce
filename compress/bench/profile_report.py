"""A profile's numbers as tables and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluate.tables import table
from ..evaluate.wording import bytes_text, count_text, counted, time_text
from .systems import DENSE, NAMES, SYSTEMS

if TYPE_CHECKING:
    from rich.table import Table

LEVELS = ("first", "second", "last")
_PARTS = ("arithmetic", *LEVELS, "memory")


def caches_text(result: Mapping[str, Any]) -> str:
    """Say which caches counts and energy are of."""
    sizes = ", ".join(f"{level['size'] >> 10} KiB" for level in result["caches"]["levels"])
    return f"caches ({result['caches']['whose']}): {sizes}"


def tables(result: Mapping[str, Any]) -> Iterator[Table]:
    """Work, latency and bandwidth for each number of threads, and what was counted; an empty cell was not."""
    yield _work(result)
    for threads in dict.fromkeys(row["threads"] for row in result["latency"]):
        yield _latency(result, threads)
    if _is_counted(result):
        yield _counts(result)
        yield _energy(result)


def _work(result: Mapping[str, Any]) -> Table:
    rows = result["work"]
    sizes = list(dict.fromkeys(row["tokens"] for row in rows))
    made = table(
        "Work of a layer",
        ["", "parameters", "FLOPs a token", *(f"parameters touched, {counted(size, 'token')}" for size in sizes)],
    )
    for system in SYSTEMS:
        own = [row for row in rows if row["system"] == system]
        flops = list(dict.fromkeys(count_text(2 * row["multiply_adds"]) for row in own))
        spread = flops[0] if len(flops) == 1 else f"{flops[0]} to {flops[-1]}"
        touched = (bytes_text(row["bytes_read"]) for row in own)
        made.add_row(NAMES[system], count_text(own[0]["parameters"]), spread, *touched)
    return made


def _latency(result: Mapping[str, Any], threads: int) -> Table:
    rows = [row for row in result["latency"] if row["threads"] == threads]
    rate = rows[0]["streaming_rate"]
    made = table(
        f"Latency of a layer, {counted(threads, 'thread')}: time, against dense float32, share of the streaming rate "
        f"of {rate / 1e9:.1f} GB/s",
        ["", *(f"{counted(row['batch'], 'token')}" for row in rows)],
    )
    for system in SYSTEMS:
        cells = []
        for row in rows:
            taken = row["seconds"][system]
            share = row["bytes"][system] / taken / rate
            cells.append(f"{time_text(taken)}, {row['seconds'][DENSE] / taken:.2f}x, {100 * share:.0f} %")
        made.add_row(NAMES[system], *cells)
    return made


def _counts(result: Mapping[str, Any]) -> Table:
    made = table(
        f"Counts of a layer's pass, by {_source(result)}: bytes that miss a level, and references served up to it",
        ["", "tokens", "inputs", "caches", "instructions", "references", *(f"{level} level" for level in LEVELS)],
    )
    line = result["caches"]["levels"][0]["line"]
    for row in result["counts"]:
        references = row["references"]
        levels = [
            "" if miss is None or not references
            else f"{bytes_text(line * miss)}, {100 * max(0, 1 - miss / references):.1f} %"
            for miss in row["missed"]
        ]  # fmt: skip
        made.add_row(
            NAMES[row["system"]], str(row["tokens"]), row["inputs"], row["state"], _count(row["instructions"]),
            _count(references), *levels,
        )  # fmt: skip
    return made


def _source(result: Mapping[str, Any]) -> str:
    return next(row["source"] for row in result["counts"])


def _is_counted(result: Mapping[str, Any]) -> bool:
    return any(row["source"] != "none" for row in result["counts"])


def _energy(result: Mapping[str, Any]) -> Table:
    made = table(
        f"Energy a token, an estimate ({result['energy_source']}; counts by {_source(result)})",
        ["", "tokens", "caches", *(f"{part}{' level' if part in LEVELS else ''}" for part in _PARTS), "total",
         "dense float32 over it"],
    )  # fmt: skip
    totals = {(row["system"], row["tokens"], row["state"]): row["total"] for row in result["energy"]}
    for row in result["energy"]:
        dense = totals.get((DENSE, row["tokens"], row["state"]))
        made.add_row(
            NAMES[row["system"]], str(row["tokens"]), row["state"], *(_joules(row[part]) for part in _PARTS),
            _joules(row["total"]), "" if dense is None else f"{dense / row['total']:.2f}x",
        )  # fmt: skip
    return made


def _count(value: float | None) -> str:
    return "" if value is None else count_text(value)


def _joules(picojoules: float) -> str:
    return f"{picojoules / 1e6:.2f} µJ"


def draw(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write `latency.png`, and with counts `missed.png` and `energy.png`, into a folder, which is made."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    threads = list(dict.fromkeys(row["threads"] for row in result["latency"]))
    figure = Figure(figsize=(1 + 4 * len(threads), 4), layout="constrained")
    for axes, count in zip(figure.subplots(1, len(threads), squeeze=False, sharey=True)[0], threads, strict=True):
        rows = [row for row in result["latency"] if row["threads"] == count]
        for system in SYSTEMS:
            axes.plot([row["batch"] for row in rows], [1e6 * row["seconds"][system] for row in rows], marker="o",
                      label=NAMES[system])  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel="tokens", title=f"threads: {count}")
        axes.set_ylabel("microseconds a layer")
        axes.legend(fontsize=7)
    drawn = {"latency.png": figure}
    line = result["caches"]["levels"][0]["line"]
    missed = [
        {"label": _place(row), **{level: line * (miss or 0) / row["tokens"] / 1e6
                                  for level, miss in zip(LEVELS, row["missed"], strict=True)}}
        for row in result["counts"]
        if row["system"] in SYSTEMS and row["inputs"] == "even"
    ]  # fmt: skip
    energy = [{"label": _place(row), **{part: row[part] / 1e6 for part in _PARTS}} for row in result["energy"]]
    if _is_counted(result):
        drawn["missed.png"] = _bars(missed, LEVELS, False, "megabytes a token that miss the level")
    if energy:
        drawn["energy.png"] = _bars(energy, _PARTS, True, "microjoules a token (45 nm)")
    for name, made in drawn.items():
        made.savefig(folder / name, dpi=150)
    return [folder / name for name in drawn]


def _place(row: Mapping[str, Any]) -> str:
    return f"{NAMES[row['system']]}, {counted(row['tokens'], 'token')}, {row['state']}"


def _bars(rows: list[dict[str, Any]], keys: tuple[str, ...], stacked: bool, title: str) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1 + 0.3 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    left = [0.0] * len(rows)
    height = 0.8 if stacked else 0.8 / len(keys)
    for i, key in enumerate(keys):
        values = [row[key] for row in rows]
        places = [n if stacked else n + (i - (len(keys) - 1) / 2) * height for n in range(len(rows))]
        axes.barh(places, values, height, left=left, label=key)
        if stacked:
            left = [have + value for have, value in zip(left, values, strict=True)]
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set(xlabel=title)
    axes.legend(fontsize=7)
    return figure
