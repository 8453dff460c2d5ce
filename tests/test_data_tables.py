"""JSON lines, sentence pairs and data sets of the hub."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from data_samples import (
    FORMS,
    PAIRS,
    corpus,
    pairs_file,
    pretrained,
    sentence,
    write_records,
)

from compress.data import load_corpus, load_examples
from compress.errors import DataError
from compress.recipe import DataSettings


def test_json_lines_are_documents(tmp_path: Path) -> None:
    records = [{"body": f"document {index}\nof two lines", "id": index} for index in range(40)]
    file = write_records(tmp_path / "a.jsonl", records)
    whole = corpus(file, "bert", source="jsonl", field="body")
    assert len(whole.train) + len(whole.holdout) == 40
    causal = corpus(file, "gpt2", source="jsonl", field="body", sequence_length=16)
    ids = torch.cat([batch["input_ids"].flatten() for batch in causal.train.batches(4096)])
    assert int((ids == 0).sum()) >= 20, "documents are joined by the end of text"


@pytest.mark.parametrize("form", FORMS)
def test_pairs_give_their_sentences_once(tmp_path: Path, form: str) -> None:
    whole = corpus(pairs_file(tmp_path, form), "bert", source="pairs")
    assert len(whole.train) + len(whole.holdout) == len({text for a, b, _ in PAIRS for text in (a, b)})


@pytest.mark.parametrize("form", FORMS)
def test_pairs_are_scored(tmp_path: Path, form: str) -> None:
    data = load_examples(str(pairs_file(tmp_path, form)), pretrained("bert"))
    assert (data.kind, len(data)) == ("pairs", 4)
    tokenizer = pretrained("bert").processor
    seen = {}
    for batch in data.batches(20):
        assert batch.second is not None
        assert batch.targets is not None
        assert batch.targets.dtype == torch.float32
        sides = [
            tokenizer.batch_decode(side["input_ids"], skip_special_tokens=True) for side in (batch.inputs, batch.second)
        ]
        for row, first, second, score in zip(batch.rows, *sides, batch.targets.tolist(), strict=True):
            seen[int(row)] = (first, second.replace("[UNK]", "").replace('"', "").strip(), score)
    assert [seen[row] for row in range(4)] == [(a, b, float(score)) for a, b, score in PAIRS]


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    """A data set as the hub has them, which `datasets` reads from a folder too."""
    folder = tmp_path / "hub"
    folder.mkdir()
    for split, count in (("train", 60), ("validation", 10)):
        write_records(folder / f"{split}.jsonl", [{"text": sentence(8, i), "label": i % 2} for i in range(count)])
    return folder


def test_hub_data_sets(hub_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = DataSettings(source="hub", name=str(hub_folder), sequence_length=32)
    whole = load_corpus(data, pretrained("bert"), 0)
    assert len(whole.train) + len(whole.holdout) >= 60
    assert whole.fingerprint == load_corpus(data, pretrained("bert"), 0).fingerprint
    found = load_examples(f"hub:{hub_folder}", pretrained("bert", "text-classification", num_labels=2))
    assert (found.kind, len(found)) == ("labelled", 10)  # validation comes before train
    assert len(load_examples(f"hub:{hub_folder}", pretrained("bert"), split="train")) >= 60
    with pytest.raises(DataError, match="no column `body`"):
        load_corpus(data.model_copy(update={"field": "body"}), pretrained("bert"), 0)
    with pytest.raises(DataError, match=r"cannot be loaded(.|\n)*owner/name"):
        load_examples(f"hub:{tmp_path / 'nowhere'}", pretrained("bert"))
