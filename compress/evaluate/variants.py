"""What a user would run instead: the dense model, and its FFNs alone, in float32, bfloat16 and dynamic int8."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..dense import ACTIVATIONS, DenseWeights
from ..errors import SiteError
from ..sites import Site, linears


class DenseFFN(nn.Module):
    """A dense FFN by itself, [N, d_in] -> [N, d_out], in nn.Linear layers whatever layers the model has."""

    def __init__(self, weights: DenseWeights, activation: str) -> None:
        super().__init__()
        self.gate = _linear(weights.gate, weights.gate_bias)
        self.up = None if weights.up is None else _linear(weights.up, weights.up_bias)
        self.down = _linear(weights.down, weights.down_bias)
        self.activation = activation

    def hidden(self, x: Tensor) -> Tensor:
        """[N, d_in] -> [N, d_hidden], what the last matrix is applied to."""
        hidden = ACTIVATIONS[self.activation](self.gate(x))
        return hidden if self.up is None else hidden * self.up(x)

    def forward(self, x: Tensor) -> Tensor:
        """[N, d_in] -> [N, d_out]."""
        return self.down(self.hidden(x))


def bfloat16(model: nn.Module) -> nn.Module:
    """Give a copy in bfloat16."""
    return copy.deepcopy(model).to("cpu", torch.bfloat16).eval()


def int8(model: nn.Module) -> nn.Module:
    """Give a copy with every linear layer in torch's dynamic int8: int8 weights, activations quantised as they come.

    `quantize_dynamic` knows only nn.Linear itself and passes over the rest without a word, so Conv1D and subclasses
    become nn.Linear first.
    """
    plain = copy.deepcopy(model).to("cpu", torch.float32).eval()
    replaced: dict[int, nn.Linear] = {}
    for parent in list(plain.modules()):
        for name, child in parent.named_children():
            if linears.is_linear(child) and type(child) is not nn.Linear:
                if id(child) not in replaced:
                    replaced[id(child)] = _linear(linears.weight(child), linears.bias(child))
                setattr(parent, name, replaced[id(child)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.ao.quantization is deprecated", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="torch.quantize_per_tensor", category=UserWarning)
        torch.ao.quantization.quantize_dynamic(plain, {nn.Linear}, dtype=torch.qint8, inplace=True)
    return plain


def is_int8(module: nn.Module) -> bool:
    """Whether a linear layer holds its weight in int8."""
    if not isinstance(module, torch.ao.nn.quantized.dynamic.Linear):
        return False
    weight: Tensor = module.weight()
    return weight.dtype == torch.qint8


def int8_model(model: nn.Module, sites: Sequence[Site]) -> nn.Module:
    """Give the dense model in dynamic int8; SiteError naming an FFN matrix that stayed in floating point."""
    quantised = int8(model)
    for site in sites:
        for path in (*site.inputs, site.output):
            if not is_int8(quantised.get_submodule(path)):
                raise SiteError(
                    f"the int8 baseline left {path} in floating point", where=path,
                    remedy="leave latency out (--no-latency): a comparison with this baseline would not be fair",
                )  # fmt: skip
    return quantised


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    d_out, d_in = weight.shape
    with torch.device("meta"):
        made = nn.Linear(d_in, d_out, bias=bias is not None)
    made.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return made
