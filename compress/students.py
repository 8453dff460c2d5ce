"""What may take a dense FFN's place, under one set of names: LookupFFN, and low-rank factors to measure it against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .baselines.factorisation import fit_factors
from .baselines.factorised import FactorisedFFN, FactorisedGeometry, PackedFactorisedFFN, pack_factors
from .dense import DenseWeights
from .lookup import Geometry, LookupFFN, PackedLookupFFN, budget
from .lookup import fit as lookup_fit
from .lookup import pack as pack_lookup
from .lookup.packed import HashDtype, TableDtype, packed_layout

StudentGeometry = Geometry | FactorisedGeometry
Student = LookupFFN | FactorisedFFN
PackedStudent = PackedLookupFFN | PackedFactorisedFFN


def parse_geometry(values: dict[str, Any]) -> StudentGeometry:
    """Read what a geometry's `to_dict` wrote. Raises CompressError where it is damaged."""
    return (FactorisedGeometry if "student" in values else Geometry).from_dict(values)


def build(geometry: StudentGeometry) -> Student:
    """A fresh student, to be fitted."""
    if isinstance(geometry, FactorisedGeometry):
        return FactorisedFFN.from_geometry(geometry)
    return LookupFFN.from_geometry(geometry)


def build_packed(geometry: StudentGeometry, table_dtype: TableDtype, hash_dtype: HashDtype) -> PackedStudent:
    """A student without values yet, to be loaded."""
    if isinstance(geometry, FactorisedGeometry):
        return PackedFactorisedFFN(geometry, table_dtype, hash_dtype)
    return PackedLookupFFN(geometry, table_dtype, hash_dtype)


def fit(
    student: Student, data: lookup_fit.SiteData, dense: DenseWeights, *, ridge: float, generator: torch.Generator,
    table_steps: int,
) -> None:  # fmt: skip
    """The closed-form start of a student; see `lookup.fit` and `baselines.factorisation`."""
    if isinstance(student, FactorisedFFN):
        fit_factors(student, data, dense, ridge=ridge)
    else:
        lookup_fit.fit(student, data, dense, ridge=ridge, generator=generator, table_steps=table_steps)


def pack(student: Student, table_dtype: TableDtype, hash_dtype: HashDtype) -> PackedStudent:
    """Round a trained student to its storage dtypes."""
    return (pack_factors if isinstance(student, FactorisedFFN) else pack_lookup)(student, table_dtype, hash_dtype)  # type: ignore[arg-type]


def _parts(geometry: StudentGeometry) -> Mapping[str, Geometry]:
    """The LookupFFNs that a student is made of, by the beginning of their tensors' names."""
    if isinstance(geometry, FactorisedGeometry):
        return {f"{name}.": part for name, part in geometry.parts.items()}
    return {"": geometry}


def layout(
    geometry: StudentGeometry, table_dtype: TableDtype, hash_dtype: HashDtype
) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Names, shapes and dtypes of the tensors that a packed student stores."""
    return {
        f"{beginning}{name}": entry
        for beginning, part in _parts(geometry).items()
        for name, entry in packed_layout(part, table_dtype, hash_dtype).items()
    }


def cost(geometry: StudentGeometry) -> float:
    """Multiply-adds per token."""
    return geometry.cost if isinstance(geometry, FactorisedGeometry) else budget.cost(geometry)


def stored_bytes(geometry: StudentGeometry, table_dtype: TableDtype, hash_dtype: HashDtype) -> int:
    """Bytes of a packed student's tensors."""
    return sum(budget.stored_bytes(part, table_dtype, hash_dtype) for part in _parts(geometry).values())


def bytes_per_token(geometry: StudentGeometry, table_dtype: TableDtype, hash_dtype: HashDtype) -> int:
    """Bytes read for one token at batch 1."""
    return sum(budget.bytes_per_token(part, table_dtype, hash_dtype) for part in _parts(geometry).values())


def described(geometry: StudentGeometry) -> str:
    """Sizes in words, for a plan's table."""
    g = geometry
    if isinstance(g, FactorisedGeometry):
        return f"low-rank factors, rank {g.rank}, {g.d_hidden} neurons"
    return f"{g.tables} tables x {g.bits} bits ({g.projection}), code {g.rank}, {g.neurons} neurons"
