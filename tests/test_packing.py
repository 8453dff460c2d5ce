"""How narrow a student's products may be, and what a conversion says of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pico_tokenizer import save_pico
from torch import nn

from compress import packing
from compress.conversion import convert
from compress.lookup import LookupFFN
from compress.packing import moved_by_rounding, pack_narrowest, site_inputs

RECIPE = """\
version: 1
lookup: {budget: 0.5, memory: 40, bits: 4, rank: 16}
data: {sequence_length: 32, tokens: 2000}
fit: {tokens: 1000}
distill: {steps: 0}
finetune: {steps: 2, batch_tokens: 256}
"""


def student() -> LookupFFN:
    torch.manual_seed(0)
    return LookupFFN(64, 64, tables=12, bits=4, projection="hadamard", rank=16, neurons=32).eval()


def test_inputs_are_rounded_where_it_does_no_harm() -> None:
    x = torch.randn(200, 64)
    packed = pack_narrowest(student(), "int8", x)
    assert packed.hash_dtype == "w8a8"
    wide = pack_narrowest(student(), "int8", None)
    assert wide.hash_dtype == "int8"
    assert 0 < moved_by_rounding(wide, packed, x) < 1e-2
    assert moved_by_rounding(wide, wide, x) == 0


def test_features_far_larger_than_the_others_keep_sixteen_bits() -> None:
    made, x = student(), torch.randn(200, 64)
    x[:, 3] *= 1000
    with torch.no_grad():  # the answer is in the small ones
        for matrix in (made.code, made.neurons.gate):
            matrix.weight[:, 3] = 0
    assert pack_narrowest(made, "int8", x).hash_dtype == "int8"


@pytest.mark.parametrize("x", [None, torch.empty(0, 64), torch.full((3, 64), torch.nan)])
def test_what_cannot_be_measured_keeps_sixteen_bits(x: torch.Tensor | None) -> None:
    assert pack_narrowest(student(), "int8", x).hash_dtype == "int8"


def test_inputs_are_those_of_the_running_model() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.unused = nn.Linear(3, 3), nn.Linear(3, 2), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(self.a(x)))

    model, batches = Model().train(), [{"x": torch.randn(2, 5, 3)}, {"x": torch.randn(1, 4, 3)}]
    found = site_inputs(model, ["a", "b", "unused"], batches)
    assert {name: len(x) for name, x in found.items()} == {"a": 28, "b": 14}
    assert torch.equal(found["a"][:10], batches[0]["x"].flatten(0, 1))
    assert model.training
    many = site_inputs(model, ["b"], [{"x": torch.randn(10, 100, 3)}])["b"]
    assert 100 < len(many) <= 128
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("harmless", [-1.0, 1.0])
def test_a_conversion_says_where_sixteen_bits_stayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harmless: float
) -> None:
    monkeypatch.setattr(packing, "_HARMLESS", harmless)
    model = save_pico(tmp_path / "model", "llama")
    (tmp_path / "text.txt").write_text("the old cat sat on a red hat and ran to the big dog.\n" * 300)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    report = convert(str(model), tmp_path / "recipe.yaml", tmp_path / "out", threads=1, data=str(tmp_path / "text.txt"))
    assert report is not None
    sites = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["sites"]
    assert {site["hash_dtype"] for site in sites} == {"int8" if harmless < 0 else "w8a8"}
    said = [note for note in report.notes if "16-bit" in note]
    assert len(said) == (len(sites) if harmless < 0 else 0)
