"""Examples -> batches: which examples share a batch, in what order, found for any step without those before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..streams import Stream
from .sequences import Examples, Rows

_SPREAD = 0.1  # lengths are compared with this much noise, so that an epoch does not repeat the batches of another
FIXED_ORDER = (0x6F72646572,)  # key of the order of a single pass


def plan(lengths: NDArray[np.int64], batch_tokens: int, key: tuple[int, ...]) -> list[Rows]:
    """Divide examples into batches of about `batch_tokens` tokens and alike lengths, in a random order keyed by `key`.

    How many batches depends on `lengths` and `batch_tokens` alone. Each example is in one of them; none is empty.
    """
    generator = np.random.default_rng(key)
    count = batch_count(lengths, batch_tokens)
    order = np.argsort(lengths * (1 + _SPREAD * generator.random(len(lengths))), kind="stable")
    ordered = lengths[order]
    # An example belongs to the batch that its middle falls into; batches are as wide as the longest example or wider,
    # so that none stays empty.
    middles = 2 * np.cumsum(ordered) - ordered
    batch_of = middles * count // (2 * int(lengths.sum()))
    batches = np.split(order, np.searchsorted(batch_of, np.arange(1, count)))
    return [batches[index] for index in generator.permutation(count)]


def batch_count(lengths: NDArray[np.int64], batch_tokens: int) -> int:
    """Count the batches of one pass."""
    total = int(lengths.sum())
    return max(1, min(round(total / batch_tokens), total // int(lengths.max())))


@dataclass(frozen=True)
class Split:
    """A part of a data set; `rows` are its examples. `random`: its training batches are augmented and masked anew."""

    examples: Examples
    rows: Rows
    random: bool = False
    _plan: dict[tuple[int, ...], list[Rows]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example."""
        return self.examples.lengths[self.rows]

    @property
    def tokens(self) -> int:
        """Positions that reach sites in one pass, of all streams together, padding not counted."""
        return int(self.lengths.sum())

    def tokens_in(self, stream: Stream) -> int:
        """Positions of one pass that reach a site which sees a stream."""
        return int(self.examples.lengths_in(stream)[self.rows].sum())

    def __len__(self) -> int:
        return len(self.rows)

    def steps_per_epoch(self, batch_tokens: int) -> int:
        """Count the batches that go once through the examples."""
        return batch_count(self.lengths, batch_tokens)

    def batch(self, step: int, batch_tokens: int, seed: int) -> dict[str, Tensor]:
        """Give the batch of any step (from 0): about `batch_tokens` real tokens, as keyword arguments of the model.

        The same step, size and seed give the same bytes. Every epoch goes through the examples once, in an order of its
        own. A batch holds at least one example, so that sequences longer than `batch_tokens` exceed it.
        """
        epoch, position = divmod(step, self.steps_per_epoch(batch_tokens))
        key = (seed, epoch, batch_tokens)
        batches = self._plan.get(key)  # once, as another thread may put another epoch in its place
        if batches is None:
            batches = plan(self.lengths, batch_tokens, (seed, epoch))
            self._plan.clear()
            self._plan[key] = batches
        rows = self.rows[batches[position]]
        return self.examples.collate(rows, (seed, step) if self.random else None)

    def batches(self, batch_tokens: int) -> Iterator[dict[str, Tensor]]:
        """Go once through the examples in a fixed order, of which any beginning is a fair sample; nothing is random."""
        for rows in plan(self.lengths, batch_tokens, FIXED_ORDER):
            yield self.examples.collate(self.rows[rows], None)
