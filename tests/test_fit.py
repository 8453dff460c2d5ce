import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.dense import DenseWeights
from compress.lookup import LookupFFN
from compress.lookup.fit import SiteData, fit
from compress.lookup.least_squares import (
    generalising_tables,
    reduced_rank_regression,
    ridge_regression,
    table_least_squares,
    whitening,
)


def dense(d: int = 16, f: int = 48, gated: bool = False, seed: int = 0) -> DenseWeights:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5

    up = (draw(f, d), draw(f)) if gated else (None, None)
    return DenseWeights(draw(f, d), draw(f), *up, draw(d, f), draw(d))


def site_data(weights: DenseWeights, tokens: int = 4000, scale: float = 1.0) -> SiteData:
    generator = torch.Generator().manual_seed(1)
    d = weights.gate.shape[1]
    x = scale * torch.randn(tokens, d, generator=generator) @ torch.randn(d, d, generator=generator) / d**0.5 + scale
    y = weights.output(x, "gelu")
    return SiteData(x, y, torch.ones(tokens), torch.ones(y.shape[1]))


def unexplained(student: LookupFFN, data: SiteData) -> float:
    with torch.no_grad():
        return float((student(data.x) - data.y).square().mean() / (data.y - data.y.mean(0)).square().mean())


SIZES = [
    {"tables": 16, "bits": 4, "projection": "hadamard", "rank": 8},
    {"tables": 16, "bits": 4, "projection": "lowrank", "rank": 8},
    {"tables": 16, "bits": 4, "projection": "lowrank", "rank": 8, "neurons": 8},
    {"tables": 16, "bits": 4, "projection": "dense"},
    {"tables": 16, "bits": 4, "projection": "bh4", "block": 8, "rank": 4},
    {"tables": 16, "bits": 4, "projection": "acdc", "rank": 4},
    {"tables": 0, "rank": 8, "neurons": 8},
]


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_fit_explains_most(sizes: dict, gated: bool) -> None:
    weights = dense(gated=gated)
    data = site_data(weights)
    student = LookupFFN(16, gated=gated, **sizes)
    fit(student, data, weights, ridge=1e-3, generator=torch.Generator().manual_seed(0))
    assert unexplained(student, data) < (0.9 if gated else 0.5)


def test_tables_improve_on_the_linear_path() -> None:
    weights = dense()
    data = site_data(weights)
    errors = []
    for steps in (0, 8):
        student = LookupFFN(16, tables=32, bits=6, projection="lowrank", rank=8)
        fit(student, data, weights, ridge=1e-3, generator=torch.Generator().manual_seed(0), table_steps=steps)
        errors.append(unexplained(student, data))
    assert errors[1] < 0.8 * errors[0]


def test_a_hash_cuts_more_finely_where_the_ffn_bends() -> None:
    """Neurons see three of sixteen directions; the linear path carries the rest, which the hash need not see."""
    weights = dense()
    weights.gate[:, 3:] = 0
    x = torch.randn(4000, 16, generator=torch.Generator().manual_seed(1))
    y = weights.output(x, "gelu") + 0.2 * x.roll(1, dims=1)
    student = LookupFFN(16, tables=16, bits=4, projection="hadamard", rank=8)
    data = SiteData(x, y, torch.ones(4000), torch.ones(16))
    fit(student, data, weights, ridge=1e-3, generator=torch.Generator().manual_seed(0))
    assert student.code is not None
    with torch.no_grad():
        h = student.code(x)
    torch.testing.assert_close(h.square().mean().sqrt(), torch.tensor(1.0), rtol=0.02, atol=0)
    seen = torch.linalg.svdvals(student.code.weight[:, :3]).square().sum() / student.code.weight.square().sum()
    assert seen > 0.85  # 0.92; 0.78 for the output's sake alone, 0.37 with codes of equal deviation


def test_an_ffn_that_answers_nothing_is_fitted() -> None:
    weights = dense()
    weights.down.zero_()
    assert weights.down_bias is not None
    weights.down_bias.zero_()
    data = site_data(weights)
    student = LookupFFN(16, tables=16, bits=4, projection="hadamard", rank=8, neurons=8)
    fit(student, data, weights, ridge=1e-3, generator=torch.Generator().manual_seed(0))
    assert all(torch.isfinite(p).all() for p in student.parameters())
    torch.testing.assert_close(student(data.x), data.y, rtol=0, atol=1e-4)


