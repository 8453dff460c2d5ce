"""Statistics of a comparison, and how embeddings are pooled, against numbers worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import ModelError
from compress.evaluate import pooling
from compress.evaluate.statistics import average_ranks, compare_correlations, compare_means, spearman

# Statistics


def test_ties_share_the_mean_of_their_ranks() -> None:
    assert average_ranks([3.0, 1.0, 3.0, 2.0, 3.0]).tolist() == [4.0, 1.0, 4.0, 2.0, 4.0]


def brute_force_spearman(a: list[int], b: list[int]) -> float:
    def ranks(values: list[int]) -> np.ndarray:
        return np.array([sum(o < v for o in values) + (sum(o == v for o in values) + 1) / 2 for v in values])

    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=30))
def test_spearman_is_the_correlation_of_ranks(points: list[tuple[int, int]]) -> None:
    a, b = ([point[side] for point in points] for side in (0, 1))
    if len(set(a)) > 1 and len(set(b)) > 1:
        assert spearman(a, b) == pytest.approx(brute_force_spearman(a, b), abs=1e-12)
        assert spearman(np.exp(a), b) == pytest.approx(spearman(a, b), abs=1e-12)
    else:
        assert math.isnan(spearman(a, b))


def test_the_error_of_an_accuracy_is_binomial() -> None:
    dense, ours = np.repeat([1, 0], [70, 30]), np.repeat([1, 0], [60, 40])
    found = compare_means(dense, ours, np.ones(100), unit="examples")
    assert (found.dense, found.compressed, found.samples) == (0.7, 0.6, 100)
    assert found.stderr == pytest.approx(math.sqrt(0.6 * 0.4 / 99))
    assert found.dense_stderr == pytest.approx(math.sqrt(0.7 * 0.3 / 99))
    low, high = found.interval
    # Ten examples differ, all one way: a paired interval, much narrower than one of two independent accuracies.
    paired = 1.96 * math.sqrt(0.1 * 0.9 / 100)
    assert low == pytest.approx(-0.1 - paired, abs=0.015)
    assert high == pytest.approx(-0.1 + paired, abs=0.015)


def test_the_error_of_a_perplexity_is_what_windows_scatter() -> None:
    generator = np.random.default_rng(1)
    values, errors = [], []
    for _ in range(200):
        counts = generator.integers(20, 60, 40)
        sums = generator.normal(1.5, 0.3, 40) * counts  # tokens of a window share its difficulty
        found = compare_means(sums, sums + 0.1 * counts, counts, unit="windows", transform=np.exp)
        values.append(found.compressed)
        errors.append(found.stderr)
        assert found.compressed == pytest.approx(found.dense * math.exp(0.1))
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.15)


def test_bootstrap_is_reproducible_and_knows_its_limits() -> None:
    generator = np.random.default_rng(2)
    gold, dense = generator.normal(size=(2, 40))
    dense += gold
    ours = dense + 0.3 * generator.normal(size=40)
    first, second = (compare_correlations(gold, dense, ours, unit="pairs") for _ in range(2))
    assert first == second
    assert first.interval[0] < first.compressed - first.dense < first.interval[1]
    assert 0 < first.stderr < 0.2
    one = compare_means([2.0], [3.0], [4], unit="windows", transform=np.exp)
    assert (one.dense, one.stderr, one.interval) == (math.exp(0.5), None, None)
    assert compare_correlations([1, 2], [1, 2], [2, 1], unit="pairs").stderr is None


# Pooling

HIDDEN = torch.tensor([[[1.0, 8.0], [3.0, 2.0], [100.0, 100.0]], [[100.0, 100.0], [5.0, 1.0], [7.0, 3.0]]])
MASK = torch.tensor([[1, 1, 0], [0, 1, 1]])  # padding on the right, then on the left


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (None, [[2, 5], [6, 2]]),
        ({"pooling_mode_mean_tokens": True}, [[2, 5], [6, 2]]),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, [[1, 8], [5, 1]]),
        ({"pooling_mode_max_tokens": True}, [[3, 8], [7, 3]]),
        ({"pooling_mode_lasttoken": True}, [[3, 2], [7, 3]]),
        ({"pooling_mode_weightedmean_tokens": True}, [[7 / 3, 4], [19 / 3, 7 / 3]]),
        ({"pooling_mode": "cls"}, [[1, 8], [5, 1]]),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, [[1, 8, 2, 5], [5, 1, 6, 2]]),
    ],
)
def test_pooling_is_the_folders(config: dict | None, wanted: list, tmp_path: Path) -> None:
    if config is not None:
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    torch.testing.assert_close(pooling.pooling_of(tmp_path)(HIDDEN, MASK), torch.tensor(wanted, dtype=torch.float32))


def test_unknown_pooling_is_refused(tmp_path: Path) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode": "attention"}')
    with pytest.raises(ModelError, match="attention"):
        pooling.pooling_of(tmp_path)
