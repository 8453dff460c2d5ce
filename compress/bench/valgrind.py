"""Counts by valgrind: instructions as they are executed, and cachegrind's simulated caches (inside callgrind).

It simulates two levels, the first and a last one; the second is the last one of another run. Nothing is prefetched,
processors up to AVX2 are simulated, and a masked vector read counts every lane as a reference.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .counters import Caches, Counts, Segment, failed, worker
from .machine import Cache

_REQUIRED = ("valgrind", "vgdb")


class Valgrind:
    """Two processes for all segments, one with each size of the last level; instrumented only around the passes."""

    name = "cachegrind"
    most_tokens = 16

    def count(self, setup: Mapping[str, Any], segments: Sequence[Segment], caches: Caches) -> list[Counts]:
        """Counts of a layer in each segment."""
        first, second, last = map(simulated, caches)
        with (
            tqdm(total=2 * len(segments), desc="counting", unit=" passes", disable=None, delay=2) as bar,
            ThreadPoolExecutor(2) as pool,
        ):
            runs = [pool.submit(_run, setup, segments, first, level, bar.update) for level in (second, last)]
            nearer, farther = (run.result() for run in runs)
        return [
            Counts(self.name, far["Ir"], far["Dr"] + far["Dw"],
                   (far["D1mr"] + far["D1mw"], near["DLmr"] + near["DLmw"], far["DLmr"] + far["DLmw"]))
            for near, far in zip(nearer, farther, strict=True)
        ]  # fmt: skip


def _run(
    setup: Mapping[str, Any], segments: Sequence[Segment], first: Cache, last: Cache, done: Callable[[], object]
) -> list[dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        output, prefix = Path(folder) / "counts", f"--vgdb-prefix={folder}/vgdb"
        command = [
            "valgrind", "--tool=callgrind", "--instr-atstart=no", "--cache-sim=yes", f"--D1={_option(first)}",
            f"--LL={_option(last)}", f"--callgrind-out-file={output}", prefix,
        ]  # fmt: skip
        environment = {"COMPRESS_ISA": "avx2"} if platform.machine() in ("x86_64", "AMD64") else {}
        with worker(command, setup, segments, 1, environment=environment) as (process, marks):

            def tell(*words: str) -> None:
                told = subprocess.run(["vgdb", f"--pid={process.pid}", prefix, *words], capture_output=True, text=True)
                if told.returncode:
                    raise failed("vgdb", told.stderr)

            for mark in marks:
                if mark == "prepare":
                    tell("instrumentation", "on")  # which empties the simulated caches
                elif mark == "start":
                    tell("zero")
                else:
                    tell("dump")
                    tell("instrumentation", "off")
                    done()
        return [parse(Path(f"{output}.{i + 1}").read_text(encoding="utf-8")) for i in range(len(segments))]


def parse(text: str) -> dict[str, float]:
    """Read a dump's totals, by event. Raises CompressError where there are none."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, _, rest = line.partition(":")
        if key in ("events", "totals"):
            found[key] = rest.split()
    if found.keys() != {"events", "totals"}:
        raise failed("valgrind", "a dump without events or totals")
    values = [float(value) for value in found["totals"]]  # trailing zeros are left out
    values += [0.0] * (len(found["events"]) - len(values))
    return dict(zip(found["events"], values, strict=True))


def simulated(cache: Cache) -> Cache:
    """The largest cache not above this one that can be simulated: a power of two of sets."""
    sets = max(1, cache.size // (cache.ways * cache.line))
    return Cache((1 << sets.bit_length() - 1) * cache.ways * cache.line, cache.ways, cache.line)


def _option(cache: Cache) -> str:
    return f"{cache.size},{cache.ways},{cache.line}"


def missing() -> str | None:
    """Why valgrind cannot count here, None where it can."""
    absent = next((name for name in _REQUIRED if shutil.which(name) is None), None)
    return None if absent is None else f"{absent} is not installed (Debian: valgrind)"
