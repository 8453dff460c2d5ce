"""Projections of the hash: h -> z by Hadamard transforms or a matrix, x -> z by a matrix, BH4 or ACDC."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from .geometry import ACDC_LAYERS, Geometry

BH4_FACTORS = 4
HADAMARD_FACTORS = 2
BH4_MIX = 0.7  # share of the transform in z; the rest is the input itself (official code of the paper)


_matrices: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}


def hadamard_matrix(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The unnormalised Hadamard matrix in Sylvester order, [size, size] of 1 and -1; kept for the next call."""
    key = (size, device, dtype)
    if key in _matrices:
        return _matrices[key]
    matrix = torch.ones(1, 1, device=device, dtype=dtype)
    while len(matrix) < size:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    if type(matrix) is Tensor:  # and none that only stands for one while a model is traced
        _matrices[key] = matrix
    return matrix


def hadamard(x: Tensor) -> Tensor:
    """Unnormalised Hadamard transform (Sylvester order) over the last axis, whose size is a power of two.

    A matrix of size a b is the Kronecker product of those of sizes a and b: two small products, which in PyTorch take a
    sixth of the time of butterflies.
    """
    size = x.shape[-1]
    right = 1 << ((size.bit_length() - 1) // 2)
    left = size // right
    with torch.autocast(x.device.type, enabled=False):
        x = x.reshape(*x.shape[:-1], left, right) @ hadamard_matrix(right, x.device, x.dtype)
        return (hadamard_matrix(left, x.device, x.dtype) @ x).flatten(-2)


def dct_matrix(size: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Orthonormal DCT-II as a [size, size] matrix C, so that DCT(x) = C x and IDCT(x) = C^T x."""
    n = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * (n + 0.5) * n[:, None]) * math.sqrt(2.0 / size)
    matrix[0] *= math.sqrt(0.5)
    return matrix.to(device=device, dtype=dtype)


class DenseProjection(nn.Module):
    """z = W x + c: a plain linear map; over the code h instead of x it is the low-rank projection.

    weight [H * t, width], bias [H * t].
    """

    def __init__(self, width: int, hash_bits: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(hash_bits, width) / math.sqrt(width))
        self.bias = nn.Parameter(torch.zeros(hash_bits))

    def forward(self, x: Tensor) -> Tensor:
        """[N, width] -> [N, H * t]."""
        return functional.linear(x, self.weight, self.bias)


class HadamardProjection(nn.Module):
    """z = H diag(w_2) H diag(w_1) h + c, repeated to H * t bits: random rotations of the code, made cheap and learned.

    Structured orthogonal random features (Yu et al., 2016) with trained diagonals; H is the unnormalised Hadamard
    transform over the code zero-padded to D. One transform gives whole tables, D // t of them, whose bits are so
    orthogonal directions of the code: output j * (D // t) + i is bit j of its table i.
    weight [R, 2, D], bias [H * t].
    """

    def __init__(self, rank: int, padded: int, tables: int, bits: int) -> None:
        super().__init__()
        self.rank, self.tables, self.bits = rank, tables, bits
        repeats = math.ceil(tables / (padded // bits))
        self.weight = nn.Parameter(torch.randn(repeats, HADAMARD_FACTORS, padded).sign() / math.sqrt(padded))
        self.bias = nn.Parameter(torch.zeros(tables * bits))

    def matrix(self) -> Tensor:
        """The [H * t, r] matrix that the transforms multiply by."""
        repeats, factors, padded = self.weight.shape
        columns = torch.eye(padded, dtype=self.weight.dtype, device=self.weight.device)[: self.rank]  # [r, D]
        columns = columns.expand(repeats, -1, -1)  # [R, r, D]
        for factor in range(factors):
            columns = hadamard(columns * self.weight[:, factor, None])
        each = padded // self.bits
        rows = columns[..., : self.bits * each].unflatten(-1, (self.bits, each))  # [R, r, t, D // t]
        return rows.permute(0, 3, 2, 1).reshape(-1, self.rank)[: self.tables * self.bits]

    def forward(self, h: Tensor) -> Tensor:
        """[N, r] -> [N, H * t]."""
        return functional.linear(h, self.matrix(), self.bias)


class BH4Projection(nn.Module):
    """z = 0.7 BH4(x) + 0.3 x, repeated to H * t bits, plus bias (LookupFFN, section 4.2).

    BH4 is four times a block-diagonal matrix and an unnormalised Hadamard transform, over x zero-padded to D.
    weight [R, 4, D / b, b, b] with "out = W in" in each block, bias [H * t].
    """

    def __init__(self, d_in: int, padded: int, block: int, hash_bits: int) -> None:
        super().__init__()
        self.d_in, self.padded, self.hash_bits = d_in, padded, hash_bits
        repeats = math.ceil(hash_bits / padded)
        weight = torch.randn(repeats, BH4_FACTORS, padded // block, block, block)
        self.weight = nn.Parameter(weight / math.sqrt(block * padded))
        self.bias = nn.Parameter(torch.zeros(hash_bits))

    def forward(self, x: Tensor) -> Tensor:
        """[N, d_in] -> [N, H * t]."""
        x = functional.pad(x, (0, self.padded - self.d_in))  # [N, D]
        repeats, factors, blocks, block, _ = self.weight.shape
        z = x.expand(repeats, *x.shape)  # [R, N, D]
        for factor in range(factors):
            z = z.reshape(repeats, -1, blocks, block)
            z = torch.einsum("rnki,rkoi->rnko", z, self.weight[:, factor])
            z = hadamard(z.reshape(repeats, -1, self.padded))
        z = BH4_MIX * z + (1.0 - BH4_MIX) * x  # [R, N, D]
        z = z.transpose(0, 1).reshape(-1, repeats * self.padded)
        return z[:, : self.hash_bits] + self.bias


class ACDCProjection(nn.Module):
    """z = stacked layers x -> IDCT(D * DCT(A * x)) with diagonal A and D, plus bias (Moczulski et al., 2016).

    weight [R, layers, 2, D]: A at index 0, D at index 1; bias [H * t].
    """

    def __init__(self, d_in: int, padded: int, hash_bits: int, layers: int = ACDC_LAYERS) -> None:
        super().__init__()
        self.d_in, self.padded, self.hash_bits = d_in, padded, hash_bits
        repeats = math.ceil(hash_bits / padded)
        self.weight = nn.Parameter(torch.randn(repeats, layers, 2, padded))
        self.bias = nn.Parameter(torch.zeros(hash_bits))

    def forward(self, x: Tensor) -> Tensor:
        """[N, d_in] -> [N, H * t]."""
        dct = dct_matrix(self.padded, x.device, x.dtype)
        repeats, layers = self.weight.shape[:2]
        z = functional.pad(x, (0, self.padded - self.d_in)).expand(repeats, x.shape[0], self.padded)
        for layer in range(layers):
            a, d = self.weight[:, layer, 0, None], self.weight[:, layer, 1, None]  # [R, 1, D]
            z = (d * ((a * z) @ dct.T)) @ dct  # [R, N, D]
        z = z.transpose(0, 1).reshape(x.shape[0], repeats * self.padded)
        return z[:, : self.hash_bits] + self.bias


def build_projection(geometry: Geometry) -> nn.Module:
    """The projection that `geometry` names, freshly initialised."""
    g = geometry
    if g.projection == "hadamard":
        return HadamardProjection(g.rank, g.padded, g.tables, g.bits)
    if g.projection == "lowrank":
        return DenseProjection(g.rank, g.hash_bits)
    if g.projection == "dense":
        return DenseProjection(g.d_in, g.hash_bits)
    if g.projection == "bh4":
        return BH4Projection(g.d_in, g.padded, g.block, g.hash_bits)
    return ACDCProjection(g.d_in, g.padded, g.hash_bits)
