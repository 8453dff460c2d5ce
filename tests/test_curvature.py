import pytest
import torch

from compress.dense import DenseWeights
from compress.lookup.curvature import curvature


def bends(dense: DenseWeights, activation: str, x: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    weight = torch.ones(len(x)) if weight is None else weight
    generator = torch.Generator().manual_seed(0)
    return curvature(x, dense, activation, weight, torch.ones(dense.down.shape[0]), generator)


def tokens(count: int = 4000, width: int = 6) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(1))


def ffn(gate: torch.Tensor, up: torch.Tensor | None = None, bias: float = 0.0) -> DenseWeights:
    down = torch.randn(5, len(gate), generator=torch.Generator().manual_seed(2))
    return DenseWeights(gate, torch.full((len(gate),), bias), up, None, down, None)


def test_one_neuron_bends_along_its_own_input() -> None:
    """J = act'(g x) d g', so that half the mean over pairs is the variance of act'(g x), |d|^2 and g g'."""
    gate = torch.randn(1, 6, generator=torch.Generator().manual_seed(3))
    dense, x = ffn(gate), tokens(20_000)
    slope = ((x @ gate.T).squeeze(1) > 0).float()  # of ReLU
    expected = slope.var() * dense.down.square().sum() * gate.T @ gate
    found = bends(dense, "relu", x)
    torch.testing.assert_close(found @ found, expected, rtol=0, atol=0.05 * float(expected.abs().max()))


def test_what_is_linear_does_not_bend() -> None:
    gate = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))
    assert float(bends(ffn(gate, bias=100.0), "relu", tokens()).abs().max()) == 0.0


def test_a_gated_ffn_bends_along_both_of_its_inputs() -> None:
    gate, up = torch.zeros(2, 6), torch.zeros(2, 6)
    gate[:, 0], up[:, 1] = 1.0, 1.0
    found = bends(ffn(gate, up), "silu", tokens())
    assert float(found[0, 0]) > 0.1
    assert float(found[1, 1]) > 0.1
    assert float(found[2:].abs().max()) < 1e-5


def test_tokens_without_weight_do_not_count() -> None:
    gate = torch.eye(6)[:1]
    x = tokens()
    x[2000:, 0] = 5.0  # there the slope is 1; below it is 0
    x[:2000, 0] = -5.0
    half = torch.cat((torch.ones(2000), torch.zeros(2000)))
    assert float(bends(ffn(gate), "relu", x).abs().max()) > 0.1
    assert float(bends(ffn(gate), "relu", x, half).abs().max()) == 0.0


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_tokens(count: int) -> None:
    found = bends(ffn(torch.eye(6)), "gelu", tokens(count))
    assert found.shape == (6, 6)
    assert bool(found.isfinite().all())


def test_some_neurons_of_an_ffn() -> None:
    gate, up = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(3)).unbind(0)
    dense, x = ffn(gate, up), tokens(10)
    first = torch.tensor([True, False, False, True])
    both = dense.of(first).output(x, "gelu") + dense.of(~first).output(x, "gelu")
    torch.testing.assert_close(both, dense.output(x, "gelu"))
