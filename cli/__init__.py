"""The command line: one command a module; nothing heavy is imported before a command runs."""

from __future__ import annotations

from typing import Annotated

import typer

from .bench import bench
from .convert import convert
from .eval import evaluate
from .export import export
from .failures import Commands
from .inspect import inspect
from .push import push
from .recipes import recipes
from .resume import resume
from .run import run
from .status import status
from .study import study
from .sweep import sweep
from .verify import verify

app = typer.Typer(
    name="compress",
    cls=Commands,
    help="Convert pretrained dense transformers into LookupFFN models that run fast on an ordinary CPU.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"compress {version('compress-lookup')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Convert pretrained dense transformers into LookupFFN models that run fast on an ordinary CPU."""


for _name, _command in (
    ("convert", convert), ("resume", resume), ("status", status), ("inspect", inspect), ("eval", evaluate),
    ("bench", bench), ("run", run), ("recipes", recipes), ("verify", verify), ("push", push), ("export", export),
    ("sweep", sweep), ("study", study),
):  # fmt: skip
    app.command(_name)(_command)


def main() -> None:
    """Run the command line: exit code 2 for a user's mistake, 130 when interrupted, 1 for a failure."""
    app(prog_name="compress")
