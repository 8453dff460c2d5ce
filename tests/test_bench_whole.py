"""The whole model timed: every way takes part or is named, and the bound really has no FFN."""

from __future__ import annotations

import importlib.util
import json
import time

import converted
import pytest
import torch
from compress.cli import app
from typer.testing import CliRunner

from compress.bench import sized, whole
from compress.bench.parts import PARTS, parts_of, seconds_by_part
from compress.bench.shapes import RandomPool
from compress.bench.whole import without_ffns
from compress.models import load_pretrained
from compress.sites import find_sites

TORCH = ["torch float32", "torch bfloat16", "torch int8", "torch int8 without FFNs"]
OPENVINO = ["openvino float32", "openvino int8", "openvino int8 without FFNs"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    return converted.save(converted.dense_folder(root / "dense", "bert"), root / "out", noise=0.1)


def test_every_way_is_timed_or_named(checkpoint):
    arguments = ["bench", checkpoint, "--whole", "--against", checkpoint.with_name("dense"), "--shape", "1x5,2x7",
                 "--seconds", "0", "--json", "-"]  # fmt: skip
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    have = all(importlib.util.find_spec(name) for name in ("openvino", "nncf"))
    expected = [*TORCH, *(f"compressed, torch {kind}" for kind in ("float32", "int8"))]
    expected += [*OPENVINO, *(f"compressed, openvino {kind}" for kind in ("float32", "int8"))] if have else []
    assert [row["shape"] for row in result["rows"]] == ["1 x 5", "2 x 7"]
    for row in result["rows"]:
        assert sorted(row["seconds"]) == sorted(expected)
        assert all(taken > 0 for taken in row["seconds"].values())
    assert bool(result["left_out"]) != have


def test_the_bound_has_no_ffn_and_leaves_the_model_alone(checkpoint):
    dense = load_pretrained(str(checkpoint.with_name("dense"))).model
    inputs = RandomPool({"input_ids": torch.arange(5, 20)}, 6).batch(2, 0)
    with torch.no_grad():
        before = dense(**inputs).last_hidden_state
        bound = without_ffns(dense)(**inputs).last_hidden_state
        assert torch.equal(dense(**inputs).last_hidden_state, before)
    layer = dense.encoder.layer[0]
    assert not torch.allclose(bound, before)
    assert find_sites(dense)
    assert layer.intermediate.dense.weight.numel()


@pytest.fixture
def small(monkeypatch):
    """The known sizes, with pico ones in their place."""
    sizes = {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 1}
    monkeypatch.setitem(sized._SIZES, "gpt2", ("GPT2LMHeadModel", sizes))


def test_models_of_known_sizes_generate_token_by_token(small):
    arguments = [
        "bench",
        "--config",
        "gpt2",
        "--budget",
        "0.75",
        "--shape",
        "1x1+4,2x7",
        "--seconds",
        "0",
        "--json",
        "-",
    ]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert [row["shape"] for row in result["rows"]] == ["1 x 1 behind 4", "2 x 7"]
    names = {*TORCH, "compressed, torch float32", "compressed, torch int8"}
    if all(importlib.util.find_spec(name) for name in ("openvino", "nncf")):
        names |= {*OPENVINO, "compressed, openvino float32", "compressed, openvino int8"}
        names |= {
            f"{before}openvino static int8{behind}"
            for before, behind in (("", ""), ("compressed, ", ""), ("", " without FFNs"))
        }
    if all(importlib.util.find_spec(name) for name in ("llama_cpp", "gguf")):
        names |= {"llama.cpp Q8_0", "llama.cpp Q4_0"}
    assert all(row["seconds"].keys() == names for row in result["rows"])
    for name, spent in result["rows"][0]["parts"].items():
        assert spent.keys() == set(PARTS)
        assert all(taken > 0 for part, taken in spent.items() if part != "FFNs" or "without" not in name)
    for only, expected in (
        ("torch", {name for name in names if "torch" in name}),
        ("torch int8, openvino static int8", {name for name in names if "torch int8" in name or "static" in name}),
    ):
        rows = json.loads(CliRunner().invoke(app, [*arguments, "--only", only]).stdout)["rows"]
        assert all(row["seconds"].keys() == expected for row in rows)
        assert all(row["parts"].keys() == {name for name in expected if "torch" in name} for row in rows)
    shown = CliRunner().invoke(app, [*arguments[:-2], "--only", "torch float32"])
    assert shown.exit_code == 0, shown.output
    assert "against torch float32" in shown.stdout
    assert "int8" not in shown.stdout


def test_a_model_of_known_sizes_shares_all_but_its_ffns(small):
    dense, compressed = sized.sized_pair("gpt2", 0.75)
    shared = {id(parameter) for parameter in dense.model.parameters()}
    own = [name for name, parameter in compressed.model.named_parameters() if id(parameter) not in shared]
    assert own
    assert all(".mlp." in name for name in own)
    assert {id(parameter) for parameter in compressed.model.parameters()} & shared
    again, _ = sized.sized_pair("gpt2", 0.75)
    assert all(map(torch.equal, dense.model.parameters(), again.model.parameters()))
    sizes = [
        sum(parameter.numel() for parameter in model.parameters()) for model in (dense.model, without_ffns(dense.model))
    ]
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_every_matrix_belongs_to_a_part(tmp_path, family):
    model = load_pretrained(str(converted.dense_folder(tmp_path / family, family))).model
    parts = parts_of(model, find_sites(model))
    assert {*parts.values()} >= {"FFNs", "attention", "norms", "embeddings"}
    for path, module in model.named_modules():
        if module.__class__.__name__ in ("Linear", "Conv1D", "Embedding", "LayerNorm", "LlamaRMSNorm"):
            around = [part for known, part in parts.items() if f"{path}.".startswith(f"{known}.")]
            assert around, path
            assert ("attention" in around) == bool({"attn", "self_attn", "attention"} & {*path.split(".")}), path


def test_time_within_a_part_counts_once(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    class Slow(torch.nn.Module):
        def __init__(self, seconds, inner=None):
            super().__init__()
            self.seconds, self.inner = seconds, inner or torch.nn.Identity()

        def forward(self, x):
            clock[0] += self.seconds
            return self.inner(x)

    model = torch.nn.Sequential(Slow(4.0, Slow(2.0)), Slow(1.0))

    class Once:
        def prepare(self, round_):
            clock[0] += 100.0

        def run(self):
            model(torch.zeros(1))

    spent = seconds_by_part(model, {"0": "attention", "0.inner": "norms", "9": "head"}, Once())
    assert spent == {"FFNs": 0, "attention": 4, "norms": 2, "embeddings": 0, "head": 0, "between": 1}


def test_default_shapes_and_what_cannot_generate(checkpoint):
    assert [str(shape) for shape in whole.DEFAULT_SHAPES[True]] == ["1 x 1 behind 128", "1 x 128"]
    arguments = [
        "bench",
        str(checkpoint),
        "--whole",
        "--against",
        str(checkpoint.with_name("dense")),
        "--shape",
        "1x1+4",
    ]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert "does not generate token by token" in done.output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "needs a checkpoint"),
        (("{out}", "--shape", "1x0"), "no list of shapes"),
        (("{out}", "--shape", "a"), "list"),
        (("{out}", "--shape", "2x1+4"), "1x1+128"),
        (("{out}", "--only", "tensorrt"), "choose of torch,"),
        (("{out}", "--against", "{dense}", "--only", "openvino static int8"), "nothing is left to time at 1 x 16"),
        (("{out}", "--config", "gpt2"), "both a checkpoint and --config"),
        (("--config", "gpt5"), "choose one of gpt2, llama-1b"),
    ],
)
def test_mistakes_are_named(checkpoint, arguments, expected):
    given = [argument.format(out=checkpoint, dense=checkpoint.with_name("dense")) for argument in arguments]
    done = CliRunner().invoke(app, ["bench", "--whole", *given])
    assert done.exit_code == 2
    assert expected in done.output


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("{out}", "--whole", "--report", "x"), "--report"), (("{out}", "--whole", "--batch", "1"), "--batch"),
        (("{out}", "--hidden", "64"), "--hidden"), (("{out}", "--shape", "1x4"), "--shape"),
        (("--against", "x"), "--against"), (("--shape", "1x4"), "--shape"),
        (("--config", "gpt2", "--against", "x"), "--against"), (("--config", "gpt2", "--hidden", "8"), "--hidden"),
    ],
)  # fmt: skip
def test_an_option_that_would_be_ignored_is_refused(checkpoint, arguments, option):
    given = [argument.format(out=checkpoint) for argument in arguments]
    done = CliRunner().invoke(app, ["bench", *given])
    assert done.exit_code == 2
    assert f"{option} means nothing" in done.output
