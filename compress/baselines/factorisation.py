"""The closed-form start of low-rank factors: each matrix factorised for the inputs that it really gets."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..dense import ACTIVATIONS, DenseWeights
from ..lookup import LookupFFN
from ..lookup.fit import SiteData, neuron_importance
from ..lookup.least_squares import ridge_regression, weighted_centre
from .factorised import FactorisedFFN

_AT_ONCE = 8192  # tokens


@torch.no_grad()
def fit_factors(student: FactorisedFFN, data: SiteData, dense: DenseWeights, *, ridge: float) -> None:
    """Set every parameter of `student` from data and the dense FFN's weights.

    In order: the neurons, by importance where not all are kept; gate and up, factorised for the inputs; the output
    matrix corrected by ridge regression for what these leave, then factorised for the hidden values as they now are.
    Where every matrix has full rank the student is the dense FFN.
    """
    g, weight = student.geometry, data.token_weight / data.token_weight.mean()
    x, x_mean = weighted_centre(data.x, weight)
    if g.d_hidden < dense.gate.shape[0]:
        hidden = dense.hidden(data.x, g.activation)
        importance = neuron_importance(x, hidden, dense, weight, data.channel_weight, ridge)
        dense = dense.of(importance.topk(g.d_hidden).indices.sort().values)
    reach = (dense.down * data.channel_weight[:, None]).norm(dim=0)  # [f], how far a hidden value is felt
    slopes = _slopes(data.x, dense, g.activation, weight)
    for name, matrix, bias, slope in zip(
        ("gate", "up"), (dense.gate, dense.up), (dense.gate_bias, dense.up_bias), slopes, strict=False
    ):
        assert matrix is not None
        _set(student.get_submodule(name), matrix, bias, x, x_mean, weight, slope * reach, ridge)
    hidden, hidden_mean = weighted_centre(student.hidden(data.x), weight)
    rest, offset = weighted_centre(data.y - functional.linear(hidden, dense.down), weight)
    down = dense.down + ridge_regression(hidden, rest, weight, ridge).T
    bias = offset - down @ hidden_mean
    _set(student.get_submodule("down"), down, bias, hidden, hidden_mean, weight, data.channel_weight, ridge)


def low_rank(matrix: Tensor, x: Tensor, weight: Tensor, rows: Tensor, rank: int, ridge: float) -> tuple[Tensor, Tensor]:
    """B [o, r] and A [r, i] that make sum_n w_n |rows * (W - B A) x_n|^2 least, x [N, i] centred.

    The best low-rank approximation of diag(rows) W L, where L L' is the Gram matrix of the inputs with its ridge
    (reduced-rank regression; Izenman, 1975). At full rank B A = W.
    """
    gram = ((x * weight[:, None]).T @ x).double()
    gram.diagonal().add_(ridge * gram.diagonal().mean() + 1e-12)
    root = torch.linalg.cholesky(gram)
    image = matrix.double() @ root  # [o, i]
    scaled = rows.double()[:, None] * image
    vectors = torch.linalg.eigh(scaled.T @ scaled)[1].flip(1)[:, :rank]  # [i, r]
    outer, inner = image @ vectors, torch.linalg.solve_triangular(root.T, vectors, upper=True).T
    scale = outer.norm(dim=0).clamp_min(1e-12).sqrt()  # shared out evenly: both are rounded and trained
    return (outer / scale).to(x.dtype), (inner * scale[:, None]).to(x.dtype)


def _set(
    product: torch.nn.Module, matrix: Tensor, bias: Tensor | None, x: Tensor, x_mean: Tensor, weight: Tensor,
    rows: Tensor, ridge: float,
) -> None:  # fmt: skip
    assert isinstance(product, LookupFFN)
    assert product.code is not None
    assert product.linear is not None
    outer, inner = low_rank(matrix, x, weight, rows, product.geometry.rank, ridge)
    product.linear.weight.copy_(outer)
    product.code.weight.copy_(inner)
    product.code.bias.copy_(-inner @ x_mean)
    product.bias.copy_(matrix @ x_mean + (0.0 if bias is None else bias))


def _slopes(x: Tensor, dense: DenseWeights, activation: str, weight: Tensor) -> list[Tensor]:
    """Root mean square of each hidden value's slope over its gate, and over its up where there is one: [f] each."""
    sums: list[Tensor] = []
    for rows, weights in zip(x.split(_AT_ONCE), weight.split(_AT_ONCE), strict=True):
        inputs = [functional.linear(rows, dense.gate, dense.gate_bias)]
        if dense.up is not None:
            inputs.append(functional.linear(rows, dense.up, dense.up_bias))
        with torch.enable_grad():
            leaves = [value.requires_grad_() for value in inputs]
            hidden = ACTIVATIONS[activation](leaves[0]) * (leaves[1] if len(leaves) > 1 else 1.0)
            slopes = torch.autograd.grad(hidden.sum(), leaves)
        squares = [(weights[:, None] * slope.square()).sum(0) for slope in slopes]
        sums = [a + b for a, b in zip(sums, squares, strict=True)] if sums else squares
    return [(total / x.shape[0]).sqrt() for total in sums]
