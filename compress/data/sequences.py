"""Token sequences as model inputs: windows without padding for causal models, padded passages for encoders."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..streams import Stream
from .inputs import SpecialTokens

IGNORED = -100  # target of positions that predict nothing
Draw = tuple[int, int]  # seed and step: what the random part of a training batch is keyed by
Rows = NDArray[np.int64]


class Hasher(Protocol):
    """A hash that takes bytes."""

    def update(self, data: Any, /) -> None:
        """Take more bytes."""


class Examples(Protocol):
    """Examples that can be put into batches in any order."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example, those of all its streams together. [examples]."""

    def lengths_in(self, stream: Stream) -> NDArray[np.int64]:
        """Tokens that each example makes at a site which sees a stream. [examples]."""

    def collate(self, rows: Rows, draw: Draw | None) -> dict[str, Tensor]:
        """Put examples into keyword arguments of the model; without `draw` always the same."""

    def targets(self, rows: Rows, inputs: dict[str, Tensor]) -> Tensor | None:
        """Token ids [B, T] that the logits of each position should name, IGNORED where nothing is to be predicted."""

    def hash_into(self, hasher: Hasher) -> None:
        """Feed a hash all that the examples are made of."""


class OneStream:
    """Examples whose tokens all sites see."""

    lengths: Any

    def lengths_in(self, stream: Stream) -> NDArray[np.int64]:
        """Tokens of each example; a decoder that is given none of its own reads them too."""
        lengths: NDArray[np.int64] = self.lengths
        return np.zeros_like(lengths) if stream == "images" else lengths


@dataclass(frozen=True)
class Windows(OneStream):
    """Equally long windows over one stream of tokens: ids [examples, body], each behind the same prefix.

    `scored`: how many tokens at the end of a window are predicted where windows overlap, so that each counts once; the
    first window predicts all of its tokens.
    """

    ids: NDArray[np.int32]
    prefix: tuple[int, ...]
    scored: int | None = None

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each window, the prefix included."""
        return np.full(len(self.ids), self.ids.shape[1] + len(self.prefix), np.int64)

    def collate(self, rows: Rows, draw: Draw | None) -> dict[str, Tensor]:
        """Give input_ids [B, T] int64; nothing in it is random."""
        ids = np.empty((len(rows), len(self.prefix) + self.ids.shape[1]), np.int64)
        ids[:, : len(self.prefix)] = self.prefix
        ids[:, len(self.prefix) :] = self.ids[rows]
        return {"input_ids": torch.from_numpy(ids)}

    def targets(self, rows: Rows, inputs: dict[str, Tensor]) -> Tensor:
        """Every position predicts the next one; of overlapping windows, those whose next one is scored."""
        ids = inputs["input_ids"]
        targets = torch.full_like(ids, IGNORED)
        targets[:, :-1] = ids[:, 1:]
        if self.scored is not None:
            targets[torch.from_numpy(rows > 0), : -self.scored - 1] = IGNORED
        return targets

    def hash_into(self, hasher: Hasher) -> None:
        """Feed a hash the token ids."""
        hash_arrays(hasher, self.ids, np.asarray([self.scored or 0, *self.prefix], np.int64))


@dataclass(frozen=True)
class BlankWindows(OneStream):
    """Windows of `length` tokens that the dense model is still to write, behind `prefix`, or behind `start`.

    It writes `together` of them as one text; `count` is a multiple of that.
    """

    count: int
    length: int
    together: int
    prefix: tuple[int, ...]
    start: int
    seed: int

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each window, the prefix included."""
        return np.full(self.count, self.length, np.int64)

    def collate(self, rows: Rows, draw: Draw | None) -> dict[str, Tensor]:
        """Give what a text begins with alone, over and over: nothing is written yet."""
        return {"input_ids": torch.full((len(rows), self.length), self.start)}

    def targets(self, rows: Rows, inputs: dict[str, Tensor]) -> None:
        """There is nothing yet."""

    def hash_into(self, hasher: Hasher) -> None:
        """Feed a hash what the windows will be made from."""
        hasher.update(repr(self).encode())


class Masking(NamedTuple):
    """How a masked language model's inputs lose tokens: each but the special ones with probability `share`."""

    mask: int
    special: tuple[int, ...]
    seed: int
    share: float = 0.15


@dataclass(frozen=True)
class Passages(OneStream):
    """Texts of any length, with special tokens around them; padded in the batch, with an attention mask.

    `ids` holds the texts one behind the other, text i from offsets[i] to offsets[i + 1].
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    special: SpecialTokens
    masking: Masking | None = None

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each text, special ones included."""
        return np.diff(self.offsets) + self.special.count

    def collate(self, rows: Rows, draw: Draw | None) -> dict[str, Tensor]:
        """Give input_ids and attention_mask [B, T] int64; tokens are masked where the model predicts masked ones."""
        ids, real, positions = self._padded(rows)
        if self.masking is not None:
            ids = np.where(self._masked(ids, positions, draw), self.masking.mask, ids)
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(real.astype(np.int64))}

    def targets(self, rows: Rows, inputs: dict[str, Tensor]) -> Tensor | None:
        """Masked positions predict what stood there; without masking nothing is predicted."""
        if self.masking is None:
            return None
        ids = torch.from_numpy(self._padded(rows)[0])
        return torch.where(inputs["input_ids"] != ids, ids, IGNORED)

    def _padded(self, rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
        """Token ids, which are real, and each one's position in `ids` (-1: special or padding), all [B, T]."""
        prefix, suffix = self.special.prefix, self.special.suffix
        lengths = self.lengths[rows]
        width = int(lengths.max())
        ids = np.full((len(rows), width), self.special.pad, np.int64)
        real = np.zeros((len(rows), width), np.bool_)
        positions = np.full((len(rows), width), -1, np.int64)
        for line, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            start, end = self.offsets[row], self.offsets[row + 1]
            first = width - length if self.special.left else 0
            body = slice(first + len(prefix), first + length - len(suffix))
            real[line, first : first + length] = True
            ids[line, first : body.start] = prefix
            ids[line, body] = self.ids[start:end]
            ids[line, body.stop : first + length] = suffix
            positions[line, body] = np.arange(start, end)
        return ids, real, positions

    def _masked(self, ids: NDArray[np.int64], positions: NDArray[np.int64], draw: Draw | None) -> NDArray[np.bool_]:
        assert self.masking is not None
        # Keyed by a token's place in the data, not in the batch: a text is masked alike in whatever company.
        chosen = _uniform(positions, (self.masking.seed, -1) if draw is None else draw) < self.masking.share
        return chosen & (positions >= 0) & ~np.isin(ids, self.masking.special)

    def hash_into(self, hasher: Hasher) -> None:
        """Feed a hash the token ids and where they are cut."""
        special = [*self.special.prefix, -1, *self.special.suffix, self.special.pad, self.special.left]
        hash_arrays(hasher, self.ids, self.offsets, np.asarray(special, np.int64))
        hasher.update(repr(self.masking).encode())


def hash_arrays(hasher: Hasher, *arrays: NDArray[Any]) -> None:
    """Feed a hash arrays and their shapes."""
    for array in arrays:
        hasher.update(repr(array.shape).encode())
        hasher.update(np.ascontiguousarray(array))


def _uniform(positions: NDArray[np.int64], key: tuple[int, int]) -> NDArray[np.float64]:
    """Draw a number in [0, 1) for each position by hashing it (the finaliser of SplitMix64, Steele et al. 2014)."""
    digest = blake2b(repr(key).encode(), digest_size=8).digest()
    z = positions.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(int.from_bytes(digest, "little"))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) / np.float64(2**64)
