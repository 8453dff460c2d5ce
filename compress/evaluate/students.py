"""A model's FFNs by site: the student that stands there, or the dense FFN that stayed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..plan import dense_geometry
from ..sites import Site
from ..students import PackedStudent, bytes_per_token, cost, stored_bytes
from ..students import Student as Trainable

Student = Trainable | PackedStudent


def students(model: nn.Module, sites: Sequence[Site]) -> dict[str, Student]:
    """Students of a compressed model by site name, in the order of `sites` (found in the dense model)."""
    found: dict[str, Student] = {}
    for site in sites:
        module = model.get_submodule(site.entry)
        if isinstance(module, Student):
            found[site.name] = module
    return found


def storage(student: Student) -> dict[str, Any]:
    """Dtypes that a student is stored in: a trainable one as float32."""
    if isinstance(student, PackedStudent):
        return {"table_dtype": student.table_dtype, "hash_dtype": student.hash_dtype}
    return {"table_dtype": "float32", "hash_dtype": "float32"}


def ffn_sizes(sites: Sequence[Site], found: Mapping[str, Student]) -> dict[str, int]:
    """Bytes of all sites' FFNs, stored and read per token; a dense FFN counts one byte a weight wherever it stands."""
    dense = [dense_geometry(site).int8_bytes for site in sites]
    stored, read = 0, 0
    for site, own in zip(sites, dense, strict=True):
        student = found.get(site.name)
        if student is None:
            stored, read = stored + own, read + own
        else:
            stored += stored_bytes(student.geometry, **storage(student))
            read += bytes_per_token(student.geometry, **storage(student))
    return {
        "dense_bytes_per_token": sum(dense),
        "compressed_bytes_per_token": read,
        "dense_ffn_int8_bytes": sum(dense),
        "compressed_ffn_bytes": stored,
    }


def ffn_cost(sites: Sequence[Site], found: Mapping[str, Student]) -> float | None:
    """Multiply-adds of all sites' FFNs over the dense ones'; None without a site."""
    dense = {site.name: dense_geometry(site).cost for site in sites}
    if not dense:
        return None
    ours = sum(cost(found[name].geometry) if name in found else own for name, own in dense.items())
    return ours / sum(dense.values())
