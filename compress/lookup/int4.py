"""Table rows in 4 bits: two columns a byte, in the order in which the kernel reads them, one float32 scale a table."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..kernels.layout import ROW_UNIT, half_bytes

_MOST = 7  # magnitudes; -8 is left out, so that rounding is symmetric
_HALF = ROW_UNIT // 2
_UNITS = torch.linspace(1.0, 0.25, 16)  # over the one at which nothing is cut off


def join_columns(values: Tensor) -> Tensor:
    """int8 [..., d], -8 to 7 -> uint8 [..., 32 ceil(d / 64)].

    Byte j of 64 columns is, as a signed one, 16 (column j + 32) + (column j) + 8; columns behind the last are 0.
    """
    units = functional.pad(values, (0, -values.shape[-1] % ROW_UNIT)).unflatten(-1, (-1, 2, _HALF))
    first, second = units.unbind(-2)
    return (16 * second + first + 8).flatten(-2).view(torch.uint8)


def split_columns(joined: Tensor, width: int) -> Tensor:
    """Take apart what `join_columns` made of rows of `width` columns: uint8 [..., 32 ceil(d / 64)] -> int8 [..., d]."""
    both = joined.view(torch.int8).unflatten(-1, (-1, _HALF))
    return torch.stack(((both & 15) - 8, both >> 4), dim=-2).flatten(-3)[..., :width]


@torch.no_grad()
def quantise_tables(tables: Tensor) -> tuple[Tensor, Tensor]:
    """Round tables to the multiples, -7 to 7, of the scale with the least squared error, one scale a table.

    float [H, R, d] -> joined columns, uint8 [H, R, 32 ceil(d / 64)]; float32 [H]. With 15 values the largest magnitudes
    are better cut off than reached. Scales are bfloat16 numbers: 7 of one are exact, and rounded again tables stay.
    """
    joined = tables.new_empty(*tables.shape[:2], half_bytes(tables.shape[2]), dtype=torch.uint8)
    scales = tables.new_zeros(len(tables), dtype=torch.float32)
    for number, table in enumerate(tables.float()):
        units = (_UNITS.to(table.device) * table.abs().max() / _MOST).bfloat16().float()
        errors = [(_nearest(table, unit) * unit - table).square().sum() for unit in units]
        scales[number] = units[torch.stack(errors).argmin()]
        joined[number] = join_columns(_nearest(table, scales[number]).to(torch.int8))
    return joined, scales


def _nearest(table: Tensor, unit: Tensor) -> Tensor:
    return torch.round(table / torch.where(unit > 0, unit, 1.0)).clamp(-_MOST, _MOST)
