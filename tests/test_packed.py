import copy
import pickle

import pytest
import torch

from compress import kernels
from compress.errors import CompressError
from compress.lookup import LookupFFN, PackedLookupFFN, pack
from compress.lookup.packed import packed_layout, quantise, rounded


def student(**settings: object) -> LookupFFN:
    torch.manual_seed(0)
    sizes = {"tables": 6, "bits": 4, "projection": "lowrank", "rank": 8, "neurons": 5, **settings}
    return LookupFFN(24, 20, **sizes).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("hash_dtype", ["w8a8", "int8", "bfloat16", "float32"])
@pytest.mark.parametrize("table_dtype", ["int8", "bfloat16", "float32"])
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
    packed = pack(student(read="top2"))
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


def test_packing_again_changes_nothing() -> None:
    once = pack(student())
    twice = pack(once.dequantised())
    for name, value in once.state_dict().items():
        assert torch.equal(value, twice.state_dict()[name]), name


@pytest.mark.skipif(not kernels.available(), reason="the native extension is not installed")
@pytest.mark.parametrize("table_dtype", ["int8", "bfloat16", "float32"])
def test_tables_are_held_once(table_dtype: str) -> None:
    torch.manual_seed(0)
    packed = pack(LookupFFN(24, 64, tables=6, bits=4, projection="dense"), table_dtype)
    stored, x = copy.deepcopy(packed.state_dict()), torch.randn(3, 24)
    first = packed(x)
    assert packed.tables.data_ptr() == packed._prepared[0][1].data_ptr()
    assert all(torch.equal(value, stored[name]) for name, value in packed.state_dict().items())
    assert torch.equal(copy.deepcopy(packed)(x), first)
    packed.load_state_dict({**stored, "tables": torch.zeros_like(stored["tables"])})
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


def test_unknown_dtypes_are_refused() -> None:
    with pytest.raises(CompressError, match="table_dtype"):
        PackedLookupFFN(student().geometry, "int4")  # type: ignore[arg-type]
