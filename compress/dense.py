"""The dense FFN: its weights, the activations it may have, and its forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": functional.relu,
    "relu2": lambda x: functional.relu(x).square(),
    "silu": functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


@dataclass(frozen=True)
class DenseWeights:
    """Weights of a dense FFN, y = down(act(gate x) * up x) + down_bias; without `up` it is not gated.

    gate, up [f, d_in], down [d_out, f], biases [f] and [d_out], float32; absent ones are None.
    """

    gate: Tensor
    gate_bias: Tensor | None
    up: Tensor | None
    up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None

    @property
    def biased(self) -> bool:
        """Whether any of the layers has a bias."""
        return any(bias is not None for bias in (self.gate_bias, self.up_bias, self.down_bias))

    def of(self, neurons: Tensor) -> DenseWeights:
        """The FFN of some of the neurons alone, by number or mask, with the output's bias."""
        gate_bias, up, up_bias = (
            None if part is None else part[neurons] for part in (self.gate_bias, self.up, self.up_bias)
        )
        return DenseWeights(self.gate[neurons], gate_bias, up, up_bias, self.down[:, neurons], self.down_bias)

    def hidden(self, x: Tensor, activation: str) -> Tensor:
        """Neuron outputs for x [N, d_in]: [N, f]."""
        hidden = ACTIVATIONS[activation](functional.linear(x, self.gate, self.gate_bias))
        return hidden if self.up is None else hidden * functional.linear(x, self.up, self.up_bias)

    def output(self, x: Tensor, activation: str) -> Tensor:
        """The dense FFN for x [N, d_in]: [N, d_out]."""
        return functional.linear(self.hidden(x, activation), self.down, self.down_bias)
