"""Batches made ahead of their turn, by threads, where a GPU would wait for them."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from .batching import Split

_MOST = 16  # threads; images take some milliseconds each, and a GPU wants a thousand of them a second


class Ahead:
    """Training batches of a split by step; on CUDA those of the next steps are made while the GPU works on this one.

    They are the bytes that `Split.batch` gives, in whatever order they are asked for; `steps` is where they end.
    Leaving the block ends the threads.
    """

    def __init__(self, split: Split, batch_tokens: int, seed: int, device: torch.device, steps: int) -> None:
        self.split, self.batch_tokens, self.seed, self.steps = split, batch_tokens, seed, steps
        # On the CPU such threads would take from the very cores that train.
        self.workers = min(_MOST, os.cpu_count() or 1) if device.type == "cuda" else 0
        self.pool = ThreadPoolExecutor(self.workers, "batches") if self.workers else None
        self.coming: dict[int, Future[dict[str, Tensor]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def batch(self, step: int) -> dict[str, Tensor]:
        """Give the batch of a step."""
        if self.pool is None:
            return self._make(step)
        wanted = range(step, max(step + 1, min(step + self.workers + 1, self.steps)))
        for other in set(self.coming).difference(wanted):  # training went back to an earlier step
            self.coming.pop(other).cancel()
        for other in wanted:
            if other not in self.coming:
                self.coming[other] = self.pool.submit(self._make, other)
        return self.coming.pop(step).result()

    def _make(self, step: int) -> dict[str, Tensor]:
        return self.split.batch(step, self.batch_tokens, self.seed)
