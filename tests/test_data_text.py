"""Text and records into windows and passages, as the model's task wants them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from data_samples import (
    corpus,
    pretrained,
    same,
    sentence,
    settings,
    texts_of,
    write_lines,
)
from hypothesis import given
from hypothesis import strategies as st
from pico_tokenizer import PROCESSORS

from compress.data import load_corpus
from compress.data.corpus import LEAST_HELD_OUT
from compress.data.encode import _pieces
from compress.data.inputs import longest_sequence, special_tokens
from compress.data.sentences import sentences
from compress.data.text import STRETCH, Source, _stretches, is_wrapped, paragraphs
from compress.data.tokens import tokenize
from compress.errors import DataError


def test_stretches_make_up_the_text_and_end_with_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    text = "".join(f"{'  ' * (index % 5)}line {index}\n" + "\n" * (index % 3) for index in range(20_000))
    file.write_text(text)
    pieces = list(_stretches(file))
    assert "".join(piece for piece, _ in pieces) == text
    assert [ends for _, ends in pieces] == [False] * (len(pieces) - 1) + [True]
    assert all(piece.endswith("\n") for piece, _ in pieces)
    assert all(not piece[0].isspace() for piece, _ in pieces)
    assert all(len(piece) <= 2 * STRETCH for piece, _ in pieces)


def test_a_text_without_lines_is_read_in_stretches(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("word " * 50_000)
    assert "".join(piece for piece, _ in _stretches(file)) == "word " * 50_000
    file.write_text("x" * 200_000)
    assert [len(piece) for piece, _ in _stretches(file)] == [STRETCH] * 5 + [200_000 - 5 * STRETCH]


def test_wrapped_text_is_read_by_paragraph() -> None:
    book = ["First line of it,", "second line.", "", "Another paragraph", "of two lines.", ""] * 5
    assert is_wrapped(book)
    assert list(paragraphs(book))[:2] == ["First line of it,\nsecond line.", "Another paragraph\nof two lines."]
    assert not is_wrapped(["A sentence of its own.", "Another.", "A third."] * 5)
    assert not is_wrapped(["A paragraph of its own.", "", "Another.", ""] * 5)
    assert not is_wrapped([*book, "x" * 200])
    assert not is_wrapped([])


def test_every_file_gives_its_share(tmp_path: Path) -> None:
    """With a cap, tokens come from all files in proportion to their sizes, and from the others where one is short."""
    tokenizer = pretrained("gpt2").processor
    pieces = {"a": 30, "b": 60, "c": 1}

    def source(letter: str, weight: int) -> Source:
        return Source(weight, lambda: (((letter * 1000), True) for _ in range(pieces[letter])))

    def counts(wanted: int | None) -> dict[str, int]:
        ids, lengths, exhausted = tokenize([source("a", 30), source("b", 60), source("c", 30)], tokenizer, wanted)
        assert int(lengths.sum()) == len(ids)
        assert exhausted == (wanted is None)
        return {letter: int((ids == tokenizer.convert_tokens_to_ids(letter)).sum()) for letter in pieces}

    assert counts(None) == {"a": 30_000, "b": 60_000, "c": 1000}
    # c has 1000 of its 10,000 tokens; the 9000 go to a and b, one to two; pieces stay whole.
    assert counts(40_000) == {"a": 13_000, "b": 26_000, "c": 1000}


def test_documents_are_joined_by_the_end_of_text(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name * 40)
    whole = corpus(tmp_path, "gpt2", sequence_length=10)
    ids = torch.cat([batch["input_ids"] for split in (whole.train, whole.holdout) for batch in split.batches(100)])
    tokenizer = pretrained("gpt2").processor
    assert ids.dtype == torch.int64
    assert ids.shape == (8, 10)  # 40 a, end, 40 b, end: 82 tokens, of which the last 2 are left
    assert sorted(ids.flatten().tolist()) == sorted([*tokenizer("a" * 40).input_ids, 0, *tokenizer("b" * 39).input_ids])
    assert (whole.train.tokens, whole.holdout.tokens) == (60, 20)
    assert (len(whole.train), len(whole.holdout)) == (6, 2)
    assert "attention_mask" not in whole.train.batch(0, 40, 0)


def test_windows_do_not_overlap_and_keep_their_order(tmp_path: Path) -> None:
    text = sentence(3000)
    (tmp_path / "a.txt").write_text(text)
    whole = corpus(tmp_path / "a.txt", "gpt2")
    windows = texts_of(whole.train, "gpt2") + texts_of(whole.holdout, "gpt2")
    assert sorted(windows) == sorted(text[start : start + 32] for start in range(0, len(text) - 31, 32))


def test_every_window_begins_as_the_tokenizer_begins_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(sentence(1000))
    batch = corpus(tmp_path / "a.txt", "llama").train.batch(0, 320, 0)
    assert batch["input_ids"].shape[1] == 32
    assert (batch["input_ids"][:, 0] == 1).all()
    assert (batch["input_ids"][:, 1:] != 1).all()


def test_sequences_are_capped_to_the_models_positions(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(sentence(1000))
    whole = corpus(tmp_path / "a.txt", "llama", sequence_length=256)
    assert whole.train.batch(0, 320, 0)["input_ids"].shape[1] == 64
    assert "sequences of 64 tokens, the model's longest, instead of 256" in whole.description


def test_tokens_cap_what_is_trained_on(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.txt", 3000)
    for family in ("llama", "bert"):
        capped = corpus(file, family, tokens=20_000)
        assert 20_000 - 64 <= capped.train.tokens <= 20_000
        assert capped.holdout.tokens >= LEAST_HELD_OUT - 64
        assert "more than there is" not in capped.description
        assert "data.tokens = 1,000,000 is more than there is" in corpus(file, family).description


def test_a_corpus_is_the_same_for_the_same_seed_and_text(tmp_path: Path) -> None:
    file, moved = write_lines(tmp_path / "a.txt", 500), tmp_path / "b.txt"
    moved.write_text(file.read_text())
    first, second = corpus(file, "bert"), corpus(moved, "bert")
    assert first.fingerprint == second.fingerprint
    assert same(first.train.batch(7, 512, 1), second.train.batch(7, 512, 1))
    others = [corpus(file, "bert", seed=1), corpus(file, "bert", sequence_length=16), corpus(file, "bert_masked")]
    moved.write_text(file.read_text() + "one more line\n")
    others.append(corpus(moved, "bert"))
    assert len({whole.fingerprint for whole in [first, *others]}) == 5


def test_passages_have_special_tokens_and_a_mask(tmp_path: Path) -> None:
    lines = ["the fox", "a", "", "   ", "dogs and a river", sentence(100)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    whole = corpus(tmp_path / "a.txt", "bert")
    tokenizer = pretrained("bert").processor
    body = [tokenizer(line, add_special_tokens=False).input_ids for line in lines if line.strip()]
    rows = [
        (ids[mask.bool()], mask)
        for split in (whole.train, whole.holdout)
        for batch in split.batches(64)
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert all(ids[0] == 2 and ids[-1] == 3 and len(ids) <= 32 for ids, _ in rows)
    assert all((mask.diff() <= 0).all() for _, mask in rows), "padding comes last"
    short = sorted(ids[1:-1].tolist() for ids, _ in rows)
    assert all(ids in short for ids in body[:3])
    parts = len(body[3]) // 30 + 1
    assert len(rows) == 3 + parts
    assert sum(len(ids) - 2 for ids, _ in rows) == sum(map(len, body))
    assert whole.train.tokens + whole.holdout.tokens == sum(map(len, body)) + 2 * len(rows)


@given(st.lists(st.integers(1, 500), max_size=50).map(lambda x: np.asarray(x, np.int64)), st.integers(1, 64))
def test_long_texts_are_cut_evenly(lengths: np.ndarray, most: int) -> None:
    sizes = _pieces(lengths, most)
    assert int(sizes.sum()) == int(lengths.sum())
    ends = np.cumsum(-(-lengths // most))
    for length, parts in zip(lengths, np.split(sizes, ends[:-1]) if len(ends) else [], strict=True):
        assert parts.sum() == length
        assert parts.max() <= most
        assert parts.max() - parts.min() <= 1


def test_batches_hold_alike_lengths_and_about_the_tokens_asked_for(tmp_path: Path) -> None:
    train = corpus(write_lines(tmp_path / "a.txt", 3000), "bert", sequence_length=64).train
    masks = [train.batch(step, 1024, 0)["attention_mask"].bool() for step in range(train.steps_per_epoch(1024))]
    real = [int(mask.sum()) for mask in masks if mask is not None]
    assert len(real) == len(masks)
    assert sum(real) == train.tokens
    assert max(abs(count - 1024) for count in real) <= 64
    padding = 1 - sum(real) / sum(mask.numel() for mask in masks if mask is not None)
    assert padding < 0.1


def test_the_beginning_of_a_pass_is_a_fair_sample(tmp_path: Path) -> None:
    train = corpus(write_lines(tmp_path / "a.txt", 3000), "bert", sequence_length=64).train
    lengths = [float(batch["attention_mask"].sum(1).float().mean()) for batch in train.batches(512)]
    assert abs(np.mean(lengths[:20]) - np.mean(lengths)) < 0.2 * float(np.mean(lengths))


def test_padding_comes_first_where_the_tokenizer_says_so(tmp_path: Path) -> None:
    tokenizer = PROCESSORS["bert"]()
    tokenizer.padding_side = "left"
    model = SimpleNamespace(**{**vars(pretrained("bert")), "processor": tokenizer})
    batch = next(iter(load_corpus(settings(write_lines(tmp_path / "a.txt", 100)), model, 0).train.batches(10_000)))
    mask = batch["attention_mask"]
    assert (mask.diff(dim=1) >= 0).all()
    assert (batch["input_ids"][mask.bool().logical_not()] == 0).all()
    assert (batch["input_ids"][:, -1] == 3).all()


def test_masked_models_train_on_masked_tokens(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.txt", 2000)
    plain, masked = corpus(file, "bert"), corpus(file, "bert_masked")
    mask_id, step = 4, 3
    before, after = (whole.train.batch(step, 4096, 0)["input_ids"] for whole in (plain, masked))
    hidden = after == mask_id
    assert torch.equal(before[~hidden], after[~hidden])
    assert 0.12 < float(hidden.sum() / (before > 4).sum()) < 0.18
    assert (before[hidden] > 4).all(), "special tokens and padding stay"
    steps = masked.train.steps_per_epoch(4096)
    later = [masked.train.batch(step, 4096, 0)["input_ids"] for step in range(steps, 2 * steps)]
    assert float(sum((ids == mask_id).sum() for ids in later)) != float(hidden.sum()) * steps
    assert all(same(a, b) for a, b in zip(masked.holdout.batches(512), masked.holdout.batches(512), strict=True))
    assert same(masked.holdout.batch(0, 512, 0), masked.holdout.batch(0, 512, 0))


def test_masks_do_not_depend_on_the_company(tmp_path: Path) -> None:
    examples = corpus(write_lines(tmp_path / "a.txt", 100), "bert_masked").train.examples
    alone = examples.collate(np.asarray([5]), None)["input_ids"][0]
    together = examples.collate(np.asarray([3, 5, 7]), None)["input_ids"][1]
    assert torch.equal(together[: len(alone)], alone)
    # A new draw masks anew.
    draws = [examples.collate(np.arange(50), (0, step))["input_ids"] for step in range(2)]
    assert not torch.equal(*draws)


def test_special_tokens_are_told_from_the_text() -> None:
    bert, llama, gpt = (special_tokens(pretrained(family).processor) for family in ("bert", "llama", "gpt2"))
    assert (bert.prefix, bert.suffix, bert.pad) == ((2,), (3,), 0)
    assert (llama.prefix, llama.suffix, llama.pad) == ((1,), (), 2)
    assert (gpt.prefix, gpt.suffix, gpt.pad) == ((), (), 0)


def test_positions_behind_the_padding_index_count() -> None:
    from transformers import RobertaConfig, RobertaModel

    config = RobertaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=40, pad_token_id=1,
    )  # fmt: skip
    assert longest_sequence(SimpleNamespace(model=RobertaModel(config), processor=None)) == 38  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", [""]),
        ("No mark at all", ["No mark at all"]),
        ("Dr. No came in. Émile left... and nobody knew.", ["Dr. No came in.", "Émile left... and nobody knew."]),
        ('He said: "It is so." (He was right.)  "Was he?" "No!"',
         ['He said: "It is so."', "(He was right.)", '"Was he?" "No!"']),
        ("It costs 3.5 million. v2 is out.\n2 of them left.", ["It costs 3.5 million. v2 is out.", "2 of them left."]),
        ("\u4e00\u53e5\u3002\u53c8\u4e00\u53e5\uff1f", ["\u4e00\u53e5\u3002", "\u53c8\u4e00\u53e5\uff1f"]),
    ],
)  # fmt: skip
def test_sentences_end_where_a_reader_would_say(text: str, wanted: list[str]) -> None:
    assert sentences(text) == wanted


@given(text=st.text(alphabet=st.sampled_from("aB.!? \n\"')(\u3002"), max_size=60))
def test_sentences_lose_nothing_but_blanks(text: str) -> None:
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())


def test_an_embedders_passages_are_taken_apart(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("The fox jumps. A dog runs. The old mills.\n" * 200)

    def count(family: str, share: float | str) -> int:
        made = corpus(file, family, sentences=share, sequence_length=64)
        assert made.fingerprint == corpus(file, family, sentences=share, sequence_length=64).fingerprint
        return len(made.train) + len(made.holdout)

    assert (count("bert", 0.0), count("bert", 1.0)) == (200, 600)
    assert 350 < count("bert", 0.5) < 450
    assert count("bert", "auto") == 600
    assert count("bert_masked", "auto") == 200
    assert corpus(file, "llama", sentences=0.0, sequence_length=16).train.rows.size
    with pytest.raises(DataError, match="for encoders alone") as raised:
        count("llama", 0.5)
    assert raised.value.where == "data.sentences"
