"""A report as rich tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from .report import Report
from .wording import DENSE_VARIANTS, bytes_text, number, scope_text, signed, time_text

_AGREEMENT = (
    ("kl", "KL(dense || compressed)", ""),
    ("top1", "same top-1", "accuracy"),
    ("cosine_distance", "1 - cosine to dense", ""),
    ("difference", "mean absolute difference", ""),
    ("output_error", "relative error of the outputs", ""),
)
_COMPARED = ("dense", "compressed", "difference", "95 % interval", "measured on")
_SIZES = (
    ("model, stored", "dense_bytes", "compressed_bytes"),
    ("model, dense in int8", "dense_int8_bytes", "compressed_bytes"),
    ("FFNs, dense in int8", "dense_ffn_int8_bytes", "compressed_ffn_bytes"),
    ("FFNs, read per token, dense in int8", "dense_bytes_per_token", "compressed_bytes_per_token"),
)


def tables(report: Report) -> list[Table]:
    """Quality, tasks, speed, size and error per site; those without a row are left out."""
    made = [_quality(report), _tasks(report), _latency(report), _size(report), _sites(report)]
    return [table for table in made if table.row_count]


def table(title: str, headings: Sequence[str]) -> Table:
    """Make an empty table: its first column is text, the others are numbers."""
    made = Table(title=title, title_justify="left")
    for position, heading in enumerate(headings):
        first = position == 0
        made.add_column(heading, justify="left" if first else "right", no_wrap=first, overflow="fold")
    return made


def _quality(report: Report) -> Table:
    made = table("Quality", ["metric", *_COMPARED])
    for metric, row in report.quality.items():
        made.add_row(metric.replace("_", " "), *_compared(metric, row))
    for key, label, metric in _AGREEMENT:
        value = report.agreement.get(key)
        if value is not None:
            positions = f"{report.agreement['positions']} positions" if "positions" in report.agreement else ""
            made.add_row(label, "", number(value, metric), "", "", positions)
    return made


def _compared(metric: str, row: Mapping[str, Any]) -> list[str]:
    """Cells under `_COMPARED` of one metric of both models."""
    dense, ours, error, interval = (row.get(key) for key in ("dense", "compressed", "stderr", "interval"))
    spread = "" if error is None else f" ± {number(error, metric)}"
    return [
        number(dense, metric),
        f"{number(ours, metric)}{spread}",
        "-" if dense is None or ours is None else signed(ours - dense, metric),
        "-" if interval is None else " to ".join(signed(end, metric) for end in interval),
        f"{row['samples']} {row['unit']}" if "samples" in row else "-",
    ]


def _tasks(report: Report) -> Table:
    made = table("Tasks", ["task, metric", *_COMPARED])
    for task, metrics in report.tasks.items():
        for metric, row in metrics.items():
            made.add_row(f"{task}, {metric}", *_compared(metric, row))
    return made


def _latency(report: Report) -> Table:
    measured = {name for row in report.latency for name in row["seconds"]}
    names = [name for name in (*DENSE_VARIANTS, "compressed") if name in measured]
    threads = ", ".join(str(count) for count in sorted({row["threads"] for row in report.latency}))
    headings = ["", "batch", "tokens", *(DENSE_VARIANTS.get(name, name) for name in names)]
    made = table(f"Latency (threads: {threads})", [*headings, "against int8", "against the fastest"])
    for row in report.latency:
        seconds = row["seconds"]
        fastest = min((seconds[name] for name in DENSE_VARIANTS if name in seconds), default=None)
        rivals = (seconds.get("dense_int8"), fastest)
        gains = [f"{rival / seconds['compressed']:.2f}x" if rival else "-" for rival in rivals]
        times = [time_text(seconds[name]) if name in seconds else "-" for name in names]
        made.add_row(scope_text(row), str(row["batch"]), str(row["tokens"]), *times, *gains)
    return made


def _size(report: Report) -> Table:
    made = table("Size and cost", ["", "dense", "compressed", "compressed / dense"])
    for label, dense_key, compressed_key in _SIZES:
        dense, ours = report.size.get(dense_key), report.size.get(compressed_key)
        if dense and ours is not None:
            made.add_row(label, bytes_text(dense), bytes_text(ours), f"{ours / dense:.2f}x")
    if report.cost is not None:
        made.add_row("FFNs, multiply-adds", "", "", f"{report.cost:.3f}x")
    return made


def _sites(report: Report) -> Table:
    made = table("Error per site", ["site", "share unexplained behind residual and norm"])
    for row in report.sites:
        made.add_row(row["name"], "dense" if row.get("error") is None else f"{row['error']:.4f}")
    return made
