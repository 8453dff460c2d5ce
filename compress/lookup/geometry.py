"""The geometry of one LookupFFN: every size and choice that fixes its tensors' shapes and its forward."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from ..dense import ACTIVATIONS
from ..errors import CompressError

Projection = Literal["hadamard", "lowrank", "dense", "bh4", "acdc"]
Read = Literal["top1", "top2"]

PROJECTIONS: tuple[Projection, ...] = ("hadamard", "lowrank", "dense", "bh4", "acdc")
HASHES_CODE: tuple[Projection, ...] = ("hadamard", "lowrank")  # the others hash x itself
READS: tuple[Read, ...] = ("top1", "top2")
ACDC_LAYERS = 4
MOST = 1 << 24  # of any size, and
MOST_ROWS = 1 << 31  # of the rows of all tables: what the native kernel counts with

_LEAST = {"d_in": 1, "d_out": 1, "tables": 0, "bits": 1, "block": 0, "rank": 0, "neurons": 0}


@dataclass(frozen=True)
class Geometry:
    """Sizes and choices of one LookupFFN; `tables` tables of 2^`bits` rows, each row `d_out` wide.

    Raises CompressError for a value of another type or out of range, and where sizes contradict each other.
    """

    d_in: int
    d_out: int
    tables: int
    bits: int = 8
    projection: Projection = "bh4"
    block: int = 64  # BH4's block size b; the other projections have none
    rank: int = 0  # width r of the low-rank code h = A x; 0: no code, no linear path
    neurons: int = 0  # how many dense neurons are kept beside the tables
    gated: bool = False  # whether those neurons have a gate (SwiGLU and its kin)
    activation: str = "gelu"
    read: Read = "top1"

    def __post_init__(self) -> None:
        def refuse(key: str, value: object, remedy: str) -> None:
            raise CompressError(f"{key} = {value!r} does not fit a LookupFFN", where=f"lookup.{key}", remedy=remedy)

        for key, least in _LEAST.items():
            value, most = getattr(self, key), 16 if key == "bits" else MOST
            if type(value) is not int or not least <= value <= most:
                refuse(key, value, f"choose a whole number from {least} to {most}")
        for key, choices in (("projection", PROJECTIONS), ("read", READS), ("activation", tuple(ACTIVATIONS))):
            if getattr(self, key) not in choices:
                refuse(key, getattr(self, key), f"choose one of {', '.join(choices)}")
        if type(self.gated) is not bool:
            refuse("gated", self.gated, "choose true or false")
        if self.tables * self.rows >= MOST_ROWS:
            refuse("tables", self.tables, f"tables of {self.rows} rows have room for {MOST_ROWS // self.rows - 1}")
        if self.tables + self.rank + self.neurons == 0:
            refuse("tables", 0, "keep at least a table, a code or a neuron")
        if self.tables and self.hashes_code and self.rank < 1:
            refuse("rank", self.rank, f"projection {self.projection} hashes the code: give it a rank of at least 1")
        if self.tables and self.projection == "hadamard" and self.padded < self.bits:
            refuse("rank", self.rank, f"a table's {self.bits} bits need as many directions of the code")
        if self.tables and self.projection == "bh4" and (not self.block or self.padded % self.block):
            refuse("block", self.block, f"choose a power of two that divides the padded width {self.padded}")

    @property
    def hashes_code(self) -> bool:
        """Whether the hash reads the code h, not x."""
        return self.projection in HASHES_CODE

    @property
    def padded(self) -> int:
        """D: the width of what a structured hash transforms (h or x), padded to a power of two."""
        return 1 << max(0, math.ceil(math.log2(self.rank if self.projection == "hadamard" else self.d_in)))

    @property
    def hash_bits(self) -> int:
        """All H * t bits of the hash."""
        return self.tables * self.bits

    @property
    def rows(self) -> int:
        """Rows a table."""
        return 1 << self.bits

    @property
    def repeats(self) -> int:
        """R: how many structured transforms of width D it takes to make H * t bits."""
        if self.projection == "hadamard":  # gives whole tables
            return math.ceil(self.tables / (self.padded // self.bits))
        return math.ceil(self.hash_bits / self.padded)

    @property
    def cells(self) -> int:
        """Cells read a table."""
        return 2 if self.read == "top2" else 1

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `config.json`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Geometry:
        """Read what `to_dict` wrote. Raises CompressError where a key is missing, unknown, or its value impossible."""
        if problem := {field.name for field in fields(cls)} ^ values.keys():
            raise CompressError(f"a geometry with missing or unknown keys: {', '.join(sorted(problem))}")
        return cls(**values)
