"""Look-ups and hashes of training, and their gradients: natively on the CPU, in PyTorch elsewhere."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from . import fallback
from .extension import check, native, refuse

MAX_BITS = 16


def _check_reads(tables: Tensor, codes: Tensor, weights: Tensor) -> None:
    device = tables.device
    check("tables", tables, torch.float32, (-1, -1, -1), device)
    check("codes", codes, torch.int32, (-1, tables.shape[0], -1), device)
    if codes.shape[2] not in (1, 2):
        raise refuse("codes", f"reads {codes.shape[2]} cells a table", "read 1 or 2")
    check("weights", weights, torch.float32, tuple(codes.shape), device)
    if codes.shape[0] * codes.shape[2] >= 1 << 31:
        raise refuse("codes", f"has {codes.shape[0]} tokens, too many for one call", "split the batch")


def _check_codes(extension: ModuleType, codes: Tensor, rows: int) -> None:
    if not extension.codes_valid(codes.data_ptr(), codes.numel(), rows):
        raise refuse("codes", f"holds a code outside [0, {rows})", "pass codes of as many bits as the tables have")


def gather(tables: Tensor, codes: Tensor, weights: Tensor) -> Tensor:
    """Read rows of tables: y[n] = sum_h sum_c weights[n, h, c] * tables[h, codes[n, h, c]].

    tables [H, R, d] float32, codes [N, H, C] int32 with C 1 or 2, weights [N, H, C] float32 -> y [N, d] float32.
    Sums run over h, then c, whatever the thread count. Raises KernelError on tensors or codes that do not fit.
    """
    _check_reads(tables, codes, weights)
    extension = native(tables)
    if extension is None:
        return fallback.gather(tables, codes, weights)
    (count, rows, width), (tokens, _, cells) = tables.shape, codes.shape
    _check_codes(extension, codes, rows)
    y = tables.new_empty(tokens, width)
    extension.gather(
        tables.data_ptr(), codes.data_ptr(), weights.data_ptr(), y.data_ptr(), tokens, count, rows, width, cells,
        torch.get_num_threads(),
    )  # fmt: skip
    return y


def gather_backward(grad_y: Tensor, tables: Tensor, codes: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `gather` with respect to its tables and weights, given grad_y [N, d] float32.

    Returns grad_tables [H, R, d] and grad_weights [N, H, C], float32; the same bits at any thread count.
    Raises KernelError on tensors or codes that do not fit.
    """
    _check_reads(tables, codes, weights)
    (count, rows, width), (tokens, _, cells) = tables.shape, codes.shape
    check("grad_y", grad_y, torch.float32, (tokens, width), tables.device)
    extension = native(tables)
    if extension is None:
        return fallback.gather_backward(grad_y, tables, codes, weights)
    _check_codes(extension, codes, rows)
    grad_tables, grad_weights = torch.empty_like(tables), torch.empty_like(weights)
    extension.advise_huge(grad_tables.data_ptr(), grad_tables.nbytes)  # fresh memory: fewer page faults
    extension.gather_backward(
        grad_y.data_ptr(), tables.data_ptr(), codes.data_ptr(), weights.data_ptr(), grad_tables.data_ptr(),
        grad_weights.data_ptr(), tokens, count, rows, width, cells, torch.get_num_threads(),
    )  # fmt: skip
    return grad_tables, grad_weights


def _check_hash(z: Tensor) -> None:
    check("z", z, torch.float32, (-1, -1, -1), z.device)
    if not 1 <= z.shape[2] <= MAX_BITS:
        raise refuse("z", f"has {z.shape[2]} bits a table", f"use 1 to {MAX_BITS}")


def margin_scores(z: Tensor) -> tuple[Tensor, Tensor]:
    """Hash: code_h = sum_j [z_hj > 0] 2^(t-1-j), score_h = sum_j |z_hj| / prod_j (1 + exp(-2 |z_hj|)).

    z [N, H, t] float32 -> codes [N, H] int32, scores [N, H] float32 (LookupFFN, arXiv 2403.07221). z == 0 gives bit 0.
    Raises KernelError on a tensor that does not fit.
    """
    _check_hash(z)
    extension = native(z)
    if extension is None:
        return fallback.margin_scores(z)
    tokens, tables, bits = z.shape
    codes = z.new_empty(tokens, tables, dtype=torch.int32)
    scores = z.new_empty(tokens, tables)
    extension.margin_scores(
        z.data_ptr(), bits, tokens * tables, codes.data_ptr(), scores.data_ptr(), torch.get_num_threads()
    )
    return codes, scores


def margin_scores_backward(z: Tensor, scores: Tensor, grad_scores: Tensor) -> Tensor:
    """Gradient with respect to z [N, H, t] of the `scores` [N, H] that `margin_scores` gave; |z| has slope 0 at 0.

    Raises KernelError on tensors that do not fit.
    """
    _check_hash(z)
    tokens, tables, bits = z.shape
    check("scores", scores, torch.float32, (tokens, tables), z.device)
    check("grad_scores", grad_scores, torch.float32, (tokens, tables), z.device)
    extension = native(z)
    if extension is None:
        return fallback.margin_scores_backward(z, scores, grad_scores)
    grad_z = torch.empty_like(z)
    extension.margin_scores_backward(
        z.data_ptr(), scores.data_ptr(), grad_scores.data_ptr(), bits, tokens * tables, grad_z.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return grad_z
