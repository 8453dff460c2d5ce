"""Paired comparison of two models on the same examples: values, standard errors, bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000
CONFIDENCE = 0.95
_CHUNK = 4_000_000  # resampled indices held at once

Floats = NDArray[np.float64]
Transform = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Comparison:
    """A metric of the dense and of the compressed model on the same examples.

    `stderr` is the compressed model's standard error, `interval` the 95 % paired bootstrap interval of compressed minus
    dense; both are None where there are too few examples. `samples` counts the independent units, `unit` names them.
    """

    dense: float
    compressed: float
    stderr: float | None
    dense_stderr: float | None
    interval: tuple[float, float] | None
    samples: int
    unit: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = asdict(self)
        return {**values, "interval": None if self.interval is None else list(self.interval)}


def identity(values: Floats) -> Floats:
    """Leave a mean as it is, as for losses and accuracies."""
    return values


def compare_means(
    dense: ArrayLike,
    compressed: ArrayLike,
    weights: ArrayLike,
    *,
    unit: str,
    transform: Transform = identity,
    seed: int = 0,
) -> Comparison:
    """Compare transform(sum of sums / sum of weights) over clusters, such as text windows.

    dense, compressed [n]: sums over a cluster (of losses, of correct answers); weights [n]: how many terms each has.
    Standard errors are clustered: the ratio's linearisation, over clusters, carried through `transform` (delta method).
    """
    sums = np.stack([np.asarray(dense, float), np.asarray(compressed, float)])  # [2, n]
    counts = np.asarray(weights, float)  # [n]
    means = sums.sum(1) / counts.sum()  # [2]
    values = transform(means)
    errors: list[float | None] = [_ratio_stderr(row, counts, transform) for row in sums]
    interval = None
    if counts.size > 1:
        differences = []
        for index in _resamples(counts.size, seed):
            totals = sums[:, index].sum(-1) / counts[index].sum(-1)  # [2, resamples]
            ours = transform(totals)
            differences.append(ours[1] - ours[0])
        interval = _interval(np.concatenate(differences))
    return Comparison(float(values[0]), float(values[1]), errors[1], errors[0], interval, counts.size, unit)


def compare_correlations(
    gold: ArrayLike, dense: ArrayLike, compressed: ArrayLike, *, unit: str, seed: int = 0
) -> Comparison:
    """Compare Spearman correlations of two models' scores [n] with gold scores [n]; standard errors by bootstrap."""
    columns = np.stack([np.asarray(gold, float), np.asarray(dense, float), np.asarray(compressed, float)])  # [3, n]
    values = [spearman(columns[0], column) for column in columns[1:]]
    size = columns.shape[1]
    if size < 3:
        return Comparison(values[0], values[1], None, None, None, size, unit)
    draws = np.array(
        [
            [spearman(columns[0, row], columns[1, row]), spearman(columns[0, row], columns[2, row])]
            for index in _resamples(size, seed)
            for row in index
        ]
    )  # [resamples, 2]
    draws = draws[np.isfinite(draws).all(1)]  # a resample of one pair alone has no correlation
    errors = draws.std(0, ddof=1) if len(draws) > 1 else (None, None)
    dense_error, error = (None if e is None else float(e) for e in errors)
    interval = _interval(draws[:, 1] - draws[:, 0]) if len(draws) > 1 else None
    return Comparison(values[0], values[1], error, dense_error, interval, size, unit)


def average_ranks(values: ArrayLike) -> Floats:
    """Ranks from 1, ties sharing the mean of their ranks: [n] -> [n]."""
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)  # highest rank of each distinct value
    ranks: Floats = (last - (counts - 1) / 2)[inverse]
    return ranks


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """Spearman's rank correlation with average ranks; NaN where either side is constant."""
    a, b = (average_ranks(values) for values in (first, second))
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / norm) if norm > 0 else float("nan")


def _ratio_stderr(sums: Floats, counts: Floats, transform: Transform) -> float | None:
    clusters, total = counts.size, counts.sum()
    if clusters < 2:
        return None
    mean = sums.sum() / total
    residuals = sums - mean * counts
    error = np.sqrt((residuals**2).sum() * clusters / (clusters - 1)) / total
    step = 1e-6 * max(1.0, abs(float(mean)))
    slope = (transform(np.array(mean + step)) - transform(np.array(mean - step))) / (2 * step)
    return float(abs(slope) * error)


def _resamples(size: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Index blocks [resamples, size], drawn with replacement, `RESAMPLES` in all; the same for the same seed."""
    generator = np.random.default_rng(seed)
    chunk = max(1, min(RESAMPLES, _CHUNK // size))
    for start in range(0, RESAMPLES, chunk):
        yield generator.integers(0, size, size=(min(chunk, RESAMPLES - start), size))


def _interval(draws: Floats) -> tuple[float, float]:
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    return float(low), float(high)
