"""Training that diverges: when it counts as that, and how often it begins again with smaller steps."""

from __future__ import annotations

import torch
from torch import Tensor

RESTARTS = 2  # from the last good state, before a stage gives up
SMALLER = 0.25  # step size behind a restart, over the one before
LOOK_EVERY = 32  # steps between two looks at the errors on a GPU, which each look waits for
_EXPLODED = 30.0  # error, over that at the start or over 1, which is the error of the mean answer


class Diverged(Exception):
    """Training came to no good end, restarts included; the message says where."""


class Errors:
    """The errors of a training's steps, each read at once on the CPU, on a GPU many together."""

    def __init__(self) -> None:
        self.unread: list[Tensor] = []

    def read(self, error: Tensor, *, now: bool) -> list[float]:
        """Take one more error, and give all that were not read yet; none where it is not time, unless `now`."""
        self.unread.append(error.detach())
        if not now and error.device.type != "cpu" and len(self.unread) < LOOK_EVERY:
            return []
        found: list[float] = torch.stack(self.unread).tolist()
        self.unread.clear()
        return found


def diverged(error: float, start: float) -> bool:
    """Whether an error is no number, or far above where training started."""
    return not error < _EXPLODED * max(1.0, start)
