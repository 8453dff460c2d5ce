"""Data as a whole: mistakes are told, any model's batches run, real data is understood."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from assets import asset
from data_samples import (
    corpus,
    pretrained,
    settings,
    write_images,
    write_lines,
    write_records,
)
from pico_tokenizer import PROCESSORS, save_pico

from compress.data import check_data, load_corpus, load_examples
from compress.errors import DataError
from compress.models import load_pretrained
from compress.recipe import DataSettings


def failing(message: str, path: Path | str, family: str, **values: Any) -> DataError:
    with pytest.raises(DataError, match=message) as caught:
        corpus(path, family, **values)
    assert caught.value.remedy
    return caught.value


def test_missing_and_empty_data(tmp_path: Path) -> None:
    failing("no such file or folder", tmp_path / "none.txt", "gpt2")
    failing("no file matches", tmp_path / "*.txt", "gpt2")
    failing(r"the folder holds no \.txt", tmp_path, "gpt2")
    with pytest.raises(DataError, match="no such file"):
        check_data(settings(tmp_path / "none.txt"))
    with pytest.raises(DataError, match="names no data"):
        check_data(DataSettings())
    (tmp_path / "a.txt").touch()
    failing("the file is empty", tmp_path / "a.txt", "gpt2")
    (tmp_path / "a.txt").write_text("  \n \n")
    failing("there is no text", tmp_path / "a.txt", "bert")
    (tmp_path / "a.txt").write_text("short")
    failing("shorter than one sequence: 6 tokens of 32", tmp_path / "a.txt", "gpt2")
    failing("none is left to hold out", tmp_path / "a.txt", "bert")


def test_data_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 " * 100)
    failing("not UTF-8 text: byte 0xe9", tmp_path / "a.txt", "gpt2")
    file = write_records(tmp_path / "a.jsonl", [{"text": "a"}])
    failing("JSON lines would be read as plain text", file, "gpt2")
    file.write_text('{"text": "a"}\n{oops\n')
    assert (failing("not JSON", file, "bert", source="jsonl").where or "").endswith("a.jsonl:2")
    file.write_text('{"text": "a"}\n\n[1]\n')
    assert (failing("not a JSON object", file, "bert", source="jsonl").where or "").endswith("a.jsonl:3")
    file.write_text('{"text": 3}\n')
    failing("no text in `text`", file, "bert", source="jsonl")


def test_data_of_the_wrong_kind(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 2)
    text = write_lines(tmp_path / "a.txt", 10)
    failing("the model reads images, the data is text", text, "vit")
    failing("the model reads text, the data is images", images, "bert", source="images")
    (tmp_path / "broken.png").write_bytes(b"no image")
    failing("not a readable image", tmp_path / "broken.png", "vit", source="images")
    table = tmp_path / "t.csv"
    table.write_text("a,b,c\n1,2,3\n")
    failing("columns have no names|sentence", table, "bert", source="pairs")
    table.write_text("label,text\n1,x\n")
    failing("the columns are label, text", table, "bert", source="pairs")


@pytest.mark.parametrize(
    ("family", "task", "name", "content", "message"),
    [
        ("gpt2", None, "a.tsv", "sentence1\tsentence2\nx\ty\n", "does not fit this causal model"),
        ("bert", None, "a.csv", "sentence1,sentence2,score\nx,y,high\n", "`score` is 'high', not a number"),
        ("bert", None, "a.csv", "sentence1,sentence2,score\nx,,1\n", "there is no text in `sentence2`"),
        ("bert", None, "a.tsv", "sentence1\tsentence2\tscore\nx\ty\n", "the row has 2 columns, not 3"),
        ("bert", None, "a.tsv", "sentence1\tsentence2\tscore\n", "holds no rows"),
        ("bert", None, "a.jsonl", '{"text": "a", "x": 1}\n{"text": "b"}\n', "the row has no x"),
        ("bert", "text-classification", "a.csv", "label,text\n2,x\n", "the label 2 is none of the model's 2"),
        ("bert", "text-classification", "a.csv", "label,text\ngood,x\n", "the model has no class 'good'"),
        ("bert", "text-classification", "a.csv", "sentence1,sentence2\nx,y\n", "does not fit this text-classification"),
        ("vit", None, "labels.csv", "file_name,label\nx.png,1\n", "there is no"),
    ],
)  # fmt: skip
def test_evaluation_data_that_does_not_fit(
    tmp_path: Path, family: str, task: str | None, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    model = pretrained(family, task, **({"num_labels": 2} if task else {}))
    with pytest.raises(DataError, match=message) as caught:
        load_examples(str(tmp_path / name), model)
    assert caught.value.remedy
    assert caught.value.where


def test_models_without_a_processor(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.txt", 10)
    for family, message in (("bert", "without a tokenizer"), ("vit", "without an image processor")):
        model = SimpleNamespace(**{**vars(pretrained(family)), "processor": None})
        with pytest.raises(DataError, match=message):
            load_corpus(settings(file), model, 0)
    tokenizer = PROCESSORS["bert_masked"]()
    tokenizer.mask_token = None
    model = SimpleNamespace(**{**vars(pretrained("bert_masked")), "processor": tokenizer})
    with pytest.raises(DataError, match="no mask token"):
        load_corpus(settings(file), model, 0)


@pytest.mark.parametrize("family", list(PROCESSORS))
def test_batches_run_through_a_model_loaded_from_disk(tmp_path: Path, family: str) -> None:
    loaded = load_pretrained(str(save_pico(tmp_path / "model", family)))
    if family == "vit":
        whole = load_corpus(settings(write_images(tmp_path / "data", 10), source="images"), loaded, 0)
    else:
        whole = load_corpus(settings(write_lines(tmp_path / "data.txt", 50)), loaded, 0)
    with torch.no_grad():
        for batch in (whole.train.batch(0, 256, 0), next(whole.holdout.batches(256))):
            output = loaded.model(**batch)
            assert torch.isfinite(output[0]).all()


def test_importing_brings_in_nothing_heavy() -> None:
    code = (
        "import sys, compress.recipe; assert 'torch' not in sys.modules; import compress.data; "
        "assert not {'transformers', 'datasets', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
@pytest.mark.assets
@pytest.mark.parametrize(
    ("model", "data", "nats"),
    [
        ("stories260K", "tinystories/valid.txt", 1.453),  # perplexity 4.27
        ("shakespeare-char-gpt2", "shakespeare/input.txt", 1.551),
    ],
)
def test_perplexity_is_that_on_record(tmp_path: Path, model: str, data: str, nats: float) -> None:
    loaded = load_pretrained(str(asset(f"models/{model}")))
    text = asset(f"data/{data}").read_text()
    if model.startswith("shakespeare"):
        text = text[int(0.9 * len(text)) :]  # its validation split
    (tmp_path / "a.txt").write_text(text)
    found = load_examples(str(tmp_path / "a.txt"), loaded).limited(65_536)
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in found.batches(8192):
            assert batch.targets is not None
            logits = loaded.model(**batch.inputs).logits.flatten(0, 1)
            total += float(torch.nn.functional.cross_entropy(logits, batch.targets.flatten(), reduction="sum"))
            count += int((batch.targets != -100).sum())
    # Of a sample; windows that do not overlap give more.
    assert total / count == pytest.approx(nats, abs=0.04)


@pytest.mark.assets
def test_real_tables_are_understood() -> None:
    scored = load_examples(str(asset("data/stsb/sts-dev.csv")), pretrained("bert"))
    assert (scored.kind, len(scored)) == ("pairs", 1500)
    assert scored.values is not None
    assert scored.values[:4].tolist() == [5.0, 4.75, 5.0, np.float32(2.4)]
    classifier = pretrained("bert", "text-classification", num_labels=2)
    for split, count in (("dev", 872), ("train", 67_349)):
        labelled = load_examples(str(asset(f"data/sst2/{split}.tsv")), classifier)
        assert (labelled.kind, len(labelled)) == ("labelled", count)
    images = load_examples(str(asset("data/imagenet-sample")), pretrained("vit", None, num_labels=1000))
    assert (images.kind, len(images)) == ("labelled", 500)
    assert images.values is not None
    assert images.values[:3].tolist() == [0, 2, 4]
