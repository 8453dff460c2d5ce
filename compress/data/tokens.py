"""Pieces of text -> token ids, in one array."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from .text import Piece, Source

_CHARACTERS_A_TOKEN = 5  # a guess, above what most tokenizers reach
_BATCH = (1 << 16, 1 << 20)  # characters tokenised at once, at least and at most


class Tokens(NamedTuple):
    """Token ids of all pieces, one behind the other, and how many each piece has."""

    ids: NDArray[np.int32]  # [tokens]
    lengths: NDArray[np.int64]  # [pieces]
    exhausted: bool  # whether nothing was left out


def tokenize(sources: Sequence[Source], tokenizer: Any, wanted: int | None = None, *, overhead: int = 0,
             end: int | None = None, whole: bool = True, keep_empty: bool = False) -> Tokens:  # fmt: skip
    """Tokenise pieces without special tokens, about `wanted` tokens of them, or all.

    Every source gives tokens in proportion to its weight, the others more where one has too few. `overhead` counts the
    special tokens a piece will get. `end`: id that closes each document. `whole`: no piece is cut where a source's
    share ends. Empty pieces are left out unless `keep_empty`.
    """
    with tqdm(total=wanted, desc="tokenising", unit=" tokens", unit_scale=True, disable=None, delay=2) as bar:
        readers = [_Reader(source, tokenizer, overhead, end, keep_empty, bar) for source in sources]
        exhausted = -1
        while exhausted < (exhausted := sum(reader.exhausted for reader in readers)):
            quotas = _quotas(wanted, readers)
            for reader, quota in zip(readers, quotas, strict=True):
                reader.read(quota)
    parts = [reader.take(quota, whole) for reader, quota in zip(readers, quotas, strict=True)]
    ids, lengths = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Tokens(ids, lengths, all(reader.gave_all(quota) for reader, quota in zip(readers, quotas, strict=True)))


def _quotas(wanted: int | None, readers: Sequence[_Reader]) -> list[int | None]:
    """Share the tokens out by weight; what an exhausted source cannot give goes to the others."""
    if wanted is None:
        return [None] * len(readers)
    fixed: dict[int, int] = {}
    while True:
        rest = wanted - sum(fixed.values())
        weight = sum(max(1, r.source.weight) for i, r in enumerate(readers) if i not in fixed)
        quotas = [
            fixed[i] if i in fixed else -(-rest * max(1, r.source.weight) // weight) for i, r in enumerate(readers)
        ]
        short = {i: r.count for i, r in enumerate(readers) if i not in fixed and r.exhausted and r.count < quotas[i]}
        if not short or len(short) + len(fixed) == len(readers):
            return [*quotas]
        fixed |= short


class _Reader:
    """Tokenises one source as far as it is asked to."""

    def __init__(
        self, source: Source, tokenizer: Any, overhead: int, end: int | None, keep_empty: bool, bar: Any
    ) -> None:
        self.source, self.tokenizer, self.overhead, self.end, self.bar = source, tokenizer, overhead, end, bar
        self.keep_empty = keep_empty
        self.pieces: Iterator[Piece] = source.pieces()
        self.parts: list[NDArray[np.int32]] = []
        self.lengths: list[int] = []
        self.count = 0
        self.exhausted = False

    def read(self, quota: int | None) -> None:
        while not self.exhausted and (quota is None or self.count < quota):
            room = _BATCH[1] if quota is None else (quota - self.count) * _CHARACTERS_A_TOKEN
            batch = self._pull(min(max(room, _BATCH[0]), _BATCH[1]))
            if batch:
                self._add(batch)

    def _pull(self, characters: int) -> list[Piece]:
        batch: list[Piece] = []
        while characters > 0:
            piece = next(self.pieces, None)
            if piece is None:
                self.exhausted = True
                break
            batch.append(piece)
            characters -= len(piece[0]) + 1
        return batch

    def _add(self, batch: list[Piece]) -> None:
        encoded = self.tokenizer(
            [text for text, _ in batch], add_special_tokens=False, padding=False, truncation=False,
            return_attention_mask=False, return_token_type_ids=False, verbose=False,
        )["input_ids"]  # fmt: skip
        kept = []
        for ids, (_, closes) in zip(encoded, batch, strict=True):
            if self.end is not None and closes and ids and ids[-1] != self.end:
                ids.append(self.end)
            if ids or self.keep_empty:
                kept.append(ids)
        lengths = [len(ids) for ids in kept]
        total = sum(lengths)
        self.parts.append(np.fromiter(chain.from_iterable(kept), np.int32, total))
        self.lengths += lengths
        self.count += total + self.overhead * len(kept)
        self.bar.update(total)

    def gave_all(self, quota: int | None) -> bool:
        """Tell whether nothing of the source is left out."""
        return self.exhausted and (quota is None or self.count <= quota)

    def take(self, quota: int | None, whole: bool) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Give the first pieces that make `quota` tokens; the last of them is cut unless they stay whole."""
        lengths = np.asarray(self.lengths, np.int64)
        ids = np.concatenate([np.empty(0, np.int32), *self.parts])
        if quota is not None and quota < self.count:
            ends = np.cumsum(lengths + self.overhead)
            pieces = int(np.searchsorted(ends, quota)) + 1
            lengths = lengths[:pieces]
            if not whole:
                lengths[-1] -= ends[pieces - 1] - quota
            ids = ids[: int(lengths.sum())]
        return ids, lengths
