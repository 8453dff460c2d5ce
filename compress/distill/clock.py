"""When the next durable state is due."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

SAVE_SECONDS = 20.0  # of work between durable states, where saving is quick
MOST_SAVING = 0.05  # of the time


class Clock:
    """Tells when to save next: every `SAVE_SECONDS`, or as seldom as keeps saving below `MOST_SAVING` of the time."""

    def __init__(self) -> None:
        self.cost = 0.0  # seconds that the last saving took
        self.restart()

    def restart(self) -> None:
        """Begin the interval anew: everything is durable now."""
        self.since = time.monotonic()

    def due(self) -> bool:
        """Whether the interval is over."""
        return time.monotonic() - self.since >= max(SAVE_SECONDS, self.cost / MOST_SAVING)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Measure a saving, on which the next interval depends."""
        begin = time.monotonic()
        yield
        self.cost = time.monotonic() - begin
        self.restart()
