"""The embedded model as shipped, and the split of its text."""

from __future__ import annotations

import gzip
import math
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from compress.recipes.embedded import baseline, corpus, trend
from compress.recipes.embedded.corpus import END_OF_TEXT, collect, is_held_out, unit_of, write_split
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from compress.studies.results import Point

MODEL = Path(str(files("compress.recipes.embedded"))) / "model"


@pytest.fixture(scope="module")
def split():
    return collect()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


def test_shipped_weights_are_small_and_bfloat16(model):
    weights = MODEL / "model.safetensors"
    assert weights.stat().st_size < 12_000_000
    with safe_open(weights, "pt") as tensors:
        assert {tensors.get_slice(name).get_dtype() for name in tensors.keys()} == {"BF16"}  # noqa: SIM118
    assert model.config.architectures == ["LlamaForCausalLM"]
    assert model.config.hidden_size >= 256
    assert model.config.tie_word_embeddings


def test_tokenizer_returns_every_text_and_closes_modules(split, tokenizer):
    for module in split.held_out[:4]:
        ids = tokenizer(module.text, verbose=False)["input_ids"]
        assert tokenizer.decode(ids) == module.text
        assert tokenizer.eos_token_id not in ids
    assert (
        tokenizer("pass\n" + END_OF_TEXT)["input_ids"][-1] == tokenizer.eos_token_id == tokenizer.vocab["<|endoftext|>"]
    )
    strange = "\tx = 'é→😀'\r\n  \n\n\n"
    assert tokenizer.decode(tokenizer(strange)["input_ids"]) == strange


def test_model_beats_gzip_and_the_5_gram_on_held_out_text(split, tokenizer, model):
    module = next(module for module in split.held_out if len(module.text) > 20_000)
    text = module.text[:20_000]
    tokens = tokenizer(text, verbose=False)["input_ids"]
    bits = baseline.model_bits(model, tokens) / len(text.encode())
    zipped = 8 * len(gzip.compress(text.encode(), 9)) / len(text.encode())
    assert bits < 0.8 * zipped
    assert bits < baseline.ngram_bits(baseline.pack_text(split.train[::8]), text.encode()) / len(text.encode())


def test_model_writes_python(tokenizer, model):
    prompt = tokenizer("class Queue:\n    def __init__(self, ", return_tensors="pt")
    text = tokenizer.decode(model.generate(**prompt, max_new_tokens=48, do_sample=False)[0])
    assert "):\n        " in text
    assert "self." in text


def test_split_is_disjoint_by_unit(split):
    sides = [{module.unit for module in side} for side in (split.train, split.held_out)]
    assert not sides[0] & sides[1]
    assert all(is_held_out(unit) for unit in sides[1])
    assert not any(is_held_out(unit) for unit in sides[0])
    size = [sum(len(module.text) for module in side) for side in (split.train, split.held_out)]
    assert 0.03 < size[1] / sum(size) < 0.05


def test_held_out_units_do_not_depend_on_the_python():
    held_out = ("bdb", "copyreg", "dbm", "ensurepip", "logging", "pprint", "selectors", "threading", "uuid", "venv")
    assert all(map(is_held_out, held_out))
    assert not any(map(is_held_out, ("json", "asyncio", "argparse", "decimal", "pathlib")))
    assert unit_of(Path("_pydecimal.py")) == unit_of(Path("decimal.py")) == "decimal"
    assert unit_of(Path("pathlib/_local.py")) == unit_of(Path("pathlib.py")) == "pathlib"
    assert unit_of(Path("__future__.py")) == "future__"


