"""The fused forward of a packed LookupFFN against a float64 reference, at every instruction set of this machine."""

from __future__ import annotations

import math
import os

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernel_levels import LEVELS, using_level, using_threads
from torch import Tensor
from torch.nn import functional

from compress import kernels
from compress.errors import KernelError
from compress.kernels import layout
from compress.kernels.layout import HALF_BYTES
from compress.lookup.geometry import Geometry
from compress.lookup.int4 import join_columns, split_columns
from compress.lookup.packed import quantise

pytestmark = pytest.mark.skipif(not LEVELS, reason="the native extension is not installed")

ACTIVATIONS = {
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": functional.relu,
    "relu2": lambda x: functional.relu(x).square(),
    "silu": functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


# ---- a small clear reference ----


def hadamard(size: int) -> Tensor:
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return matrix


def dct(size: int) -> Tensor:
    n = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * (n + 0.5) * n[:, None]) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


def project(p: dict[str, Tensor], g: Geometry, x: Tensor, h: Tensor | None, bits: int | None) -> Tensor:
    weight, bias = p["hash.projection.weight"], p["hash.projection.bias"]
    if g.projection in ("lowrank", "dense"):
        return functional.linear(rounded(h if g.projection == "lowrank" else x, bits), weight, bias)
    if g.projection == "hadamard":
        code, mixing = functional.pad(h, (0, g.padded - g.rank)), hadamard(g.padded)
        z = torch.stack([(code * first) @ mixing * second @ mixing for first, second in weight], 1)
        each = g.padded // g.bits
        z = z[..., : g.bits * each].unflatten(2, (g.bits, each)).transpose(2, 3).flatten(1)
        return z[:, : g.hash_bits] + bias
    x = functional.pad(x, (0, g.padded - g.d_in))
    parts = []
    for layers in weight:
        z = x
        if g.projection == "bh4":
            for blocks in layers:
                z = rounded(z, bits) @ torch.block_diag(*blocks).T @ hadamard(g.padded)
            z = 0.7 * z + 0.3 * x
        else:
            for a, d in layers:
                z = (d * ((a * z) @ dct(g.padded).T)) @ dct(g.padded)
        parts.append(z)
    return torch.cat(parts, 1)[:, : g.hash_bits] + bias


def rounded(x: Tensor, bits: int | None, clear: Tensor | None = None) -> Tensor:
    """x [N, k] in multiples of a token's largest / 127 or 32767; `clear` [N] falls with an 8-bit tie's distance."""
    if bits is None:
        return x
    limit = 127 if bits == 8 else 32767
    largest = x.abs().amax(1, keepdim=True).clamp_min(1e-30)  # of neurons that are all off it is 0
    steps = x * (limit / largest)
    if clear is not None and bits == 8:  # where float32 may round to the other side
        nearness = ((steps - steps.floor()) - 0.5).abs().amin(1) / 20
        clear.copy_(torch.minimum(clear, nearness))
    return steps.round().double() * (largest.double() / limit)


