"""What a machine's memory can do: how much its caches hold, how fast it streams, and how to begin with cold caches."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from ..kernels import huge_buffer, stream_read

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNKNOWN_CACHE = 64 << 20
_LARGEST_SWEEP = 1 << 30
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True)
class Cache:
    """One level of the data caches: bytes in all, lines that share a place, bytes of a line."""

    size: int
    ways: int
    line: int = 64


# A common desktop's first, second and last level, where the system tells nothing.
DESKTOP = (Cache(32 << 10, 8), Cache(1 << 20, 8), Cache(32 << 20, 16))


def parse_size(text: str) -> int:
    """Read 32K, 1M or a plain number of bytes. Raises ValueError."""
    text = text.strip().upper()
    return int(text[:-1]) * _UNITS[text[-1]] if text[-1:] in _UNITS else int(text)


def last_level_cache() -> int:
    """Bytes of the largest cache, as the system tells; 64 MiB where it does not."""
    sizes = [parse_size(path.read_text(encoding="ascii") or "0") for path in _CACHES.glob("index*/size")]
    return max(sizes, default=_UNKNOWN_CACHE)


def data_caches() -> tuple[Cache, Cache, Cache] | None:
    """First, second and last level of the first processor, as the system tells; None where it tells less."""
    levels: dict[int, Cache] = {}
    for folder in _CACHES.glob("index*"):
        try:
            kind, *numbers = (
                (folder / name).read_text(encoding="ascii").strip()
                for name in ("type", "level", "size", "ways_of_associativity", "coherency_line_size")
            )
            level, size, ways, line = (parse_size(number) for number in numbers)
        except (OSError, ValueError):
            continue
        if kind != "Instruction" and size > 0:
            levels[level] = Cache(size, max(ways, 1), line)
    if not {1, 2} <= levels.keys() or len(levels) < 3:
        return None
    return levels[1], levels[2], levels[max(levels)]


def available_memory() -> int | None:
    """Bytes that programs can still have, as the system tells."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


class Memory:
    """A block twice as large as the last-level cache, 1 GiB at most: reading it leaves nothing else cached."""

    def __init__(self) -> None:
        size = min(2 * last_level_cache(), _LARGEST_SWEEP) // 8 * 8
        self.block = huge_buffer(size).view(torch.int64).fill_(1)

    def sweep(self) -> None:
        """Drive everything else out of the caches."""
        stream_read(self.block)

    def streaming_rate(self) -> float:
        """Bytes a second that torch's number of threads read from one end to the other; the median of seven passes."""
        seconds = []
        for _ in range(7):
            start = time.perf_counter()
            stream_read(self.block)
            seconds.append(time.perf_counter() - start)
        return self.block.nbytes / statistics.median(seconds)
