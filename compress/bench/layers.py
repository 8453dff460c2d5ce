"""The layers that are timed: random dense FFNs, random packed students, and how many bytes a pass over them reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..dense import DenseWeights
from ..evaluate.variants import DenseFFN
from ..kernels.layout import HALF_BYTES
from ..lookup import PackedLookupFFN
from ..lookup.budget import DenseGeometry, bytes_per_token
from ..lookup.geometry import Geometry
from ..lookup.packed import HashDtype, TableDtype, packed_layout


@dataclass(frozen=True)
class Variant:
    """One way to run a stack of FFNs; the last layer is not timed, it warms the code up."""

    name: str
    layers: Sequence[Callable[[Tensor], object]]  # [N, d_in] -> [N, d_out]
    dtype: torch.dtype  # of the inputs
    read: Callable[[int], float]  # bytes that one layer must read for so many tokens, inputs and outputs aside


def dense_layers(geometry: DenseGeometry, count: int) -> list[DenseFFN]:
    """Random dense FFNs in float32, seeded by their number."""
    layers = []
    for i in range(count):
        generator = torch.Generator().manual_seed(i)

        def matrix(d_out: int, d_in: int, generator: torch.Generator = generator) -> Tensor:
            return torch.randn(d_out, d_in, generator=generator) / math.sqrt(d_in)

        gate = matrix(geometry.d_hidden, geometry.d_in)
        up = matrix(geometry.d_hidden, geometry.d_in) if geometry.gated else None
        down = matrix(geometry.d_out, geometry.d_hidden)
        bias = None if geometry.gated else torch.zeros(geometry.d_hidden)
        weights = DenseWeights(gate, bias, up, None, down, None if geometry.gated else torch.zeros(geometry.d_out))
        layers.append(DenseFFN(weights, geometry.activation).eval())
    return layers


def dense_bytes(layer: nn.Module, width: int) -> Callable[[int], float]:
    """A dense FFN reads all of its weights, `width` bytes each, whatever the batch."""
    total = float(width * sum(parameter.numel() for parameter in layer.parameters()))
    return lambda tokens: total


def student_bytes(geometry: Geometry, table_dtype: TableDtype, hash_dtype: HashDtype) -> Callable[[int], float]:
    """A student reads its matrices once, and every row that some token asks for once, where codes are random."""
    fixed = float(bytes_per_token(geometry, table_dtype, hash_dtype))
    row = 0.0  # of all tables together
    if geometry.tables:
        shape, dtype = packed_layout(geometry, table_dtype, hash_dtype)["tables"]
        row = float(geometry.tables * shape[-1] * dtype.itemsize)
    fixed -= geometry.cells * row

    def read(tokens: int) -> float:
        distinct = geometry.rows * (1 - (1 - 1 / geometry.rows) ** (tokens * geometry.cells))
        return fixed + distinct * row

    return read


def random_students(
    geometry: Geometry, count: int, table_dtype: TableDtype, hash_dtype: HashDtype
) -> list[PackedLookupFFN]:
    """Random packed students whose codes are spread evenly, seeded by their number."""
    students = []
    for i in range(count):
        student = PackedLookupFFN(geometry, table_dtype, hash_dtype).eval()
        generator = torch.Generator().manual_seed(i)
        scales = {name: 1.0 for name, _ in student.named_parameters()}
        for name, parameter in student.named_parameters():
            spread = 0.02 if name == "tables" else _spread(name, parameter, geometry)
            if parameter.dtype == HALF_BYTES:
                parameter.random_(0, 256, generator=generator)
                scales["scales"] = spread / 4.6  # of numbers even in -8 to 7
            elif parameter.dtype == torch.int8:
                parameter.random_(-127, 128, generator=generator)
                scales["scales" if name == "tables" else f"{name}_scale"] = spread / 73  # of numbers even in +-127
            elif name in scales and (name == "scales" or name.endswith("_scale")):
                parameter.fill_(scales[name])
            elif name.endswith("bias") or name == "log_temperature":
                parameter.zero_()
            else:
                parameter.normal_(0, spread, generator=generator)
        students.append(student)
    return students


def _spread(name: str, parameter: Tensor, geometry: Geometry) -> float:
    """Standard deviation of a matrix that keeps the size of what it is applied to."""
    if name == "hash.projection.weight" and geometry.projection == "bh4":
        return 1 / math.sqrt(geometry.block * geometry.padded)  # the Hadamard transform is not normalised
    if name == "hash.projection.weight" and geometry.projection == "hadamard":
        return 1 / math.sqrt(geometry.padded)
    return 1 / math.sqrt(parameter.shape[-1]) if parameter.dim() else 1.0
