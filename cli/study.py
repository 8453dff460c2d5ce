"""`compress study`: run a grid of trainings or conversions, and show what came out."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .failures import resumable
from .options import Device, Threads, TrustRemoteCode

if TYPE_CHECKING:
    from compress.studies import Outcome, Study

FAILED = 1


def study(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME|FILE", help="A YAML file, or a bundled study. Without it: a list.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="OUT", help="Folder of the study; by default NAME-study.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="PATH|hub:NAME", help="Text or data in place of the study's.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the study: training.steps=20; repeatable."),
    ] = None,
    device: Device = None,
    threads: Threads = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, list the cells and stop.")] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Run a study, or go on with one: a table of quality over cost, and pictures of it.

    A cell that fails is recorded, and the rest goes on; the exit code is 1 then.
    """
    from compress.studies import load_study

    if name is None:
        _list()
        return
    chosen = load_study(name, overrides or ())
    out = output if output is not None else Path(f"{Path(name).stem}-study")
    run(chosen, out, data, device, threads, dry_run, trust_remote_code)


def run(
    study: Study, out: Path, data: str | None, device: str | None, threads: int | None, dry_run: bool,
    trust_remote_code: bool,
) -> None:  # fmt: skip
    """Run a study's cells, print its table and say where everything is."""
    from compress.studies import grid_of
    from compress.studies.runner import MARK, run_grid

    how = shlex.join(["compress", *sys.argv[1:]])
    with resumable(out, begun=Path(MARK), how=how) as stop:
        grid = grid_of(study, data=data, device=device, threads=threads, trust_remote_code=trust_remote_code)
        if dry_run:
            for cell in grid.cells:
                typer.echo(cell.name)
            return
        outcome = run_grid(grid, out, tell=lambda line: typer.echo(line, err=True), stop=stop)
    show_outcome(outcome, out)


def show_outcome(outcome: Outcome, out: Path) -> None:
    """Print a study's table and say where everything is; exit code 1 where a cell failed."""
    typer.echo(outcome.markdown, nl=False)
    typer.echo(f"written to {out}: table.csv, table.md and the pictures")
    if outcome.failed:
        typer.echo(f"{len(outcome.failed)} of {len(outcome.results)} cells failed", err=True)
        raise typer.Exit(FAILED)


def _list() -> None:
    from compress.studies import bundled_studies

    from .recipes import first_comment

    bundled = bundled_studies()
    width = max(map(len, bundled), default=0)
    for key, path in bundled.items():
        typer.echo(f"{key:<{width}}  {first_comment(path)}".rstrip())
