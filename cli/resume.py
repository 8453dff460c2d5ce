"""`compress resume`: go on with an interrupted conversion."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .convert import finish
from .failures import resumable
from .options import Device, Overrides, Threads
from .show import show_plan


def resume(
    out: Annotated[Path, typer.Argument(help="Output folder of an interrupted conversion.")],
    overrides: Overrides = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Go on with an interrupted conversion, on the device and with the threads that it began with."""
    from compress.conversion import resume as run

    with resumable(out) as stop:
        report = run(out, overrides=overrides or (), device=device, threads=threads, announce=show_plan, stop=stop)
    if report is None:
        typer.echo(f"the conversion in {out} is finished")
    finish(out, report)
