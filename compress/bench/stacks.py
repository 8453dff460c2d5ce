"""What is measured together: the dense FFNs and the students of one shape, random or from a checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast, get_args

from ..dense import ACTIVATIONS
from ..errors import CompressError
from ..evaluate.evaluation import load_pair
from ..evaluate.students import students
from ..evaluate.variants import DenseFFN
from ..lookup import Geometry, PackedLookupFFN
from ..lookup.budget import DenseGeometry, Sizes, cost, fill, stored_bytes
from ..lookup.packed import HashDtype, TableDtype
from ..recipe.settings import LookupSettings
from ..sites import find_sites, site_weights
from .contestants import dense_variants, student_variants
from .layers import dense_layers, random_students
from .run import bench
from .systems import Setup

_MANY_TOKENS = 10_000_000  # of training: what conversions give a student that has seen enough data


@dataclass
class Stacks:
    """Dense layers and students; the last of each only warms up."""

    layer: str  # what they are, for people
    dense: Sequence[DenseFFN]
    students: Mapping[str, Callable[[], Sequence[PackedLookupFFN]]]
    stored: Mapping[str, float]  # bytes of all of a student's layers
    threads: int
    wanted: Sequence[str]
    left_out: dict[str, str] = field(default_factory=dict)

    def measure(self, batches: Sequence[int], seconds: float) -> dict[str, Any]:
        """Measure all that fits the machine: what `bench` returns, `layer`, and `left_out` with reasons by name."""
        made = [
            *dense_variants(self.dense, self.threads, self.wanted, self.left_out),
            *student_variants(self.students, self.stored, self.left_out),
        ]
        result = bench(made, self.dense[0].gate.in_features, batches=batches, seconds=seconds)
        return {**result, "layer": self.layer, "left_out": self.left_out}


def of_sizes(
    sizes: Mapping[str, Any], student: float | Mapping[str, Any], layers: int, threads: int, wanted: Sequence[str],
    table_dtype: str | None, hash_dtype: str | None,
) -> Stacks:  # fmt: skip
    """Random layers: `sizes` has hidden, intermediate, gated and activation of the dense FFN.

    student: the cost of one that conversions ship, or a geometry's own sizes. Without a `table_dtype` students of every
    width take part. Raises CompressError for sizes or dtypes that do not fit.
    """
    dense = _dense(sizes)
    geometry = student_of(dense, student)
    kinds = dict(_kinds(table_dtype, hash_dtype))

    def maker(kind: tuple[TableDtype, HashDtype]) -> Callable[[], Sequence[PackedLookupFFN]]:
        return lambda: random_students(geometry, layers + 1, *kind)

    return Stacks(
        _described(dense, geometry),
        dense_layers(dense, layers + 1),
        {name: maker(kind) for name, kind in kinds.items()},
        {name: (layers + 1) * stored_bytes(geometry, *kind) for name, kind in kinds.items()},
        threads,
        wanted,
    )


def profiled(
    sizes: Mapping[str, Any], paper: Mapping[str, Any], budget: float, table_dtype: str | None, hash_dtype: str | None
) -> Setup:
    """What a profile measures: the dense FFN's sizes as those of `of_sizes`, the paper's student by its own sizes.

    Beside it stands the student of cost `budget` that conversions ship. Raises as `of_sizes` does.
    """
    dense = _dense(sizes)
    tables, matrices = next(kind for _, kind in _kinds(table_dtype or "int4", hash_dtype))
    return Setup(dense, student_of(dense, paper), student_of(dense, budget), tables, matrices)


def _dense(sizes: Mapping[str, Any]) -> DenseGeometry:
    if sizes["activation"] not in ACTIVATIONS:
        raise CompressError(
            f"unknown activation {sizes['activation']!r}", where="--activation",
            remedy=f"choose one of {', '.join(ACTIVATIONS)}",
        )  # fmt: skip
    return DenseGeometry(sizes["hidden"], sizes["intermediate"], sizes["hidden"], sizes["gated"], sizes["activation"])


def student_of(dense: DenseGeometry, student: float | Mapping[str, Any]) -> Geometry:
    """The student that conversions ship at a cost, or one of a geometry's own sizes. Raises CompressError."""
    if isinstance(student, Mapping):
        return Geometry(dense.d_in, dense.d_out, gated=dense.gated, activation=dense.activation, **student)
    return fill(
        dense, Sizes(student, memory=LookupSettings().memory), _MANY_TOKENS, _MANY_TOKENS * 100, table_dtype="int4",
        hash_dtype="int8", projection="hadamard", block=64, read="top1",
    )  # fmt: skip