def reference(params: dict[str, Tensor], g: Geometry, x: Tensor, bits: int = 16) -> tuple[Tensor, Tensor, float]:
    """float64 y [N, d_out]; how near each token comes to flipping a bit, a nearest plane or (8 bits) an integer, [N];
    and the largest sum of what y is added up from, signs aside, which rounding is relative to.
    """
    integers = any(name.endswith("_scale") for name in params)  # int8 matrices: what they are applied to is rounded
    of_matrices, of_hash = (bits, 16) if integers else (None, None)
    p, read = {name: tensor.double() for name, tensor in params.items()}, rounded(x, of_matrices).double()
    x = x.double()
    p |= {name: p[name] * p[name + "_scale"][..., None] for name in params if name + "_scale" in params}
    y, clear = p["bias"].expand(len(x), -1), torch.full((len(x),), torch.inf, dtype=torch.float64)
    h = functional.linear(read, p["code.weight"], p["code.bias"]) if g.rank else None
    if h is not None:
        y = y + rounded(h, of_matrices, clear) @ p["linear.weight"].T
    size = y.abs()
    if g.neurons:
        hidden = ACTIVATIONS[g.activation](functional.linear(read, p["neurons.gate.weight"], p["neurons.gate.bias"]))
        if g.gated:
            hidden = hidden * functional.linear(read, p["neurons.up.weight"], p["neurons.up.bias"])
        hidden = rounded(hidden, of_matrices, clear)
        y, size = y + hidden @ p["neurons.down.weight"].T, size + hidden.abs() @ p["neurons.down.weight"].abs().T
    if not g.tables:
        return y, clear, size.max().item() if len(x) else 1.0
    tables = p["tables"]
    if params["tables"].dtype == HALF_BYTES:
        tables = split_columns(params["tables"], g.d_out).double()
    if "scales" in p:
        tables = tables * p["scales"][:, None, None]
    z = project(p, g, x, h, of_hash).view(-1, g.tables, g.bits)
    magnitude = z.abs()
    codes = ((z > 0) * 2 ** torch.arange(g.bits - 1, -1, -1)).sum(2)
    scores = magnitude.sum(2) / (1 + torch.exp(-2 * magnitude)).prod(2)
    clear = torch.minimum(clear, magnitude.amin((1, 2)) / magnitude.amax((1, 2)))
    cells = [(codes, scores)]
    if g.read == "top2":
        margin, bit = magnitude.min(2)
        share = torch.sigmoid(-2 * margin / torch.exp(p["log_temperature"]))
        cells = [(codes, scores * (1 - share)), (codes ^ (1 << (g.bits - 1 - bit)), scores * share)]
        if g.bits > 1:
            least = magnitude.topk(2, 2, largest=False).values
            clear = torch.minimum(clear, (least[..., 1] - least[..., 0]).amin(1) / magnitude.amax((1, 2)))
    for code, weight in cells:
        for i in range(g.tables):
            rows = weight[:, i, None] * tables[i][code[:, i]]
            y, size = y + rows, size + rows.abs()
    return y, clear, size.max().item() if len(x) else 1.0


# ---- packed parameters of any geometry ----


