"""Low-rank factors: a dense FFN in which every matrix is the product of two narrow ones, W = B A.

Each product is a LookupFFN without tables, code h = A x and linear path B h, so that packing and the native kernel are
those of LookupFFN; the activation between them runs in PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from ..dense import ACTIVATIONS
from ..errors import CompressError
from ..lookup import Geometry, LookupFFN, PackedLookupFFN, pack
from ..lookup.budget import DenseGeometry, Sizes, activation_cost, check_fits, cost, stored_bytes
from ..lookup.packed import HashDtype, TableDtype
from .costs import Costs, costs

KIND = "factors"


@dataclass(frozen=True)
class FactorisedGeometry:
    """Sizes of an FFN of `d_hidden` neurons whose matrices have rank `rank`, or what their smaller side allows.

    Raises CompressError for a value of another type or out of range.
    """

    d_in: int
    d_out: int
    d_hidden: int
    rank: int
    gated: bool = False
    activation: str = "gelu"

    def __post_init__(self) -> None:
        if type(self.gated) is not bool or self.activation not in ACTIVATIONS or type(self.rank) is not int:
            raise CompressError(f"{self} is no geometry of low-rank factors")
        self.parts  # noqa: B018  # a LookupFFN's geometry checks sizes

    @property
    def parts(self) -> dict[str, Geometry]:
        """One LookupFFN without tables a matrix: gate, up where there is one, and down."""
        inner = _product(self.d_in, self.d_hidden, self.rank)
        names = ("gate", "up") if self.gated else ("gate",)
        return {**dict.fromkeys(names, inner), "down": _product(self.d_hidden, self.d_out, self.rank)}

    @property
    def cost(self) -> float:
        """Multiply-adds per token."""
        return sum(cost(part) for part in self.parts.values()) + self.d_hidden * activation_cost(self.activation)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `config.json`."""
        return {"student": KIND, **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FactorisedGeometry:
        """Read what `to_dict` wrote. Raises CompressError where a key is missing, unknown, or its value impossible."""
        if problem := {"student", *(field.name for field in fields(cls))} ^ values.keys():
            raise CompressError(f"a geometry with missing or unknown keys: {', '.join(sorted(problem))}")
        if values["student"] != KIND:
            raise CompressError(f"unknown kind of student {values['student']!r}")
        return cls(**{key: value for key, value in values.items() if key != "student"})


def _product(d_in: int, d_out: int, rank: int) -> Geometry:
    return Geometry(d_in, d_out, 0, rank=min(rank, d_in, d_out))


class _Factorised(nn.Module):
    """The forward that training and inference share; `make` makes each matrix."""

    def __init__(self, geometry: FactorisedGeometry, make: Callable[[Geometry], nn.Module]) -> None:
        super().__init__()
        self.geometry = geometry
        for name, part in geometry.parts.items():
            self.add_module(name, make(part))

    def hidden(self, x: Tensor) -> Tensor:
        """[..., d_in] -> [..., d_hidden], what the last matrix is applied to."""
        hidden = ACTIVATIONS[self.geometry.activation](self.get_submodule("gate")(x))
        return hidden * self.get_submodule("up")(x) if self.geometry.gated else hidden

    def forward(self, x: Tensor) -> Tensor:
        """[..., d_in] -> [..., d_out], in the dtype of x; arithmetic is float32."""
        y: Tensor = self.get_submodule("down")(self.hidden(x.float()))
        return y.to(x.dtype)

    def costs(self) -> Costs:
        """Costs per token at batch 1."""
        parts = [costs(self.get_submodule(name)) for name in self.geometry.parts]
        activations = self.geometry.d_hidden * activation_cost(self.geometry.activation)
        return sum(parts, Costs(activations, 0, 0))

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        return ", ".join(f"{key}={value}" for key, value in asdict(self.geometry).items())


class FactorisedFFN(_Factorised):
    """An FFN with low-rank matrices, y = D C act(B A x), trainable, [..., d_in] -> [..., d_out].

    d_hidden: 4 d_in unless given.  rank: of every matrix, d_in / 4 unless given.
    """

    def __init__(
        self, d_in: int, d_out: int | None = None, *, d_hidden: int | None = None, rank: int | None = None,
        gated: bool = False, activation: str = "gelu",
    ) -> None:  # fmt: skip
        d_hidden, rank = d_hidden or 4 * d_in, max(1, d_in // 4) if rank is None else rank
        geometry = FactorisedGeometry(d_in, d_out or d_in, d_hidden, rank, gated, activation)
        super().__init__(geometry, LookupFFN.from_geometry)

    @classmethod
    def from_geometry(cls, geometry: FactorisedGeometry) -> FactorisedFFN:
        """A fresh student of the given geometry."""
        values = asdict(geometry)
        return cls(values.pop("d_in"), values.pop("d_out"), **values)


class PackedFactorisedFFN(_Factorised):
    """A FactorisedFFN for inference: each product is one call of LookupFFN's native kernel, its matrices in int8."""

    def __init__(
        self, geometry: FactorisedGeometry, table_dtype: TableDtype = "int8", hash_dtype: HashDtype = "int8"
    ) -> None:
        super().__init__(geometry, lambda part: PackedLookupFFN(part, table_dtype, hash_dtype))
        self.table_dtype, self.hash_dtype = table_dtype, hash_dtype

    @torch.no_grad()
    def dequantised(self) -> FactorisedFFN:
        """A trainable float32 FactorisedFFN with exactly the parameters that are stored."""
        ffn = FactorisedFFN.from_geometry(self.geometry)
        for name in self.geometry.parts:
            packed = self.get_submodule(name)
            assert isinstance(packed, PackedLookupFFN)
            ffn.add_module(name, packed.dequantised())
        return ffn


def pack_factors(
    ffn: FactorisedFFN, table_dtype: TableDtype = "int8", hash_dtype: HashDtype = "int8"
) -> PackedFactorisedFFN:
    """Round a trained student to its storage dtypes, every matrix as a LookupFFN's are."""
    with torch.device("meta"):
        packed = PackedFactorisedFFN(ffn.geometry, table_dtype, hash_dtype)
    for name in ffn.geometry.parts:
        part = ffn.get_submodule(name)
        assert isinstance(part, LookupFFN)
        packed.add_module(name, pack(part, table_dtype, hash_dtype))
    return packed


def fill_factors(
    dense: DenseGeometry, sizes: Sizes, *, table_dtype: TableDtype, hash_dtype: HashDtype
) -> FactorisedGeometry:
    """The highest rank that the budget pays for, one for all matrices, or the one that `sizes` fixes.

    All neurons are kept unless `sizes.neurons` says how many. Raises CompressError where the budget does not pay for
    rank 1, or fixed sizes exceed it.
    """
    neurons = dense.d_hidden if sizes.neurons is None else sizes.neurons
    if not 1 <= neurons <= dense.d_hidden:
        raise CompressError(
            f"{neurons} neurons of {dense.d_hidden} cannot be kept", where="lookup.neurons",
            remedy="leave it auto to keep all of them",
        )  # fmt: skip
    rank = sizes.rank
    if rank is None:
        per_rank = (dense.d_in + neurons) * (2 if dense.gated else 1) + neurons + dense.d_out
        left = sizes.budget * dense.cost - neurons * activation_cost(dense.activation)
        rank = min(int(left / per_rank), neurons, max(dense.d_in, dense.d_out))
    if rank < 1:
        raise CompressError(
            f"a budget of {sizes.budget} pays for the activations of {neurons} neurons and no rank of their matrices",
            where="lookup.budget", remedy="raise the budget, or keep fewer neurons with lookup.neurons",
        )  # fmt: skip
    g = FactorisedGeometry(dense.d_in, dense.d_out, neurons, rank, dense.gated, dense.activation)
    stored = sum(stored_bytes(part, table_dtype, hash_dtype) for part in g.parts.values())
    check_fits(g.cost, stored, dense, sizes)
    return g
