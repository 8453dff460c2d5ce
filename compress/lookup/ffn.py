"""LookupFFN: x -> z -> codes and scores -> rows -> y."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .geometry import Geometry, Projection, Read
from .hashing import margin_scores, two_cells
from .neurons import Neurons
from .projections import build_projection
from .tables import read_tables


class Hash(nn.Module):
    """The hash of a LookupFFN: the projection that gives z (a module of its own for the authors' parameter names)."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.projection = build_projection(geometry)
        self.tables, self.bits = geometry.tables, geometry.bits

    def forward(self, x: Tensor) -> Tensor:
        """[N, width] -> z [N, H, t]."""
        return self.projection(x).view(-1, self.tables, self.bits)


class LookupFFN(nn.Module):
    """A feed-forward network of learned table look-ups (LookupFFN, ICML 2023), [..., d_in] -> [..., d_out].

    Tables of 2^bits rows are read by a hash of x. Optional beside them: `rank` gives a low-rank code h = A x, which
    feeds a linear path U h and, with projection "hadamard" or "lowrank", the hash; `neurons` keeps dense neurons.
    `tables` defaults to d_in / 4 tables, as many as give the paper's H t = 2 d bits; other defaults are the paper's.
    Raises CompressError where sizes contradict each other.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int | None = None,
        *,
        tables: int | None = None,
        bits: int = 8,
        projection: Projection = "bh4",
        block: int = 64,
        rank: int = 0,
        neurons: int = 0,
        gated: bool = False,
        activation: str = "gelu",
        read: Read = "top1",
    ) -> None:
        super().__init__()
        d_out = d_in if d_out is None else d_out
        tables = max(1, d_in // 4) if tables is None else tables
        g = Geometry(d_in, d_out, tables, bits, projection, block, rank, neurons, gated, activation, read)
        self.geometry = g
        self.code = nn.Linear(d_in, rank) if rank else None
        self.linear = nn.Linear(rank, d_out, bias=False) if rank else None
        self.neurons = Neurons(d_in, d_out, neurons, gated, activation) if neurons else None
        if tables:
            self.hash = Hash(g)
            self.tables = nn.Parameter(0.02 * torch.randn(tables, g.rows, d_out))
            if read == "top2":
                self.log_temperature = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(d_out))

    @classmethod
    def from_geometry(cls, geometry: Geometry) -> LookupFFN:
        """A fresh student of the given geometry."""
        values = geometry.to_dict()
        return cls(values.pop("d_in"), values.pop("d_out"), **values)

    def hash_input(self, x: Tensor, h: Tensor | None) -> Tensor:
        """What the hash reads: the code h [N, r] or x [N, d_in]."""
        return h if self.geometry.hashes_code and h is not None else x

    def read(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Cells and their weights: z [N, H, t] -> codes int32 and weights [N, H, C]."""
        codes, scores = margin_scores(z)  # [N, H]
        if self.geometry.read == "top2":
            return two_cells(z, codes, scores, self.log_temperature.exp())
        return codes[..., None], scores[..., None]

    def forward(self, x: Tensor) -> Tensor:
        """[..., d_in] -> [..., d_out]."""
        shape, dtype = x.shape, x.dtype
        x = x.reshape(-1, shape[-1]).to(self.bias.dtype)  # [N, d_in]
        y = self.bias.expand(x.shape[0], -1)  # [N, d_out]
        h = None
        if self.code is not None and self.linear is not None:
            h = self.code(x)  # [N, r]
            y = y + self.linear(h)
        if self.geometry.tables:
            z = self.hash(self.hash_input(x, h)).to(self.bias.dtype)  # [N, H, t]; autocast may have narrowed it
            codes, weights = self.read(z)  # [N, H, C]
            y = y + read_tables(self.tables, codes, weights)
        if self.neurons is not None:
            y = y + self.neurons(x)
        return y.view(*shape[:-1], self.geometry.d_out).to(dtype)

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        return ", ".join(f"{key}={value}" for key, value in self.geometry.to_dict().items())
