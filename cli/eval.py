"""`compress eval`: quality, speed and size of a compressed model beside its dense one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compress.errors import CompressError

from .options import Threads, TrustRemoteCode
from .show import show_report


def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="Folder or hub id of a compressed model.")],
    against: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The dense model; by default the one it was converted from.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="FILE|hub:NAME", help="Data to measure on; by default the recipe's eval.data."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="TOKENS", min=1, help="Evaluate on about so many tokens, evenly spread.")
    ] = None,
    latency: Annotated[bool, typer.Option(help="Measure speed too.")] = True,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write the report as JSON; - for standard output.")
    ] = None,
    threads: Threads = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Measure quality, speed and size of a compressed model beside its dense one, on the same inputs."""
    from compress.evaluate import evaluate as measure

    if json_file not in (None, "-") and not Path(json_file).absolute().parent.is_dir():
        raise CompressError("the report cannot be written: no such folder", where=json_file, remedy="make it first")
    report = measure(
        checkpoint, against, data, limit_tokens=limit, threads=threads, latency=latency,
        trust_remote_code=trust_remote_code,
    )  # fmt: skip
    if json_file == "-":
        typer.echo(report.to_json(), nl=False)
        return
    show_report(report)
    if json_file is not None:
        report.save(Path(json_file))
