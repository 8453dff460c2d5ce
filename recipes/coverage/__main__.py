"""Go through every architecture of transformers and write the table.

`python -m compress.recipes.coverage [FILE]`; FILE is `docs/coverage.md` by default.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from .architectures import Architecture, architectures
from .check import STEPS, Outcome, convert, preload, reload
from .page import write_page
from .processes import Task, run_all

SECONDS = 60.0  # that one process may take


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m compress.recipes.coverage", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=Path("docs/coverage.md"), help="page to write")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="architectures or model types; no page is written")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes at a time")
    options = parser.parse_args()
    started = time.monotonic()
    preload()
    chosen = [a for a in architectures() if not options.only or {a.name, a.model_type} & set(options.only)]
    with tempfile.TemporaryDirectory() as scratch:
        outcomes = check(chosen, Path(scratch), options.workers)
    if options.only is None:
        write_page(options.file, chosen, outcomes, time.monotonic() - started, options.workers)
    passed = sum(outcome.whole for outcome in outcomes.values())
    print(f"{passed} of {len(chosen)} architectures pass, {time.monotonic() - started:.0f} s")


def check(chosen: Sequence[Architecture], scratch: Path, workers: int) -> dict[str, Outcome]:
    """Take every architecture as far as it comes, each step in a process of its own; outcomes by name."""
    folders = {architecture.name: scratch / architecture.name for architecture in chosen}
    for folder in folders.values():
        folder.mkdir()
    _run({a.name: partial(convert, folders[a.name], a.name) for a in chosen}, folders, workers)
    saved = [a for a in chosen if STEPS[3] in Outcome.read(folders[a.name]).passed]
    _run({a.name: partial(reload, folders[a.name], a.auto) for a in saved}, folders, workers)
    return {name: Outcome.read(folder) for name, folder in folders.items()}


def _run(tasks: dict[str, Task], folders: dict[str, Path], workers: int) -> None:
    names = list(tasks)
    for position, failure in run_all(list(tasks.values()), workers, SECONDS):
        name = names[position]
        outcome = Outcome.read(folders[name])
        if failure:
            outcome.reason = failure
            outcome.write(folders[name])
        print(
            f"{name}: {outcome.sites} sites, {(outcome.passed or ['not built'])[-1]}",
            outcome.reason or outcome.note or "",
            flush=True,
        )


if __name__ == "__main__":
    main()
