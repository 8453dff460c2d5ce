"""An estimate of energy from published picojoules: of arithmetic, and of the words that each level of memory hands up.

All figures are those of M. Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014, for a
45 nm process at 0.9 V. They are not scaled to newer processes: take ratios from them, not the joules of this machine.
Fetching, decoding and scheduling instructions is left out, and so is everything that runs while a core waits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

SOURCE = "Horowitz, ISSCC 2014: 45 nm, 0.9 V, unscaled"

Arithmetic = Literal["float32", "int8"]

# Picojoules of a multiplication and an addition: float32 3.7 + 0.9; 8 bits 0.2, summed in 32 bits 0.1.
MULTIPLY_ADD: Mapping[Arithmetic, float] = {"float32": 3.7 + 0.9, "int8": 0.2 + 0.1}
WORD = 8  # bytes of the accesses below
# Picojoules of reading a word from a cache of so many bytes.
CACHE_ACCESS = {8 << 10: 10.0, 32 << 10: 20.0, 1 << 20: 100.0}
MEMORY_ACCESS = 1300.0  # picojoules of reading a word from DRAM; published as 1300 to 2600


def cache_access(size: int) -> float:
    """Picojoules of reading a word of 8 bytes from a cache of `size` bytes; never more than from memory.

    Between and beyond the published sizes: the power of the size that the two nearest ones lie on.
    """
    known = sorted(CACHE_ACCESS)
    upper = next((i for i in range(1, len(known) - 1) if size <= known[i]), len(known) - 1)
    low, high = known[upper - 1], known[upper]
    power = math.log(CACHE_ACCESS[high] / CACHE_ACCESS[low]) / math.log(high / low)
    return min(CACHE_ACCESS[high] * (size / high) ** power, MEMORY_ACCESS)


@dataclass(frozen=True)
class Energy:
    """Picojoules: of arithmetic, and of what the first, second and last level and memory hand up."""

    arithmetic: float
    first: float
    second: float
    last: float
    memory: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.arithmetic + self.first + self.second + self.last + self.memory


def estimate(
    multiply_adds: float, arithmetic: Arithmetic, references: float, missed: tuple[float, float, float],
    sizes: tuple[int, int, int], line: int,
) -> Energy:  # fmt: skip
    """Energy of some work on a machine with three levels of caches of `sizes` bytes.

    references: reads and writes of data, each charged as one word from the first level; missed: lines of `line` bytes
    that miss each level, and so come from the next.
    """
    words = line / WORD
    first, second, last = (cache_access(size) for size in sizes)
    l1, l2, l3 = (words * count for count in missed)
    return Energy(multiply_adds * MULTIPLY_ADD[arithmetic], references * first, l1 * second, l2 * last,
                  l3 * MEMORY_ACCESS)  # fmt: skip
