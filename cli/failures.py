"""How commands end when they cannot finish: a user's mistake, an interruption."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from compress.errors import CompressError

MISTAKE, INTERRUPTED = 2, 130


class Commands(TyperGroup):
    """The group of all commands; a failure that is neither of these keeps its traceback and ends with 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; a CompressError becomes one message and exit code 2, an interruption 130."""
        try:
            return super().invoke(ctx)
        except CompressError as error:
            typer.echo(f"error: {error.render()}", err=True)
            raise typer.Exit(MISTAKE) from None
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None


@contextmanager
def resumable(out: Path, trust_remote_code: bool = False) -> Iterator[None]:
    """Tell how to go on when the user interrupts a job in `out`."""
    try:
        yield
    except KeyboardInterrupt:
        how = f"; continue with: {resume_command(out, trust_remote_code)}"
        typer.echo("interrupted" + (how if (out / ".job" / "journal.json").exists() else ""), err=True)
        raise typer.Exit(INTERRUPTED) from None


def resume_command(out: Path, trust_remote_code: bool = False) -> str:
    """Give the command that continues the job in `out`."""
    import shlex

    return f"compress resume {shlex.quote(str(out))}" + (" --trust-remote-code" if trust_remote_code else "")
