"""A small conversion that can be stopped, copied, damaged and gone on with, for the tests in durability/."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compress.conversion import convert
from compress.distill.job import Job

FIRST, SECOND = "layers.0.mlp.down_proj", "layers.1.mlp.down_proj"


def begin(work: Path, out: Path, *overrides: str, stop: Callable[[], bool] = lambda: False) -> Any:
    return convert(
        str(work / "model"), work / "recipe.yaml", out, data=str(work / "text.txt"), threads=1, overrides=overrides,
        stop=stop,
    )  # fmt: skip


def in_stage(out: Path, stage: str, calls: int = 10) -> Callable[[], bool]:
    """Say stop at the so-manieth time that a stage asks."""
    seen = 0

    def stop() -> bool:
        nonlocal seen
        if not (out / ".job" / "journal.json").exists():
            return False
        done = Job.open(out).journal["units"]
        seen += len(done) == (2 if stage == "finetune" else 0)
        return seen > calls

    return stop


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def trial(name: str, folder: Path, *arguments: object) -> dict[str, Any]:
    """What trials.py found."""
    command = [sys.executable, str(Path(__file__).with_name("trials.py")), name, folder, *arguments]
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": str(Path(__file__).parent)}
    found = subprocess.run(
        [str(part) for part in command], env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    values: dict[str, Any] = json.loads(found.stdout)
    return values


def interrupted(*args: Any, **kwargs: Any) -> None:
    raise KeyboardInterrupt
