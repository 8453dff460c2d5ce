"""Training ops of the native kernel against float64 autograd, at every instruction set of this machine."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_levels import LEVELS, using_level, using_threads
from torch import Tensor

from compress import kernels
from compress.errors import KernelError
from compress.kernels import fallback


@pytest.fixture(params=LEVELS or ["torch"], scope="module", autouse=True)
def level(request):
    """Run the module's tests once per instruction set."""
    with using_level(request.param) if LEVELS else nullcontext():
        yield request.param


def reads(
    seed: int, tokens: int, tables: int, rows: int, width: int, cells: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(tables, rows, width, generator=generator),
        torch.randint(0, rows, (tokens, tables, cells), dtype=torch.int32, generator=generator),
        torch.randn(tokens, tables, cells, generator=generator),
        torch.randn(tokens, width, generator=generator),
    )


def gather_float64(tables: Tensor, codes: Tensor, weights: Tensor) -> Tensor:
    rows = torch.stack([table[codes[:, h].long()] for h, table in enumerate(tables)], 1)  # [N, H, C, d]
    return (weights.unsqueeze(3) * rows).sum((1, 2))


def scores_float64(z: Tensor) -> Tensor:
    return z.abs().sum(2) / (1 + torch.exp(-2 * z.abs())).prod(2)


def assert_close(actual: Tensor, expected: Tensor, relative: float = 1e-5) -> None:
    """Agreement relative to the largest element: single ones may cancel."""
    scale = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=relative * (scale + 1e-12))


shapes = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**31),
        "tokens": st.integers(0, 70),
        "tables": st.integers(0, 9),
        "rows": st.sampled_from([1, 2, 16, 37, 256]),
        "width": st.integers(1, 300),
        "cells": st.sampled_from([1, 2]),
    }
)


@settings(max_examples=40)
@given(shapes)
def test_gather_and_its_gradients(shape):
    tables, codes, weights, grad_y = reads(**shape)
    exact_tables, exact_weights = tables.double().requires_grad_(), weights.double().requires_grad_()
    if shape["tables"] and shape["tokens"]:
        exact = gather_float64(exact_tables, codes, exact_weights)
        expected = torch.autograd.grad(exact, (exact_tables, exact_weights), grad_y.double())
        exact = exact.detach()
    else:
        exact, expected = torch.zeros_like(grad_y), (torch.zeros_like(tables), torch.zeros_like(weights))
    for module in (kernels, fallback):
        assert_close(module.gather(tables, codes, weights), exact)
        for actual, wanted in zip(module.gather_backward(grad_y, tables, codes, weights), expected, strict=True):
            assert_close(actual, wanted)


@settings(max_examples=40)
@given(
    st.integers(0, 2**31),
    st.integers(0, 40),
    st.integers(0, 20),
    st.integers(1, 16),
    st.sampled_from([0.1, 3.0, 100.0]),
)
def test_margin_scores_and_their_gradient(seed, tokens, tables, bits, scale):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(tokens, tables, bits, generator=generator) * scale
    z[torch.rand(z.shape, generator=generator) < 0.1] = 0.0
    grad_scores = torch.randn(tokens, tables, generator=generator)
    exact_z = z.double().requires_grad_()
    exact = scores_float64(exact_z)
    (expected,) = torch.autograd.grad(exact, exact_z, grad_scores.double())
    place = 2 ** torch.arange(bits - 1, -1, -1)
    for module in (kernels, fallback):
        codes, scores = module.margin_scores(z)
        assert torch.equal(codes, ((z > 0) * place).sum(2).int())
        torch.testing.assert_close(scores.double(), exact.detach(), rtol=2e-6, atol=1e-12)
        actual = module.margin_scores_backward(z, scores, grad_scores)
        assert_close(actual, expected)
        assert torch.all(actual[z == 0] == 0)


@pytest.mark.parametrize("magnitude", [0.0, 1e-30, 1e-4, 1.0, 20.0, 60.0, 1e4, 1e30])
def test_scores_hold_over_the_whole_range(magnitude):
    z = torch.full((1, 3, 8), magnitude)
    z[:, 1] = -magnitude
    z[:, 2, ::2] = -magnitude
    codes, scores = kernels.margin_scores(z)
    torch.testing.assert_close(scores.double(), scores_float64(z.double()), rtol=2e-6, atol=0)
    assert codes.tolist() == [[255 if magnitude else 0, 0, 0b01010101 if magnitude else 0]]


def test_nan_stays_visible():
    z = torch.zeros(1, 1, 4)
    z[0, 0, 2] = torch.nan
    codes, scores = kernels.margin_scores(z)
    assert codes.item() == 0
    assert scores.isnan().item()


@pytest.mark.parametrize("width", [384, 200])
@pytest.mark.parametrize("cells", [1, 2])
def test_thread_count_changes_no_bit(width, cells):
    tables, codes, weights, grad_y = reads(3, 500, 11, 64, width, cells)
    z = torch.randn(500, 40, 8, generator=torch.Generator().manual_seed(0))
    results = []
    for count in (1, 2, 3):
        with using_threads(count):
            scored = kernels.margin_scores(z)
            results.append(
                [
                    kernels.gather(tables, codes, weights),
                    *kernels.gather_backward(grad_y, tables, codes, weights),
                    *scored,
                    kernels.margin_scores_backward(z, scored[1], scored[1]),
                ]
            )
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("code", [-1, 16, 2**31 - 1, -(2**31)])
def test_codes_outside_the_table_are_refused(code):
    tables, codes, weights, grad_y = reads(0, 5, 3, 16, 8, 1)
    codes[4, 2, 0] = code
    with pytest.raises(KernelError, match="outside"):
        kernels.gather(tables, codes, weights)
    with pytest.raises(KernelError, match="outside"):
        kernels.gather_backward(grad_y, tables, codes, weights)


def test_tensors_that_do_not_fit_are_refused():
    tables, codes, weights, grad_y = reads(0, 5, 3, 16, 8, 1)
    z, scores = torch.randn(5, 3, 4), torch.randn(5, 3)
    wrong = {
        "dtype": [
            lambda: kernels.gather(tables.double(), codes, weights),
            lambda: kernels.gather(tables, codes.long(), weights),
            lambda: kernels.gather_backward(grad_y.half(), tables, codes, weights),
            lambda: kernels.margin_scores(z.double()),
            lambda: kernels.margin_scores_backward(z, scores.double(), scores),
        ],
        "shape": [
            lambda: kernels.gather(tables, codes[:, :2].contiguous(), weights),
            lambda: kernels.gather(tables[0], codes, weights),
            lambda: kernels.gather(tables, codes, weights[:4]),
            lambda: kernels.gather_backward(grad_y[:, :7].contiguous(), tables, codes, weights),
            lambda: kernels.margin_scores(z[0]),
            lambda: kernels.margin_scores_backward(z, scores, scores[:, :2].contiguous()),
        ],
        "contiguous": [
            lambda: kernels.gather(tables.transpose(1, 2), codes, weights),
            lambda: kernels.margin_scores(z.transpose(0, 1)),
        ],
        "on meta": [lambda: kernels.gather(tables, codes, weights.to("meta"))],
        "cells a table": [lambda: kernels.gather(tables, codes.repeat(1, 1, 3), weights.repeat(1, 1, 3))],
        "bits a table": [lambda: kernels.margin_scores(torch.randn(1, 1, 17))],
    }
    for message, calls in wrong.items():
        for call in calls:
            with pytest.raises(KernelError, match=message):
                call()
