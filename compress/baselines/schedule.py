"""When hash tables of neurons are built again: SLIDE's growing intervals, MONGOOSE's measured drift."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


class Schedule(nn.Module):
    """Decides at each training step whether the tables are due; `counts` int64 is its state."""

    counts: Tensor

    def step(self, drift: Callable[[int], float]) -> bool:
        """Count a training step; whether to rebuild. drift(i): share of changed codes as check i finds it."""
        raise NotImplementedError

    @property
    def steps(self) -> int:
        """Training steps so far."""
        return int(self.counts[0])

    @property
    def rebuilds(self) -> int:
        """Rebuilds so far, the first building aside."""
        return int(self.counts[1])

    @property
    def checks(self) -> int:
        """How often drift was looked at so far."""
        return 0


class GrowingSchedule(Schedule):
    """Rebuild i comes `every` * exp(`growth` * i) training steps after the one before (i = 0, 1, ...).

    State: `counts` int64 [3]: training steps so far, rebuilds so far, the step of the next one.
    """

    def __init__(self, every: int, growth: float) -> None:
        super().__init__()
        self.every, self.growth = every, growth
        self.register_buffer("counts", torch.tensor([0, 0, every]))

    def step(self, drift: Callable[[int], float]) -> bool:
        """Count a training step; whether to rebuild."""
        step, rebuilds, due = self.counts.tolist()
        step += 1
        if now := step >= due:
            rebuilds += 1
            due = step + round(self.every * math.exp(min(self.growth * rebuilds, 30.0)))
        self.counts.copy_(torch.tensor([step, rebuilds, due]))
        return now

    def extra_repr(self) -> str:
        """Settings, for print(model)."""
        return f"every={self.every}, growth={self.growth}"


class DriftSchedule(Schedule):
    """Rebuild where more than a share `threshold` of codes has changed, looked at every `every` training steps.

    State: `counts` int64 [3]: training steps so far, rebuilds so far, checks so far.
    """

    def __init__(self, every: int, threshold: float) -> None:
        super().__init__()
        self.every, self.threshold = every, threshold
        self.register_buffer("counts", torch.zeros(3, dtype=torch.int64))

    def step(self, drift: Callable[[int], float]) -> bool:
        """Count a training step; whether to rebuild."""
        step, rebuilds, checks = self.counts.tolist()
        step += 1
        now = False
        if step % self.every == 0:
            now = drift(checks) > self.threshold
            checks += 1
        self.counts.copy_(torch.tensor([step, rebuilds + now, checks]))
        return now

    @property
    def checks(self) -> int:
        """How often drift was looked at so far."""
        return int(self.counts[2])

    def extra_repr(self) -> str:
        """Settings, for print(model)."""
        return f"every={self.every}, threshold={self.threshold}"
