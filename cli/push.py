"""`compress push`: put a checkpoint on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import TrustRemoteCode

if TYPE_CHECKING:
    from compress.publishing import Transfer


def push(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a compressed checkpoint.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository on the hub, made where it is missing.")],
    public: Annotated[
        bool, typer.Option("--public", help="Let everyone have it; a new repository is private.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="Branch to upload to, made where it is missing.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Verify, list what would be uploaded and stop; the hub is not asked.")
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Verify a checkpoint and upload it to the hub, in one commit, with its model card.

    The token is the one of `hf auth login`, or HF_TOKEN. After an interruption the same command goes on.
    """
    from compress.publishing import push as upload

    address = upload(
        checkpoint, repo, public=public, revision=revision, dry_run=dry_run, trust_remote_code=trust_remote_code,
        announce=_show,
    )  # fmt: skip
    if address is not None:
        typer.echo(f"published: {address}")


def _show(transfer: Transfer) -> None:
    from compress.evaluate.wording import bytes_text, counted

    typer.echo(f"{transfer.repo}, {transfer.revision}, {'public' if transfer.public else 'private'}")
    for name, size in transfer.sent.items():
        typer.echo(f"{bytes_text(size):>10}  {name}")
    for name in transfer.removed:
        typer.echo(f"{'remove':>10}  {name}")
    count, total = len(transfer.sent), bytes_text(sum(transfer.sent.values()))
    there = f"; {len(transfer.kept)} there already" if transfer.kept else ""
    typer.echo(f"{counted(count, 'file')} to upload, {total}{there}")
