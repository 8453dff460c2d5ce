"""What the native kernel computes, in plain PyTorch: for other devices, and where the extension is missing."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def gather(tables: Tensor, codes: Tensor, weights: Tensor) -> Tensor:
    """Sum of the weighted rows each token reads, differentiable; shapes as in `compress.kernels.gather`."""
    if not tables.shape[0]:
        return tables.new_zeros(codes.shape[0], tables.shape[2])
    rows = _flat_rows(codes, tables.shape[1])  # [N, H * C]
    return functional.embedding_bag(rows, tables.flatten(0, 1), per_sample_weights=weights.flatten(1), mode="sum")


def gather_backward(grad_y: Tensor, tables: Tensor, codes: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `gather` with respect to its tables and weights."""
    if not tables.shape[0]:
        return torch.zeros_like(tables), torch.zeros_like(weights)
    tables, weights = tables.detach().requires_grad_(), weights.detach().requires_grad_()
    with torch.enable_grad():
        y = gather(tables, codes, weights)
    grad_tables, grad_weights = torch.autograd.grad(y, (tables, weights), grad_y)
    return grad_tables, grad_weights


def _flat_rows(codes: Tensor, rows: int) -> Tensor:
    """Row numbers of codes [N, H, C] in tables laid one behind the other, [N, H * C]."""
    first = torch.arange(codes.shape[1], device=codes.device).view(1, -1, 1) * rows
    return (codes.long() + first).flatten(1)


def margin_scores(z: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and margin scores; shapes as in `compress.kernels.margin_scores`."""
    bits = z.shape[2]
    place = 1 << torch.arange(bits - 1, -1, -1, device=z.device)
    codes = ((z > 0) * place).sum(2).int()
    magnitude = z.abs()
    return codes, magnitude.sum(2) / (1 + torch.exp(-2 * magnitude)).prod(2)


def margin_scores_backward(z: Tensor, scores: Tensor, grad_scores: Tensor) -> Tensor:
    """Gradient of the scores with respect to z; |z| has slope 0 at 0."""
    decay = torch.exp(-2 * z.abs())
    inverse = 1 / (1 + decay).prod(2, keepdim=True)
    slope = inverse + 2 * scores.unsqueeze(2) * decay / (1 + decay)
    return slope * grad_scores.unsqueeze(2) * z.sign()
