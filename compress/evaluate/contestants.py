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
        self.inputs = {
            key: value.to(self.dtype) if value.is_floating_point() else value
            for key, value in self.pool.batch(self.batch, round_).items()
        }

    def run(self) -> object:
        """Run the model."""
        return self.model(**self.inputs)


class DecodeStep:
    """One step of generation at batch 1: a token, with the keys and values of those before it cached."""

    def __init__(self, model: nn.Module, pool: Pool) -> None:
        self.model, self.pool = model, pool
        # transformers 5.24 gave the argument, and the answer's field, a new name.
        renamed = "cache" in inspect.signature(model.forward).parameters
        self.cached = "cache" if renamed else "past_key_values"
        self.left: list[Tensor] = []  # tokens [1, 1] still to come, the next one last
        self.cache: Any = None

    def prepare(self, round_: int) -> None:
        """Read the first half of a fresh sequence into a new cache, when the last one is used up."""
        if not self.left:
            row = self.pool.batch(1, round_)["input_ids"]  # [1, T]
            head = max(1, row.shape[1] // 2)
            self.cache = getattr(self.model(input_ids=row[:, :head], use_cache=True), self.cached)
            self.left = list(row[:, head:].split(1, dim=1))[::-1] or [row[:, -1:]]

    def run(self) -> object:
        """Run the model on the next token."""
        output = self.model(input_ids=self.left.pop(), use_cache=True, **{self.cached: self.cache})
        self.cache = getattr(output, self.cached)
        return output


class FFNs:
    """All sites' FFNs one after the other, each on rows of its own recorded inputs [N, d_in]; nothing between them."""

    def __init__(
        self, modules: Sequence[nn.Module], recorded: Sequence[Tensor], tokens: int, dtype: torch.dtype
    ) -> None:
        self.modules, self.recorded = modules, recorded
        self.tokens, self.dtype = tokens, dtype
        self.inputs: list[Tensor] = []

    def prepare(self, round_: int) -> None:
        """Take the rows of a round."""
        index = torch.arange(self.tokens) + round_ * self.tokens
        self.inputs = [rows[index % rows.shape[0]].to(self.dtype) for rows in self.recorded]

    def run(self) -> object:
        """Run every FFN."""
        output = None
        for module, x in zip(self.modules, self.inputs, strict=True):
            output = module(x)
        return output
