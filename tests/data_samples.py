"""Pico models, texts, tables and images that the tests of data are made of."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pico
import torch
from pico_tokenizer import PROCESSORS
from PIL import Image

from compress.data import Corpus, Split, load_corpus
from compress.recipe import DataSettings

TASKS = {
    "llama": "causal", "gpt2": "causal", "bert": "embedding", "bert_masked": "masked", "vit": "image-classification",
}  # fmt: skip
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "runs", "into", "old", "mills"]


@cache
def pretrained(family: str, task: str | None = None, **settings: Any) -> Any:
    """What `load_pretrained` gives for a pico model."""
    model = pico.FAMILIES[family]()
    for key, value in settings.items():
        setattr(model.config, key, value)
    return SimpleNamespace(
        model=model, processor=PROCESSORS[family](), task=task or TASKS[family], source=f"pico {family}"
    )


def sentence(length: int, seed: int = 0) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, length))


def write_lines(path: Path, count: int, seed: int = 0) -> Path:
    lengths = np.random.default_rng(seed).integers(1, 30, count)
    path.write_text("\n".join(sentence(int(length), seed + index) for index, length in enumerate(lengths)) + "\n")
    return path


def settings(path: Path | str, **values: Any) -> DataSettings:
    return DataSettings(path=str(path), **{"sequence_length": 32, "tokens": 1_000_000, **values})


def corpus(path: Path | str, family: str, seed: int = 0, **values: Any) -> Corpus:
    return load_corpus(settings(path, **values), pretrained(family), seed)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def texts_of(split: Split, family: str) -> list[str]:
    """Decoded examples, sorted, of a pass through a split."""
    tokenizer = pretrained(family).processor
    batches = (batch["input_ids"] for batch in split.batches(256))
    return sorted(text for ids in batches for text in tokenizer.batch_decode(ids, skip_special_tokens=True))


def write_records(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


PAIRS = [(f"the {a} dog", f"a {b} dog", str(score)) for a, b, score in
         [("old", "lazy", 2.5), ("quick", "quick", 5), ("brown", "old", 0.5), ("quick", "brown", 1)]]  # fmt: skip


def pairs_file(folder: Path, form: str) -> Path:
    file = folder / f"pairs.{form.split('-')[-1]}"
    if form == "sts-csv":
        rows = [f"main\tnews\t2012\t{i:04}\t{score}\t{a}\t{b}" for i, (a, b, score) in enumerate(PAIRS)]
        file.write_text("\n".join(rows).replace("a quick dog", 'a quick dog "'))  # quotes have no meaning
    elif form == "header-tsv":
        file.write_text("score\tsentence2\tsentence1\n" + "".join(f"{s}\t{b}\t{a}\n" for a, b, s in PAIRS))
    elif form == "header-csv":
        file.write_text("sentence1,sentence2,score\n" + "".join(f'"{a}","{b}",{s}\n' for a, b, s in PAIRS))
    elif form == "plain-csv":
        file.write_text("".join(f"{a},{b},{s}\n" for a, b, s in PAIRS))
    else:
        write_records(file, [{"sentence1": a, "sentence2": b, "score": float(s)} for a, b, s in PAIRS])
    return file


FORMS = ["sts-csv", "header-tsv", "header-csv", "plain-csv", "jsonl"]


def write_images(folder: Path, count: int, size: tuple[int, int] = (48, 40)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for index in range(count):
        pixels = generator.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03}.png")
    return folder
