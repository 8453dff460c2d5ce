"""What a machine's memory can do: how much its caches hold, how fast it streams, and how to begin with cold caches."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch

from ..kernels import huge_buffer, stream_read

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNKNOWN_CACHE = 64 << 20
_LARGEST_SWEEP = 1 << 30
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def last_level_cache() -> int:
    """Bytes of the largest cache, as the system tells; 64 MiB where it does not."""
    sizes = [_UNKNOWN_CACHE]
    for path in _CACHES.glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        sizes.append(int(text[:-1]) * _UNITS[text[-1]] if text[-1:] in _UNITS else int(text or 0))
    return max(sizes[1:], default=sizes[0])


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
