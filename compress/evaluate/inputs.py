"""Real inputs of fixed shape for timing: stretches of the evaluation data's tokens, or its images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import token_mask
from ..errors import DataError

_MOST_TOKENS = 1 << 17
_MOST_IMAGES = 64


@dataclass(frozen=True)
class TokenPool:
    """A stream of token ids [L]; a batch is stretches of `length` from random places, so without padding or mask."""

    stream: Tensor
    length: int

    def batch(self, size: int, round_: int) -> dict[str, Tensor]:
        """Give input_ids [size, length]; another round has other stretches, the same round the same."""
        generator = torch.Generator().manual_seed(round_)
        starts = torch.randint(0, self.stream.shape[0] - self.length + 1, (size, 1), generator=generator)
        return {"input_ids": self.stream[starts + torch.arange(self.length)]}


@dataclass(frozen=True)
class ImagePool:
    """Images [n, C, H, W]; rounds go through them in turn."""

    pixels: Tensor

    def batch(self, size: int, round_: int) -> dict[str, Tensor]:
        """Give pixel_values [size, C, H, W]."""
        index = (torch.arange(size) + round_ * size) % self.pixels.shape[0]
        return {"pixel_values": self.pixels[index]}


Pool = TokenPool | ImagePool


def make_pool(batches: Iterable[Mapping[str, Tensor]], length: int) -> Pool:
    """Gather a pool from the evaluation data's batches; a stretch has `length` tokens, or as many as there are.

    Raises DataError where the batches hold neither tokens nor images.
    """
    tokens: list[Tensor] = []
    images: list[Tensor] = []
    for batch in batches:
        if "input_ids" in batch:
            mask = token_mask(dict(batch))
            ids = batch["input_ids"].cpu()
            tokens.append(ids.flatten() if mask is None else ids[mask.cpu()])
        elif "pixel_values" in batch:
            images.append(batch["pixel_values"].cpu())
        if sum(map(len, tokens)) >= _MOST_TOKENS or sum(map(len, images)) >= _MOST_IMAGES:
            break
    if tokens:
        stream = torch.cat(tokens)[:_MOST_TOKENS]
        return TokenPool(stream, min(length, stream.shape[0]))
    if images:
        return ImagePool(torch.cat(images)[:_MOST_IMAGES])
    raise DataError(
        "latency can be measured on tokens and images, and the evaluation data has neither",
        remedy="leave it out with --no-latency",
    )