def test_collect_leaves_out_tables_copies_tests_and_packages(tmp_path):
    code = "".join(f"def function_{i}(argument):\n    return argument + {i}\n" for i in range(20))
    for path, text in {
        "module.py": code,
        "renamed.py": code.replace("function_3", "other"),
        "table.py": "table = (\n" + "".join(f"    '{i}',\n" for i in range(50)) + ")\n",
        "test/test_module.py": code.replace("function", "test"),
        "package/tests/case.py": code.replace("function", "case"),
        "package/code.py": code.replace("function", "method").replace("argument", "value"),
        "site-packages/other.py": code.replace("function", "foreign").replace("argument", "thing"),
    }.items():
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    found = collect(tmp_path)
    assert sorted(module.path for module in found.train + found.held_out) == ["module.py", "package/code.py"]


def test_write_split_writes_the_same_bytes_twice(split, tmp_path):
    train, held_out = write_split(tmp_path / "first")
    assert held_out.read_text(encoding="utf-8") == corpus.join(split.held_out)
    assert train.read_text(encoding="utf-8").count(END_OF_TEXT) == len(split.train)
    subprocess.run(
        [sys.executable, "-m", "compress.recipes.embedded.corpus", str(tmp_path / "second")],
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONSAFEPATH": "1"},
    )
    for file in (train, held_out):
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes()


def test_5_gram_probabilities_sum_to_one_and_follow_witten_bell():
    train = b"abcabdabe" * 3
    history = b"\0zab"
    spread = [
        baseline.ngram_bits(train, history + bytes([byte])) - baseline.ngram_bits(train, history) for byte in range(256)
    ]
    assert math.isclose(np.exp2(-np.array(spread)).sum(), 1.0, rel_tol=1e-9)
    # Order one by hand: 9 + 9 + 3 + 3 + 3 bytes of 5 kinds.
    expected = -math.log2((9 + 5 / 256) / (27 + 5))
    assert math.isclose(baseline.ngram_bits(train, b"a", order=1), expected)


def test_the_trend_measures_on_the_beginnings_of_held_out_modules(tmp_path, split, monkeypatch):
    monkeypatch.setattr(trend, "collect", lambda: split)
    trend.write_text(tmp_path, 0.1)
    train, held_out = ((tmp_path / name).read_text() for name in (trend.TRAIN, trend.HELD_OUT))
    assert train == corpus.join(split.train)
    parts = held_out.split(END_OF_TEXT)[:-1]
    assert len(parts) == len(split.held_out)
    for part, module in zip(parts, split.held_out, strict=True):
        assert module.text.startswith(part)
        assert len(part) == round(0.1 * len(module.text))


def test_the_trend_draws_losses_over_the_width(tmp_path):
    points = [
        Point(f"{width}: {system}", system, 1, {"width": width, "loss": loss, "loss_stderr": 0.01, "cost": 0.25})
        for system, losses in (("LookupFFN at 0.25", (0.1, 0.05)), ("low-rank-factors at 0.25", (0.3, 0.2)))
        for width, loss in zip((64, 128), losses, strict=True)
    ]
    table = trend.report(points, tmp_path)
    assert "| 128: LookupFFN at 0.25 | 128 |" in table
    assert "0.0500 ± 0.0100" in table
    assert (tmp_path / "table.md").read_text() == table
    assert (tmp_path / trend.FILE).read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_the_trend_runs_in_several_processes_and_goes_on(tmp_path):
    command = [sys.executable, "-m", "compress.recipes.embedded.trend", "--out", str(tmp_path), "--widths", "64", "128"]
    command += ["--budgets", "0.25", "--systems", "LookupFFN", "low-rank-factors", "--teacher-steps", "3"]
    command += ["--steps", "3", "--batch-tokens", "512", "--jobs", "2", "--threads", "1", "--held-out-share", "0.05"]
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    first = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    lines = [line for line in first.splitlines() if line.startswith(("| 64", "| 128"))]
    names = [f"{width}: {system} at 0.25" for width in (128, 64) for system in ("LookupFFN", "low-rank-factors")]
    assert [line.split(" | ")[0].strip("| ") for line in lines] == names
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert [line for line in again.splitlines() if line in lines] == lines
