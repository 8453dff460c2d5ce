"""Find the dense feed-forward networks of a transformer by structure.

A site is linear -> elementwise activation (perhaps times a second linear of the same input) -> linear back to the
width of the input, whose output is added to a residual, perhaps behind one more linear. No module name and no model
type is looked at. What a student cannot replace is found too, with the reason: another activation, a norm or a
depth-wise convolution between the linear layers, code that leaves a student no place, or modules that do not compute
what they seem to.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..dense import ACTIVATIONS
from ..errors import SiteError
from . import linears
from .activations import Activation, holding, recognise
from .examples import example_inputs
from .experts import experts_error, find_experts
from .site import Site, base_model, base_model_path
from .tracing import Call, Trace, evaluating, trace
from .verification import disagreement

logger = logging.getLogger(__name__)


def find_sites(model: nn.Module, example: Mapping[str, Any] | None = None) -> list[Site]:
    """Every dense FFN of the base model, in order of execution, those of towers that run by themselves last.

    `example` holds forward arguments of `model` to trace with; without it the base model runs on arguments made from
    the config. Layers with a mixture of experts are left out (`find_experts` names them). Raises ModelError where there
    are no other layers, SiteError where no FFN is found or the model does not run.
    """
    experts = find_experts(model)
    seen = trace_base(model, example)
    prefix = base_model_path(model)
    prefix = f"{prefix}." if prefix else ""
    outside = tuple(f"{prefix}{path}." for path in experts)
    sites: dict[str, tuple[Site, Call]] = {}
    for call in seen.calls:
        if call.path.startswith(prefix) and call.path not in sites and call in seen.joined:
            activation = None if call.path.startswith(outside) else _activation(call)
            if activation is not None:
                sites[call.path] = _site(seen, call, activation, call.path.removeprefix(prefix)), activation.inputs[0]
    for path in _adapters(model, [site for site, _ in sites.values()]):
        del sites[path]
    if not sites and experts:
        raise experts_error(experts, "convert a model that has dense feed-forward networks")
    if not sites:
        pointwise = sum(linears.is_pointwise(call.module) for call in seen.calls)
        raise SiteError(
            f"no feed-forward network was found in {type(model).__name__}, which called linear layers "
            f"{sum(linears.is_linear(call.module) for call in seen.calls)} times"
            + (f" (and convolutions of width 1, which no student replaces, {pointwise} times)" if pointwise else "")
            + ": looked for a linear layer, an elementwise activation (perhaps times a second linear layer of the same "
            "input) and a linear layer whose output is added to a residual",
            remedy="convert a transformer with such layers; if the example inputs leave out the part meant, give "
            "others: find_sites(model, example={...})",
        )
    with evaluating(model), torch.random.fork_rng(devices=[]):
        return [_checked(model, site, first.given[0].shape) for site, first in sites.values()]


def _checked(model: nn.Module, site: Site, seen: torch.Size) -> Site:
    return site if site.obstacle else replace(site, obstacle=disagreement(model, site, seen))


def _adapters(model: nn.Module, sites: Sequence[Site]) -> list[str]:
    """Outputs of the bottlenecks: narrower than their input, beside a wide FFN of the same layer."""
    lists = {path for path, module in model.named_modules() if isinstance(module, nn.ModuleList)}

    def layer(site: Site) -> str | None:
        parts = site.output.split(".")
        ends = [end for end in range(1, len(parts)) if ".".join(parts[: end - 1]) in lists]
        return ".".join(parts[: ends[-1]]) if ends else None

    wide = {(layer(site), site.d_in) for site in sites if site.d_hidden >= site.d_in}
    return [
        site.output for site in sites if site.d_hidden < site.d_in and layer(site) and (layer(site), site.d_in) in wide
    ]


def trace_base(model: nn.Module, example: Mapping[str, Any] | None) -> Trace:
    """Trace `model` on `example`, or its base model on arguments made from the config.

    Vision and speech towers that the base model's own arguments leave out (their features would have to be spliced into
    a text) are then run by themselves.
    """
    if example is not None:
        return trace(model, example)
    base = base_model(model)
    seen = trace(model, example_inputs(base), runs=base)
    for tower in _towers(base, {call.module for call in seen.calls}):
        try:
            seen = seen.and_then(trace(model, example_inputs(tower), runs=tower))
        except SiteError as error:
            logger.warning("%s was not searched for feed-forward networks: %s", type(tower).__name__, error.message)
    return seen


def _towers(base: nn.Module, ran: set[nn.Module]) -> list[nn.Module]:
    """Encoders of images or sounds, the outermost ones, that did not run."""
    found: dict[str, nn.Module] = {}
    for path, module in base.named_modules():
        encodes = getattr(module, "main_input_name", None) in ("pixel_values", "input_features", "input_values")
        inside = any(path.startswith(f"{other}.") for other in found)
        if path and encodes and hasattr(module, "config") and not inside and not ran & set(module.modules()):
            found[path] = module
    return list(found.values())


def _activation(call: Call) -> Activation | None:
    """Recognise what a linear call reads, provided that it comes from linears which all see the same input.

    That input must be as wide as the call's output: it comes from the residual to which the output is added.
    """
    assert call.function is not None
    sources: list[Call] = sorted(call.function.sources, key=lambda source: source.number)
    if any(getattr(outer.module, "_replaces_ffn", False) for outer in call.inside()):
        return None
    if any(not source.given[0].same(sources[0].given[0]) for source in sources):
        return None
    d_hidden, d_out = linears.widths(call.module)
    if linears.widths(sources[0].module)[0] != d_out:
        return None
    shapes = {source: source.output.shape for source in sources if source.output is not None}
    if call.function.holds:
        # Token mixers hold convolutions too (a gated short convolution), but no wider layer.
        return holding(call.function, shapes, d_hidden) if d_hidden > d_out else None
    return recognise(call.function, shapes, d_hidden, linears.weight(call.module).device)


def _site(seen: Trace, output: Call, activation: Activation, name: str) -> Site:
    inputs: tuple[Call, ...] = activation.inputs
    place = _place(seen, output, inputs)
    if activation.holds:
        place.obstacle = (
            f"{' and '.join(sorted(activation.holds))} stands between its linear layers, and only an elementwise "
            "activation may"
        )
    elif activation.name == "unknown":
        place.obstacle = f"its activation is none of {', '.join(ACTIVATIONS)}"
    d_hidden, d_out = linears.widths(output.module)
    return Site(
        name=name,
        inputs=tuple(call.path for call in inputs),
        output=output.path,
        gated=activation.gated,
        activation=activation.name,
        d_in=linears.widths(inputs[0].module)[0],
        d_hidden=d_hidden,
        d_out=d_out,
        entry=place.entry,
        identities=place.identities,
        layout=activation.layout,
        obstacle=place.obstacle,
    )


@dataclass
class _Place:
    entry: str
    identities: tuple[str, ...] = ()
    obstacle: str | None = None


def _place(seen: Trace, output: Call, inputs: tuple[Call, ...]) -> _Place:
    """Where a student can stand: one module that is the whole FFN, or the FFN's first module with identities behind."""
    x = inputs[0].given[0]
    for outer in output.inside():
        if all(outer in call.inside() for call in inputs) and outer.maps(x, output.output):
            return _Place(outer.path)
    if len(inputs) == 1:
        around_output = set(output.inside())
        within = [call for call in inputs[0].inside() if call not in around_output]
        for entry in [*reversed(within), inputs[0]]:  # the outermost first: it may hold the activation too
            if entry.maps(x, entry.output) and (way := _way(seen, entry, output)) is not None:
                return _Place(entry.path, tuple(call.path for call in way))
    around = next(output.inside())
    return _Place(
        inputs[0].path,
        obstacle=f"the code of {type(around.module).__name__} does more around its linear layers than "
        "call modules one after another, or uses one of them elsewhere too, so that none can be replaced",
    )


def _way(seen: Trace, entry: Call, output: Call) -> list[Call] | None:
    """Find the module calls that lead from what `entry` returned to the output linear, that linear included.

    None where code between them does more than pass values on, or where one of the modules serves elsewhere too.
    """
    value, way = entry.output, [output]
    around = set(output.inside())
    for call in seen.calls:
        if output.given[0].same(value):
            break
        changes = call.output is not None and not call.output.same(value)  # dropout may stay where it is
        if changes and call not in around and call.maps(value, call.output):
            way.insert(-1, call)
            value = call.output
    else:
        return None
    once = {seen.times(call.module) for call in (entry, *way)}
    return way if len(once) == 1 else None
