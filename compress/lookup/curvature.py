"""Where a dense FFN bends: the directions of its input along which its slope changes from token to token."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dense import DenseWeights

_PAIRS = 16_384  # of tokens; more would only take time
_CHUNK = 1024  # pairs at a time, of which all neurons' values are held


def curvature(
    x: Tensor, dense: DenseWeights, activation: str, token_weight: Tensor, channel_weight: Tensor,
    generator: torch.Generator,
) -> Tensor:  # fmt: skip
    """B [d_in, d_in], symmetric, with B B = half the mean of (J(x) - J(x'))' W^2 (J(x) - J(x')) over pairs of tokens.

    J [d_out, d_in] is the Jacobian of the FFN at tokens x [N, d_in], W the channel weights [d_out]; a pair counts by
    its token weights [N]. |B d|^2 is how much the slope along d varies: 0 where the FFN is linear in d, which is what
    a linear path can do and tables need not. The mean over output channels is estimated by one Gaussian direction of
    the output for each pair (Hutchinson, 1990), drawn from `generator`, which is of the CPU, as are the pairs.
    """
    pairs = min(_PAIRS, x.shape[0] // 2)
    order = torch.randperm(x.shape[0], generator=generator)[: 2 * pairs].view(2, pairs).to(x.device)
    total = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    for both in order.split(_CHUNK, dim=1):  # [2, n]
        probe = torch.randn(both.shape[1], len(channel_weight), generator=generator).to(x)  # [n, d_out]
        wanted = (probe * channel_weight) @ dense.down  # [n, f], what the probe wants of each neuron
        tokens = x[both].requires_grad_()  # [2, n, d_in]
        with torch.enable_grad():
            answer = (dense.hidden(tokens, activation) * wanted).sum()
        (slopes,) = torch.autograd.grad(answer, tokens)  # J' W probe [2, n, d_in]
        change = (slopes[0] - slopes[1]) * (token_weight[both].prod(0) / 2).sqrt()[:, None]
        total += (change.T @ change).double()
    values, vectors = torch.linalg.eigh(total / max(1, pairs))
    return ((vectors * values.clamp_min(0.0).sqrt()) @ vectors.T).to(x.dtype)
