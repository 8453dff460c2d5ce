import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from compress import kernels
from compress.errors import CompressError
from compress.int8_linear import Int8Linear
from compress.kernels.layout import half_bytes
from compress.lookup import LookupFFN, PackedLookupFFN, pack
from compress.lookup.int4 import join_columns, quantise_tables, split_columns
from compress.lookup.packed import packed_layout, quantise, rounded


def student(**settings: object) -> LookupFFN:
    torch.manual_seed(0)
    sizes = {"tables": 6, "bits": 4, "projection": "lowrank", "rank": 8, "neurons": 5, **settings}
    return LookupFFN(24, 20, **sizes).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("hash_dtype", ["w8a8", "int8", "bfloat16", "float32"])
@pytest.mark.parametrize("table_dtype", ["int4", "int8", "bfloat16", "float32"])
@pytest.mark.parametrize("projection", ["hadamard", "lowrank", "dense", "bh4", "acdc"])
def test_packed_runs_as_its_parameters_in_pytorch(projection: str, table_dtype: str, hash_dtype: str) -> None:
    packed = pack(student(projection=projection, block=8), table_dtype, hash_dtype)
    x = torch.randn(9, 24)
    with torch.no_grad():
        y = packed(x)
        torch.testing.assert_close(y, packed.reference(x), rtol=1e-4, atol=1e-4)
        if hash_dtype != "w8a8":
            torch.testing.assert_close(y, packed.dequantised()(x), rtol=1e-4, atol=1e-4)


def test_inputs_are_rounded_to_the_nearest() -> None:
    x = torch.randn(7, 33, requires_grad=True)
    step = x.detach().abs().amax(1, keepdim=True) / 127
    y = rounded(x)
    assert ((y - x).abs() <= step * (0.5 + 1e-5)).all()
    steps = (y / step).detach()
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    assert torch.equal(rounded(torch.zeros(2, 3)), torch.zeros(2, 3))
    assert rounded(torch.tensor([[1.0, torch.inf]])).isnan().all()


def test_layout_names_every_tensor() -> None:
    packed = pack(student(read="top2"), "int8")
    layout = packed_layout(packed.geometry, "int8", "int8")
    assert {name: (value.shape, value.dtype) for name, value in packed.state_dict().items()} == layout
    assert layout["tables"][1] == torch.int8
    assert layout["scales"] == (torch.Size([6]), torch.float32)
    assert layout["code.weight"][1] == torch.int8
    assert layout["code.weight_scale"] == (torch.Size([8]), torch.float32)
    assert layout["hash.projection.bias"][1] == torch.float32


def test_rows_are_rounded_to_the_nearest() -> None:
    rows = torch.randn(3, 5, 16)
    rows[1, 2] = 0
    quantised, scales = quantise(rows)
    error = (rows - quantised * scales[..., None]).abs()
    assert (error <= scales[..., None] / 2 + 1e-7).all()
    assert scales[1, 2] == 0
    quantised, scales = quantise(rows, axes=2)
    assert scales.shape == (3,)
    assert ((rows - quantised * scales[:, None, None]).abs() <= scales[:, None, None] / 2 + 1e-7).all()


@pytest.mark.parametrize("table_dtype", ["int4", "int8", "bfloat16"])
def test_packing_again_changes_nothing(table_dtype: str) -> None:
    once = pack(student(), table_dtype)
    twice = pack(once.dequantised(), table_dtype)
    for name, value in once.state_dict().items():
        assert torch.equal(value, twice.state_dict()[name]), name


@pytest.mark.skipif(not kernels.available(), reason="the native extension is not installed")
@pytest.mark.parametrize("table_dtype", ["int4", "int8", "bfloat16", "float32"])
def test_tables_are_held_once(table_dtype: str) -> None:
    torch.manual_seed(0)
    packed = pack(LookupFFN(24, 64, tables=6, bits=4, projection="dense"), table_dtype)
    stored, x = copy.deepcopy(packed.state_dict()), torch.randn(3, 24)
    first = packed(x)
    assert packed.tables.data_ptr() == packed._prepared[0][1].data_ptr()
    assert all(torch.equal(value, stored[name]) for name, value in packed.state_dict().items())
    assert torch.equal(copy.deepcopy(packed)(x), first)
    opened = packed.dequantised()
    opened.tables.data.zero_()
    packed.load_state_dict({**stored, "tables": pack(opened, table_dtype).tables.data})
    assert torch.equal(packed(x), packed.bias.expand(3, -1))


def test_opened_for_training_it_trains() -> None:
    ffn = pack(student()).dequantised()
    ffn(torch.randn(4, 24)).sum().backward()
    assert all(p.grad is not None for p in ffn.parameters())


