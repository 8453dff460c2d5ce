"""The measurement: all variants in turn on the same fresh inputs, every layer's weights and rows read from memory."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import kernels
from ..evaluate.latency import interleave
from ..evaluate.setting import processor
from .layers import Variant
from .machine import Memory, last_level_cache

FORMAT = 1
BATCHES = (1, 16, 512)
SETTLING = 0.05  # seconds in which the threads of the last engine, which wait busily for more work, go to sleep
WAKING = 0.02  # seconds: a thread that was asleep may first be put on the processor of the one that waits for it
SECONDS = 6.0  # of measuring a batch size, where the least rounds do not take longer


class ColdStack:
    """A pass over all timed layers of a variant, caches swept before it; code and threads are warm again."""

    def __init__(self, variant: Variant, memory: Memory, width: int, tokens: int) -> None:
        self.variant, self.memory, self.width, self.tokens = variant, memory, width, tokens
        *self.timed, self.spare = variant.layers
        self.inputs: list[Tensor] = []

    def prepare(self, round_: int) -> None:
        """Sweep the caches, then make the round's inputs, which in a model come from the layer before."""
        self.memory.sweep()
        generator = torch.Generator().manual_seed(round_)
        shape = (len(self.variant.layers), self.tokens, self.width)
        self.inputs = list(torch.randn(shape, generator=generator).to(self.variant.dtype))
        time.sleep(SETTLING)
        begin = time.perf_counter()
        self.spare(self.inputs[-1])
        while time.perf_counter() - begin < WAKING:
            self.spare(self.inputs[-1])

    def run(self) -> object:
        """Run every timed layer."""
        output = None
        for layer, x in zip(self.timed, self.inputs[:-1], strict=True):
            output = layer(x)
        return output


def bench(
    variants: Iterable[Variant], width: int, *, batches: Sequence[int] = BATCHES, seconds: float = SECONDS
) -> dict[str, Any]:
    """Time a pass of every variant at each batch size (tokens), with torch's number of threads.

    Returns `machine` (processor, instruction set, threads, last-level cache in bytes, streaming rate in bytes a second)
    and `rows`, one a batch size: `seconds` a layer and `bytes` a layer reads, by variant; medians of `rounds` passes.
    """
    memory, stacks = Memory(), list(variants)
    rate = memory.streaming_rate()
    rows = []
    for tokens in batches:
        contestants = {variant.name: ColdStack(variant, memory, width, tokens) for variant in stacks}
        taken, rounds = interleave(contestants, seconds)
        timed = {variant.name: len(variant.layers) - 1 for variant in stacks}
        rows.append(
            {
                "batch": tokens,
                "rounds": rounds,
                "seconds": {name: value / timed[name] for name, value in taken.items()},
                "bytes": {variant.name: variant.read(tokens) for variant in stacks},
            }
        )
    machine = {
        "processor": processor(),
        "isa": kernels.isa(),
        "threads": torch.get_num_threads(),
        "last_level_cache": last_level_cache(),
        "streaming_rate": rate,
    }
    return {"format": FORMAT, "machine": machine, "rows": rows}