def make_params(g: Geometry, table_dtype: torch.dtype, weight_dtype: torch.dtype, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    params = {}
    for name, shape in layout.parameter_shapes(g).items():
        value = torch.randn(shape, generator=generator)
        if name == "hash.projection.weight" and g.projection == "bh4":
            value /= math.sqrt(g.block * g.padded)
        elif name == "hash.projection.weight" and g.projection == "acdc":
            value = 1 + 0.3 * value
        elif name == "hash.projection.weight" and g.projection == "hadamard":
            value /= math.sqrt(g.padded)
        elif name.endswith(".weight"):
            value /= math.sqrt(shape[-1])
        if weight_dtype == torch.int8 and name in layout.matrices(g):
            params[name], params[name + "_scale"] = quantise(value)
        else:
            narrow = torch.bfloat16 if weight_dtype == torch.int8 else weight_dtype
            params[name] = value.to(narrow) if name.endswith(".weight") else value
    if "tables" in params and table_dtype == torch.int8:
        params["tables"] = torch.randint(-127, 128, params["tables"].shape, dtype=torch.int8, generator=generator)
        params["scales"] = torch.rand(g.tables, generator=generator) / 64
    elif "tables" in params and table_dtype == HALF_BYTES:
        numbers = torch.randint(-8, 8, params["tables"].shape, dtype=torch.int8, generator=generator)
        params["tables"], params["scales"] = join_columns(numbers), torch.rand(g.tables, generator=generator) / 4
    elif "tables" in params:
        params["tables"] = params["tables"].to(table_dtype)
    return params


def run(params: dict[str, Tensor], g: Geometry, x: Tensor, bits: int = 16) -> Tensor:
    return kernels.lookup_ffn(x, *kernels.prepare(params, g, bits))


def assert_agrees(params: dict[str, Tensor], g: Geometry, x: Tensor, bits: int = 16) -> None:
    expected, clear, scale = reference(params, g, x, bits)
    relative = 1e-4 if any(not tensor.is_floating_point() for tensor in params.values()) else 1e-5
    for level in LEVELS:
        with using_level(level):
            actual = run(params, g, x, bits)
            assert actual.shape == expected.shape
            assert actual.dtype == torch.float32
            if not len(x):  # which has no scale to compare by
                continue
            certain = clear > 1e-5  # nearer to a hyperplane or a tie float32 may see the other side
            assert certain.float().mean() > 0.5 or len(x) < 4
            torch.testing.assert_close(actual[certain].double(), expected[certain], rtol=0, atol=relative * scale)


@st.composite
def geometries(draw) -> Geometry:
    tables = draw(st.integers(0, 37))
    projection = draw(st.sampled_from(["hadamard", "lowrank", "dense", "bh4", "acdc"]))
    d_in = draw(st.integers(1, 140))
    rank = draw(st.integers(1 if tables and projection in ("hadamard", "lowrank") else 0, 40))
    bits = draw(st.integers(1, 9))
    if projection == "hadamard" and tables:
        rank = max(rank, bits)
    neurons = draw(st.integers(0 if tables or rank else 1, 40))
    exponent = draw(st.integers(0, max(0, math.ceil(math.log2(d_in)))))
    return Geometry(
        d_in, draw(st.integers(1, 200)), tables, bits, projection, 2**exponent, rank, neurons,
        draw(st.booleans()), draw(st.sampled_from(sorted(ACTIVATIONS))), draw(st.sampled_from(["top1", "top2"])),
    )  # fmt: skip


@settings(max_examples=60)
@given(
    geometries(),
    st.sampled_from([torch.float32, torch.bfloat16, torch.int8, HALF_BYTES]),
    st.sampled_from([(torch.float32, 16), (torch.bfloat16, 16), (torch.int8, 16), (torch.int8, 8)]),
    st.integers(0, 30),
    st.integers(0, 2**31),
)
@example(Geometry(1, 1, 0, 1, "hadamard", 1, 0, 1, False, "relu"), torch.float32, (torch.int8, 8), 1, 0)  # all off
@example(Geometry(70, 200, 1, 1, "hadamard", 1, 11, 35, True, "quick_gelu"), torch.float32, (torch.int8, 8), 3, 163940)
@example(Geometry(68, 170, 17, 5, "dense", 1, 0, 36, True, "gelu", "top2"), torch.float32, (torch.int8, 16), 6, 67)
def test_any_geometry(g, table_dtype, weights, tokens, seed):
    weight_dtype, bits = weights
    params = make_params(g, table_dtype, weight_dtype, seed)
    x = torch.randn(tokens, g.d_in, generator=torch.Generator().manual_seed(seed + 1))
    assert_agrees(params, g, x, bits)


TYPICAL = [
    Geometry(96, 96, 40, 8, "hadamard", 64, 64, 24, False, "gelu"),
    Geometry(96, 96, 40, 8, "lowrank", 64, 24, 24, False, "gelu"),
    Geometry(64, 100, 20, 6, "dense", 64, 0, 0, False, "gelu", "top2"),
    Geometry(96, 130, 33, 8, "bh4", 64, 0, 0, False, "gelu"),
    Geometry(100, 64, 33, 7, "bh4", 8, 0, 12, True, "silu", "top2"),
    Geometry(48, 64, 20, 5, "acdc", 16, 0, 0, False, "gelu"),
    Geometry(64, 172, 0, 8, "lowrank", 64, 16, 40, True, "silu"),
]
FACTORS = Geometry(300, 130, 70, 8, "bh4", 64, 16, 12, False, "gelu")  # two repeats, large enough for a team at a token


@pytest.mark.parametrize("g", TYPICAL, ids=lambda g: f"{g.projection}-{g.tables}-{g.read}")
@pytest.mark.parametrize(
    ("table_dtype", "weight_dtype", "bits"),
    [(torch.int8, torch.float32, 16), (torch.int8, torch.bfloat16, 16), (torch.int8, torch.int8, 16),
     (torch.int8, torch.int8, 8), (HALF_BYTES, torch.int8, 8)],
    ids=["int8-float32", "int8-bfloat16", "int8-int8", "int8-w8a8", "int4-w8a8"],
)  # fmt: skip
@pytest.mark.parametrize("level", LEVELS)
def test_neither_batch_nor_threads_change_a_bit(g, table_dtype, weight_dtype, bits, level):
    prepared, numbers = kernels.prepare(make_params(g, table_dtype, weight_dtype, 0), g, bits)
    x = torch.randn(1100, g.d_in, generator=torch.Generator().manual_seed(1))  # several tiles
    with using_level(level):
        with using_threads(1):
            whole = kernels.lookup_ffn(x, prepared, numbers)
            for start, count in ((0, 1), (1099, 1), (7, 2), (13, 3), (100, 70), (511, 12)):
                part = kernels.lookup_ffn(x[start : start + count], prepared, numbers)
                assert torch.equal(part, whole[start : start + count])
        for threads in (2, 3):
            with using_threads(threads):
                assert torch.equal(kernels.lookup_ffn(x, prepared, numbers), whole)
                for count in (1, 5, 60):
                    assert torch.equal(kernels.lookup_ffn(x[:count], prepared, numbers), whole[:count])


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("level", LEVELS)
def test_a_team_shares_the_factors_of_bh4(weight_dtype, level):
    bits = 8 if weight_dtype == torch.int8 else 16
    prepared, numbers = kernels.prepare(make_params(FACTORS, HALF_BYTES, weight_dtype, 0), FACTORS, bits)
    x = torch.randn(6, FACTORS.d_in, generator=torch.Generator().manual_seed(1))
    with using_level(level):
        with using_threads(1):
            whole = kernels.lookup_ffn(x, prepared, numbers)
        for threads in (2, 3, 12):
            with using_threads(threads):
                for count in (1, 4, 6):
                    assert torch.equal(kernels.lookup_ffn(x[:count], prepared, numbers), whole[:count])


def test_sums_of_bytes_stay_exact_however_wide_the_layer():
    g = Geometry(40_000, 20, 0, 8, "lowrank", 64, 16, 0, False, "gelu")  # more inputs than one exact sum takes
    params = make_params(g, torch.int8, torch.int8, 3)
    params["code.weight"].fill_(127)
    assert_agrees(params, g, torch.full((2, g.d_in), 1.0), 8)
    narrow = Geometry(32_768, 20, 0, 8, "lowrank", 64, 16, 0, False, "gelu")
    params = make_params(narrow, torch.int8, torch.int8, 3)
    for value in (127, -127):
        params["code.weight"].fill_(value)
        assert_agrees(params, narrow, torch.full((2, narrow.d_in), -1.0), 8)


def test_levels_round_alike():
    g = TYPICAL[6]
    params = make_params(g, torch.int8, torch.int8, 0)
    x = torch.randn(64, g.d_in)
    answers = []
    for level in LEVELS:
        with using_level(level):
            answers.append(run(params, g, x, 8))
    for answer in answers[1:]:  # products and sums are the same integers; activations differ in their last bits
        torch.testing.assert_close(answer, answers[0], rtol=0, atol=0.02 * answers[0].abs().max().item())
        assert (answer - answers[0]).abs().median() < 1e-5 * answers[0].abs().max()


def test_wide_layers_use_every_block_of_columns():
    for g in (
        Geometry(32, 1000, 20, 4, "dense", 64, 0, 0, False, "gelu", "top2"),
        Geometry(300, 20, 150, 8, "bh4", 32, 0, 0, False, "gelu"),
        Geometry(33, 70, 5, 12, "dense", 64, 0, 0, False, "gelu"),
        Geometry(33, 70, 3, 16, "dense", 64, 0, 0, False, "gelu"),
    ):
        assert_agrees(make_params(g, torch.float32, torch.float32, 5), g, torch.randn(70, g.d_in))


@pytest.mark.parametrize("rank", [5, 16, 33, 64, 100, 128, 200, 256, 300, 600])
def test_transforms_of_every_size(rank):
    g = Geometry(70, 64, 40, 4, "hadamard", 64, rank, 0, False, "gelu")
    assert_agrees(make_params(g, torch.int8, torch.float32, rank), g, torch.randn(9, g.d_in))


# Rows of 16 tokens that are more than are fetched ahead (ROWS_CACHED in kernels/tile.h): many tokens read slices, or in
# 4 bits whole rows in tiles of as many tokens.
SLICED = [
    (torch.float32, Geometry(16, 4100, 25, 3, "dense", 64, 0, 0, False, "gelu")),
    (torch.int8, Geometry(16, 12_100, 33, 3, "dense", 64, 0, 0, False, "gelu")),
    (HALF_BYTES, Geometry(16, 12_100, 33, 3, "dense", 64, 0, 0, False, "gelu", "top2")),
    (HALF_BYTES, Geometry(16, 24_080, 33, 3, "dense", 64, 0, 0, False, "gelu")),
]


@pytest.mark.parametrize(("table_dtype", "g"), SLICED, ids=["float32", "int8", "int4-top2", "int4"])
def test_many_tokens_of_many_tables_are_read_as_few_are(table_dtype, g):
    params = make_params(g, table_dtype, torch.float32, 7)
    prepared, numbers = kernels.prepare(params, g)
    assert 16 * g.cells * prepared[1].nbytes // g.rows > 6 << 20
    x = torch.randn(70, g.d_in, generator=torch.Generator().manual_seed(8))
    assert_agrees(params, g, x)
    for level in LEVELS:
        with using_level(level), using_threads(1):
            many = kernels.lookup_ffn(x, prepared, numbers)
            few = kernels.lookup_ffn(x[:9], prepared, numbers)  # no large tile, and no slices
            assert torch.equal(few, many[:9])
            for threads in (2, 3):
                with using_threads(threads):
                    assert torch.equal(kernels.lookup_ffn(x, prepared, numbers), many)


def test_first_of_equal_margins_is_the_second_cell():
    g = Geometry(4, 3, 1, 4, "dense", 64, 0, 0, False, "gelu", "top2")
    params = make_params(g, torch.float32, torch.float32, 0)
    params["hash.projection.weight"], params["hash.projection.bias"] = torch.eye(4), torch.zeros(4)
    x = torch.tensor([[2.0, -0.5, 0.5, 1.0]])
    expected, _, _ = reference(params, g, x)  # torch.min gives the first of equals too
    for level in LEVELS:
        with using_level(level):
            torch.testing.assert_close(run(params, g, x).double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_activations_hold_over_their_whole_range(activation, level):
    g = Geometry(1, 1, 0, 8, "lowrank", 64, 0, 1, False, activation)
    one, zero = torch.ones(1, 1), torch.zeros(1)
    params = {"neurons.gate.weight": one, "neurons.gate.bias": zero, "neurons.down.weight": one, "bias": zero}
    x = torch.cat((torch.linspace(-12, 12, 4001), torch.tensor([-1e4, -90.0, -88.0, 0.0, 88.0, 90.0, 1e4])))[:, None]
    with using_level(level):
        actual = run(params, g, x)
    expected = ACTIVATIONS[activation](x.double())
    torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=1e-6)  # an ulp of 1 + erf, times x


@pytest.mark.parametrize("g", TYPICAL[:6], ids=lambda g: g.projection)
@pytest.mark.parametrize(
    ("table_dtype", "weight_dtype", "bits"),
    [(torch.int8, torch.bfloat16, 16), (torch.int8, torch.int8, 16), (torch.int8, torch.int8, 8),
     (HALF_BYTES, torch.int8, 8)],
    ids=["int8-bfloat16", "int8-int8", "int8-w8a8", "int4-w8a8"],
)  # fmt: skip
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
@pytest.mark.parametrize("level", LEVELS)
def test_nan_in_one_token_stays_in_it(g, table_dtype, weight_dtype, bits, wrong, level):
    params = make_params(g, table_dtype, weight_dtype, 0)
    x = torch.randn(5, g.d_in)
    with using_level(level):
        clean = run(params, g, x, bits)
        x[2, 3] = wrong
        y = run(params, g, x, bits)
    assert y[2].isnan().all() or (wrong == torch.inf and bits == 16)
    others = [0, 1, 3, 4]
    assert torch.equal(y[others], clean[others])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("table_dtype", [torch.int8, HALF_BYTES], ids=["int8", "int4"])
def test_one_table_may_outweigh_the_others(table_dtype, level):
    g = Geometry(8, 96, 40, 4, "dense", 64, 0, 0, False, "gelu", "top2")
    params = make_params(g, table_dtype, torch.float32, 0)
    params["hash.projection.bias"][4 * 17 : 4 * 18] = 1000.0  # the score of table 17
    params["scales"][20:] = 0.0
    x = torch.randn(9, 8)
    expected, clear, _ = reference(params, g, x)
    with using_level(level):
        actual = run(params, g, x)[clear > 1e-7].double()
    torch.testing.assert_close(actual, expected[clear > 1e-7], rtol=0, atol=1e-4 * expected.abs().max().item())


@pytest.mark.assets
@pytest.mark.parametrize(
    ("case", "g"),
    [("bh4_d64", Geometry(64, 64, 12, 6, "bh4", 16)), ("dense_d48", Geometry(48, 40, 7, 5, "dense", 64))],
    ids=["bh4", "dense"],
)
def test_golden_vectors(case, g):
    assets = os.environ.get("COMPRESS_ASSETS", os.path.join(os.path.dirname(__file__), "..", "..", "shared"))
    path = os.path.join(assets, "golden", f"{case}.safetensors")
    if not os.path.exists(path):
        pytest.skip("golden vectors are not here")
    from safetensors.torch import load_file

    golden = load_file(path)
    params = {name: golden[name] for name in layout.parameter_shapes(g)}
    for level in LEVELS:
        with using_level(level):
            y = run(params, g, golden["x"])
            torch.testing.assert_close(y, golden["y"], rtol=0, atol=1e-5 * golden["y"].abs().max().item())


# ---- contracts ----


def test_what_does_not_fit_is_refused():
    g = TYPICAL[0]
    params = make_params(g, torch.int8, torch.bfloat16, 0)

    def without(name: str) -> dict[str, Tensor]:
        return {other: tensor for other, tensor in params.items() if other != name}

    broken = {
        "missing": without("code.bias"),
        "does not have": params | {"neurons.up.weight": torch.zeros(24, 96)},
        "code.weight has shape": params | {"code.weight": torch.zeros(24, 95, dtype=torch.bfloat16)},
        "several dtypes": params | {"linear.weight": params["linear.weight"].float()},
        "tables has dtype": without("scales") | {"tables": params["tables"].double()},
        "bias has dtype": params | {"bias": params["bias"].double()},
        "scales": without("scales"),
        "scales holds": params | {"scales": -params["scales"]},
        "is on meta": params | {"bias": params["bias"].to("meta")},
    }
    for message, wrong in broken.items():
        with pytest.raises(KernelError, match=message):
            kernels.prepare(wrong, g)
    with pytest.raises(KernelError, match="8 bits"):
        kernels.prepare(params, g, 8)  # its matrices are bfloat16
    prepared, numbers = kernels.prepare(params, g)
    x = torch.randn(3, g.d_in)
    calls = {
        "float64": lambda: kernels.lookup_ffn(x.double(), prepared, numbers),
        r"float32 \[\]": lambda: kernels.lookup_ffn(x[0, 0], prepared, numbers),
        r"\[3, 95\]": lambda: kernels.lookup_ffn(x[:, :95], prepared, numbers),
        "prepare": lambda: kernels.lookup_ffn(x, prepared[:1], numbers),
        "another geometry": lambda: kernels.lookup_ffn(x, [prepared[0], prepared[1][:-1]], numbers),
        "no packed LookupFFN": lambda: kernels.lookup_ffn(x, prepared, [-1, *numbers[1:]]),
    }
    for message, call in calls.items():
        with pytest.raises(KernelError, match=message):
            call()


def test_every_number_of_the_geometry_is_checked():
    g = TYPICAL[4]
    prepared, numbers = kernels.prepare(make_params(g, torch.int8, torch.float32, 0), g)
    x = torch.randn(2, g.d_in)
    for i in range(len(numbers)):
        for value in (-1, 2**40, 2**62):
            with pytest.raises(KernelError):
                kernels.lookup_ffn(x, prepared, [*numbers[:i], value, *numbers[i + 1 :]])


def test_strided_input_and_no_tokens():
    g = TYPICAL[0]
    prepared, numbers = kernels.prepare(make_params(g, torch.int8, torch.bfloat16, 0), g)
    x = torch.randn(g.d_in, 6)
    assert torch.equal(
        kernels.lookup_ffn(x.T, prepared, numbers), kernels.lookup_ffn(x.T.contiguous(), prepared, numbers)
    )
    assert kernels.lookup_ffn(torch.empty(0, g.d_in), prepared, numbers).shape == (0, g.d_out)
    cube = x.T.contiguous().view(2, 3, g.d_in)
    assert torch.equal(
        kernels.lookup_ffn(cube, prepared, numbers).flatten(0, 1), kernels.lookup_ffn(x.T, prepared, numbers)
    )
    assert torch.equal(kernels.lookup_ffn(x.T[0], prepared, numbers), kernels.lookup_ffn(x.T, prepared, numbers)[0])


class Packed(torch.nn.Module):
    def __init__(self, g: Geometry) -> None:
        super().__init__()
        self.prepared, self.numbers = kernels.prepare(make_params(g, torch.int8, torch.bfloat16, 0), g)
        for i, tensor in enumerate(self.prepared):
            self.register_buffer(f"prepared{i}", tensor, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.compress.lookup_ffn(x, [self.prepared0, self.prepared1], self.numbers) + 1.0


def test_compiles_and_exports():
    module, x = Packed(TYPICAL[3]).eval(), torch.randn(7, TYPICAL[3].d_in)
    with torch.no_grad():
        expected = module(x)
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(x), expected)
        tokens = torch.export.Dim("tokens", min=1, max=4096)
        exported = torch.export.export(module, (x,), dynamic_shapes={"x": {0: tokens}})
        assert any("lookup_ffn" in str(node.target) for node in exported.graph.nodes)
        longer = torch.cat((x, x))
        assert torch.equal(exported.module()(longer), module(longer))


def test_op_passes_pytorchs_own_checks():
    g = TYPICAL[0]
    prepared, numbers = kernels.prepare(make_params(g, torch.int8, torch.bfloat16, 0), g)
    torch.library.opcheck(
        torch.ops.compress.lookup_ffn.default, (torch.randn(3, g.d_in), prepared, numbers),
        test_utils=("test_schema", "test_faketensor"),
    )  # fmt: skip
