"""Counts by the processor itself, as Linux's `perf stat` reads them."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .counters import Caches, Counts, Segment, worker

# Names that perf maps to whatever the processor has; what reaches the last level has missed the second.
EVENTS = ("instructions", "L1-dcache-loads", "L1-dcache-load-misses", "LLC-loads", "LLC-load-misses")
_LAYERS = 4  # of a pass: its edges count too, and count less in more layers


class Perf:
    """A process a segment; the counters run only between its marks."""

    name = "perf"
    most_tokens = None

    def count(self, setup: Mapping[str, Any], segments: Sequence[Segment], caches: Caches) -> list[Counts]:
        """Counts of a layer in each segment; the caches are the machine's own."""
        return [self._count(setup, segment) for segment in segments]

    def _count(self, setup: Mapping[str, Any], segment: Segment) -> Counts:
        with tempfile.TemporaryDirectory() as folder:
            control, answer, output = (str(Path(folder) / name) for name in ("control", "answer", "output"))
            os.mkfifo(control)
            os.mkfifo(answer)
            command = [
                "perf", "stat", "-x", ",", "-o", output, "-e", ",".join(f"{event}:u" for event in EVENTS),
                "--delay", "-1", "--control", f"fifo:{control},{answer}", "--",
            ]  # fmt: skip
            # Both ends at once: opening one end of a pipe waits for the other.
            commands, answers = os.open(control, os.O_RDWR), os.open(answer, os.O_RDWR)
            try:
                with worker(command, setup, [segment], _LAYERS) as (_, marks):
                    for mark in marks:
                        if mark != "prepare":
                            os.write(commands, b"enable\n" if mark == "start" else b"disable\n")
                            os.read(answers, 5)  # ack\n
            finally:
                os.close(commands)
                os.close(answers)
            return parse(Path(output).read_text(encoding="utf-8"), _LAYERS)


def parse(text: str, layers: int = 1) -> Counts:
    """Read what `perf stat -x ,` writes; an event that was not counted is None."""
    values: dict[str, float] = {}
    for line in text.splitlines():
        fields = line.split(",")
        if len(fields) > 2 and fields[0].replace(".", "", 1).isdigit():
            values[fields[2].split(":")[0]] = float(fields[0]) / layers
    instructions, references, *missed = (values.get(event) for event in EVENTS)
    first, second, last = missed
    return Counts(Perf.name, instructions, references, (first, second, last))


def missing() -> str | None:
    """Why perf cannot count here, None where it can."""
    if shutil.which("perf") is None:
        return "perf is not installed (Debian: linux-perf)"
    done = subprocess.run(
        ["perf", "stat", "-x", ",", "-e", "instructions:u", "--", "true"], capture_output=True, text=True
    )
    if done.returncode == 0 and parse(done.stderr).instructions is not None:
        return None
    if "<not supported>" in done.stderr:
        return "perf has no hardware counters here, as in most virtual machines"
    last = next((line.strip() for line in done.stderr.splitlines() if line.strip()), "no message")
    return f"perf may not count here: {last} (kernel.perf_event_paranoid must be 2 or lower)"
