"""Shapes of a pass of a whole model, and what runs one: a batch of sequences, or a token behind cached ones."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..evaluate.contestants import DecodeStep, WholeModel
from .run import SETTLING

# Seconds: at first passes of milliseconds find threads asleep and caches full of other engines' weights.
_WARMING = 0.03


@dataclass(frozen=True)
class Shape:
    """Sequences of a pass, and tokens of each; or, of generation, one token behind `past` cached ones."""

    sequences: int
    tokens: int
    past: int = 0

    def __str__(self) -> str:
        return f"{self.sequences} x {self.tokens}" + (f" behind {self.past}" if self.past else "")

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read `32x16`, or `1x1+128`. Raises ValueError."""
        found = re.fullmatch(r"(\d+)x(\d+)(?:\+(\d+))?", text.strip())
        if found is None:
            raise ValueError(text)
        sequences, tokens, past = (int(part or 0) for part in found.groups())
        if sequences < 1 or tokens < 1 or (found[3] and (past < 1 or sequences * tokens > 1)):
            raise ValueError(text)
        return cls(sequences, tokens, past)


@dataclass(frozen=True)
class RandomPool:
    """Fresh random inputs of a shape like an example's: any of its token ids [B, T], a mask of ones, or noise."""

    example: Mapping[str, Tensor]
    tokens: int
    masked: bool = True

    def batch(self, size: int, round_: int) -> dict[str, Tensor]:
        """Give the model's arguments for `size` sequences; the same for the same round."""
        generator = torch.Generator().manual_seed(round_)
        made = {}
        for name, value in self.example.items():
            if value.is_floating_point():
                made[name] = torch.randn(size, *value.shape[1:], generator=generator)
                continue
            ids = value.flatten()
            made[name] = ids[torch.randint(0, len(ids), (size, self.tokens), generator=generator)]
        if "input_ids" in made and self.masked:
            made["attention_mask"] = torch.ones_like(made["input_ids"])
        return made


class Pass(WholeModel):
    """A pass over fresh random inputs, right behind others: as in a process that runs nothing else."""

    def __init__(self, model: nn.Module, example: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype) -> None:
        super().__init__(model, RandomPool(example, shape.tokens), shape.sequences, dtype)

    def prepare(self, round_: int) -> None:
        """Let the threads of the engine before fall asleep; run on other inputs until caches and threads are warm."""
        time.sleep(SETTLING)
        super().prepare(2 * round_)
        begin = time.perf_counter()
        self.run()
        while time.perf_counter() - begin < _WARMING:
            self.run()
        super().prepare(2 * round_ + 1)


class Step(DecodeStep):
    """A step of generation, right behind others; the cache grows from `past` tokens to twice as many, then anew."""

    def __init__(self, model: nn.Module, example: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype) -> None:
        ids = {"input_ids": example["input_ids"]}
        super().__init__(model, RandomPool(ids, 2 * shape.past, masked=False), dtype)

    def prepare(self, round_: int) -> None:
        """Let the threads of the engine before fall asleep; take steps until caches and threads are warm."""
        time.sleep(SETTLING)
        super().prepare(round_)
        begin = time.perf_counter()
        self.run()
        while time.perf_counter() - begin < _WARMING:
            super().prepare(round_)
            self.run()
        super().prepare(round_)


def contestant(model: nn.Module, example: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype) -> Pass | Step:
    """What runs a model at a shape."""
    return (Step if shape.past else Pass)(model, example, shape, dtype)
