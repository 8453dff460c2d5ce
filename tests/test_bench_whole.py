"""The whole model timed: every way takes part or is named, and the bound really has no FFN."""

from __future__ import annotations

import importlib.util
import json

import converted
import pytest
import torch
from compress.cli import app
from typer.testing import CliRunner

from compress.bench.whole import Shape, random_inputs, without_ffns
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
    inputs = random_inputs({"input_ids": torch.arange(5, 20)[None]}, Shape(2, 6), 0)
    with torch.no_grad():
        before = dense(**inputs).last_hidden_state
        bound = without_ffns(dense)(**inputs).last_hidden_state
        assert torch.equal(dense(**inputs).last_hidden_state, before)
    layer = dense.encoder.layer[0]
    assert not torch.allclose(bound, before)
    assert find_sites(dense)
    assert layer.intermediate.dense.weight.numel()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "needs a checkpoint"),
        (("{out}", "--shape", "1x0"), "no list of shapes"),
        (("{out}", "--shape", "a"), "list"),
    ],
)
def test_mistakes_are_named(checkpoint, arguments, expected):
    given = [argument.format(out=checkpoint) for argument in arguments]
    done = CliRunner().invoke(app, ["bench", "--whole", *given])
    assert done.exit_code == 2
    assert expected in done.output


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("{out}", "--whole", "--report", "x"), "--report"), (("{out}", "--whole", "--batch", "1"), "--batch"),
        (("{out}", "--hidden", "64"), "--hidden"), (("{out}", "--shape", "1x4"), "--shape"),
        (("--against", "x"), "--against"), (("--shape", "1x4"), "--shape"),
    ],
)  # fmt: skip
def test_an_option_that_would_be_ignored_is_refused(checkpoint, arguments, option):
    given = [argument.format(out=checkpoint) for argument in arguments]
    done = CliRunner().invoke(app, ["bench", *given])
    assert done.exit_code == 2
    assert f"{option} means nothing" in done.output
