"""Tables, plans and reports on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compress.durable import size_text

if TYPE_CHECKING:
    from rich.console import Console

    from compress.evaluate import Report
    from compress.plan import Plan

_WIDTH = 160  # columns where the output is no terminal and wrapping would only hurt


def console() -> Console:
    """Make a console as wide as the terminal, or wide enough for every table."""
    from rich.console import Console

    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=_WIDTH)


def show_plan(plan: Plan) -> None:
    """Print a conversion's plan and what is worth knowing before it starts."""
    out = console()
    out.print(plan.table())
    for note in plan.notes:
        out.print(note)
    if plan.needs is not None:
        memory, disk = size_text(plan.needs.memory), size_text(plan.needs.disk)
        out.print(f"needs up to {memory} of memory and {disk} of disk; {size_text(plan.needs.checkpoint)} of it stay")


def show_report(report: Report) -> None:
    """Print a report's tables, and its sentences where there are any."""
    out = console()
    for table in report.tables():
        out.print(table)
    for sentence in report.sentences():
        out.print(sentence)
