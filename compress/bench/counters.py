"""What a pass is counted by: the passes, their counts, and the process that runs them and stops around each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from ..errors import CompressError
from .machine import Cache

Inputs = Literal["even", "alike"]  # tokens at random, and tokens that mostly share one direction
State = Literal["cold", "warm"]  # of the caches: nothing of the layer is there, or what a pass over other tokens left
Mark = Literal["prepare", "start", "stop"]  # where the process waits
Choice = Literal["auto", "perf", "cachegrind", "none"]
Caches = tuple[Cache, Cache, Cache]


@dataclass(frozen=True)
class Segment:
    """One pass to be counted."""

    system: str
    tokens: int
    inputs: Inputs = "even"
    state: State = "cold"


@dataclass(frozen=True)
class Counts:
    """What a pass did in a layer, by `source`; None where that cannot tell.

    references: reads and writes of data (perf: reads alone). missed: lines that miss the first, second and last level.
    """

    source: str
    instructions: float | None
    references: float | None
    missed: tuple[float | None, float | None, float | None]

    def hit(self, level: int) -> float | None:
        """Share of the references that the levels up to this one (0: the first) serve."""
        missed = self.missed[level]
        return None if missed is None or not self.references else max(0.0, 1 - missed / self.references)


class Counter(Protocol):
    """A source of counts."""

    @property
    def name(self) -> str:
        """What its counts name as their source."""

    @property
    def most_tokens(self) -> int | None:
        """The largest pass that it counts in reasonable time; None: any."""

    def count(self, setup: Mapping[str, Any], segments: Sequence[Segment], caches: Caches) -> list[Counts]:
        """Counts of a layer in each segment."""


@contextmanager
def worker(
    before: Sequence[str], setup: Mapping[str, Any], segments: Sequence[Segment], layers: int, **options: Any
) -> Iterator[tuple[subprocess.Popen[str], Iterator[Mark]]]:
    """Run segments in a process of its own, behind the command `before`.

    Gives the process and its marks, three a segment; it waits at each until the next is asked for.
    Raises CompressError with the end of what it wrote where it fails.
    """
    environment = {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", **options.pop("environment", {})}
    command = [*before, sys.executable, "-P", "-m", "compress.bench.counted"]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, **options
        )
        try:
            yield process, _marks(process, {"setup": dict(setup), "segments": [asdict(each) for each in segments],
                                            "layers": layers})  # fmt: skip
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()
        if process.returncode:
            errors.seek(0)
            raise failed(command[0], errors.read())


def _marks(process: subprocess.Popen[str], work: Mapping[str, Any]) -> Iterator[Mark]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(work) + "\n")
    process.stdin.flush()
    for line in process.stdout:
        if (mark := line.strip()) in ("prepare", "start", "stop"):
            yield mark  # type: ignore[misc]
            process.stdin.write("\n")
            process.stdin.flush()
    process.wait()


def failed(program: str, text: str) -> CompressError:
    """The error for a counting process that ended early."""
    last = [line for line in text.splitlines() if line.strip()][-3:]
    return CompressError(
        f"counting failed: {' / '.join(last) or 'no message'}",
        where=program,
        remedy="leave counts out: --counters none",
    )
