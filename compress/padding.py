"""Which rows of a batch's tensors are real tokens; found on the host, so that nothing waits for a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .devices import upload
from .streams import Stream, real_tokens

_MASKS = ("attention_mask", "decoder_attention_mask")


class RealRows:
    """Takes the padding out of what a model makes of one batch, given as keyword arguments of the model."""

    def __init__(self, model: Any, batch: Mapping[str, Tensor]) -> None:
        self.model, self.batch = model, batch
        self.size = next(iter(batch.values())).shape[0]
        self._found: dict[tuple[Any, ...], list[Tensor | None]] = {}

    def mask(self, stream: Stream, positions: int) -> Tensor | None:
        """Which of a stream's `positions` are no padding: bool [B, positions] on the host, None where all are real."""
        mask = real_tokens(self.model, self.batch, stream, positions)
        return None if mask is None or mask.all() else mask

    def pick(self, parts: Sequence[Tensor], stream: Stream) -> list[Tensor]:
        """The real rows [n, d] of each of a stream's tensors [..., d]; several may share a sequence out."""
        flat = [part.reshape(-1, part.shape[-1]) for part in parts]
        positions = tuple(part.shape[0] // self.size for part in flat)
        key = (stream, positions, flat[0].device)
        if key not in self._found:
            self._found[key] = [self._index(mask, flat[0].device) for mask in self._masks(stream, positions)]
        return [
            part if index is None else part.index_select(0, index)
            for part, index in zip(flat, self._found[key], strict=True)
        ]

    def pick_alike(self, output: Tensor) -> Tensor:
        """The real rows of hidden states [B, T, C] that are as long as a mask of the batch; others as they are.

        Where both masks are, the decoder's counts: what a head answers last comes from there.
        """
        for name in reversed(_MASKS):
            mask = self.batch.get(name)
            if mask is not None and output.dim() == 3 and mask.shape == output.shape[:2]:
                index = self._index(mask.bool(), output.device)
                return output if index is None else output.flatten(0, 1).index_select(0, index)
        return output

    def _masks(self, stream: Stream, positions: Sequence[int]) -> list[Tensor | None]:
        if len(positions) > 1 and (whole := real_tokens(self.model, self.batch, stream, sum(positions))) is not None:
            masks = [self.batch.get(name) for name in _MASKS]
            if any(mask is not None and mask.shape == whole.shape for mask in masks):
                return list(whole.split(list(positions), dim=1))
        return [real_tokens(self.model, self.batch, stream, count) for count in positions]

    def _index(self, mask: Tensor | None, device: torch.device) -> Tensor | None:
        if mask is None or mask.all():
            return None
        return upload(mask.reshape(-1).nonzero().squeeze(1), device)
