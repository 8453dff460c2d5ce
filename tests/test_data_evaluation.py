"""Data to measure on, with and without labels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from data_samples import (
    pretrained,
    sentence,
    write_images,
    write_lines,
    write_records,
)

from compress.data import load_examples


def test_labelled_images(tmp_path: Path) -> None:
    write_images(tmp_path / "a" / "images", 6)
    (tmp_path / "a" / "labels.csv").write_text(
        "file_name,label\n" + "".join(f"images/{i:03}.png,{i % 5}\n" for i in range(6))
    )
    for source in (tmp_path / "a", tmp_path / "a" / "labels.csv"):
        data = load_examples(str(source), pretrained("vit"))
        assert (data.kind, len(data), data.tokens) == ("labelled", 6, 6 * 17)
        labels = {
            int(row): int(label)
            for batch in data.batches(34)
            for row, label in zip(batch.rows, batch.targets, strict=True)
        }  # type: ignore[arg-type]
        assert labels == {row: row % 5 for row in range(6)}
    by_name = {name: write_images(tmp_path / "b" / name, 1) for name in ("LABEL_3", "LABEL_1")}
    data = load_examples(str(tmp_path / "b"), pretrained("vit"))
    assert [int(label) for label in data.values if data.values is not None] == [1, 3]  # type: ignore[union-attr]
    assert len(by_name) == 2
    for name in "vwxyz":
        write_images(tmp_path / "c" / name, 1)
    data = load_examples(str(tmp_path / "c"), pretrained("vit"))
    assert data.values is not None
    assert data.values.tolist() == [0, 1, 2, 3, 4]
    assert "alphabetical order" in data.description
    assert load_examples(str(tmp_path / "a" / "images"), pretrained("vit")).kind == "unlabelled"


def test_text_is_predicted_once_in_half_overlapping_windows(tmp_path: Path) -> None:
    text = sentence(200)
    (tmp_path / "a.txt").write_text(text)
    data = load_examples(str(tmp_path / "a.txt"), pretrained("llama"))
    assert data.kind == "text"
    tokenizer = pretrained("llama").processor
    predicted: list[tuple[int, int]] = []
    for batch in data.batches(256):
        assert batch.targets is not None
        ids = batch.inputs["input_ids"]
        assert ids.shape[1] == 64
        real = batch.targets != -100
        assert torch.equal(ids[:, 1:][real[:, :-1]], batch.targets[real]), "position t predicts token t + 1"
        for row, scored in zip(batch.rows, real, strict=True):
            start = int(row) * 32 - 1  # windows of 63 tokens behind BOS
            predicted += [(start + int(position), int(row)) for position in scored.nonzero()]
    positions = sorted(position for position, _ in predicted)
    # All but the first token's predecessor, each once, up to what fills no further window.
    assert positions == list(range(-1, positions[-1] + 1))
    assert len(text) - 32 <= positions[-1] + 2 <= len(text) + 1
    assert tokenizer.decode(ids[0, 1:3]) in text


def test_a_short_text_makes_a_short_window(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a fox")
    (batch,) = load_examples(str(tmp_path / "a.txt"), pretrained("llama")).batches(4096)
    assert batch.inputs["input_ids"].shape == (1, 7)  # BOS, 5 characters, end of text


def test_masked_tokens_are_predicted(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.txt", 300)
    data, again = (load_examples(str(file), pretrained("bert_masked")) for _ in range(2))
    assert data.kind == "text"
    assert data.fingerprint == again.fingerprint
    assert data.fingerprint != load_examples(str(file), pretrained("bert_masked"), seed=1).fingerprint
    plain = {
        int(row): ids for batch in load_examples(str(file), pretrained("bert")).batches(512)
        for row, ids in zip(batch.rows, batch.inputs["input_ids"], strict=True)
    }  # fmt: skip
    hidden = total = 0
    for batch in data.batches(1024):
        assert batch.targets is not None
        ids, masked = batch.inputs["input_ids"], batch.targets != -100
        assert torch.equal(masked, ids == 4)
        hidden, total = hidden + int(masked.sum()), total + int((ids > 3).sum())
        for row, positions, targets in zip(batch.rows, masked, batch.targets, strict=True):
            where = positions.nonzero()[:, 0]
            assert torch.equal(plain[int(row)][where], targets[where])
    assert 0.12 < hidden / total < 0.18


@pytest.mark.parametrize("header", ["label\tcontent", "label\tsentence", "label,text", "jsonl"])
def test_labelled_text(tmp_path: Path, header: str) -> None:
    file = tmp_path / ("a.jsonl" if header == "jsonl" else "a.tsv")
    rows = [(index % 2, sentence(5, index)) for index in range(10)]
    if header == "jsonl":
        write_records(file, [{"text": text, "label": label} for label, text in rows])
    else:
        separator = header[5]
        file.write_bytes("\r\n".join([header, *(f"{label}{separator}{text}" for label, text in rows)]).encode())
    classifier = pretrained("bert", "text-classification", num_labels=2)
    data = load_examples(str(file), classifier)
    assert (data.kind, len(data)) == ("labelled", 10)
    for batch in data.batches(64):
        decoded = classifier.processor.batch_decode(batch.inputs["input_ids"], skip_special_tokens=True)
        assert batch.targets is not None
        assert batch.targets.dtype == torch.int64
        assert [(int(label), text) for label, text in zip(batch.targets, decoded, strict=True)] == [
            rows[int(row)] for row in batch.rows
        ]


def test_long_labelled_texts_are_cut_off_not_divided(tmp_path: Path) -> None:
    file = write_records(tmp_path / "a.jsonl", [{"text": sentence(length), "label": 0} for length in (3, 200, 4)])
    data = load_examples(str(file), pretrained("bert", "text-classification", num_labels=2))
    assert len(data) == 3
    assert int(data.lengths.max()) == 64
    assert "1 of 3 texts cut off at 64 tokens" in data.description


def test_without_labels_inputs_stand_alone(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.txt", 20)
    for model in (pretrained("bert"), pretrained("bert", "text-classification", num_labels=2)):
        data = load_examples(str(file), model)
        assert data.kind == "unlabelled"
        assert all(batch.targets is None for batch in data.batches(100))


def test_a_limit_keeps_a_spread_of_examples(tmp_path: Path) -> None:
    data = load_examples(str(write_lines(tmp_path / "a.txt", 300)), pretrained("bert"))
    part = data.limited(data.tokens // 3)
    assert abs(part.tokens - data.tokens // 3) < data.tokens // 10
    assert part.rows[-1] > 0.9 * data.rows[-1]
    assert data.limited(10**9) is data
    assert len(data.limited(1)) == 1
    assert part.fingerprint != data.fingerprint
