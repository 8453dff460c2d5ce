"""Reading the tables: y = sum over tables and cells of weight x row, with its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import kernels


class _ReadTables(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tables: Tensor, codes: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(tables, codes, weights)
        return kernels.gather(tables, codes, weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor]:
        tables, codes, weights = ctx.saved_tensors
        grad_tables, grad_weights = kernels.gather_backward(grad.contiguous(), tables, codes, weights)
        return grad_tables, None, grad_weights


def read_tables(tables: Tensor, codes: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of the rows that the codes pick.

    tables [H, 2^t, d_out], codes int32 [N, H, C], weights [N, H, C] for C cells a table -> [N, d_out].
    """
    codes, weights = codes.contiguous(), weights.contiguous()
    if tables.device.type == "cpu" and kernels.available():
        return _ReadTables.apply(tables, codes, weights)
    return kernels.gather(tables, codes, weights)  # PyTorch's own, which has a gradient
