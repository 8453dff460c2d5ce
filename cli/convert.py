"""`compress convert`: turn a dense model into a LookupFFN model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .failures import resumable
from .options import Device, Overrides, Rest, Threads, TrustRemoteCode, recipe_changes
from .show import show_plan, show_report

if TYPE_CHECKING:
    from compress.evaluate import Report


def convert(
    model: Annotated[str, typer.Argument(help="Hub id (id@revision) or folder of a dense model.")],
    recipe: Annotated[str, typer.Argument(help="Recipe: a YAML file, or the name of a bundled one.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="OUT", help="New folder; by default MODEL-lookup.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="PATH|hub:NAME", help="Data to distil on, instead of the recipe's.")
    ] = None,
    overrides: Overrides = None,
    rest: Rest = None,
    device: Device = None,
    threads: Threads = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, print the plan and stop.")] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Replace a dense model's feed-forward networks by LookupFFN students, distilled from them."""
    from compress.conversion import convert as run

    out = output if output is not None else default_output(model)
    with resumable(out, trust_remote_code) as stop:
        report = run(
            model, recipe, out, data=data, overrides=recipe_changes(overrides, rest), device=device, threads=threads,
            dry_run=dry_run, trust_remote_code=trust_remote_code, announce=show_plan, stop=stop,
        )  # fmt: skip
    finish(out, report)


def finish(out: Path, report: Report | None) -> None:
    """Show what came out, and where it is."""
    if report is not None:
        show_report(report)
        typer.echo(f"written to {out}")


def default_output(model: str) -> Path:
    """Name the folder after the model with `-lookup` behind: beside a model's folder, for a hub id here."""
    path = Path(model).expanduser()
    if path.is_dir():
        folder = path.resolve()
        return folder.with_name(f"{folder.name}-lookup")
    name = model.partition("@")[0].rpartition("/")[2]
    return Path(f"{name}-lookup")
