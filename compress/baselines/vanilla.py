"""The dense FFN of any width: the reference, and the weights that SLIDE and MONGOOSE retrieve neurons from."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..dense import ACTIVATIONS, DenseWeights
from ..errors import CompressError
from ..lookup.budget import DenseGeometry
from .costs import Costs


class VanillaFFN(nn.Module):
    """A dense feed-forward network of `d_hidden` neurons (4 d_in by default), [..., d_in] -> [..., d_out].

    y = act(x W1) W2, with a gate y = (act(x Wg) * x Wu) W2. Row i of `gate.weight` [f, d_in], of `up.weight` and of
    `down` [f, d_out] is neuron i. Raises CompressError for a size below 1 or an unknown activation.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int | None = None,
        *,
        d_hidden: int | None = None,
        activation: str = "gelu",
        gated: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.d_in, self.d_out = d_in, d_in if d_out is None else d_out
        self.d_hidden = 4 * d_in if d_hidden is None else d_hidden
        for key in ("d_in", "d_out", "d_hidden"):
            whole("size", key, getattr(self, key), 1)
        if activation not in ACTIVATIONS:
            raise CompressError(
                f"unknown activation {activation!r}", where="activation",
                remedy=f"choose one of {', '.join(ACTIVATIONS)}",
            )  # fmt: skip
        self.activation, self.gated = activation, gated
        self.gate = nn.Linear(d_in, self.d_hidden, bias=bias)
        self.up = nn.Linear(d_in, self.d_hidden, bias=bias) if gated else None
        self.down = nn.Parameter(torch.empty(self.d_hidden, self.d_out).uniform_(-1, 1) / math.sqrt(self.d_hidden))
        self.bias = nn.Parameter(torch.zeros(self.d_out)) if bias else None
        for linear in (self.gate, self.up):
            if linear is not None and linear.bias is not None:
                nn.init.zeros_(linear.bias)

    @classmethod
    def from_dense(cls, weights: DenseWeights, activation: str, **settings: Any) -> Self:
        """An FFN that starts from dense weights, and has biases where these have one; settings: the kind's own."""
        module = cls(
            weights.gate.shape[1], weights.down.shape[0], d_hidden=weights.gate.shape[0], activation=activation,
            gated=weights.up is not None, bias=weights.biased, **settings,
        ).to(weights.gate.device)  # fmt: skip
        module.load_dense(weights)
        return module

    @torch.no_grad()
    def load_dense(self, weights: DenseWeights) -> None:
        """Take over weights of the same sizes; biases that they lack are 0."""
        self.gate.weight.copy_(weights.gate)
        self.down.copy_(weights.down.t())
        pairs = [(self.gate.bias, weights.gate_bias), (self.bias, weights.down_bias)]
        if self.up is not None and weights.up is not None:
            self.up.weight.copy_(weights.up)
            pairs.append((self.up.bias, weights.up_bias))
        for own, given in pairs:
            if own is not None:
                own.zero_() if given is None else own.copy_(given)

    def neurons(self, x: Tensor, ids: Tensor | None = None) -> Tensor:
        """Outputs of the neurons `ids` [n], of all where that is None: [N, d_in] -> [N, n]."""
        hidden = ACTIVATIONS[self.activation](_rows(self.gate, x, ids))
        return hidden if self.up is None else hidden * _rows(self.up, x, ids)

    def forward(self, x: Tensor) -> Tensor:
        """[..., d_in] -> [..., d_out]."""
        shape, dtype = x.shape, x.dtype
        y = self.output(x.reshape(-1, shape[-1]).to(self.down.dtype))
        return y.view(*shape[:-1], self.d_out).to(dtype)

    def output(self, x: Tensor) -> Tensor:
        """[N, d_in] -> [N, d_out]."""
        return self.mix(self.neurons(x), self.down)

    def mix(self, hidden: Tensor, down: Tensor) -> Tensor:
        """Neuron outputs [N, n] and their rows of W2 [n, d_out] -> [N, d_out]."""
        y = hidden @ down
        return y if self.bias is None else y + self.bias

    def costs(self) -> Costs:
        """Costs per token at batch 1, all neurons computed."""
        count = sum(parameter.numel() for parameter in self.parameters())
        return Costs(self.d_hidden * self.neuron_cost, count * self.down.element_size(), count)

    @property
    def neuron_cost(self) -> float:
        """Multiply-adds per token of one neuron."""
        return DenseGeometry(self.d_in, 1, self.d_out, self.gated, self.activation).cost

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        keys = ("d_in", "d_out", "d_hidden", "activation", "gated")
        return ", ".join(f"{key}={getattr(self, key)}" for key in keys)


def _rows(linear: nn.Linear, x: Tensor, ids: Tensor | None) -> Tensor:
    if ids is None:
        return linear(x)
    # index_select copies whole rows; weight[ids] is several times slower
    bias = None if linear.bias is None else linear.bias.index_select(0, ids)
    return functional.linear(x, linear.weight.index_select(0, ids), bias)


def whole(kind: str, key: str, value: object, least: int, most: int = 1 << 24) -> None:
    """Raise CompressError unless a setting is a whole number from `least` to `most`."""
    if type(value) is not int or not least <= value <= most:
        raise CompressError(
            f"{key} = {value!r} is no {kind}", where=key, remedy=f"choose a whole number from {least} to {most}"
        )
