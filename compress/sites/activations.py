"""Name the function between two linear layers by computing it again on probe values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..dense import ACTIVATIONS
from .flow import Function
from .site import Layout

_COMPARED = 4096  # at least so many values are compared, if there are as many
_REACH = 6.0  # probes span [-6, 6], where the known activations differ by far more than the tolerance


@dataclass(frozen=True)
class Activation:
    """hidden = act(gate) or act(gate) * up; `inputs` are the sources, gate first."""

    name: str  # "unknown" where it is none of the table
    inputs: tuple[Any, ...]
    gated: bool
    layout: Layout = "separate"
    holds: frozenset[str] = frozenset()  # what else stands between the linear layers


def holding(function: Function, shapes: dict[Any, torch.Size], hidden: int) -> Activation | None:
    """Describe a function of linear outputs that holds more than elementwise operators, as far as that goes."""
    wide = [shape[-1] / hidden for shape in shapes.values()]
    if wide not in ([1], [2], [1, 1]):
        return None
    fused = wide == [2]
    return Activation(
        "unknown", tuple(shapes), wide != [1], "gate_up" if fused else "separate", holds=function.holds
    )  # fmt: skip


def recognise(
    function: Function, shapes: dict[Any, torch.Size], hidden: int, device: torch.device
) -> Activation | None:
    """Name a function of linear outputs, seen with the given shapes (in that order), that feeds `hidden` features.

    None where it is no activation at all: the features are passed on as they are, or rearranged or selected.
    """
    sources = list(shapes)
    wide = [shapes[source][-1] // hidden if shapes[source][-1] % hidden == 0 else 0 for source in sources]
    probes = {source: _probe(shapes[source], i, device) for i, source in enumerate(sources)}
    result = function(probes)  # [..., f]
    if wide == [1]:
        (z,) = probes.values()
        if result.numel() != z.numel():
            return None
        name = _name(result, z, None)
        if name is None and torch.equal(result.flatten().sort()[0], z.flatten().sort()[0]):
            return None
        return Activation(name or "unknown", (sources[0],), gated=False)
    if wide == [2]:
        first, second = probes[sources[0]].chunk(2, dim=-1)
        if result.numel() != first.numel():
            return None
        pairs: list[tuple[Tensor, Tensor, Layout]] = [(first, second, "gate_up"), (second, first, "up_gate")]
        for gate, up, layout in pairs:
            if name := _name(result, gate, up):
                return Activation(name, (sources[0],), gated=True, layout=layout)
        return Activation("unknown", (sources[0],), gated=True, layout="gate_up")
    if wide == [1, 1]:
        for gate_source, up_source in (sources, sources[::-1]):
            if name := _name(result, probes[gate_source], probes[up_source]):
                return Activation(name, (gate_source, up_source), gated=True)
        return Activation("unknown", tuple(sources), gated=True)
    return None


def _name(result: Tensor, gate: Tensor, up: Tensor | None) -> str | None:
    step = max(1, result.numel() // _COMPARED)
    some, gate = result.flatten()[::step].double(), gate.flatten()[::step]
    for name, activation in ACTIVATIONS.items():
        expected = activation(gate) if up is None else activation(gate) * up.flatten()[::step]
        if torch.allclose(some, expected, rtol=1e-5, atol=1e-6):
            return name
    return None


def _probe(shape: torch.Size, seed: int, device: torch.device) -> Tensor:
    """Float64 values all over the range, in an order without pattern."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.linspace(-_REACH, _REACH, shape.numel(), dtype=torch.float64)
    return values[torch.randperm(shape.numel(), generator=generator)].reshape(shape).to(device)
