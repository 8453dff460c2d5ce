"""MONGOOSE's loss for the hash, and how it is trained by whatever trains the model."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

_SHARPNESS = 4.0  # of the maximum over tables


def triplet_loss(
    query: Tensor, key: Tensor, products: Tensor, retrieved: Tensor, *, top: float, pairs: int, margin: float
) -> Tensor:
    """Hinge loss that brings missed large neurons nearer to a token than retrieved small ones.

    query [S, L, K] and key [f, L, K] are projections of tokens and neurons, products [S, f] their inner products,
    retrieved [S, f] says which neurons the token's buckets hold. Positives: of a token's `top` share of neurons, those
    with a positive inner product that were missed, up to `pairs` of the largest. Negatives: of its smaller half, those
    that were retrieved, up to `pairs` of the smallest. Every positive is set against every negative of the same token.
    A scalar, 0 where there are no such pairs.
    """
    many = max(1, round(top * products.shape[1]))
    large = products >= products.topk(many).values[:, -1:]
    small = products < products.median(1, keepdim=True).values
    positive, positives = _extreme(products, large & (products > 0) & ~retrieved, pairs, largest=True)
    negative, negatives = _extreme(products, small & retrieved, pairs, largest=False)
    near = similarity(query, key)
    gap = near.gather(1, negatives)[:, None, :] - near.gather(1, positives)[:, :, None]
    valid = positive[:, :, None] & negative[:, None, :]
    return ((gap + margin).clamp_min(0) * valid).sum() / valid.sum().clamp_min(1)


def similarity(query: Tensor, key: Tensor) -> Tensor:
    """How nearly a table holds both: [S, L, K] and [f, L, K] -> [S, f], 1 where codes agree in every table.

    One table is enough to retrieve a neuron, so it is the soft maximum over tables of the share of bits that agree,
    from -1 to 1, with bits softened by tanh.
    """
    agreement = _soft(query).transpose(0, 1) @ _soft(key).permute(1, 2, 0) / query.shape[2]  # [L, S, f]
    return ((_SHARPNESS * agreement).logsumexp(0) - math.log(query.shape[1])) / _SHARPNESS


def _extreme(products: Tensor, mask: Tensor, count: int, *, largest: bool) -> tuple[Tensor, Tensor]:
    """The most extreme masked entries of each row: validity and columns, [S, count]."""
    signed = products if largest else -products
    values, columns = signed.masked_fill(~mask, -torch.inf).topk(min(count, products.shape[1]))
    return values > -torch.inf, columns


def _soft(z: Tensor) -> Tensor:
    return torch.tanh(z / z.detach().abs().mean((1, 2), keepdim=True).clamp_min(1e-12))


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, loss: Tensor) -> Tensor:
        ctx.dtype = loss.dtype
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,) = gradients
        return gradient, torch.ones((), dtype=ctx.dtype, device=gradient.device)


def attach(y: Tensor, loss: Tensor) -> Tensor:
    """y, unchanged; when a gradient comes back through it, that of the scalar `loss` is added, as if it were summed."""
    answer: Tensor = _Attach.apply(y, loss)
    return answer