def _kinds(table_dtype: str | None, hash_dtype: str | None) -> Iterator[tuple[str, tuple[TableDtype, HashDtype]]]:
    """Names and storage dtypes of the students to measure; integer tables come with w8a8, as conversions ship them."""
    for value, kind, key in ((table_dtype, TableDtype, "--table-dtype"), (hash_dtype, HashDtype, "--hash-dtype")):
        if value is not None and value not in get_args(kind):
            raise CompressError(
                f"unknown dtype {value!r}", where=key, remedy=f"choose one of {', '.join(get_args(kind))}"
            )
    for tables in get_args(TableDtype)[::-1] if table_dtype is None else (table_dtype,):
        usual = "w8a8" if tables in ("int4", "int8") else tables
        matrices = hash_dtype or usual
        name = f"lookup_{tables}" if matrices == usual else f"lookup_{tables}_matrices_{matrices}"
        yield name, (cast(TableDtype, tables), cast(HashDtype, matrices))


def of_checkpoint(
    checkpoint: str, against: str | None, threads: int, wanted: Sequence[str], *, trust_remote_code: bool = False
) -> Stacks:
    """The students of a compressed model and the dense FFNs that they replaced, with their own weights.

    Raises as `evaluate` does where the two models cannot be had or are no pair.
    """
    dense, compressed = load_pair(checkpoint, against, trust_remote_code=trust_remote_code)
    sites = [site for site in find_sites(dense.model) if site.activation in ACTIVATIONS]
    found = students(compressed.model, sites)
    chosen = [(site, found[site.name]) for site in sites if isinstance(found.get(site.name), PackedLookupFFN)]
    widths = {site.d_in for site, _ in chosen}
    if len(widths) != 1:
        raise CompressError(
            f"students of {len(widths)} different widths cannot share a pass", where=checkpoint,
            remedy="time them in their model: compress eval",
        )  # fmt: skip
    plain = [DenseFFN(site_weights(dense.model, site), site.activation).float().eval() for site, _ in chosen]
    packed = [student for _, student in chosen if isinstance(student, PackedLookupFFN)]
    layers = [*packed, copy.deepcopy(packed[0])]
    first = chosen[0][0]
    described = _described(
        DenseGeometry(first.d_in, first.d_hidden, first.d_out, first.gated, str(first.activation)), packed[0].geometry
    )
    stored = sum(stored_bytes(each.geometry, each.table_dtype, each.hash_dtype) for each in packed)
    return Stacks(
        f"{len(packed)} layers; the first: {described}", [*plain, copy.deepcopy(plain[0])], {"lookup": lambda: layers},
        {"lookup": stored}, threads, wanted,
    )  # fmt: skip


def _described(dense: DenseGeometry, g: Geometry) -> str:
    kind = f"{dense.d_in}-{dense.d_hidden}-{dense.d_out} {dense.activation}{' gated' if dense.gated else ''}"
    beside = f"code {g.rank}, {g.neurons} neurons, " if g.rank or g.neurons else ""
    return f"{kind} against {g.tables} tables x {g.bits} bits ({g.projection}), {beside}cost {cost(g) / dense.cost:.3f}"
