"""`compress export`: a compressed checkpoint for another engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compress.errors import CompressError

from .options import TrustRemoteCode


def export(
    checkpoint: Annotated[str, typer.Argument(help="Folder or hub id of a compressed model.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write; it must not exist.")],
    to: Annotated[str, typer.Option(metavar="ENGINE", help="openvino.")] = "openvino",
    rest: Annotated[
        str, typer.Option(metavar="DTYPE", help="float32 or int8: what all but the FFNs is computed in.")
    ] = "float32",
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|hub:NAME", help="Data that int8 takes ranges from; by default what the recipe evaluates on."
        ),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Write a compressed checkpoint for OpenVINO, every FFN in it one operation of this project's kernel."""
    from compress.openvino import export as write

    if to != "openvino":
        raise CompressError(f"unknown engine {to!r}", where="--to", remedy="choose openvino")
    write(checkpoint, output, rest=rest, data=data, trust_remote_code=trust_remote_code, tell=_tell)
    typer.echo(f"written to {output}")


def _tell(line: str) -> None:
    typer.echo(line, err=True)
