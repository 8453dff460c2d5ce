"""Word errors, and text from frames."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Wav2Vec2CTCTokenizer

from compress.evaluate.transcripts import WordErrors, edits, read_frames

_WORDS = st.lists(st.sampled_from("abc"), max_size=7)


@given(_WORDS, _WORDS)
def test_edits_are_the_levenshtein_distance(wanted: list[str], heard: list[str]) -> None:
    table = [[max(i, j) if not i or not j else 0 for j in range(len(heard) + 1)] for i in range(len(wanted) + 1)]
    for i, word in enumerate(wanted, 1):
        for j, other in enumerate(heard, 1):
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, table[i - 1][j - 1] + (word != other))
    assert edits(wanted, heard) == table[-1][-1]


def test_word_errors_of_both_models_are_compared_by_recording() -> None:
    words = WordErrors()
    words.add(["Hello, world!", "one two three"], ["hello world", "one two"], ["hello word", "one two three four"])
    row = words.quality()["wer"]
    assert (row["dense"], row["compressed"]) == (pytest.approx(1 / 5), pytest.approx(2 / 5))
    assert (row["samples"], row["unit"], row["words"]) == (2, "recordings", 5)
    low, high = row["interval"]
    assert low <= row["compressed"] - row["dense"] <= high
    assert row["stderr"] >= 0
    assert WordErrors().quality() == {}


def test_repeats_and_blanks_fall_away(tmp_path) -> None:
    vocabulary = {"<pad>": 0, "|": 1, "a": 2, "b": 3, "<unk>": 4}
    (tmp_path / "vocab.json").write_text(str(vocabulary).replace("'", '"'))
    tokenizer = Wav2Vec2CTCTokenizer(tmp_path / "vocab.json", pad_token="<pad>", word_delimiter_token="|")
    pretrained = SimpleNamespace(
        processor=SimpleNamespace(tokenizer=tokenizer), source="pico",
        model=SimpleNamespace(config=SimpleNamespace(pad_token_id=0)),
    )  # fmt: skip
    frames = torch.tensor([[2, 2, 0, 2, 3, 3, 1, 1, 3, 0], [3, 0, 0, 2, 2, 2, 2, 2, 2, 2]])
    logits = torch.nn.functional.one_hot(frames, 5).float()
    real = torch.arange(10) < torch.tensor([[10], [3]])
    assert read_frames(pretrained, logits, None) == ["aab b", "ba"]
    assert read_frames(pretrained, logits, real) == ["aab b", "b"]
