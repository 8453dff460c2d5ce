"""`compress bench --profile`: the dense FFN, SLIDE and LookupFFN, and what the paper states about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import typer

from compress.errors import CompressError

from .show import console

_TABLES = 128  # of the paper's student of width 768


def run_profile(
    dense: Mapping[str, Any], student: Mapping[str, Any], budget: float, dtypes: tuple[str | None, str | None], *,
    batches: Sequence[int] | None, threads: int | None, layers: int, seconds: float, counters: str, caches: str | None,
) -> dict[str, Any]:  # fmt: skip
    """Measure, with the paper's numbers for what is None."""
    import torch

    from compress.bench.counters import Choice
    from compress.bench.profile import BATCHES, profile
    from compress.bench.stacks import profiled

    if counters not in get_args(Choice):
        raise CompressError(
            f"unknown source {counters!r}", where="--counters", remedy=f"choose one of {', '.join(get_args(Choice))}"
        )
    tables = student["tables"] or _TABLES
    setup = profiled(dense, {**student, "tables": tables}, budget, *dtypes)
    numbers = sorted({1, torch.get_num_threads()}) if threads is None else [threads]
    return profile(
        setup, batches=batches or BATCHES, threads=numbers, layers=layers, seconds=seconds,
        choice=cast(Choice, counters), caches=caches,
    )  # fmt: skip


def show_profile(result: dict[str, Any]) -> None:
    """Print tables, statements, and what was left out and why."""
    from compress.bench.profile_report import caches_text, tables
    from compress.bench.statements import statements

    out, machine = console(), result["machine"]
    out.print(f"{machine['processor']}, {machine['isa']}; {caches_text(result)}")
    for made in tables(result):
        out.print(made)
    for statement in statements(result):
        out.print(str(statement))
    for name, reason in result["left_out"].items():
        out.print(f"left out: {name}: {reason}")


def draw_profile(result: dict[str, Any], folder: Path) -> None:
    """Write the pictures, and say where."""
    from compress.bench.profile_report import draw

    for path in draw(result, folder):
        typer.echo(f"written to {path}", err=True)
