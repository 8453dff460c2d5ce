"""What the native kernel computes, in plain PyTorch: for other devices, and where the extension is missing."""

from __future__ import annotations

import torch
from torch import Tensor

# How many gathered numbers are held at once (256 MiB of float32).
CHUNK = 1 << 26


def _table_chunks(tables: Tensor, codes: Tensor) -> range:
    """First tables of chunks that keep a chunk's gathered rows [N, chunk, C, d] within CHUNK numbers."""
    tokens, _, cells = codes.shape
    return range(0, tables.shape[0], max(1, CHUNK // max(1, tokens * cells * tables.shape[2])))


def gather(tables: Tensor, codes: Tensor, weights: Tensor) -> Tensor:
    """Sum of the weighted rows each token reads; shapes as in `compress.kernels.gather`."""
    y = tables.new_zeros(codes.shape[0], tables.shape[2])
    chunks = _table_chunks(tables, codes)
    for h in chunks:
        table = tables[h : h + chunks.step]  # [h, R, d]
        rows = _flat_rows(codes[:, h : h + chunks.step], table.shape[1])  # [N, h * C]
        weight = weights[:, h : h + chunks.step].flatten(1).unsqueeze(1)  # [N, 1, h * C]
        y += torch.bmm(weight, table.flatten(0, 1)[rows]).squeeze(1)
    return y


def gather_backward(grad_y: Tensor, tables: Tensor, codes: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `gather`; on CUDA deterministic where `torch.use_deterministic_algorithms` asks for it."""
    grad_tables, grad_weights = torch.zeros_like(tables), torch.empty_like(weights)
    chunks = _table_chunks(tables, codes)
    for h in chunks:
        table, code, weight = (
            tables[h : h + chunks.step],
            codes[:, h : h + chunks.step],
            weights[:, h : h + chunks.step],
        )
        rows = _flat_rows(code, table.shape[1])  # [N, h * C]
        grad_weights[:, h : h + chunks.step] = torch.bmm(
            table.flatten(0, 1)[rows], grad_y.unsqueeze(2)
        ).view(weight.shape)  # fmt: skip
        updates = weight.flatten(1).unsqueeze(2) * grad_y.unsqueeze(1)  # [N, h * C, d]
        grad_tables[h : h + chunks.step].flatten(0, 1).index_add_(0, rows.flatten(), updates.flatten(0, 1))
    return grad_tables, grad_weights


def _flat_rows(codes: Tensor, rows: int) -> Tensor:
    """Row numbers of codes [N, h, C] in tables laid one behind the other, [N, h * C]."""
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
