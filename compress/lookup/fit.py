"""The closed-form start of a student: neurons, code, linear path, hash and tables from one site's data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..dense import DenseWeights
from .curvature import curvature
from .ffn import LookupFFN
from .least_squares import (
    generalising_tables,
    reduced_rank_regression,
    ridge_regression,
    weighted_centre,
    whitening,
)
from .neurons import Neurons
from .projections import ACDCProjection, BH4Projection, DenseProjection, HadamardProjection

TABLE_STEPS = 8  # of conjugate gradients for the tables
_WEAKEST = 0.1  # of the strongest code's deviation: what hardly counts at the start may yet be needed


@dataclass(frozen=True)
class SiteData:
    """What a site sees and should answer, N tokens of it, float32.

    x [N, d_in] inputs, y [N, d_out] wanted outputs, token_weight [N] and channel_weight [d_out]: how much an error
    counts behind the residual and the norm.
    """

    x: Tensor
    y: Tensor
    token_weight: Tensor
    channel_weight: Tensor


@torch.no_grad()
def fit(
    student: LookupFFN, data: SiteData, dense: DenseWeights, *, ridge: float, generator: torch.Generator,
    table_steps: int = TABLE_STEPS, table_shrink: float = 16.0,
) -> None:  # fmt: skip
    """Set every parameter of `student` from data and the dense FFN's weights.

    In order: neurons by importance; the code by reduced-rank regression, for the linear path (what the kept neurons
    leave of y) and for a hash that reads it (where the other neurons bend); linear path, neurons' outputs and bias by
    ridge regression together; the hash centred on the data (dense ones scaled to it too); the tables by a few
    conjugate-gradient steps on what is left, as far as they hold on tokens held back (`table_steps` = 0: zero).
    """
    g, weight = student.geometry, data.token_weight / data.token_weight.mean()
    x, x_mean = weighted_centre(data.x, weight)
    y, y_mean = weighted_centre(data.y, weight)

    hidden = dense.hidden(data.x, g.activation)  # [N, f]
    importance = neuron_importance(x, hidden, dense, weight, data.channel_weight, ridge)  # [f]
    kept = torch.empty(data.x.shape[0], 0, dtype=x.dtype, device=x.device)
    others = torch.ones(len(importance), dtype=torch.bool, device=x.device)
    if student.neurons is not None:
        chosen = importance.topk(g.neurons).indices.sort().values
        _keep_neurons(student.neurons, dense.of(chosen))
        kept = hidden[:, chosen]  # [N, n]
        others[chosen] = False

    h = torch.empty(data.x.shape[0], 0, dtype=x.dtype, device=x.device)
    if student.code is not None:
        centred, _ = weighted_centre(kept, weight)
        rest = y - centred @ ridge_regression(centred, y, weight, ridge) if g.neurons else y
        wanted = [rest * data.channel_weight]
        hashed = g.tables > 0 and g.hashes_code
        if hashed:
            bends = curvature(data.x, dense.of(others), g.activation, weight, data.channel_weight, generator)
            wanted.append(x @ bends)
        directions, strength = reduced_rank_regression(x, _of_equal_variance(wanted), weight, g.rank, ridge)
        student.code.weight.copy_(directions)
        h = x @ student.code.weight.T  # [N, r], centred
        scale = h.std(0).clamp_min(1e-8)
        if hashed:  # random rotations ("hadamard") then cut along a direction as finely as it is strong
            strength = (strength / strength[0].clamp_min(1e-30)).clamp_min(_WEAKEST)
            scale = scale * strength.square().mean().sqrt() / strength
        student.code.weight.div_(scale[:, None])
        student.code.bias.copy_(-student.code.weight @ x_mean)
        h = h / scale

    features, feature_mean = weighted_centre(torch.cat((h, kept), 1), weight)  # [N, r + n]
    rest, offset = y, y_mean
    if features.shape[1]:
        solution = ridge_regression(features, y, weight, ridge)  # [r + n, d_out]
        rest, offset = y - features @ solution, y_mean - feature_mean @ solution
        if student.linear is not None:
            student.linear.weight.copy_(solution[: g.rank].T)
        if student.neurons is not None:
            student.neurons.down.weight.copy_(solution[g.rank :].T)
    student.bias.copy_(offset)

    if g.tables:
        inputs = student.hash_input(data.x, h if g.rank else None)
        _start_hash(student, inputs, dense, importance, weight, generator)
        student.tables.zero_()
        if table_steps:
            codes, weights = student.read(student.hash(inputs))
            student.tables.copy_(
                generalising_tables(codes, weights, rest, g.rows, weight, shrink=table_shrink, steps=table_steps)
            )


def neuron_importance(
    x: Tensor, hidden: Tensor, dense: DenseWeights, weight: Tensor, channel_weight: Tensor, ridge: float
) -> Tensor:
    """How much is lost without each neuron: deviation of what no linear map of x gives, times its column's norm.

    x centred [N, d_in], hidden [N, f] -> [f].
    """
    centred, _ = weighted_centre(hidden, weight)
    unexplained = centred - x @ ridge_regression(x, centred, weight, ridge)
    deviation = (weight[:, None] * unexplained.square()).mean(0).sqrt()
    return deviation * (dense.down * channel_weight[:, None]).norm(dim=0)


def _keep_neurons(neurons: Neurons, kept: DenseWeights) -> None:
    for linear, matrix, bias in (
        (neurons.gate, kept.gate, kept.gate_bias),
        (neurons.up, kept.up, kept.up_bias),
    ):
        if linear is not None and matrix is not None:
            linear.weight.copy_(matrix)
            linear.bias.copy_(torch.zeros_like(linear.bias) if bias is None else bias)


def _of_equal_variance(targets: list[Tensor]) -> Tensor:
    """Targets [N, d_i] side by side, each scaled to the same total variance: [N, sum of d_i]."""
    return torch.cat([part / part.square().sum(1).mean().sqrt().clamp_min(1e-12) for part in targets], 1)


def _start_hash(
    student: LookupFFN, inputs: Tensor, dense: DenseWeights, importance: Tensor, weight: Tensor,
    generator: torch.Generator,
) -> None:  # fmt: skip
    """Directions of the hash, centred so that every z has mean 0 on the data; all but BH4 and ACDC get deviation 1."""
    g, projection = student.geometry, student.hash.projection
    if isinstance(projection, DenseProjection):
        width = projection.weight.shape[1]
        noise = torch.randn(g.hash_bits, width, generator=generator).to(projection.weight)
        projection.weight.copy_(noise @ whitening(inputs, weight))
        if g.projection == "dense":
            # The most important neurons' own hyperplanes; random ones where there are more bits than neurons.
            order = importance.argsort(descending=True)[: g.hash_bits]
            projection.weight[: len(order)] = dense.gate[order]
    elif isinstance(projection, HadamardProjection | BH4Projection | ACDCProjection):
        projection.weight.copy_(_structured_noise(projection, generator))
    projection.bias.zero_()  # type: ignore[operator]
    z = projection(inputs)  # [N, H * t]
    _, mean = weighted_centre(z, weight)
    if isinstance(projection, DenseProjection):
        deviation = z.std(0).clamp_min(1e-8)
        projection.weight.div_(deviation[:, None])
        mean = mean / deviation
    elif isinstance(projection, HadamardProjection):
        scale = z.std(0).square().mean().sqrt().clamp_min(1e-8)  # a direction of its own has no factor of its own
        projection.weight[:, -1].div_(scale)
        mean = mean / scale
    projection.bias.copy_(-mean)  # type: ignore[operator]


def _structured_noise(
    projection: HadamardProjection | BH4Projection | ACDCProjection, generator: torch.Generator
) -> Tensor:
    weight = projection.weight
    noise = torch.randn(weight.shape, generator=generator).to(weight)
    if isinstance(projection, BH4Projection):
        return noise / (weight.shape[-1] * projection.padded) ** 0.5
    if isinstance(projection, HadamardProjection):
        return noise.sign() / weight.shape[-1] ** 0.5
    return noise.sign()  # random signs keep ACDC orthogonal
