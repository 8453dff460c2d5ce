"""A dozen families of models from dense weights to a checkpoint that loads under two heads with equal outputs."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import checkpoints
import families
import pico_tokenizer
import pytest
import torch
import transformers
from pico_tokenizer import WORDS
from torch import Tensor, nn
from transformers import PreTrainedModel

from compress import convert
from compress.checkpoint import load, verify_files, verify_outputs
from compress.errors import ModelError
from compress.lookup import PackedLookupFFN
from compress.sites import base_model, base_model_path, example_inputs

RECIPE = """\
version: 1
lookup: {budget: 0.5, memory: 40, bits: 3, rank: 16}
data: {sequence_length: 16, tokens: 1000}
fit: {tokens: 500}
distill: {steps: 2, batch_tokens: 128}
finetune: {steps: 1, batch_tokens: 128}
"""


@dataclass(frozen=True)
class Heads:
    """A family of `families` and two Auto classes that share its base model."""

    own: str
    other: str = "AutoModel"
    processor: Callable[[], Any] | None = None  # None: saved as a conversion saves it, without one


CAUSAL, MASKED, IMAGES = "AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForImageClassification"
HEADS = {
    "gemma2": Heads(CAUSAL, processor=pico_tokenizer.llama_like),
    "phi3": Heads(CAUSAL, "AutoModelForSequenceClassification", pico_tokenizer.llama_like),
    "gptj": Heads(CAUSAL, processor=pico_tokenizer.gpt_like),
    "gpt_neox": Heads(CAUSAL, "AutoModelForTokenClassification", pico_tokenizer.gpt_like),
    "opt": Heads(CAUSAL, processor=pico_tokenizer.llama_like),
    "modernbert": Heads(MASKED, processor=pico_tokenizer.bert_like),
    "albert": Heads(MASKED, "AutoModelForSequenceClassification", pico_tokenizer.bert_like),
    "deit": Heads(IMAGES, processor=pico_tokenizer.image_processor),
    "bart": Heads("AutoModelForSeq2SeqLM", "AutoModelForSequenceClassification"),
    "t5_gated": Heads("AutoModelForSeq2SeqLM"),
    "whisper": Heads("AutoModelForSpeechSeq2Seq"),
    "wav2vec2": Heads("AutoModelForCTC", "AutoModelForAudioClassification"),
}


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text, pictures and a recipe."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("families")
    draw = random.Random(0)
    (folder / "text.txt").write_text("".join(" ".join(draw.choices(WORDS, k=8)) + ".\n" for _ in range(100)))
    (folder / "pictures").mkdir()
    for index in range(12):
        pixels = bytes(draw.randrange(256) for _ in range(8 * 8 * 3))
        Image.frombytes("RGB", (8, 8), pixels).save(folder / "pictures" / f"{index:02}.png")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def converted(name: str, work: Path, folder: Path) -> Path:
    """Convert by the command's function, or put students in by hand where the task cannot be distilled on files."""
    heads, source = HEADS[name], folder / "dense"
    model = families.FAMILIES[name].make()
    if heads.processor is None:
        return checkpoints.save_model(model, folder)
    model.save_pretrained(source)
    heads.processor().save_pretrained(source)
    images = heads.own == IMAGES
    convert(
        str(source), work / "recipe.yaml", folder / "out", data=str(work / ("pictures" if images else "text.txt")),
        overrides=("data.source=images",) if images else (), threads=1,
    )  # fmt: skip
    return folder / "out"


@torch.no_grad()
def first_output(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    torch.manual_seed(0)
    return model(**batch)[0]


def students(model: nn.Module) -> int:
    return sum(isinstance(module, PackedLookupFFN) for module in model.modules())


@pytest.mark.parametrize("name", HEADS)
def test_a_family_converts_and_loads_under_two_heads(name: str, work: Path, tmp_path: Path) -> None:
    heads, family = HEADS[name], families.FAMILIES[name]
    out = converted(name, work, tmp_path)
    assert verify_files(out) == []
    model = load(out)
    assert verify_outputs(out, model) == []
    again, other = (reload(out, auto) for auto in (heads.own, heads.other))
    assert type(again) is type(model)
    assert type(other) is not type(model)
    assert students(again) == students(other) == family.sites
    batch = example_inputs(model)
    assert torch.equal(first_output(again, batch), first_output(model, batch))
    batch = example_inputs(common(model))
    expected = first_output(common(model), batch)
    assert torch.equal(first_output(common(other), batch), expected)
    assert not torch.allclose(first_output(common(family.make()), batch), expected)


def test_dense_layers_of_a_mixture_of_experts_convert_where_only_they_are_included(work: Path, tmp_path: Path) -> None:
    make, dense, experts = families.MIXED["qwen2_moe"]
    source, out, data = tmp_path / "dense", tmp_path / "out", str(work / "text.txt")
    make().save_pretrained(source)
    pico_tokenizer.llama_like().save_pretrained(source)
    with pytest.raises(ModelError, match=rf"mixture of experts in {experts[0]}:") as caught:
        convert(str(source), work / "recipe.yaml", out, data=data, threads=1)
    include = (caught.value.remedy or "").partition("sites.include: ")[2]
    report = convert(
        str(source), work / "recipe.yaml", out, data=data, overrides=[f"sites.include={include}"], threads=1
    )
    assert [site["name"] for site in report.to_dict()["sites"]] == dense
    again = reload(out, CAUSAL)
    assert students(again) == 1
    assert verify_outputs(out, again) == []


def common(model: PreTrainedModel) -> nn.Module:
    """What the heads share: the base model, or the encoder where each head holds all of it itself (T5)."""
    return base_model(model) if base_model_path(model) or model.main_input_name != "input_ids" else encoder(model)


def encoder(model: PreTrainedModel) -> nn.Module:
    return model.get_encoder() if model.config.is_encoder_decoder else model


def reload(out: Path, auto: str) -> PreTrainedModel:
    return getattr(transformers, auto).from_pretrained(out).eval()
