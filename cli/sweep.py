"""`compress sweep`: convert at several settings, and show the trade-off."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .convert import default_output
from .options import Device, Threads, TrustRemoteCode
from .study import run


def sweep(
    model: Annotated[str, typer.Argument(help="Hub id (id@revision) or folder of a dense model.")],
    recipe: Annotated[str, typer.Argument(help="Recipe: a YAML file, or the name of a bundled one.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=V,V,...", help="An axis: values of the recipe to convert at, or one value for all; "
            "repeatable.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="OUT", help="Folder; by default MODEL-sweep.")
    ] = None,
    max_loss: Annotated[
        float | None, typer.Option(min=0.0, metavar="X", help="Name the cheapest point whose loss is at most this.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="PATH|hub:NAME", help="Data to distil on, instead of the recipe's.")
    ] = None,
    device: Device = None,
    threads: Threads = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, list the cells and stop.")] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:  # fmt: skip
    """Convert a model at every combination of some settings: a table and a picture of the trade-off.

    Every combination is a conversion in a folder of its own; started again, it goes on where it was.
    """
    from compress.studies.sweep import sweep_study

    study = sweep_study(model, recipe, overrides or (), max_loss=max_loss)
    folder = default_output(model)
    out = output if output is not None else folder.with_name(f"{folder.name.removesuffix('-lookup')}-sweep")
    run(study, out, data, device, threads, dry_run, trust_remote_code)
