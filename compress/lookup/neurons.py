"""A few of the dense FFN's own neurons, kept beside the tables."""

from __future__ import annotations

from torch import Tensor, nn

from ..dense import ACTIVATIONS


class Neurons(nn.Module):
    """W2' act(W1' x), or with a gate W2' (act(W1' x) * W3' x): n neurons of a dense FFN.

    gate, up: [n, d_in] with biases [n]; down: [d_out, n] without one, since the student's bias follows.
    """

    def __init__(self, d_in: int, d_out: int, neurons: int, gated: bool, activation: str) -> None:
        super().__init__()
        self.gate = nn.Linear(d_in, neurons)
        self.up = nn.Linear(d_in, neurons) if gated else None
        self.down = nn.Linear(neurons, d_out, bias=False)
        self.activation = activation

    def hidden(self, x: Tensor) -> Tensor:
        """[N, d_in] -> [N, n], before the down projection."""
        hidden = ACTIVATIONS[self.activation](self.gate(x))
        return hidden if self.up is None else hidden * self.up(x)

    def forward(self, x: Tensor) -> Tensor:
        """[N, d_in] -> [N, d_out]."""
        return self.down(self.hidden(x))
