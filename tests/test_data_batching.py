"""Batches: every example once, any step without those before it; what is held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from data_samples import (
    corpus,
    same,
    write_lines,
)
from hypothesis import given
from hypothesis import strategies as st

from compress.data import Ahead, Split
from compress.data.batching import batch_count, plan
from compress.data.corpus import LEAST_HELD_OUT, hold_out
from compress.data.sequences import Windows

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


def test_batches_made_ahead_are_the_same_in_any_order() -> None:
    split = Split(Windows(np.arange(60, dtype=np.int32).reshape(20, 3), ()), np.arange(20))
    for device in ("cpu", "cuda"):
        with Ahead(split, 12, 3, torch.device(device), 14) as ahead:
            for step in (0, 1, 2, 9, 13, 4, 5, 6):  # 13 is the last step; training that goes back asks for 4
                assert same(ahead.batch(step), split.batch(step, 12, 3))
                coming = range(step + 1, min(step + 1 + ahead.workers, 14))
                assert set(ahead.coming) == (set() if device == "cpu" else set(coming))


def test_a_batch_that_fails_ahead_of_its_turn_fails_in_it() -> None:
    class Broken(Windows):
        def collate(self, rows: np.ndarray, draw: object) -> dict[str, torch.Tensor]:
            if 7 in rows:
                raise ValueError("row 7")
            return super().collate(rows, None)

    split = Split(Broken(np.arange(20, dtype=np.int32)[:, None], ()), np.arange(20))
    broken = next(step for step in range(20) if 7 in split.rows[plan(split.lengths, 1, (0, 0))[step]])
    with Ahead(split, 1, 0, torch.device("cuda"), 20) as ahead:
        for step in range(broken):
            ahead.batch(step)
        with pytest.raises(ValueError, match="row 7"):
            ahead.batch(broken)


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
