"""What a student costs beside its dense FFN, and the sizes that fill a budget.

Cost is multiply-adds per token, everything counted: an exponential counts 10, a lone addition half of one. Bytes are
compared at equal width, the dense FFN in int8.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..errors import CompressError
from .geometry import ACDC_LAYERS, HASHES_CODE, Geometry
from .packed import HashDtype, TableDtype, packed_layout
from .projections import BH4_FACTORS, HADAMARD_FACTORS

EXPONENTIAL = 10
_WITH_EXPONENTIAL = {"gelu", "gelu_tanh", "quick_gelu", "silu", "tanh", "sigmoid"}


@dataclass(frozen=True)
class DenseGeometry:
    """Sizes of the dense FFN that a student replaces."""

    d_in: int
    d_hidden: int
    d_out: int
    gated: bool
    activation: str

    @property
    def parameters(self) -> int:
        """Weights of its matrices."""
        return self.d_hidden * (self.d_in * (2 if self.gated else 1) + self.d_out)

    @property
    def cost(self) -> float:
        """Multiply-adds per token."""
        return _neuron_cost(self.d_in, self.d_out, self.gated, self.activation) * self.d_hidden

    @property
    def int8_bytes(self) -> int:
        """Stored bytes, and bytes read per token, at one byte a weight."""
        return self.parameters


def activation_cost(activation: str) -> int:
    """Multiply-adds of one neuron's activation."""
    return EXPONENTIAL if activation in _WITH_EXPONENTIAL else 0


def _neuron_cost(d_in: int, d_out: int, gated: bool, activation: str) -> float:
    return d_in * (2 if gated else 1) + d_out + activation_cost(activation)


def projection_cost(g: Geometry) -> float:
    """Multiply-adds per token of x -> z, the code h counted apart."""
    if g.projection == "lowrank":
        return g.hash_bits * g.rank
    if g.projection == "dense":
        return g.hash_bits * g.d_in
    log_width = math.log2(g.padded)
    if g.projection == "hadamard":
        return g.repeats * HADAMARD_FACTORS * g.padded * (1 + log_width / 2)
    if g.projection == "bh4":
        return g.repeats * BH4_FACTORS * g.padded * (g.block + log_width / 2)
    return g.repeats * ACDC_LAYERS * g.padded * (2 * log_width + 2)


def table_cost(g: Geometry) -> float:
    """Multiply-adds per token of scores and reads of one table."""
    return g.bits * (EXPONENTIAL + 1) + g.cells * g.d_out + (EXPONENTIAL if g.cells == 2 else 0)


def cost(g: Geometry) -> float:
    """Multiply-adds per token of a student."""
    total = float(g.rank * (g.d_in + g.d_out))
    total += g.neurons * _neuron_cost(g.d_in, g.d_out, g.gated, g.activation)
    return total + (projection_cost(g) + g.tables * table_cost(g) if g.tables else 0.0)


def stored_bytes(g: Geometry, table_dtype: TableDtype = "int4", hash_dtype: HashDtype = "int8") -> int:
    """Bytes of a packed student's tensors."""
    layout = packed_layout(g, table_dtype, hash_dtype)
    return sum(shape.numel() * dtype.itemsize for shape, dtype in layout.values())


def bytes_per_token(g: Geometry, table_dtype: TableDtype = "int4", hash_dtype: HashDtype = "int8") -> int:
    """Bytes read for one token at batch 1: every weight once, of the tables only the rows picked."""
    layout = packed_layout(g, table_dtype, hash_dtype)
    total = 0
    for name, (shape, dtype) in layout.items():
        count = shape.numel()
        if name == "tables":  # only the rows that are read
            count = count // g.rows * g.cells
        total += count * dtype.itemsize
    return total


@dataclass(frozen=True)
class Sizes:
    """Sizes that a recipe fixes; None leaves one to `fill`."""

    budget: float
    memory: float
    tables: int | None = None
    bits: int | None = None
    rank: int | None = None
    neurons: int | None = None


# Few tokens favour neurons, which start from the dense weights; many favour tables, which must be learned
# (docs/method.md). Shares of what the code leaves of the budget, at few and at many tokens, interpolated over their
# logarithm.
_NEURON_SHARE = ((3e5, 0.70), (1e7, 0.35))
_RANK_AT_QUARTER = 0.25  # rank / d_in at a quarter of the dense cost
_MOST_FOR_CODE = 0.5  # of the budget
_TOKENS_A_ROW = 20  # of the data, at least: tables with more rows learn it by heart
_GRAIN = 16  # ranks and neurons come in multiples of one vector register


