import math

import pytest
import torch
from assets import asset
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch.autograd import gradcheck

from compress.dense import ACTIVATIONS
from compress.errors import CompressError
from compress.lookup import LookupFFN
from compress.lookup.hashing import margin_scores, two_cells
from compress.lookup.projections import dct_matrix, hadamard


@pytest.mark.assets
@pytest.mark.parametrize("case", ["bh4_d64", "dense_d48"])
def test_golden_vectors(case: str) -> None:
    with safe_open(asset(f"golden/{case}.safetensors"), "pt") as file:
        golden = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = file.metadata()
    ffn = LookupFFN(
        golden["x"].shape[1], golden["y"].shape[1], tables=int(about["tables"]), bits=int(about["bits"]),
        projection=about["projection"], block=int(about["block"]),
    )  # fmt: skip
    ffn.load_state_dict({name: golden[name] for name in ffn.state_dict()})
    z = ffn.hash(golden["x"])
    codes, scores = margin_scores(z)
    assert torch.equal(codes.long(), golden["codes"])
    torch.testing.assert_close(scores, golden["scores"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ffn(golden["x"]), golden["y"], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def loops(ffn: LookupFFN, x: torch.Tensor) -> torch.Tensor:
    """The forward as the paper writes it, one token and table at a time, in float64."""
    g = ffn.geometry
    ffn = ffn.double()
    h = ffn.code(x) if ffn.code is not None else None
    z = ffn.hash(h if g.hashes_code else x)
    y = ffn.bias.expand(len(x), -1).clone()
    for n in range(len(x)):
        for table in range(g.tables):
            bits = z[n, table]
            code = sum(int(bit > 0) << (g.bits - 1 - j) for j, bit in enumerate(bits))
            score = bits.abs().sum() / (1 + torch.exp(-2 * bits.abs())).prod()
            if g.read == "top1":
                y[n] += score * ffn.tables[table, code]
                continue
            weakest = int(bits.abs().argmin())
            share = 1 / (1 + math.exp(2 * float(bits[weakest].abs()) / float(ffn.log_temperature.exp())))
            other = code ^ (1 << (g.bits - 1 - weakest))
            y[n] += score * ((1 - share) * ffn.tables[table, code] + share * ffn.tables[table, other])
    if ffn.linear is not None:
        y = y + h @ ffn.linear.weight.T
    if ffn.neurons is not None:
        y = y + ffn.neurons(x)
    return y


@pytest.mark.parametrize("read", ["top1", "top2"])
@pytest.mark.parametrize("projection", ["hadamard", "lowrank", "dense", "bh4", "acdc"])
def test_forward_is_the_papers(projection: str, read: str) -> None:
    torch.manual_seed(0)
    ffn = LookupFFN(
        24,
        20,
        tables=5,
        bits=3,
        projection=projection,
        block=8,
        rank=6,
        neurons=4,
        gated=True,
        activation="silu",
        read=read,
    )
    x = torch.randn(7, 24)
    y = ffn(x)
    torch.testing.assert_close(y.double(), loops(ffn, x.double()), rtol=1e-4, atol=1e-5)


@settings(max_examples=20)
@given(st.integers(1, 6), st.integers(0, 2**16))
def test_read_of_two_cells_is_continuous(bits: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(1, 1, bits, generator=generator)
    tables = torch.randn(1, 1 << bits, 3, generator=generator)
    j = seed % bits
    answers = []
    for side in (-1e-6, 1e-6):
        z[0, 0, j] = side
        codes, scores = margin_scores(z)
        cells, weights = two_cells(z, codes, scores, torch.tensor(0.5))
        answers.append((tables[0, cells[0, 0].long()] * weights[0, 0, :, None]).sum(0))
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("read", ["top1", "top2"])
def test_gradients_are_those_of_the_formula(read: str) -> None:
    torch.manual_seed(1)
    ffn = LookupFFN(6, 5, tables=3, bits=3, projection="lowrank", rank=4, neurons=2, read=read)
    x = torch.randn(5, 6)
    target = torch.randn(5, 5)
    ((ffn(x) - target) ** 2).sum().backward()
    reference = LookupFFN(6, 5, tables=3, bits=3, projection="lowrank", rank=4, neurons=2, read=read)
    reference.load_state_dict(ffn.state_dict())
    parameters = dict(reference.double().named_parameters())
    for name, parameter in ffn.named_parameters():
        flat, numeric = parameters[name].data.view(-1), torch.zeros(parameter.numel())
        for i in range(parameter.numel()):
            errors = []
            for step in (1e-6, -1e-6):
                flat[i] += step
                errors.append(float(((loops(reference, x.double()) - target.double()) ** 2).sum()))
                flat[i] -= step
            numeric[i] = (errors[0] - errors[1]) / 2e-6
        torch.testing.assert_close(parameter.grad.view(-1), numeric, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("projection", ["bh4", "acdc", "dense"])
def test_projections_have_gradients(projection: str) -> None:
    torch.manual_seed(0)
    ffn = LookupFFN(8, tables=3, bits=4, projection=projection, block=4).double()
    x = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda t: ffn.hash(t), (x,))


@pytest.mark.parametrize("size", [1, 2, 8, 16, 128])
def test_hadamard_is_sylvesters(size: int) -> None:
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    assert torch.equal(hadamard(torch.eye(size)), matrix)
    with torch.autocast("cpu", torch.bfloat16):  # its sums stay exact
        assert torch.equal(hadamard(torch.eye(size)), matrix)


def test_dct_is_orthonormal() -> None:
    matrix = dct_matrix(16)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(16), rtol=0, atol=1e-6)


def test_bh4_keeps_unit_variance() -> None:
    torch.manual_seed(0)
    ffn = LookupFFN(256, tables=64, bits=8, block=64)
    z = ffn.hash(torch.randn(200, 256))
    assert 0.5 < float(z.detach().std()) < 1.0  # 0.7 of the transform and 0.3 of the input


def test_defaults_are_the_papers() -> None:
    ffn = LookupFFN(512)
    assert ffn.geometry.hash_bits == 2 * 512
    assert ffn.hash.projection.weight.shape == (2, 4, 8, 64, 64)
    assert ffn(torch.randn(2, 3, 512)).shape == (2, 3, 512)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_every_activation_runs(activation: str) -> None:
    ffn = LookupFFN(8, tables=2, bits=2, projection="dense", neurons=3, activation=activation)
    assert torch.isfinite(ffn(torch.randn(4, 8))).all()


@pytest.mark.parametrize(
    "wrong",
    [{"bits": 0}, {"bits": 17}, {"projection": "lowrank"}, {"block": 24}, {"read": "top3"}, {"activation": "wish"}],
)
def test_impossible_sizes_are_refused(wrong: dict) -> None:
    with pytest.raises(CompressError):
        LookupFFN(48, **wrong)


def test_no_tokens() -> None:
    ffn = LookupFFN(16, 24, tables=2, bits=3, block=4)
    for shape in ((0, 16), (2, 0, 16)):
        assert ffn(torch.randn(shape)).shape == (*shape[:-1], 24)
