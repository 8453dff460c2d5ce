"""`compress verify`: whether a checkpoint is whole and gives what it gave when it was made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import TrustRemoteCode


def verify(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a compressed checkpoint.")],
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Check a checkpoint's files against their checksums, load it anew and compare its outputs with those recorded.

    Ends with 1 where something differs, and names the first difference first.
    """
    from compress.checkpoint import added_files, verify
    from compress.distill.job import Job

    Job.check_finished(checkpoint)
    problems = verify(checkpoint, trust_remote_code=trust_remote_code)
    for found in problems:
        typer.echo(f"{found.file}: {found.what}", err=True)
    if problems:
        typer.echo(problems[0].remedy, err=True)
        raise typer.Exit(1)
    for name in added_files(checkpoint):
        typer.echo(f"{name}: not of the checkpoint, not checked")
    typer.echo("files as recorded; outputs as recorded")
