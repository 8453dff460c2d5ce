"""The benchmark: every engine computes the same FFN, bytes are counted right, what cannot run is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import converted
import pytest
import torch
from compress.cli import app
from typer.testing import CliRunner, Result

from compress import kernels
from compress.bench import contestants, dense_layers, engines, machine, random_students, run
from compress.bench.layers import student_bytes
from compress.bench.stacks import of_sizes
from compress.errors import CompressError, KernelError
from compress.lookup import Geometry
from compress.lookup.budget import DenseGeometry, bytes_per_token, stored_bytes

SIZES = {"hidden": 32, "intermediate": 64, "gated": False, "activation": "gelu"}
STUDENT = {"tables": 6, "bits": 4, "projection": "bh4", "block": 8}


@pytest.fixture(autouse=True)
def small_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "last_level_cache", lambda: 1 << 20)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["bench", *(str(argument) for argument in arguments)])


@pytest.mark.parametrize(("gated", "activation"), [(False, "gelu"), (True, "silu"), (False, "relu")])
@pytest.mark.parametrize(
    ("module", "make", "tolerance"),
    [
        ("onnxruntime", lambda layers, _: engines.onnxruntime_layers(layers, False, 1), 1e-4),
        ("onnxruntime", lambda layers, _: engines.onnxruntime_layers(layers, True, 1), 0.1),
        ("openvino", lambda layers, x: engines.openvino_layers(layers, False, 1, x), 1e-4),
        ("openvino", lambda layers, x: engines.openvino_layers(layers, True, 1, x), 0.1),
        ("torchao", lambda layers, _: engines.torchao_int8(layers), 0.1),
    ],
    ids=["onnxruntime-float32", "onnxruntime-int8", "openvino-float32", "openvino-int8", "torchao-int8"],
)
def test_engines_compute_the_dense_ffn(module, make, tolerance, gated, activation) -> None:
    pytest.importorskip(module)
    if module == "onnxruntime":
        pytest.importorskip("onnx")
    layers = dense_layers(DenseGeometry(32, 64, 32, gated, activation), 2)
    x = torch.randn(40, 32)
    with torch.no_grad():
        for layer, made in zip(layers, make(layers, x), strict=True):
            expected, output = layer(x), made(x)
            actual = torch.as_tensor(output if isinstance(output, torch.Tensor) else output[0])
            error = (actual - expected).norm() / expected.norm()
            assert error < tolerance
            assert tolerance < 1e-3 or error > 1e-5  # int8 is really int8


@pytest.mark.parametrize("tables", ["int4", "int8"])
def test_bytes_of_one_token_and_of_very_many(tables: Literal["int4", "int8"]) -> None:
    geometry = Geometry(32, 32, 6, 4, "bh4", 8)
    read = student_bytes(geometry, tables, "int8")
    assert read(1) == pytest.approx(bytes_per_token(geometry, tables, "int8"))
    assert read(10_000) == pytest.approx(stored_bytes(geometry, tables, "int8"))


@pytest.mark.parametrize("tables", ["int4", "int8"])
def test_random_students_read_evenly(tables: Literal["int4", "int8"]) -> None:
    for projection, sizes in (("bh4", {"block": 8}), ("hadamard", {"rank": 16}), ("lowrank", {"rank": 16})):
        (student,) = random_students(Geometry(32, 32, 6, 4, projection, **sizes), 1, tables, "int8")  # type: ignore[arg-type]
        trainable, x = student.dequantised(), torch.randn(4000, 32)
        with torch.no_grad():
            h = trainable.code(x) if trainable.code is not None else None
            codes, _ = trainable.read(trainable.hash(trainable.hash_input(x, h)))
        for table in range(6):
            assert len(codes[:, table].unique()) > 8
        assert 0.01 < student(x).std() < 10


def test_all_variants_are_timed_on_cold_layers() -> None:
    stacks = of_sizes(SIZES, STUDENT, 2, 1, contestants.DENSE, None, None)
    result = stacks.measure([1, 3], 0.0)
    names = {
        "torch_float32",
        "torch_bfloat16",
        "torch_int8",
        "lookup_float32",
        "lookup_bfloat16",
        "lookup_int8",
        "lookup_int4",
    }
    for row, tokens in zip(result["rows"], (1, 3), strict=True):
        assert row["batch"] == tokens
        assert names <= set(row["seconds"])
        assert all(taken > 0 for taken in row["seconds"].values())
        assert row["bytes"]["torch_float32"] == 4 * (2 * 32 * 64 + 64 + 32)
    missing = set(contestants.DENSE) - set(result["rows"][0]["seconds"])
    assert set(result["left_out"]) == missing
    assert result["machine"]["streaming_rate"] > 1e8


def test_a_pass_goes_over_every_timed_layer_once() -> None:
    seen: list[int] = []
    layers = [lambda x, i=i: seen.append(i) for i in range(3)]
    stack = run.ColdStack(run.Variant("v", layers, torch.float32, lambda tokens: 0.0), machine.Memory(), 8, 2)
    stack.prepare(0)
    assert {*seen} == {2}  # the spare one, which only warms up
    seen.clear()
    first = stack.inputs[0]
    stack.run()
    assert seen == [0, 1]
    stack.prepare(1)
    assert not torch.equal(stack.inputs[0], first)


def test_what_cannot_take_part_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "installed", lambda module: False)
    left_out = of_sizes(SIZES, STUDENT, 1, 1, ("torch_int8", "openvino_int8"), "int8", None).measure([1], 0.0)[
        "left_out"
    ]
    assert list(left_out) == ["openvino_int8"]
    assert "compress-lookup[bench]" in left_out["openvino_int8"]
    monkeypatch.setattr(contestants, "available_memory", lambda: 5000)
    stacks = of_sizes(SIZES, STUDENT, 1, 1, ("torch_float32",), None, None)
    left_out = stacks.left_out
    assert [variant.name for variant in contestants.student_variants(stacks.students, stacks.stored, left_out)] == []
    assert all("--layers" in reason for reason in left_out.values())


def test_streaming_reads_every_word() -> None:
    numbers = torch.randint(-(2**62), 2**62, (8 * 8 * 3 * 7,))
    expected = 0
    for number in numbers.tolist():
        expected ^= number & (2**64 - 1)
    assert kernels.stream_read(numbers) & (2**64 - 1) == expected
    with pytest.raises(KernelError, match="dtype"):
        kernels.stream_read(numbers.float())


def test_command_shows_ratios_and_writes_json_and_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    shape = ["--hidden", 32, "--tables", 6, "--block", 8, "--batch", "1,2", "--layers", 1, "--seconds", 0]
    only = ["--only", "torch_float32,torch_int8", "--table-dtype", "int8"]
    done = invoke(*shape, *only, "--json", tmp_path / "bench.json", "--report", tmp_path / "pictures")
    assert done.exit_code == 0, done.output
    assert "lookup int8" in done.output
    assert "1.00x" in done.output
    written = json.loads((tmp_path / "bench.json").read_text())
    assert [row["batch"] for row in written["rows"]] == [1, 2]
    assert set(written["rows"][0]["seconds"]) == {"torch_float32", "torch_int8", "lookup_int8"}
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"times.png", "roofline.png"}


def test_command_takes_the_student_that_conversions_ship() -> None:
    done = invoke("--hidden", 64, "--batch", 1, "--layers", 1, "--seconds", 0, "--only", "torch", "--json", "-")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert "hadamard" in found["layer"]
    engines = {name.partition("_")[0] for name in found["rows"][0]["seconds"]}
    assert engines == {"torch", "lookup"}


def test_command_takes_a_checkpoint(tmp_path: Path) -> None:
    dense = converted.dense_folder(tmp_path / "llama", "llama")
    out = converted.save(dense, tmp_path / "out")
    done = invoke(out, "--against", dense, "--batch", 2, "--seconds", 0, "--only", "torch_int8", "--json", "-")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert set(found["rows"][0]["seconds"]) == {"torch_int8", "lookup"}
    assert found["layer"].startswith("2 layers")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batch", "1,zero"), "no list of batch sizes"),
        (("--only", "tensorflow"), "unknown variant tensorflow"),
        (("--tables", 4, "--table-dtype", "int3"), "unknown dtype 'int3'"),
        (("--activation", "swoosh"), "unknown activation 'swoosh'"),
        (("--tables", 4, "--hidden", 32, "--projection", "hadamard"), "hashes the code"),
        (("--json", "/no/such/folder/bench.json"), "cannot be written"),
    ],
)
def test_mistakes_get_a_message(arguments: tuple[object, ...], message: str) -> None:
    done = invoke(*arguments)
    assert done.exit_code == 2
    assert message in done.output + str(done.exception or "")


def test_unknown_sizes_are_refused_before_anything_is_made() -> None:
    with pytest.raises(CompressError, match="block"):
        of_sizes(SIZES, {**STUDENT, "block": 7}, 1, 1, ("torch_int8",), None, None)
