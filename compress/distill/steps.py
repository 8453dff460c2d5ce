"""How far a stage is: a bar at a terminal, elsewhere a line a minute, as the log of a long job needs it."""

from __future__ import annotations

import time

from tqdm import tqdm

EVERY = 60.0  # seconds between two lines


class Steps:
    """Tells how many of `total` units of work are done, `begun` of them before, and how long the others take."""

    def __init__(self, name: str, total: int, begun: int = 0, unit: str = "step") -> None:
        self.name, self.total, self.unit = name, total, unit
        self.bar = tqdm(total=total, initial=begun, desc=name, unit=unit, disable=None)
        self.last: tuple[float, int] | None = None  # when a line was due last, and how many were done
        self.error: float | None = None  # the last one that was told
        self.told: list[tuple[float, int]] = []  # when the first units were told of and when the last, and how many

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, *raised: object) -> None:
        self.bar.close()

    @property
    def rate(self) -> float | None:
        """Units a second, from the first one told of to the last."""
        if len(self.told) < 2 or self.told[1][1] <= self.told[0][1]:
            return None
        (begin, before), (end, done) = self.told
        return (done - before) / max(1e-9, end - begin)

    def tell(self, done: int, error: float | None = None) -> None:
        """Say that `done` of all units are done, the last one with an error where that is known."""
        self.error = self.error if error is None else error
        self.told = [*self.told[:1], (time.monotonic(), done)]
        if not self.bar.disable:
            if error is not None:
                self.bar.set_postfix(error=f"{error:.4f}", refresh=False)
            self.bar.update(done - self.bar.n)
            return
        now = time.monotonic()
        if self.last is None or done <= self.last[1]:  # begun, or begun again
            self.last = now, done
        since, before = self.last
        if now - since < EVERY or done >= self.total:
            return
        self.last = now, done
        left = (now - since) / (done - before) * (self.total - done)
        tqdm.write(
            f"{self.name}: {self.unit} {done} of {self.total}"
            + (f", error {self.error:.4f}" if self.error is not None else "")
            + f", about {tqdm.format_interval(left)} left"
        )
