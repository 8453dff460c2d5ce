"""The report: what was measured, as JSON and in plain sentences."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from .wording import DENSE_VARIANTS, bytes_text, place_text, time_text

if TYPE_CHECKING:
    from rich.table import Table

FORMAT = 1


@dataclass(frozen=True)
class Report:
    """A compressed model beside its dense one.

    quality: metric -> dense, compressed, stderr (of the compressed), dense_stderr, interval (95 %, paired bootstrap, of
    compressed minus dense), samples and unit (what was resampled), tokens where the metric counts them.
    agreement: kl, KL(dense || compressed) in nats, and top1, the share of positions with the same most likely class,
    over `positions`; both None for embeddings, which have cosine_distance to the dense model's, and for models with a
    single output, which have difference, the mean absolute one; heads of an unknown kind have output_error, relative.
    latency: median seconds of one pass over `tokens` positions.
    size: bytes; bytes_per_token are the FFN weights read for one token, a dense one counting one byte.
    sites: error is the share unexplained behind residual and norm, None for a site that stayed dense.
    cost: the FFNs' multiply-adds over the dense ones'.  setting: models, data, versions, processor.
    tasks: of lm-evaluation-harness, task -> metric -> as in quality; a metric that is no mean has the two values alone.
    notes: what went otherwise than planned in the conversion, such as a site that stayed dense.
    """

    quality: dict[str, dict[str, Any]]
    agreement: dict[str, Any]
    latency: list[dict[str, Any]]
    size: dict[str, Any]
    sites: list[dict[str, Any]]
    cost: float | None = None
    setting: dict[str, Any] = field(default_factory=dict)
    tasks: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Give the plain values that stand in `report.json`; numbers that do not exist are None."""
        plain: dict[str, Any] = _finite({"format": FORMAT, **asdict(self)})
        return plain

    def to_json(self) -> str:
        """Give the text of `report.json`."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, content: str | Mapping[str, Any]) -> Report:
        """Read what `to_json` wrote, as text or parsed; keys of later versions are ignored.

        Raises CheckpointError where it is no report, or one of a newer format.
        """
        try:
            values = json.loads(content) if isinstance(content, str) else dict(content)
            version = int(values["format"])
            report = cls(**{name: values[name] for name in cls.__dataclass_fields__ if name in values})
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(
                f"this is no evaluation report: {error}", remedy="make one with `compress eval CHECKPOINT --json FILE`"
            ) from None
        if version > FORMAT:
            raise CheckpointError(
                f"the report has format {version}, this program reads up to {FORMAT}", remedy="upgrade compress-lookup"
            )
        return report

    def save(self, path: Path) -> None:
        """Write `to_json` to a file."""
        path.write_text(self.to_json(), encoding="utf-8")

    def sentences(self) -> list[str]:
        """Say plainly what speaks against the compressed model: `notes`, where it is not faster, that it is bigger."""
        found = list(self.notes)
        slower = [clause for row in self.latency if (clause := _not_faster(row))]
        if slower:
            found.append("The compressed model is not faster than the fastest dense one: " + "; ".join(slower) + ".")
        for what, dense_key, compressed_key in (
            ("The compressed model is bigger than the dense one", "dense_bytes", "compressed_bytes"),
            ("Its FFNs store more than the dense ones in int8", "dense_ffn_int8_bytes", "compressed_ffn_bytes"),
        ):
            dense, ours = self.size.get(dense_key), self.size.get(compressed_key)
            if dense and ours and ours > dense:
                found.append(f"{what}: {bytes_text(ours)} against {bytes_text(dense)} ({ours / dense:.2f}x).")
        return found

    def tables(self) -> list[Table]:
        """Quality, tasks, speed, size and error per site, as rich tables for a terminal."""
        from .tables import tables

        return tables(self)


def _not_faster(row: Mapping[str, Any]) -> str | None:
    seconds = row["seconds"]
    dense = [name for name in DENSE_VARIANTS if name in seconds]
    if not dense or "compressed" not in seconds:
        return None
    best = min(dense, key=lambda name: seconds[name])
    if seconds["compressed"] < seconds[best]:
        return None
    times = f"{time_text(seconds['compressed'])} against {time_text(seconds[best])} of {DENSE_VARIANTS[best]}"
    return f"{place_text(row)}, {times}"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
