"""The weights of a site in one form, whatever linear layers hold them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..dense import DenseWeights
from ..errors import SiteError
from . import linears
from .site import Site


def site_weights(model: nn.Module, site: Site, *, copy: bool = True) -> DenseWeights:
    """Float32 copies of a dense site's weights, on the model's device; nn.Linear, Conv1D and fused gates alike.

    Without `copy`, what is float32 already is not copied: to read only. Raises SiteError where a linear has no plain
    weight: the site is replaced already, or it is quantised.
    """
    inputs = [_read(model, path, copy) for path in site.inputs]
    (gate, gate_bias), (up, up_bias) = inputs[0], inputs[1] if len(inputs) == 2 else (None, None)
    if site.layout != "separate":
        halves = gate.chunk(2)  # [2 f, d_in] -> two of [f, d_in]
        bias_halves = (None, None) if gate_bias is None else gate_bias.chunk(2)
        first, second = (0, 1) if site.layout == "gate_up" else (1, 0)
        gate, up, gate_bias, up_bias = halves[first], halves[second], bias_halves[first], bias_halves[second]
    down, down_bias = _read(model, site.output, copy)
    return DenseWeights(gate, gate_bias, up, up_bias, down, down_bias)


def _read(model: nn.Module, path: str, copy: bool) -> tuple[Tensor, Tensor | None]:
    try:
        module = model.get_submodule(path)
    except AttributeError:
        module = None
    if module is None or not linears.is_linear(module) or not linears.weight(module).is_floating_point():
        raise SiteError(
            f"{path} is no linear layer with floating-point weights",
            where=path,
            remedy="read a site's weights from the dense model, before it is replaced or quantised",
        )
    bias = linears.bias(module)
    return _float(linears.weight(module), copy), None if bias is None else _float(bias, copy)


def _float(parameter: Tensor, copy: bool) -> Tensor:
    if not copy:
        return parameter.detach().to(torch.float32)
    return parameter.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
