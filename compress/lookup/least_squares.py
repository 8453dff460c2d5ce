"""Closed forms: ridge regression, reduced-rank regression, and tables by conjugate gradients on the sparse design."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import kernels


def weighted_centre(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Centre x [N, d] on its mean under token weights [N]: (x - mean, mean [d])."""
    mean = (weight[:, None] * x).sum(0) / weight.sum()
    return x - mean, mean


def ridge_regression(x: Tensor, y: Tensor, weight: Tensor, ridge: float) -> Tensor:
    """M [d_x, d_y] that minimises sum_n w_n |x_n M - y_n|^2 + ridge * trace(X'WX)/d_x * |M|^2; x and y centred."""
    xw = x * weight[:, None]
    gram = (xw.T @ x).double()  # [d_x, d_x]
    gram.diagonal().add_(ridge * gram.diagonal().mean() + 1e-12)
    return torch.linalg.solve(gram, (xw.T @ y).double()).to(x.dtype)


def reduced_rank_regression(x: Tensor, y: Tensor, weight: Tensor, rank: int, ridge: float) -> tuple[Tensor, Tensor]:
    """The rank-r directions A [r, d_x] through which x [N, d_x] explains y [N, d_y] best (Izenman, 1975).

    With them comes their strength [r], falling: the deviation of y that each explains, times sqrt(N). x and y are
    centred. Solved as the generalised eigenproblem C C' v = lambda G v with C = X'WY and G = X'WX, whose size is that
    of x; where y needs fewer than r directions, the rest follow by the ridge alone.
    """
    xw = x * weight[:, None]
    gram, cross = (xw.T @ x).double(), (xw.T @ y).double()  # G [d_x, d_x], C [d_x, d_y]
    gram.diagonal().add_(ridge * gram.diagonal().mean() + 1e-12)
    root = torch.linalg.cholesky(gram)
    half = torch.linalg.solve_triangular(root, cross, upper=False)  # L^-1 C
    values, vectors = (part.flip(-1)[..., :rank] for part in torch.linalg.eigh(half @ half.T))
    directions = torch.linalg.solve_triangular(root.T, vectors, upper=True).T
    return directions.to(x.dtype), values.clamp_min(0.0).sqrt().to(x.dtype)


def whitening(h: Tensor, weight: Tensor, floor: float = 1e-4) -> Tensor:
    """W [r, r] such that W (h - mean) has unit covariance; directions below `floor` of the largest are not blown up."""
    centred, _ = weighted_centre(h, weight)
    covariance = ((centred * weight[:, None]).T @ centred).double() / weight.sum()
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp_min(values[-1] * floor + 1e-12)
    return ((vectors * values.rsqrt()) @ vectors.T).to(h.dtype)


def table_least_squares(
    codes: Tensor, weights: Tensor, target: Tensor, rows: int, token_weight: Tensor, *, shrink: float, steps: int
) -> Tensor:
    """Tables T that make sum_h w_nh T_h[code_nh] close to target, by preconditioned conjugate gradients.

    codes int32 and weights [N, H, C], target [N, d], token_weight [N] -> T [H, rows, d]. The ridge is `shrink` mean
    visits, the same for every row: a row that few tokens read stays small and one that none reads stays zero. The
    design is only ever applied through the gather, never formed.
    """
    tables, width = codes.shape[1], target.shape[1]
    root = token_weight.sqrt()[:, None, None]
    codes = codes.contiguous()
    design = (weights * root).contiguous()  # [N, H, C], rows of the weighted design
    target = target * root[..., 0]
    empty = torch.zeros(tables, rows, 1, dtype=target.dtype, device=target.device)

    def transpose(residual: Tensor) -> Tensor:  # S' r: [N, d] -> [H, rows, d]
        blank = empty.expand(tables, rows, residual.shape[1]).contiguous()
        return kernels.gather_backward(residual.contiguous(), blank, codes, design)[0]

    squares = kernels.gather_backward(torch.ones_like(target[:, :1]), empty, codes, (design**2).contiguous())[0]
    ridge = shrink * (design**2).mean()
    inverse = 1.0 / (squares + ridge)  # [H, rows, 1], the diagonal preconditioner

    solution = torch.zeros(tables, rows, width, dtype=target.dtype, device=target.device)
    residual = transpose(target)
    preconditioned = inverse * residual
    direction = preconditioned.clone()
    energy = (residual * preconditioned).sum((0, 1))  # [d], one problem a column
    for _ in range(steps):
        image = transpose(kernels.gather(direction, codes, design)) + ridge * direction
        length = energy / (direction * image).sum((0, 1)).clamp_min(1e-30)
        solution += length * direction
        residual -= length * image
        preconditioned = inverse * residual
        renewed = (residual * preconditioned).sum((0, 1))
        direction = preconditioned + renewed / energy.clamp_min(1e-30) * direction
        energy = renewed
    return solution


def generalising_tables(
    codes: Tensor, weights: Tensor, target: Tensor, rows: int, token_weight: Tensor, *, shrink: float, steps: int
) -> Tensor:
    """Tables of `table_least_squares`, scaled by how far they hold on tokens that they were not fitted to.

    On few tokens the rows outnumber what the data can tell, and tables that fit it are worse than none elsewhere. The
    last eighth of the tokens is held back; the scale, 0 to 1, is the one that is best there. Shapes are the same.
    """
    cut = max(1, codes.shape[0] * 7 // 8)
    tables = table_least_squares(
        codes[:cut], weights[:cut], target[:cut], rows, token_weight[:cut], shrink=shrink, steps=steps
    )
    if cut == codes.shape[0]:
        return torch.zeros_like(tables)
    answer = kernels.gather(tables, codes[cut:].contiguous(), weights[cut:].contiguous())  # [N / 8, d]
    importance = token_weight[cut:, None]
    scale = (importance * answer * target[cut:]).sum() / (importance * answer.square()).sum().clamp_min(1e-30)
    return scale.clamp(0.0, 1.0) * tables
