"""The systems of a profile: the dense FFN, SLIDE and LookupFFN of one shape, made alike in every process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..baselines import SlideFFN
from ..baselines.costs import Costs, costs
from ..dense import DenseWeights
from ..evaluate import variants
from ..lookup.budget import DenseGeometry, cost
from ..lookup.geometry import Geometry
from .counters import Inputs
from .energy import Arithmetic
from .layers import Variant, dense_layers, random_students, student_bytes

DENSE, DENSE_INT8 = "dense_float32", "dense_int8"
SLIDE, SLIDE_SKEWED = "slide", "slide_skewed"
PAPER, SHIPPED = "lookup_paper", "lookup_shipped"
NOTHING = "nothing"
SYSTEMS = (DENSE, DENSE_INT8, SLIDE, PAPER, SHIPPED)
NAMES = {
    DENSE: "dense float32", DENSE_INT8: "dense int8", SLIDE: "SLIDE", SLIDE_SKEWED: "SLIDE, skewed buckets",
    PAPER: "LookupFFN, the paper's", SHIPPED: "LookupFFN, as conversions ship", NOTHING: "an empty module",
}  # fmt: skip
_ALIKE = 3.0  # the shared direction's share of tokens that are alike, over the rest


@dataclass(frozen=True)
class Setup:
    """The sizes of a profile's systems."""

    dense: DenseGeometry
    paper: Geometry
    shipped: Geometry
    table_dtype: str = "int4"
    hash_dtype: str = "w8a8"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for another process."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Setup:
        """Read what `to_dict` wrote."""
        geometries = {key: Geometry.from_dict(values[key]) for key in ("paper", "shipped")}
        return cls(**{**values, "dense": DenseGeometry(**values["dense"]), **geometries})

    def layers(self, system: str, count: int) -> Sequence[nn.Module]:
        """That many different layers, seeded by their number."""
        if system == NOTHING:
            return [nn.Identity()] * count
        if system in (PAPER, SHIPPED):
            return random_students(self._geometry(system), count, self.table_dtype, self.hash_dtype)  # type: ignore[arg-type]
        dense = dense_layers(self.dense, count)
        if system == DENSE:
            return dense
        if system == DENSE_INT8:
            return list(variants.int8(nn.ModuleList(dense)).children())
        return [self._slide(layer, i, system == SLIDE_SKEWED) for i, layer in enumerate(dense)]

    def _slide(self, layer: variants.DenseFFN, number: int, skewed: bool) -> nn.Module:
        gate, up, down = layer.gate, layer.up, layer.down
        weights = DenseWeights(
            gate.weight + direction(self.dense.d_in) if skewed else gate.weight, gate.bias,
            None if up is None else up.weight, None if up is None else up.bias, down.weight, down.bias,
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(number)
            return SlideFFN.from_dense(weights, self.dense.activation).eval()

    def _geometry(self, system: str) -> Geometry:
        return self.paper if system == PAPER else self.shipped

    def costs(self, system: str, layer: nn.Module, count: int) -> Costs:
        """Multiply-adds per token, and bytes of parameters that a pass of `count` tokens touches, each once.

        What SLIDE retrieves is measured on tokens that are even.
        """
        if isinstance(layer, SlideFFN):
            return _slide_costs(layer, count)
        parameters = sum(each.numel() for each in layer.parameters())
        if system in (PAPER, SHIPPED):
            geometry = self._geometry(system)
            read = student_bytes(geometry, self.table_dtype, self.hash_dtype)  # type: ignore[arg-type]
            return Costs(cost(geometry), read(count), parameters)
        width = 1 if system == DENSE_INT8 else 4
        return Costs(self.dense.cost, float(width * self.dense.parameters), self.dense.parameters)

    def variant(self, system: str, count: int) -> Variant:
        """Layers to be timed, and one more to warm up with."""
        made = self.layers(system, count + 1)
        return Variant(system, made, torch.float32, lambda tokens: self.costs(system, made[0], tokens).bytes_read)


@torch.no_grad()
def _slide_costs(layer: SlideFFN, count: int) -> Costs:
    layer.computed.zero_()
    layer(tokens(count, layer.d_in, "even", 0))
    found = costs(layer)
    neurons = float(found.parameters * layer.down.element_size())
    share = layer.computed_neurons() / layer.d_hidden
    hashing = found.bytes_read - share * neurons
    chunks = -(-count // layer.chunk)  # each touches neurons of its own
    return Costs(found.multiply_adds, hashing + neurons * (1 - (1 - share) ** chunks), found.parameters)


def arithmetic(system: str) -> Arithmetic:
    """What a system computes in; a student's transforms, scores and sums of rows are float32, whatever it stores."""
    return "int8" if system == DENSE_INT8 else "float32"


def direction(width: int) -> Tensor:
    """The direction that neurons and tokens share where they are alike, [width], of length 1."""
    made = torch.randn(width, generator=torch.Generator().manual_seed(width))
    return made / made.norm()


def tokens(count: int, width: int, inputs: Inputs, seed: int) -> Tensor:
    """Tokens [count, width] whose numbers have variance 1; those that are alike share a direction as well."""
    made = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return made if inputs == "even" else made + _ALIKE * math.sqrt(width) * direction(width)
