"""`python -m compress.recipes.coverage [FILE]`: go through every architecture and write the table (docs/coverage.md)."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from functools import partial
from pathlib import Path

from .architectures import architectures
from .check import Outcome, convert, preload, reload
from .page import write_page
from .processes import run_all

SECONDS = 60.0  # a task's


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m compress.recipes.coverage", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=Path("docs/coverage.md"), help="page to write")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="architectures or model types; nothing is written")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    import torch

    preload()
    torch.set_num_threads(1)
    chosen = [a for a in architectures() if not options.only or {a.name, a.model_type} & set(options.only)]
    started = time.monotonic()
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch, architecture.name) for architecture in chosen]
        for folder in folders:
            folder.mkdir()
        first = [partial(convert, folder, a.name) for folder, a in zip(folders, chosen, strict=True)]
        _run(first, folders, options.workers)
        saved = [index for index, folder in enumerate(folders) if "converted" in Outcome.read(folder).passed]
        second = [partial(reload, folders[index], chosen[index].auto) for index in saved]
        _run(second, [folders[index] for index in saved], options.workers)
        outcomes = {a.name: Outcome.read(folder) for a, folder in zip(chosen, folders, strict=True)}
    if options.only is None:
        write_page(options.file, chosen, outcomes, time.monotonic() - started, options.workers)
    for architecture in chosen:
        outcome = outcomes[architecture.name]
        print(architecture.name, outcome.sites, ", ".join(outcome.passed[-1:]), outcome.reason or "", sep="\t")
    print(sum(len(outcome.passed) == 5 for outcome in outcomes.values()), "of", len(chosen), time.monotonic() - started)


def _run(tasks: list, folders: list[Path], workers: int) -> None:
    for position, seconds, failure in run_all(tasks, workers, SECONDS):
        outcome = Outcome.read(folders[position])
        print(
            f"{seconds:.1f} s",
            folders[position].name,
            outcome.sites,
            outcome.passed[-1:],
            failure or outcome.reason or "",
            sep="\t",
            flush=True,
        )
        if failure:
            outcome.reason = failure
            outcome.write(folders[position])


if __name__ == "__main__":
    main()
