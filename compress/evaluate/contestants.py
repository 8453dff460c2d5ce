"""What is timed: a pass of the whole model, a step of generation, the FFNs alone; inputs are made outside the time."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .inputs import Pool


class Contestant(Protocol):
    """Something to time."""

    def prepare(self, round_: int) -> None:
        """Make the inputs of a round, untimed; all contestants get the same ones."""

    def run(self) -> object:
        """Go over them once."""


class WholeModel:
    """One forward pass of a model over a batch from the pool."""

    def __init__(self, model: nn.Module, pool: Pool, batch: int, dtype: torch.dtype) -> None:
        self.model, self.pool, self.batch, self.dtype = model, pool, batch, dtype
        self.inputs: dict[str, Tensor] = {}

    def prepare(self, round_: int) -> None:
        """Take the batch of a round."""
        self.inputs = _cast(self.pool.batch(self.batch, round_), self.dtype)

    def run(self) -> object:
        """Run the model."""
        return self.model(**self.inputs)


class DecodeStep:
    """One step of generation at batch 1: a token, with the keys and values of those before it cached.

    An encoder-decoder model has read its input before; only the decoder runs.
    """

    def __init__(self, model: nn.Module, pool: Pool, dtype: torch.dtype) -> None:
        self.model, self.pool, self.dtype = model, pool, dtype
        self.encoded: dict[str, Any] = {}
        # transformers 5.24 gave the argument, and the answer's field, a new name.
        renamed = "cache" in inspect.signature(model.forward).parameters
        self.cached = "cache" if renamed else "past_key_values"
        self.name = "input_ids"
        self.left: list[Tensor] = []  # tokens [1, 1] still to come, the next one last
        self.cache: Any = None

    def prepare(self, round_: int) -> None:
        """Read the first half of a fresh sequence into a new cache, when the last one is used up."""
        from transformers.modeling_outputs import BaseModelOutput

        if not self.left:
            inputs = _cast(self.pool.batch(1, round_), self.dtype)
            self.name = "decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"
            row = inputs[self.name]  # [1, T]
            head = max(1, row.shape[1] // 2)
            output = self.model(**{**inputs, self.name: row[:, :head]}, use_cache=True)
            self.cache = getattr(output, self.cached)
            if self.name != "input_ids":
                hidden = output.encoder_last_hidden_state
                self.encoded = {"encoder_outputs": BaseModelOutput(last_hidden_state=hidden)}
            self.left = list(row[:, head:].split(1, dim=1))[::-1] or [row[:, -1:]]

    def run(self) -> object:
        """Run the model on the next token."""
        token = {self.name: self.left.pop()}
        output = self.model(**token, **self.encoded, use_cache=True, **{self.cached: self.cache})
        self.cache = getattr(output, self.cached)
        return output


class FFNs:
    """All sites' FFNs one after the other, each on `tokens` rows of its own recorded inputs [N, d_in], nothing between.

    Sites that see no token in the pass are left out.
    """

    def __init__(
        self, modules: Sequence[nn.Module], recorded: Sequence[Tensor], tokens: Sequence[int], dtype: torch.dtype
    ) -> None:
        self.modules, self.recorded = modules, recorded
        self.tokens, self.dtype = tokens, dtype
        self.inputs: list[Tensor] = []

    def prepare(self, round_: int) -> None:
        """Take the rows of a round."""
        self.inputs = [
            rows[(torch.arange(count) + round_ * count) % rows.shape[0]].to(self.dtype)
            for rows, count in zip(self.recorded, self.tokens, strict=True)
        ]

    def run(self) -> object:
        """Run every FFN."""
        output = None
        for module, x in zip(self.modules, self.inputs, strict=True):
            if len(x):
                output = module(x)
        return output


def _cast(inputs: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}
