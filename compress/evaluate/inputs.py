"""Real inputs of fixed shape for timing: stretches of the evaluation data's tokens, its images, its recordings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..errors import DataError
from ..tasks import AUDIO_INPUTS

_MOST_TOKENS = 1 << 17
_MOST_ROWS = 64  # images or recordings
_MASKS = {"input_ids": "attention_mask", "decoder_input_ids": "decoder_attention_mask"}


class Pool(Protocol):
    """Inputs without padding, of which every batch of a size has the same shape."""

    def batch(self, size: int, round_: int) -> dict[str, Tensor]:
        """Give the model's arguments for `size` sequences; the same for the same round."""


@dataclass(frozen=True)
class TokenPool:
    """A stream of token ids [L]; a batch is stretches of `length` from random places, so without padding or mask."""

    stream: Tensor
    length: int
    name: str = "input_ids"
    end: int | None = None  # the last token of each, of models that look for it

    def batch(self, size: int, round_: int) -> dict[str, Tensor]:
        """Give token ids [size, length]; another round has other stretches, the same round the same."""
        generator = torch.Generator().manual_seed(round_)
        starts = torch.randint(0, self.stream.shape[0] - self.length + 1, (size, 1), generator=generator)
        ids = self.stream[starts + torch.arange(self.length)]
        if self.end is not None:
            ids = ids.masked_fill(ids == self.end, int(self.stream[self.stream != self.end][0]))
            ids[:, -1] = self.end
        return {self.name: ids}


@dataclass(frozen=True)
class RowPool:
    """Images [n, C, H, W], or features of recordings [n, ...]; rounds go through them in turn."""

    name: str
    rows: Tensor

    def batch(self, size: int, round_: int) -> dict[str, Tensor]:
        """Give rows [size, ...]."""
        index = (torch.arange(size) + round_ * size) % self.rows.shape[0]
        return {self.name: self.rows[index]}


@dataclass(frozen=True)
class JoinedPool:
    """Several arguments, a pool for each: what encoder and decoder read, say."""

    pools: tuple[Pool, ...]

    def batch(self, size: int, round_: int) -> dict[str, Tensor]:
        """Give the arguments of all."""
        return {key: value for pool in self.pools for key, value in pool.batch(size, round_).items()}


def make_pool(batches: Iterable[Mapping[str, Tensor]], length: int, end: int | None = None) -> Pool:
    """Gather a pool from the evaluation data's batches; a stretch has `length` tokens, or as many as there are.

    end: token that each stretch must end with, and have nowhere else.  What a decoder reads is as long as the middle
    one of its sequences, and so are recordings of any length. Raises DataError where the batches hold neither tokens
    nor images nor recordings.
    """
    found: dict[str, list[Tensor]] = {}
    written: list[int] = []  # lengths of the decoder's sequences
    for batch in batches:
        if "decoder_attention_mask" in batch:
            written += batch["decoder_attention_mask"].sum(1).tolist()
        for name, value in batch.items():
            if name in _MASKS:
                mask = batch.get(_MASKS[name])
                found.setdefault(name, []).append((value.flatten() if mask is None else value[mask.bool()]).cpu())
            elif name == "pixel_values":
                found.setdefault(name, []).append(value.cpu())
            elif name in AUDIO_INPUTS:
                found.setdefault(name, []).extend(_recordings(value.cpu(), batch.get("attention_mask")))
        if found and all(_enough(name, parts) for name, parts in found.items()):
            break
    decoded = sorted(written)[len(written) // 2] if written else length
    pools = tuple(
        _pool(name, parts, decoded if name == "decoder_input_ids" else length, end) for name, parts in found.items()
    )
    if not pools:
        raise DataError(
            "latency can be measured on tokens, images and recordings, and the evaluation data has none",
            remedy="leave it out with --no-latency",
        )
    return pools[0] if len(pools) == 1 else JoinedPool(pools)


def _enough(name: str, parts: list[Tensor]) -> bool:
    if name in _MASKS:
        return sum(map(len, parts)) >= _MOST_TOKENS
    return (len(parts) if name in AUDIO_INPUTS else sum(map(len, parts))) >= _MOST_ROWS


def _recordings(features: Tensor, mask: Tensor | None) -> list[Tensor]:
    """Divide waveforms [B, samples] by recording, padding cut away; features of a fixed length stay whole."""
    if features.dim() > 2 or mask is None:
        return list(features)
    return [row[: int(real.sum())] for row, real in zip(features, mask, strict=True)]


def _pool(name: str, parts: list[Tensor], length: int, end: int | None) -> Pool:
    if name in _MASKS:
        stream = torch.cat(parts)[:_MOST_TOKENS]
        return TokenPool(stream, min(length, stream.shape[0]), name, end)
    if name not in AUDIO_INPUTS:
        return RowPool(name, torch.cat(parts)[:_MOST_ROWS])
    sizes = sorted(part.shape[0] for part in parts)
    middle = sizes[len(sizes) // 2]
    return RowPool(name, torch.stack([part[:middle] for part in parts if part.shape[0] >= middle][:_MOST_ROWS]))
