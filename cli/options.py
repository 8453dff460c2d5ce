"""Options that several commands share: machine settings, which never change what a result means."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

Threads = Annotated[int | None, typer.Option(min=1, metavar="N", help="Threads to compute with; by default torch's.")]
Device = Annotated[str | None, typer.Option(metavar="D", help="Device to compute on: cpu, cuda, cuda:1, ...")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that the model brings along.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a value of the recipe, such as distill.steps=200; repeatable."
    ),
]


class RestDtype(StrEnum):
    """Values of the recipe's `pack.rest`."""

    keep = "keep"
    int8 = "int8"


Rest = Annotated[
    RestDtype | None,
    typer.Option("--rest", help="What is no student as the dense model has it, or in int8; short for --set pack.rest."),
]


def recipe_changes(overrides: list[str] | None, rest: RestDtype | None) -> list[str]:
    """What --set and the options that stand for it change in a recipe."""
    return [*(overrides or ()), *((f"pack.rest={rest.value}",) if rest is not None else ())]
