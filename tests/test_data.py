from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pico
import pytest
import torch
from assets import asset
from hypothesis import given
from hypothesis import strategies as st
from pico_tokenizer import PROCESSORS, save_pico
from PIL import Image

from compress.data import Corpus, Split, check_data, load_corpus, load_examples, token_mask
from compress.data.batching import batch_count, plan
from compress.data.corpus import LEAST_HELD_OUT, hold_out
from compress.data.encode import _pieces
from compress.data.inputs import longest_sequence, special_tokens
from compress.data.sequences import Windows
from compress.data.text import STRETCH, Source, _stretches, is_wrapped, paragraphs
from compress.data.tokens import tokenize
from compress.errors import DataError
from compress.models import load_pretrained
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


# -- batches

lengths_of_examples = st.lists(st.integers(1, 300), min_size=1, max_size=400).map(lambda x: np.asarray(x, np.int64))


@given(lengths_of_examples, st.integers(1, 5000), st.integers(0, 9), st.integers(0, 9))
def test_a_plan_holds_every_example_once(lengths: np.ndarray, size: int, seed: int, epoch: int) -> None:
    batches = plan(lengths, size, (seed, epoch))
    assert len(batches) == batch_count(lengths, size)
    assert all(len(batch) for batch in batches)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    average = lengths.sum() / len(batches)
    # A batch differs from the average by no more than one example.
    assert max(abs(lengths[batch].sum() - average) for batch in batches) <= lengths.max()


@given(lengths_of_examples, st.integers(1, 2000), st.integers(0, 3))
def test_any_step_is_found_without_those_before(lengths: np.ndarray, size: int, seed: int) -> None:
    ids = np.repeat(np.arange(len(lengths), dtype=np.int32)[:, None], 2, axis=1)

    class Variable(Windows):
        lengths = property(lambda self: lengths)  # type: ignore[assignment]

    def split() -> Split:
        return Split(Variable(ids, ()), np.arange(len(lengths)))

    steps = split().steps_per_epoch(size)
    sequential = split()
    batches = [sequential.batch(step, size, seed) for step in range(2 * steps)]
    for step in (2 * steps - 1, 0, steps, steps // 2):
        assert same(split().batch(step, size, seed), batches[step])
    for epoch in (batches[:steps], batches[steps:]):
        seen = torch.cat([batch["input_ids"][:, 0] for batch in epoch])
        assert sorted(seen.tolist()) == list(range(len(lengths)))


def test_epochs_and_seeds_differ(tmp_path: Path) -> None:
    train = corpus(write_lines(tmp_path / "a.txt", 400), "bert").train
    steps = train.steps_per_epoch(256)
    assert not same(train.batch(0, 256, 0), train.batch(steps, 256, 0))
    assert not same(train.batch(0, 256, 0), train.batch(0, 256, 1))
    assert same(train.batch(3, 256, 0), train.batch(3, 256, 0))


@given(st.lists(st.integers(1, 100), min_size=2, max_size=300), st.floats(0.001, 0.9), st.integers(0, 5), st.booleans())
def test_rows_are_either_trained_on_or_held_out(lengths: list[int], share: float, seed: int, scattered: bool) -> None:
    train, held = hold_out(np.asarray(lengths), share, seed, scattered=scattered)
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(len(lengths)))
    assert len(train) >= 1
    assert len(held) >= 1