@settings(max_examples=15)
@given(st.integers(2, 60), st.floats(1e-3, 1e3), st.integers(0, 1000))
def test_fit_never_diverges(tokens: int, scale: float, seed: int) -> None:
    weights = dense(seed=seed)
    data = site_data(weights, tokens, scale)
    student = LookupFFN(16, tables=8, bits=8, projection="lowrank", rank=4, neurons=4)
    fit(student, data, weights, ridge=1e-3, generator=torch.Generator().manual_seed(seed))
    assert all(torch.isfinite(p).all() for p in student.parameters())
    answers = student(2 * data.x)  # on inputs unlike those of the fit
    assert torch.isfinite(answers).all()
    assert float(student.tables.detach().abs().max()) <= 10 * float(data.y.abs().max())


def test_all_of_the_neurons_are_the_dense_ffn() -> None:
    weights = dense()
    data = site_data(weights)
    student = LookupFFN(16, tables=0, neurons=48)
    fit(student, data, weights, ridge=1e-9, generator=torch.Generator())
    assert unexplained(student, data) < 1e-6


def test_a_row_that_is_never_read_stays_zero() -> None:
    codes = torch.zeros(50, 2, 1, dtype=torch.int32)
    codes[:25] = 1
    tables = table_least_squares(
        codes, torch.ones(50, 2, 1), torch.randn(50, 3), 8, torch.ones(50), shrink=16.0, steps=6
    )
    assert torch.count_nonzero(tables[:, 2:]) == 0
    assert torch.count_nonzero(tables[:, :2]) > 0


def test_table_least_squares_solves_the_normal_equations() -> None:
    generator = torch.Generator().manual_seed(0)
    n, tables, rows, width = 200, 3, 4, 2
    codes = torch.randint(rows, (n, tables, 1), generator=generator, dtype=torch.int32)
    scores = torch.rand(n, tables, 1, generator=generator)
    weight = torch.rand(n, generator=generator) + 0.1
    target = torch.randn(n, width, generator=generator)
    found = table_least_squares(codes, scores, target, rows, weight, shrink=2.0, steps=60)
    design = torch.zeros(n, tables * rows)
    for h in range(tables):
        design[torch.arange(n), h * rows + codes[:, h, 0].long()] = scores[:, h, 0]
    ridge = 2.0 * (scores[..., 0] ** 2 * weight[:, None]).mean()
    gram = design.T @ (weight[:, None] * design) + ridge * torch.eye(tables * rows)
    exact = torch.linalg.solve(gram, design.T @ (weight[:, None] * target))
    torch.testing.assert_close(found.view(-1, width), exact, rtol=1e-3, atol=1e-4)


def test_reduced_rank_regression_finds_a_low_rank_map() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 10, generator=generator)
    y = x @ torch.randn(10, 3, generator=generator) @ torch.randn(3, 20, generator=generator)
    directions, strength = reduced_rank_regression(x, y, torch.ones(500), 3, 1e-9)
    h = x @ directions.T
    rest = y - h @ ridge_regression(h, y, torch.ones(500), 1e-9)
    assert float(rest.square().mean() / y.square().mean()) < 1e-6
    assert torch.equal(strength, strength.sort(descending=True).values)
    torch.testing.assert_close(strength.square().sum() / 500, y.square().sum(1).mean(), rtol=1e-4, atol=0)


def test_whitening_gives_unit_covariance() -> None:
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(2000, 6, generator=generator) @ torch.randn(6, 6, generator=generator) + 3
    white = (h - h.mean(0)) @ whitening(h, torch.ones(2000)).T
    torch.testing.assert_close(white.T @ white / 2000, torch.eye(6), rtol=0, atol=1e-2)


def test_tables_do_not_learn_noise() -> None:
    """More rows than tokens and a target that nothing predicts: least squares fits it, and must not be believed."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(64, (800, 32, 1), generator=generator, dtype=torch.int32)
    scores, target, ones = torch.ones(800, 32, 1), torch.randn(800, 8, generator=generator), torch.ones(800)
    believed = table_least_squares(codes, scores, target, 64, ones, shrink=16.0, steps=8)
    kept = generalising_tables(codes, scores, target, 64, ones, shrink=16.0, steps=8)
    assert float(kept.square().mean()) < 0.02 * float(believed.square().mean())


def test_a_fit_on_few_tokens_is_no_worse_elsewhere_than_without_tables() -> None:
    weights = dense()
    few, many = site_data(weights, 300), site_data(weights, 6000)
    elsewhere = SiteData(many.x[300:], many.y[300:], many.token_weight[300:], many.channel_weight)
    errors = []
    for steps in (0, 8):
        student = LookupFFN(16, tables=32, bits=8, projection="lowrank", rank=8)
        fit(student, few, weights, ridge=1e-3, generator=torch.Generator().manual_seed(0), table_steps=steps)
        errors.append(unexplained(student, elsewhere))
    assert errors[1] <= 1.02 * errors[0]
