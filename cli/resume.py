"""`compress resume`: go on with an interrupted conversion."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .convert import finish
from .failures import resumable
from .options import Device, Overrides, Rest, Threads, TrustRemoteCode, recipe_changes
from .show import show_plan


def resume(
    out: Annotated[Path, typer.Argument(help="Output folder of an interrupted conversion.")],
    overrides: Overrides = None,
    rest: Rest = None,
    device: Device = None,
    threads: Threads = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Go on with an interrupted conversion, on the device and with the threads that it began with."""
    from compress.conversion import resume as run

    with resumable(out, trust_remote_code) as stop:
        report = run(
            out, overrides=recipe_changes(overrides, rest), device=device, threads=threads,
            trust_remote_code=trust_remote_code, announce=show_plan, stop=stop,
        )  # fmt: skip
    if report is None:
        typer.echo(f"the conversion in {out} is finished")
    finish(out, report)
