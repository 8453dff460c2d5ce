"""How near each projection of the hash comes to any linear map: the error of its best fit, over what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..distill.stopped import Stopped
from ..errors import CompressError
from ..lookup.budget import projection_cost
from ..lookup.geometry import ACDC_LAYERS, Geometry
from ..lookup.projections import ACDCProjection, HadamardProjection, build_projection

Kind = Literal["dense", "lowrank", "hadamard", "bh4", "acdc"]

RATES = (1.0, 0.3)  # step sizes tried, over the root mean square of what is stepped; the better fit counts
_WARMUP = 20  # steps
_BETAS = (0.9, 0.99)
_SPREAD = 0.1  # of ACDC's diagonals at first, around +1 and -1, so that the stack is near to orthogonal


@dataclass(frozen=True)
class Fit:
    """A projection's best fit. error: of the matrix, relative, in the Frobenius norm; multiply_adds: of one vector."""

    error: float
    multiply_adds: float
    parameters: int


class Coded(nn.Module):
    """A projection of the code h = A x. code [r, d_in]."""

    def __init__(self, d_in: int, projection: HadamardProjection) -> None:
        super().__init__()
        self.code = nn.Parameter(torch.randn(projection.rank, d_in) / math.sqrt(d_in))
        self.projection = projection

    def forward(self, x: Tensor) -> Tensor:
        """[N, d_in] -> [N, d_out]."""
        return self.projection(x @ self.code.T)


def multiply_adds(kind: Kind, size: int, d_out: int, d_in: int) -> float:
    """Multiply-adds of one vector, the code counted in; `size` as in `fit`."""
    g = geometry(kind, size, d_out, d_in)
    if kind == "acdc":
        return projection_cost(g) * size / ACDC_LAYERS
    return projection_cost(g) + g.rank * d_in


def geometry(kind: Kind, size: int, d_out: int, d_in: int) -> Geometry:
    """A student whose hash has so many bits. Raises CompressError for a size that does not fit."""
    if kind != "dense" and not 1 <= size <= (1 << 16):
        raise CompressError(f"{kind} of size {size}", where=kind, remedy="choose a whole number from 1 on")
    rank = size if kind in ("lowrank", "hadamard") else 0
    return Geometry(d_in, d_in, d_out, 1, kind, block=size if kind == "bh4" else 64, rank=rank)


def fit(
    target: Tensor, kind: Kind, size: int = 0, *, steps: int = 300, seed: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> Fit:  # fmt: skip
    """Fit a projection to a matrix [d_out, d_in], float32.

    size: the rank of lowrank and hadamard, the block of bh4, the layers of acdc; dense has none. Dense is exact,
    lowrank the singular value decomposition; the others are trained, seeded: Adam on the squared error of the matrix
    up to a scale, which no bit of a hash depends on.
    Raises CompressError for a size that does not fit, and Stopped where `stop`, asked at every step, says so.
    """
    d_out, d_in = target.shape
    cost = multiply_adds(kind, size, d_out, d_in)
    if kind == "dense":
        return Fit(0.0, cost, target.numel())
    if kind == "lowrank":
        values = torch.linalg.svdvals(target.double()).square()
        return Fit((values[size:].sum() / values.sum()).sqrt().item(), cost, size * (d_out + d_in))
    fits = [_train(target, kind, size, steps, seed, rate, stop) for rate in RATES]
    return Fit(min(error for error, _ in fits), cost, fits[0][1])


def build(kind: Kind, size: int, d_out: int, d_in: int) -> nn.Module:
    """A projection x -> z to be trained, without a bias."""
    g = geometry(kind, size, d_out, d_in)
    module: nn.Module
    if kind == "acdc":
        module = ACDCProjection(d_in, g.padded, g.hash_bits, size)
        with torch.no_grad():
            near = 1.0 + _SPREAD * torch.randn_like(module.weight)
            module.weight.copy_(near * torch.randn_like(module.weight).sign())
        module.bias.requires_grad_(False)
        return module
    module = build_projection(g)
    module.get_parameter("bias").requires_grad_(False)
    return Coded(d_in, module) if isinstance(module, HadamardProjection) else module


def _train(
    target: Tensor, kind: Kind, size: int, steps: int, seed: int, rate: float, stop: Callable[[], bool]
) -> tuple[float, int]:
    """Relative error of the best step, up to a scale, and how many parameters were trained."""
    total = target.square().sum()
    inputs = torch.eye(target.shape[1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build(kind, size, *target.shape)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(
        [{"params": [each], "lr": rate * each.detach().square().mean().sqrt().item()} for each in trained], betas=_BETAS
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1.0, (step + 1) / _WARMUP) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    best = math.inf
    for step in range(steps + 1):
        if stop():
            raise Stopped
        product = module(inputs).T
        scale = ((product * target).sum() / product.square().sum()).detach()  # the best, so its gradient is 0
        error = (scale * product - target).square().sum() / total
        best = min(best, error.item())
        if step == steps:
            break
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        schedule.step()
    return math.sqrt(best), sum(each.numel() for each in trained)
