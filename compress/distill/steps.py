"""How far a stage is: a bar at a terminal, elsewhere a line a minute, as the log of a long job needs it."""

from __future__ import annotations

import time

from tqdm import tqdm

EVERY = 60.0  # seconds between two lines


class Steps:
    """Tells how many of `total` units of work are done, and how long the others take; `begun` were done before."""

    def __init__(self, name: str, total: int, begun: int = 0, unit: str = "step") -> None:
        self.name, self.total, self.begun, self.unit = name, total, begun, unit
        self.bar = tqdm(total=total, initial=begun, desc=name, unit=unit, disable=None)
        self.start = self.last = time.monotonic()

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, *raised: object) -> None:
        self.bar.close()

    def tell(self, done: int, error: float | None = None) -> None:
        """Say that `done` of all units are done, the last one with an error."""
        if not self.bar.disable:
            if error is not None:
                self.bar.set_postfix(error=f"{error:.4f}", refresh=False)
            self.bar.update(done - self.bar.n)
            return
        now = time.monotonic()
        if now - self.last < EVERY or done >= self.total or done <= self.begun:
            return
        self.last = now
        left = (now - self.start) / (done - self.begun) * (self.total - done)
        tqdm.write(
            f"{self.name}: {self.unit} {done} of {self.total}"
            + (f", error {error:.4f}" if error is not None else "")
            + f", about {tqdm.format_interval(left)} left"
        )
