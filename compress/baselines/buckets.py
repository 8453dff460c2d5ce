"""Hash tables of neurons: signed projections give a code of K bits a table, and the bucket of a code holds its neurons.

This is SimHash as SLIDE uses it: two vectors share a bit with a probability that falls with their angle.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Buckets(nn.Module):
    """`tables` tables of 2^`bits` buckets over `neurons` vectors of `width` numbers; they stay empty until `build`.

    State: `projection` [L K, width], by which the tables were built, entries +1 and -1 at first; `codes` int32 [L, f]
    of the neurons; `order` int64 [L, f], the neurons sorted by code; `offsets` int64 [L, 2^K + 1], where in `order`
    each bucket begins.
    """

    projection: Tensor
    codes: Tensor
    order: Tensor
    offsets: Tensor

    def __init__(self, neurons: int, width: int, bits: int, tables: int) -> None:
        super().__init__()
        self.bits, self.tables, self.neurons = bits, tables, neurons
        self.register_buffer("projection", torch.randint(2, (tables * bits, width)) * 2.0 - 1.0)
        self.register_buffer("codes", torch.zeros(tables, neurons, dtype=torch.int32))
        self.register_buffer("order", torch.arange(neurons).repeat(tables, 1))
        self.register_buffer("offsets", torch.zeros(tables, (1 << bits) + 1, dtype=torch.int64))

    def code(self, x: Tensor, constant: bool) -> Tensor:
        """Codes of vectors [N, width], int64 [N, L]; with `constant`, x [N, width - 1] stands before a coordinate 1."""
        p = self.projection
        z = functional.linear(x, p[:, :-1], p[:, -1]) if constant else functional.linear(x, p)
        powers = 1 << torch.arange(self.bits, device=x.device)
        return ((z > 0).view(x.shape[0], self.tables, self.bits) * powers).sum(-1)

    @torch.no_grad()
    def build(self, vectors: Tensor, projection: Tensor | None = None) -> None:
        """Put the neurons' vectors [f, width] into their buckets; with `projection`, that one from now on."""
        if projection is not None:
            self.projection.copy_(projection)
        codes = self.code(vectors, constant=False).t().contiguous()  # [L, f]
        self.codes.copy_(codes)
        self.order.copy_(codes.argsort(dim=1, stable=True))
        sizes = torch.zeros_like(self.offsets).scatter_add_(1, codes + 1, torch.ones_like(codes))
        self.offsets.copy_(sizes.cumsum(1))

    @torch.no_grad()
    def changed(self, vectors: Tensor, some: slice) -> float:
        """Share of the codes of some neurons that `build` with these vectors [f, width] would change."""
        codes = self.code(vectors[some], constant=False)
        return (codes.t() != self.codes[:, some]).double().mean().item()

    @property
    def sizes(self) -> Tensor:
        """Neurons in each bucket, [L, 2^K]."""
        return self.offsets.diff(dim=1)

    @torch.no_grad()
    def retrieve(self, codes: Tensor, chunk: int = 1) -> Tensor:
        """Which neurons share a bucket with a token, or with one of each `chunk` tokens: [N, L] -> [N / chunk, f]."""
        count = -(-codes.shape[0] // chunk)
        rows = torch.arange(codes.shape[0], device=codes.device) // chunk
        # A bucket by its number in `offsets`, which has one entry more a table than there are buckets.
        table = torch.arange(self.tables, device=codes.device) * self.offsets.shape[1]
        hits = rows[:, None] * self.offsets.numel() + table + codes  # [N, L]
        hits = hits.flatten() if chunk == 1 else hits.unique()
        rows, bucket = hits // self.offsets.numel(), hits % self.offsets.numel()
        starts, ends = self.offsets.view(-1)[bucket], self.offsets.view(-1)[bucket + 1]
        lengths = ends - starts
        first = starts + bucket // self.offsets.shape[1] * self.neurons - (lengths.cumsum(0) - lengths)
        entries = first.repeat_interleave(lengths)
        entries += torch.arange(entries.shape[0], device=codes.device)
        found = torch.zeros(count, self.neurons, dtype=torch.bool, device=codes.device)
        found[rows.repeat_interleave(lengths), self.order.view(-1)[entries]] = True
        return found

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        return f"neurons={self.neurons}, bits={self.bits}, tables={self.tables}"
