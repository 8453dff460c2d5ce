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
    """Check a checkpoint's files against their checksums, load it and compare its outputs with those recorded."""
    from compress.checkpoint import load, read_config, verify_files, verify_outputs
    from compress.errors import CheckpointError

    read_config(checkpoint)
    problems = verify_files(checkpoint)
    if not problems:
        problems = verify_outputs(checkpoint, load(checkpoint, trust_remote_code=trust_remote_code))
    if problems:
        raise CheckpointError(
            "the checkpoint is not as it was made:\n"
            + "\n".join(f"  {found.file}: {found.what}" for found in problems),
            where=str(checkpoint),
            remedy="fetch it again, or convert the model again",
        )
    typer.echo("files as recorded; outputs as recorded")
