"""Training steps recorded on a GPU and replayed: the host starts one graph instead of some thousand kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ..devices import upload

_TAKEN_FIRST = 3  # steps on batches of a shape before one is recorded; they set up what is set up once
_MOST = 4  # shapes that are recorded; each may keep some memory of its own

# A whole training step, the optimiser's part included, on a batch of the device; gives its error.
Step = Callable[[Mapping[str, Tensor]], Tensor]


class _Recorded(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: dict[str, Tensor]
    error: Tensor


class Replay:
    """Takes a step on a batch by replaying that of an earlier batch of its shape, where it can be recorded.

    A step that is recorded may neither wait for the GPU nor depend on anything of the host that changes. Batches with a
    mask are not recorded: which of their rows count is found on the host.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.usable = device.type == "cuda"
        self.forget()

    def forget(self) -> None:
        """Record anew: what the recorded steps read or write is no longer what training uses."""
        self.recorded: dict[object, _Recorded] = {}
        self.seen: Counter[object] = Counter()

    def take(self, batch: Mapping[str, Tensor], step: Step) -> Tensor | None:
        """Take a step on a batch of the host and give its error; None where the step is yet to be taken otherwise."""
        if not self.usable or any("mask" in name for name in batch):
            return None
        shape = tuple((name, value.shape, value.dtype) for name, value in batch.items())
        recorded = self.recorded.get(shape)
        if recorded is None:
            self.seen[shape] += 1
            if self.seen[shape] <= _TAKEN_FIRST or len(self.recorded) == _MOST:
                return None
            recorded = self._record(batch, step)
            if recorded is None:
                return None
            self.recorded[shape] = recorded
        for name, value in batch.items():
            recorded.inputs[name].copy_(upload(value, self.device))
        recorded.graph.replay()
        return recorded.error.clone()

    def _record(self, batch: Mapping[str, Tensor], step: Step) -> _Recorded | None:
        inputs = {name: torch.empty_like(value, device=self.device) for name, value in batch.items()}
        graph = torch.cuda.CUDAGraph()
        pool = next((other.graph.pool() for other in self.recorded.values()), None)  # never replayed at a time
        try:
            # Other threads make batches meanwhile, and what they do is none of the recording's business.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                error = step(inputs)
        except RuntimeError as failure:  # a model that waits for the GPU, as some do where they look at their inputs
            self.forget()
            self.usable = False
            reason = str(failure).partition("\n")[0]
            tqdm.write(f"steps are launched kernel by kernel, which takes longer: they cannot be recorded ({reason})")
            return None
        return _Recorded(graph, inputs, error)
