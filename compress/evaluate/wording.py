"""How numbers, durations, sizes and what they belong to are written for people."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

DENSE_VARIANTS = {"dense_float32": "dense float32", "dense_bfloat16": "dense bfloat16", "dense_int8": "dense int8"}
_SCOPES = {"ffn": "FFNs alone", "model": "whole model"}
_SHARES = {"accuracy", "token_agreement", "span_agreement", "wer"}


def number(value: float | None, metric: str = "") -> str:
    """Write four significant digits; shares as percentages."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{100 * value:.2f} %" if metric in _SHARES else f"{value:.4g}"


def signed(value: float | None, metric: str = "") -> str:
    """Write a number with its sign."""
    text = number(value, metric)
    return text if text.startswith("-") else f"+{text}"


def time_text(seconds: float) -> str:
    """Write a duration in seconds, milliseconds or microseconds."""
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.2f} {unit}"
    return f"{seconds * 1e6:.0f} µs"


def bytes_text(count: float) -> str:
    """Write a size in decimal units."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def counted(count: int, thing: str) -> str:
    """Write how many there are of a thing: `1 token`, `16 tokens`."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


def count_text(count: float) -> str:
    """Write a count in powers of a thousand: k, M, G."""
    for unit in ("", " k", " M"):
        if count < 1000:
            return f"{count:.0f}{unit}" if not unit else f"{count:.1f}{unit}"
        count /= 1000
    return f"{count:.2f} G"


def scope_text(row: Mapping[str, Any]) -> str:
    """Say what a latency row measured."""
    return _SCOPES.get(row["scope"], row["scope"])


def place_text(row: Mapping[str, Any]) -> str:
    """Say what a latency row measured, and on how much."""
    return f"{scope_text(row)} at batch {row['batch']} ({counted(row['tokens'], 'token')})"
