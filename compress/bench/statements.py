"""The paper's statements about LookupFFN on a CPU, held against a profile's numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..evaluate.wording import counted
from .systems import DENSE, DENSE_INT8, PAPER, SLIDE, SLIDE_SKEWED

CLAIMED_GAIN = 2.5  # times lower latency than the dense FFN
_SAME = 0.01  # relative difference of instruction counts that is none: Python's own differ as much


@dataclass(frozen=True)
class Statement:
    """A statement, whether it holds (None: not measured), and the numbers that say so."""

    text: str
    holds: bool | None
    evidence: str

    def __str__(self) -> str:
        verdict = {True: "holds", False: "does not hold", None: "not measured"}[self.holds]
        return f"{self.text}: {verdict}. {self.evidence}"


def statements(result: Mapping[str, Any]) -> list[Statement]:
    """Each of the paper's statements, by the numbers of `profile`."""
    return [_hits(result["counts"]), _faster(result["latency"]), _independent(result["counts"])]


def _hits(counts: Sequence[Mapping[str, Any]]) -> Statement:
    text = "Most accesses hit cache"
    rows = [row for row in counts if row["system"] == PAPER and row["inputs"] == "even" and row["references"]]
    rows = [row for row in rows if None not in row["missed"]]
    if not rows:
        return Statement(text, None, "There are no counts.")
    shares = [[1 - missed / row["references"] for missed in row["missed"]] for row in rows]
    parts = [
        f"{counted(row['tokens'], 'token')}, {row['state']}: " + ", ".join(f"{100 * share:.1f} %" for share in each)
        for row, each in zip(rows, shares, strict=True)
    ]
    evidence = f"References served by the first, by two and by all levels ({rows[0]['source']}): {'; '.join(parts)}."
    return Statement(text, all(each[0] > 0.5 for each in shares), evidence)


def _faster(latency: Sequence[Mapping[str, Any]]) -> Statement:
    text = f"{CLAIMED_GAIN}x lower latency than the dense FFN in float32"
    gains = {(row["threads"], row["batch"]): row["seconds"][DENSE] / row["seconds"][PAPER] for row in latency}
    parts = [f"{gain:.2f}x at {batch} x {threads}" for (threads, batch), gain in gains.items()]
    others = [
        f"{min(ratios):.2f} to {max(ratios):.2f}x against {name}"
        for system, name in ((DENSE_INT8, "dense int8"), (SLIDE, "SLIDE"))
        for ratios in [[row["seconds"][system] / row["seconds"][PAPER] for row in latency]]
    ]
    evidence = f"Tokens x threads: {', '.join(parts)}; {', '.join(others)}."
    return Statement(text, min(gains.values()) >= CLAIMED_GAIN, evidence)


def _independent(counts: Sequence[Mapping[str, Any]]) -> Statement:
    text = "Work does not depend on the sizes of buckets"
    spreads = list(_spreads(counts))
    if not spreads:
        return Statement(text, None, "There are no counts.")
    parts = [f"{name} at {counted(tokens, 'token')} {100 * spread:+.2f} %" for name, tokens, spread in spreads]
    own = [abs(spread) for name, _, spread in spreads if name == "LookupFFN"]
    evidence = f"Instructions with alike over those with even tokens: {', '.join(parts)}."
    return Statement(text, bool(own) and max(own) < _SAME, evidence)


def _spreads(counts: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, int, float]]:
    """Change of the instructions of a pass, cold, from even to alike tokens."""
    found = {
        (row["system"], row["tokens"], row["inputs"]): row["instructions"]
        for row in counts
        if row["state"] == "cold" and row["instructions"]
    }
    names = {PAPER: "LookupFFN", SLIDE: "SLIDE", SLIDE_SKEWED: "SLIDE with skewed buckets"}
    for (system, tokens, inputs), instructions in found.items():
        even = found.get((system, tokens, "even"))
        if inputs == "alike" and system in names and even:
            yield names[system], tokens, instructions / even - 1
