"""What others load models with takes a checkpoint as it is: sentence-transformers, pipelines, lm-evaluation-harness."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import checkpoints
import converted
import numpy as np
import pytest
import torch
from transformers import pipeline

import compress
from compress.evaluate import answers
from compress.evaluate.statistics import spearman
from compress.models import load_pretrained

WORDS = ["cat", "dog", "hill", "the man", "a hat on the mat", "who", "there", "sat and ran"]
PAIRS = [(a, b, len(set(a) & set(b))) for a in WORDS for b in WORDS if a < b]


def sentence_model(folder: Path, pooling: str = "mean") -> Path:
    """A pico BERT in the layout of sentence-transformers, which pools, projects and normalises."""
    converted.dense_folder(folder, "bert")
    modules = ["Transformer", "Pooling", "Normalize"]
    paths = ["", "1_Pooling", "2_Normalize"]
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(zip(modules, paths, strict=True))
    ]
    switches = {
        f"pooling_mode_{name}": name == f"{pooling}_tokens" for name in ("cls_token", "mean_tokens", "max_tokens")
    }
    files = {
        "modules.json": listed,
        "sentence_bert_config.json": {"max_seq_length": 24, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": {}, "similarity_fn_name": "cosine"},
        "1_Pooling/config.json": {"word_embedding_dimension": 32, **switches},
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_sentence_transformers_gives_the_evaluated_quality(tmp_path: Path, pooling: str) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    source = sentence_model(tmp_path / "dense", pooling)
    out = converted.save(source, tmp_path / "out", noise=0.5)
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("sentence1\tsentence2\tscore\n" + "".join(f"{a}\t{b}\t{score}\n" for a, b, score in PAIRS))
    report = compress.evaluate(out, source, pairs, latency=False)
    model = sentence_transformers.SentenceTransformer(str(out))
    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling", "Normalize"]
    assert model.max_seq_length == 24
    first, second = (model.encode([pair[side] for pair in PAIRS]) for side in (0, 1))
    assert np.linalg.norm(first, axis=1) == pytest.approx(1)
    found = spearman([score for _, _, score in PAIRS], (first * second).sum(1))
    assert found == pytest.approx(report.quality["spearman"]["compressed"], abs=1e-4)
    assert found != pytest.approx(report.quality["spearman"]["dense"], abs=1e-3)
    card = (out / "README.md").read_text()
    assert 'SentenceTransformer("PATH OR HUB ID")' in card


def test_sentence_transformers_needs_the_import(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    out = converted.save(sentence_model(tmp_path / "dense"), tmp_path / "out")
    code = (
        "import sys\n"
        "from sentence_transformers import SentenceTransformer\n"
        "try: SentenceTransformer(sys.argv[1])\n"
        "except RuntimeError: print('refused')\n"
        "import compress\n"
        "print(SentenceTransformer(sys.argv[1]).encode('the cat').shape)\n"
    )
    assert checkpoints.python(code, out).splitlines() == ["refused", "(32,)"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("clients")
    families = ("gpt2", "llama", "bert_masked", "vit")
    return {
        family: converted.save(converted.dense_folder(root / family, family), root / f"{family}-lookup")
        for family in families
    }


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_pipeline_generates(folders: dict[str, Path], family: str) -> None:
    client = pipeline("text-generation", model=str(folders[family]))
    (found,) = client("the cat", max_new_tokens=6, do_sample=False)
    wanted = answers.generate(load_pretrained(str(folders[family])), "the cat", 6)
    assert found["generated_text"] == "the cat" + wanted.text


def test_pipeline_fills_masks(folders: dict[str, Path]) -> None:
    found = pipeline("fill-mask", model=str(folders["bert_masked"]))("the [MASK] sat", top_k=3)
    (wanted,) = answers.fill_masks(load_pretrained(str(folders["bert_masked"])), "the [MASK] sat", top=3)
    assert [guess["token_str"] for guess in found] == [guess.name for guess in wanted]
    assert [guess["score"] for guess in found] == pytest.approx([guess.probability for guess in wanted], rel=1e-4)


def test_pipeline_classifies_images(folders: dict[str, Path]) -> None:
    from PIL import Image

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    picture.save(folders["vit"].parent / "picture.png")
    found = pipeline("image-classification", model=str(folders["vit"]))(picture, top_k=5)
    pretrained = load_pretrained(str(folders["vit"]))
    wanted = answers.classify(pretrained, answers.image_inputs(pretrained, folders["vit"].parent / "picture.png"))
    assert [guess["label"] for guess in found] == [guess.name for guess in wanted]
    assert [guess["score"] for guess in found] == pytest.approx([guess.probability for guess in wanted], rel=1e-3)


def test_lm_evaluation_harness_takes_it_by_name(folders: dict[str, Path]) -> None:
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    instance = pytest.importorskip("lm_eval.api.instance").Instance
    model: Any = huggingface.HFLM(pretrained=str(folders["gpt2"]), device="cpu")
    asked = [instance("loglikelihood", {}, ("the cat", answer), index) for index, answer in enumerate((" sat", " ran"))]
    found = model.loglikelihood(asked, disable_tqdm=True)
    pretrained = load_pretrained(str(folders["gpt2"]))
    for (score, _), answer in zip(found, (" sat", " ran"), strict=True):
        ids = pretrained.processor("the cat" + answer, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logs = pretrained.model(ids).logits[0, :-1].log_softmax(-1)
        wanted = logs.gather(1, ids[0, 1:, None])[-len(answer) :].sum().item()
        assert score == pytest.approx(wanted, rel=1e-4)
