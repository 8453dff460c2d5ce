"""From z to codes and scores, and to the cells that are read with their weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import kernels


class _MarginScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        codes, scores = kernels.margin_scores(z)
        ctx.save_for_backward(z, scores)
        ctx.mark_non_differentiable(codes)
        return codes, scores

    @staticmethod
    def backward(ctx: Any, _: Tensor, grad_scores: Tensor) -> Tensor:
        z, scores = ctx.saved_tensors
        return kernels.margin_scores_backward(z, scores, grad_scores.contiguous())


def margin_scores(z: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and margin scores of a hash; the gradient flows through the scores.

    z [N, H, t] -> codes int32 [N, H], first bit most significant, z == 0 gives bit 0;
    scores [N, H] = sum_j |z_j| / prod_j (1 + exp(-2 |z_j|)) (LookupFFN, equation 7, times the authors' margin).
    """
    return _MarginScores.apply(z.contiguous())


def two_cells(z: Tensor, codes: Tensor, scores: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """The most likely cell and its neighbour across the least certain bit, sharing the score.

    z [N, H, t], codes and scores [N, H] -> codes int32 [N, H, 2], weights [N, H, 2]. The neighbour's share is
    sigmoid(-2 m / temperature) with m = min_j |z_j|: one half on the hyperplane, so that crossing it changes nothing.
    """
    margin, bit = z.abs().min(dim=-1)  # [N, H]
    flip = 1 << (z.shape[-1] - 1 - bit)
    share = torch.sigmoid(-2.0 * margin / temperature)
    both = torch.stack((codes, codes ^ flip.to(torch.int32)), dim=-1)
    return both, torch.stack((scores * (1.0 - share), scores * share), dim=-1)
