"""Whether a checkpoint is what it was when it was made: its files, its students' places and sizes, its answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from .format import read_config
from .manifest import MANIFEST_FILE, Problem, verify_files

RELOAD = "reload"  # what a problem is named after that belongs to no single file
_ENTRY = f"import sys; from {__name__} import answer; answer(*sys.argv[1:])"


def verify(folder: Path | str, *, trust_remote_code: bool = False) -> list[Problem]:
    """Find where a checkpoint differs from what it was, the first difference first; none where it is whole.

    Every file is held against its checksum. Where all agree, a fresh process loads the model, which checks every
    student's place, shapes and dtypes, and compares its outputs with those recorded. Raises CheckpointError where the
    folder is no checkpoint.
    """
    folder = Path(folder)
    if not (folder / MANIFEST_FILE).is_file():
        read_config(folder)  # which says what is wrong with a folder that never was a checkpoint
    return verify_files(folder) or _reload(folder, trust_remote_code)


def _reload(folder: Path, trust_remote_code: bool) -> list[Problem]:
    command = [sys.executable, "-P", "-c", _ENTRY, str(folder), *(["trust"] if trust_remote_code else [])]
    run = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
    )  # fmt: skip
    if run.returncode == 0:
        return [Problem(**found) for found in json.loads(run.stdout.splitlines()[-1])]
    how = f"ended with {run.returncode}" if run.returncode > 0 else f"was ended by signal {-run.returncode}"
    last = run.stderr.strip().splitlines()[-1:] or ["it said nothing"]
    return [Problem(RELOAD, f"the process that loaded the model {how}: {last[0]}")]


def answer(folder: str, trust: str = "") -> None:
    """Load a checkpoint, compare its outputs and print the problems as one line of JSON: what the process does."""
    from dataclasses import asdict

    from ..errors import CompressError
    from .loading import load
    from .probe import verify_outputs

    try:
        problems = verify_outputs(folder, load(folder, trust_remote_code=bool(trust)))
    except CompressError as error:
        problems = [Problem(RELOAD, error.message)]
    except Exception as error:  # of transformers or torch: whatever it is, the checkpoint does not work
        problems = [Problem(RELOAD, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")]
    print(json.dumps([asdict(problem) for problem in problems]))
