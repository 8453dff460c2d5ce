"""What a site is, and how its paths are told under different heads of one base model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

Layout = Literal["separate", "gate_up", "up_gate"]


@dataclass(frozen=True)
class Site:
    """One dense FFN: y = W2 act(W1 x), or with a gate y = W2 (act(Wg x) * Wu x).

    `name` is the output linear's dotted path relative to the base model; every other path is relative to the model
    that was searched. The student takes the place of `entry`, which is called with the FFN's input [..., d_in]; its
    answer [..., d_out] reaches the rest of the model through `identities`, modules that become the identity.
    """

    name: str
    inputs: tuple[str, ...]  # input linears; gated: (gate, up), or one fused linear
    output: str
    gated: bool
    activation: str  # a name in lookup.neurons.ACTIVATIONS, or "unknown", which is an obstacle
    d_in: int
    d_hidden: int
    d_out: int
    entry: str
    identities: tuple[str, ...] = ()
    layout: Layout = "separate"  # how gate and up lie in a fused linear's rows
    obstacle: str | None = None  # why no student can take this place; `swap` raises it


def base_model_path(model: nn.Module) -> str:
    """Dotted path of the base model inside `model`; empty where `model` is the base model itself."""
    prefix = getattr(model, "base_model_prefix", "")
    return prefix if prefix and isinstance(getattr(model, prefix, None), nn.Module) else ""


def base_model(model: nn.Module) -> nn.Module:
    """Part of `model` that all heads of its architecture share."""
    return model.get_submodule(base_model_path(model))


def to_base(model: nn.Module, site: Site) -> Site:
    """Rewrite a site's paths relative to the base model, as a checkpoint stores them."""
    prefix = _dotted(base_model_path(model))
    return _renamed(site, lambda path: path.removeprefix(prefix))


def from_base(model: nn.Module, site: Site) -> Site:
    """Rewrite a site's paths relative to `model`, whatever its head: the inverse of `to_base`."""
    prefix = _dotted(base_model_path(model))
    return _renamed(site, lambda path: prefix + path)


def dense_parameter_name(model: nn.Module, site: Site) -> str:
    """Name that the output linear's weight has in the dense `model`, under whatever head the site was found."""
    return f"{_dotted(base_model_path(model))}{site.name}.weight"


def _dotted(path: str) -> str:
    return f"{path}." if path else ""


def _renamed(site: Site, rename: Callable[[str], str]) -> Site:
    return replace(
        site,
        inputs=tuple(rename(path) for path in site.inputs),
        output=rename(site.output),
        entry=rename(site.entry),
        identities=tuple(rename(path) for path in site.identities),
    )