def _round(value: float) -> int:
    return max(0, int(value) // _GRAIN * _GRAIN)


def neuron_share(tokens: int) -> float:
    """Share of the budget that kept neurons get when each site sees `tokens` tokens in training."""
    (few, high), (many, low) = _NEURON_SHARE
    position = (math.log(max(tokens, 1)) - math.log(few)) / (math.log(many) - math.log(few))
    return high + (low - high) * min(1.0, max(0.0, position))


def most_tables(distinct: int, bits: int) -> int:
    """How many tables of 2^bits rows the data can fill."""
    return distinct // (_TOKENS_A_ROW << bits)


def fill(
    dense: DenseGeometry, sizes: Sizes, tokens: int, distinct: int, *, table_dtype: TableDtype, hash_dtype: HashDtype,
    **choices: Any,
) -> Geometry:  # fmt: skip
    """The geometry that spends what `sizes` leaves open of its budget and memory.

    `tokens`: training tokens each site will see, `distinct` of them without repetition; `choices`: projection, block
    and read. Raises CompressError where the fixed sizes alone exceed the budget or nothing fits it.
    """
    limit, bytes_limit = sizes.budget * dense.cost, sizes.memory * dense.int8_bytes
    bits = 8 if sizes.bits is None else sizes.bits
    projection = choices["projection"]
    rank = sizes.rank
    if rank is None:
        rank = _round(_RANK_AT_QUARTER * dense.d_in * math.sqrt(sizes.budget / 0.25))
        rank = min(rank, _round(_MOST_FOR_CODE * limit / (dense.d_in + dense.d_out)))
        rank = min(max(rank, _GRAIN if projection in HASHES_CODE else 0), max(1, min(dense.d_in, dense.d_out) // 2))
    per_neuron = _neuron_cost(dense.d_in, dense.d_out, dense.gated, dense.activation)
    base = Geometry(
        dense.d_in, dense.d_out, 0, bits, rank=rank, neurons=_GRAIN, gated=dense.gated, activation=dense.activation,
        **choices,
    )  # fmt: skip

    def left(tables: int) -> float:  # of the budget, for neurons
        return limit - (cost(replace(base, tables=tables)) - _GRAIN * per_neuron)

    neurons = sizes.neurons
    if neurons is None:
        share = 1.0 if sizes.tables is not None else neuron_share(tokens)
        neurons = _round(min(share * left(sizes.tables or 0) / per_neuron, dense.d_hidden))

    def whole(tables: int) -> Geometry:  # what tables leave of the budget, for want of memory, goes to neurons
        spare = 0 if sizes.neurons is not None else _round(left(tables) / per_neuron)
        return replace(base, tables=tables, neurons=max(neurons, min(spare, dense.d_hidden)))

    def fits(tables: int) -> bool:
        if tables > most_tables(distinct, bits):
            return False
        g = whole(tables)
        return cost(g) <= limit and stored_bytes(g, table_dtype, hash_dtype) <= bytes_limit

    geometry = whole(_most(fits) if sizes.tables is None else sizes.tables)
    check_fits(cost(geometry), stored_bytes(geometry, table_dtype, hash_dtype), dense, sizes)
    return geometry


def _most(fits: Callable[[int], bool]) -> int:
    """The largest number that fits, by doubling and halving; 0 where none does."""
    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def check_fits(spent: float, stored: int, dense: DenseGeometry, sizes: Sizes) -> None:
    """Raise CompressError where a student's multiply-adds or stored bytes exceed its budget or memory."""
    share, size = spent / dense.cost, stored / dense.int8_bytes
    if share > sizes.budget * 1.0001:
        raise CompressError(
            f"the student costs {share:.3f} of the dense FFN, more than the budget of {sizes.budget}",
            where="lookup.budget",
            remedy="raise the budget, or lower lookup.rank, lookup.neurons or lookup.tables, or leave them auto",
        )
    if size > sizes.memory * 1.0001:
        raise CompressError(
            f"the student stores {size:.1f} times the dense FFN's int8 bytes, more than memory = {sizes.memory}",
            where="lookup.memory",
            remedy="raise lookup.memory, or lower lookup.tables or lookup.bits, or leave them auto",
        )
