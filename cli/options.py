"""Options that several commands share: machine settings, which never change what a result means."""

from __future__ import annotations

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