def test_gradients_of_inputs_pass_through() -> None:
    packed = pack(student())
    x = torch.randn(4, 24, requires_grad=True)
    packed(x).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_new_tensors_are_seen() -> None:
    packed, x = pack(student()), torch.randn(3, 24)
    before = packed(x)
    state = packed.state_dict()
    packed.load_state_dict({**state, "bias": state["bias"] + 1})
    torch.testing.assert_close(packed(x), before + 1)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_run(duplicate) -> None:
    packed, x = pack(student()), torch.randn(3, 24)
    expected = packed(x)
    assert torch.equal(duplicate(packed)(x), expected)


def test_other_dtypes_and_shapes_come_back() -> None:
    packed = pack(student())
    x = torch.randn(2, 3, 24, dtype=torch.bfloat16)
    y = packed(x)
    assert y.shape == (2, 3, 20)
    assert y.dtype == torch.bfloat16


@given(
    st.integers(0, 3), st.integers(1, 5), st.integers(1, 200), st.integers(0, 2**31), st.sampled_from([0.0, 1.0, 30.0])
)
def test_columns_join_and_split(tables, rows, width, seed, outlier):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(-8, 8, (tables, rows, width), dtype=torch.int8, generator=generator)
    joined = join_columns(numbers)
    assert joined.shape == (tables, rows, half_bytes(width))
    assert torch.equal(split_columns(joined, width), numbers)
    values = torch.randn(tables, rows, width, generator=generator)
    values[:, 0, 0] *= outlier
    joined, scales = quantise_tables(values)
    rounded_values = split_columns(joined, width) * scales[:, None, None]
    plain = values.abs().amax((1, 2), keepdim=True).clamp_min(1e-30) / 7  # the scale at which nothing is cut off
    error, size = (rounded_values - values).norm(dim=(1, 2)), values.norm(dim=(1, 2))
    at_plain = (torch.round(values / plain) * plain - values).norm(dim=(1, 2))
    moved = 2**-8  # the most by which bfloat16 rounds a scale, and multiples of it with it
    assert (error <= at_plain * (1 + moved) + size * moved + 1e-6).all()
    again, same = quantise_tables(rounded_values)
    assert torch.equal(same, scales)
    assert torch.equal(again, joined)


def test_tables_of_zeros_stay_zeros() -> None:
    joined, scales = quantise_tables(torch.zeros(2, 3, 5))
    assert torch.equal(scales, torch.zeros(2))
    assert not split_columns(joined, 5).any()


def test_unknown_dtypes_are_refused() -> None:
    with pytest.raises(CompressError, match="table_dtype"):
        PackedLookupFFN(student().geometry, "int3")  # type: ignore[arg-type]


@pytest.mark.parametrize("used_before", [False, True], ids=["new", "used before"])
def test_a_student_compiles_whole(used_before: bool) -> None:
    """In one graph: a break at every FFN would cost what compilation gains elsewhere."""
    packed, x = pack(student(), "int4"), torch.randn(9, 24)
    with torch.no_grad():
        expected = pack(student(), "int4")(x)
        if used_before:
            packed(x)
        compiled = torch.compile(packed, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), expected)
        assert torch.equal(compiled(torch.cat((x, x)))[9:], expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
def test_what_listens_to_operators_sees_a_student() -> None:
    """A call by itself leaves PyTorch's dispatcher out; graphs and profiles must not miss it."""
    packed, x = pack(student(), "int4").eval(), torch.randn(4, 24)
    with torch.no_grad():
        expected = packed(x)
        made = make_fx(packed)(x)
        assert any("lookup_ffn" in str(node.target) for node in made.graph.nodes)
        assert torch.equal(made(x.flip(0)), expected.flip(0))

        exported = torch.export.export(packed, (x,), strict=False)
        assert any("lookup_ffn" in str(node.target) for node in exported.graph.nodes)

        traced = torch.jit.trace(packed, (x,), check_trace=False)
        assert torch.equal(traced(x.flip(0)), expected.flip(0))

        with torch.profiler.profile() as profile:
            packed(x)
        assert any("lookup_ffn" in event.key for event in profile.key_averages())

    with pytest.raises(RuntimeError, match="atching rule"), torch.no_grad():
        torch.vmap(packed)(x)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        assert packed(fake.from_tensor(x)).shape == (4, packed.geometry.d_out)


@pytest.mark.parametrize("used_before", [False, True], ids=["new", "used before"])
def test_the_defaults_of_pytorch_change_nothing(used_before: bool) -> None:
    """The kernel writes float32 to the CPU, wherever and whatever new tensors are by default."""
    packed, linear, x = pack(student(projection="acdc")), Int8Linear.of(torch.nn.Linear(24, 20)), torch.randn(4, 24)
    with torch.no_grad():
        expected = pack(student(projection="acdc"))(x), copy.deepcopy(linear)(x)
        if used_before:
            packed(x), linear(x)
        torch.set_default_dtype(torch.float64)
        try:
            with torch.device("meta"):
                given = packed(x), linear(x)
        finally:
            torch.set_default_dtype(torch.float32)
    assert all(torch.equal(one, other) for one, other in zip(given, expected, strict=True))
