"""Full disks, limits on files, and what a conversion says that it needs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from small_job import FIRST, SECOND, begin, trial

from compress.errors import CompressError


def test_a_limit_on_files_is_told_and_the_job_goes_on(tmp_path: Path) -> None:
    found = trial("limits", tmp_path, 1000, 6000, 60_000, 120_000)
    assert found["statuses"] == {"3": 4}
    assert (found["differing"], found["halves"], found["failed"]) == (0, 0, 0)
    for file, message in found["messages"].items():
        assert "needs" in message, file
        assert "resume" in message or "journal" in file


@pytest.mark.long
@pytest.mark.parametrize(
    ("step", "most", "seconds", "written"),
    [
        (8192, 400_000, 20, ("journal", f"distill-{FIRST}", f"distill-{SECOND}", "finetune", "checkpoint")),
        (131_072, 4_000_000, 0, ("held", "train-0-", "state.1")),
    ],
)
def test_a_disk_that_is_full_at_any_write(
    tmp_path: Path, step: int, most: int, seconds: int, written: tuple[str, ...]
) -> None:
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path], check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    subprocess.run(["umount", tmp_path], check=True)
    found = trial("rooms", tmp_path, step, most, seconds)
    assert set(found["statuses"]) == {"0", "3"}
    files = " ".join(found["messages"])
    assert all(part in files for part in written), files
    assert (found["differing"], found["halves"], found["failed"]) == (0, 0, 0)


def test_too_little_room_is_told_before_the_first_step(work: Path, tmp_path: Path, monkeypatch: Any) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(CompressError, match=r"needs up to .* of disk, 1 kB are free"):
        begin(work, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("pico", ()),
        pytest.param("embedded", ("finetune.steps=12",), marks=pytest.mark.long),
        pytest.param(
            "embedded",
            ("fit.tokens=8000", "distill.steps=8", "finetune.steps=24", "lookup.budget=0.5"),
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_conversion_stays_within_what_it_says_it_needs(
    work: Path, tmp_path: Path, name: str, overrides: tuple[str, ...]
) -> None:
    """Memory within a factor of two; disk within two where states are kept, which here is at every step."""
    if name == "pico":
        arguments = [str(work / "model"), str(work / "recipe.yaml"), "--data", str(work / "text.txt")]
    else:
        from compress.recipes.embedded import corpus

        text, _ = corpus.write_split(tmp_path)
        model = Path(corpus.__file__).resolve().parent / "model"
        arguments = [str(model), "demo", "--data", str(text), "--set", "data.tokens=400000"]
    for override in overrides:
        arguments += ["--set", override]
    found = measured(tmp_path / "out", arguments)
    said = json.loads((tmp_path / "out" / ".job" / "journal.json").read_text())["plan"]["needs"]
    assert 0.5 * said["memory"] < found["memory"] <= said["memory"], (found, said)
    assert 0.5 * said["disk"] < found["disk"] <= said["disk"] or name == "pico", (found, said)
    assert 0.5 * said["checkpoint"] < found["checkpoint"] <= said["checkpoint"] or name == "pico", (found, said)


MEASURED = """
import resource, sys
from compress.distill import clock
clock.SAVE_SECONDS = clock.MOST_SAVING = 0.0
clock.Clock.due = lambda self: True
from compress.cli import app
try:
    app(sys.argv[1:])
finally:
    print("memory", 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def measured(out: Path, arguments: list[str]) -> dict[str, int]:
    """Peak memory of a conversion's process, and of its folder."""
    command = [sys.executable, "-c", MEASURED, "convert", *arguments, "-o", str(out), "--threads", "1"]
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    disk = 0
    while process.poll() is None:
        disk = max(disk, size_of(out))
        time.sleep(0.005)
    assert process.returncode == 0
    assert process.stdout is not None
    told = process.stdout.read()
    assert "of memory and" in told
    return {"memory": int(told.split("memory ")[-1]), "disk": disk, "checkpoint": size_of(out)}


def size_of(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(root) / name).stat().st_size
    return total