def test_held_out_text_is_in_stretches_spread_over_the_data() -> None:
    _, held = hold_out(np.full(10_000, 100), 0.02, 3, scattered=False)
    assert len(held) == 200
    starts = held[np.flatnonzero(np.diff(held, prepend=-2) > 1)]
    assert len(starts) == 8
    assert [int(start) * 8 // 10_000 for start in starts] == list(range(8))
    assert not np.array_equal(held, hold_out(np.full(10_000, 100), 0.02, 4, scattered=False)[1])
    # Little data: LEAST_HELD_OUT tokens, or a quarter.
    assert len(hold_out(np.full(1000, 100), 0.001, 0, scattered=False)[1]) == -(-LEAST_HELD_OUT // 100)
    assert len(hold_out(np.full(40, 100), 0.001, 0, scattered=True)[1]) == 10


# -- reading text


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


# -- causal language models


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
    assert token_mask(whole.train.batch(0, 40, 0)) is None


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


# -- encoders


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
    masks = [token_mask(train.batch(step, 1024, 0)) for step in range(train.steps_per_epoch(1024))]
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


# -- JSON lines, pairs, hub data sets


def write_records(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_json_lines_are_documents(tmp_path: Path) -> None:
    records = [{"body": f"document {index}\nof two lines", "id": index} for index in range(40)]
    file = write_records(tmp_path / "a.jsonl", records)
    whole = corpus(file, "bert", source="jsonl", field="body")
    assert len(whole.train) + len(whole.holdout) == 40
    causal = corpus(file, "gpt2", source="jsonl", field="body", sequence_length=16)
    ids = torch.cat([batch["input_ids"].flatten() for batch in causal.train.batches(4096)])
    assert int((ids == 0).sum()) >= 20, "documents are joined by the end of text"


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


# -- images


def write_images(folder: Path, count: int, size: tuple[int, int] = (48, 40)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for index in range(count):
        pixels = generator.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03}.png")
    return folder


def test_images_go_through_the_models_processor(tmp_path: Path) -> None:
    whole = corpus(write_images(tmp_path / "a", 40), "vit", source="images")
    assert (whole.train.tokens, whole.holdout.tokens) == (30 * 17, 10 * 17)  # 4 x 4 patches and one more
    assert [len(batch["pixel_values"]) for batch in whole.train.batches(170)] == [10, 10, 10]
    rows = whole.holdout.rows[:3]
    images = [Image.open(tmp_path / "a" / f"{row:03}.png").convert("RGB") for row in rows]
    wanted = pretrained("vit").processor(images, return_tensors="pt")["pixel_values"]
    given = whole.holdout.examples.collate(rows, None)["pixel_values"]
    assert torch.equal(given, wanted)
    assert given.dtype == torch.float32
    assert token_mask({"pixel_values": given}) is None


def test_training_images_are_augmented_by_seed_step_and_image(tmp_path: Path) -> None:
    examples = corpus(write_images(tmp_path / "a", 8), "vit", source="images").train.examples
    rows = np.arange(4)
    batches = [examples.collate(rows, draw)["pixel_values"] for draw in ((0, 0), (0, 0), (0, 1), (1, 0), None)]
    assert torch.equal(batches[0], batches[1])
    assert len({batch.numpy().tobytes() for batch in batches}) == 4
    alone = examples.collate(rows[2:3], (0, 0))["pixel_values"][0]
    assert torch.equal(alone, batches[0][2])


def test_training_batches_of_images_differ_from_epoch_to_epoch(tmp_path: Path) -> None:
    train = corpus(write_images(tmp_path / "a", 8), "vit", source="images").train
    first, later = (train.batch(step * train.steps_per_epoch(10_000), 10_000, 0)["pixel_values"] for step in (0, 1))
    assert {image.numpy().tobytes() for image in first}.isdisjoint(image.numpy().tobytes() for image in later)
    assert same(train.batch(1, 34, 0), train.batch(1, 34, 0))


def test_images_are_capped_by_a_sample(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "a", 100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("compress.data.corpus.LEAST_HELD_OUT", 85)
        whole = corpus(folder, "vit", source="images", tokens=340)
    assert whole.train.tokens == 340
    names = [picture.stem for picture in whole.train.examples.pictures]  # type: ignore[attr-defined]
    assert names != [f"{index:03}" for index in range(len(names))]


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


# -- other evaluation data


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


# -- mistakes


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


# -- whole folders


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


# -- pretrained models and real data


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
