"""Training that diverges: when it counts as that, and how often it begins again with smaller steps."""

from __future__ import annotations

RESTARTS = 2  # from the last good state, before a stage gives up
SMALLER = 0.25  # step size behind a restart, over the one before
_EXPLODED = 30.0  # error, over that at the start or over 1, which is the error of the mean answer


class Diverged(Exception):
    """Training came to no good end, restarts included; the message says where."""


def diverged(error: float, start: float) -> bool:
    """Whether an error is no number, or far above where training started."""
    return not error < _EXPLODED * max(1.0, start)
