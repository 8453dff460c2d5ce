"""Studies of conversions: one model, one recipe, values set; quality over cost."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint import FORMAT_VERSION
from ..conversion import convert, resume
from ..data import check_data, load_corpus
from ..distill.job import is_job
from ..errors import RecipeError
from ..evaluate import Report
from ..evaluate.wording import bytes_text, number, time_text
from ..models import load_pretrained
from ..plan import choose_sites
from ..preparation import model_fingerprints
from ..recipe import Recipe, load_recipe
from ..sites import find_experts, find_sites
from .pictures import Picture
from .results import Cell, Point
from .runner import Stop
from .settings import ConversionStudy
from .tables import Column

_MODEL = "model"
_HIGHER_IS_BETTER = ("accuracy", "spearman", "token_agreement", "span_agreement")
_DISTANCES = ("cosine_distance", "difference", "output_error", "kl")  # where there is no metric
_Z = 1.96  # half of a 95 % interval, in standard errors


class Conversions:
    """The cells of a conversion study; everything that all share is loaded and checked.

    device, threads, trust_remote_code: as in `convert`.  Raises a CompressError for whatever a user can mend.
    """

    def __init__(
        self, study: ConversionStudy, *, device: str | None = None, threads: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:  # fmt: skip
        self.study, self.device, self.threads, self.trusted = study, device, threads, trust_remote_code
        if study.model is None:
            raise RecipeError("the study names no model", where="model", remedy="pass --set model=ID or a folder")
        self.model = study.model
        self.recipes: dict[str, Recipe] = {}
        self.cells: list[Cell] = []
        pretrained = load_pretrained(self.model, trust_remote_code=trust_remote_code)
        sites, experts = find_sites(pretrained.model), find_experts(pretrained.model)
        shared = {"format": FORMAT_VERSION, **model_fingerprints(pretrained.folder)}
        corpora: dict[str, str] = {}
        for system in study.systems:
            for point in study.points():
                recipe = self._recipe({**system.set, **point})
                choose_sites(sites, recipe, experts)
                data = recipe.fingerprint("data", "seed")
                if data not in corpora:
                    check_data(recipe.data)
                    corpora[data] = load_corpus(recipe.data, pretrained, recipe.seed).fingerprint
                several = len(study.systems) > 1 or not point
                name = "-".join([*([system.name] if several else []), *(_short(key, point) for key in point)])
                label = ", ".join([system.name, *(_short(key, point, " ") for key in point)])
                identity = {"library": shared, "recipe": recipe.resolved(), "data": corpora[data]}
                self.recipes[name] = recipe
                self.cells.append(Cell(name, label, system.name, identity))

    def _recipe(self, values: Mapping[str, Any]) -> Recipe:
        overrides = [f"{key}={json.dumps(value)}" for key, value in values.items()]
        recipe = load_recipe(self.study.recipe, overrides)
        recipe = recipe if self.study.data is None else recipe.with_data(self.study.data)
        if not recipe.has_data:
            raise RecipeError(
                "the recipe names no data to distil on", where=f"{self.study.recipe}, data.path",
                remedy="pass --data PATH (or hub:NAME), or put data.path into the recipe",
            )  # fmt: skip
        return recipe

    def run(self, cell: Cell, folder: Path, stop: Stop) -> dict[str, Any]:
        """Convert, or go on with a conversion that was stopped."""
        out = folder / _MODEL
        if is_job(out):
            report = resume(
                out, device=self.device, threads=self.threads, trust_remote_code=self.trusted, stop=stop
            ) or Report.from_json((out / "report.json").read_text(encoding="utf-8"))  # fmt: skip
        else:
            made = convert(
                self.model, self.recipes[cell.name], out, device=self.device, threads=self.threads,
                trust_remote_code=self.trusted, stop=stop,
            )  # fmt: skip
            assert made is not None
            report = made
        return values_of(report)

    @property
    def title(self) -> str:
        """What was converted by what."""
        return f"# {Path(self.model).name} by the recipe {Path(self.study.recipe).stem}"

    @property
    def columns(self) -> list[Column]:
        """Quality, cost, sizes, times."""
        return list(COLUMNS)

    @property
    def pictures(self) -> list[Picture]:
        """The loss over each cost."""
        return [
            Picture(f"loss-over-{name}.png", key, label, "loss", "loss against the dense model")
            for name, key, label in (
                ("cost", "cost", "multiply-adds of the FFNs, dense = 1"),
                ("bytes", "bytes_per_token", "bytes of FFN weights read per token"),
                ("time", "ffn_relative_batch_1", "time of the FFNs at batch 1, fastest dense = 1"),
            )
        ]

    def notes(self, points: Sequence[Point]) -> list[str]:
        """What the loss is measured in, and the cheapest point within the allowed one."""
        meanings = dict.fromkeys(p.values["loss_is"] for p in points if "loss_is" in p.values)
        notes = [f"Loss: {meaning}, ± its standard error (paired bootstrap)." for meaning in meanings]
        if points and any(point.cells for point in points):
            dense = next(point for point in points if point.cells).values
            notes.append(f"Dense: {dense['metric'].replace('_', ' ')} {number(dense['dense'], dense['metric'])}.")
        if self.study.max_loss is not None and notes:
            notes.append(cheapest_within(points, self.study.max_loss))
        return notes


def _columns() -> list[Column]:
    def times(value: float) -> str:
        return f"{value:.2f}x"

    def plain(value: float) -> str:
        return f"{value:.4g}"

    return [
        Column("compressed", "quality", plain),
        Column("loss", "loss", lambda value: f"{value:.4f}"),
        Column("cost", "multiply-adds / dense", lambda value: f"{value:.3f}"),
        Column("bytes_per_token", "read per token", bytes_text),
        Column("stored_bytes", "FFNs stored", bytes_text),
        Column("ffn_seconds_batch_1", "FFNs, batch 1", time_text),
        Column("ffn_relative_batch_1", "/ fastest dense", times),
        Column("ffn_seconds_large", "FFNs, large batch", time_text),
        Column("ffn_relative_large", "/ fastest dense", times),
    ]


COLUMNS = _columns()


@dataclass(frozen=True)
class Loss:
    """How much worse a compressed model is; 0 is as good as dense."""

    value: float
    stderr: float | None
    meaning: str


def loss_of(metric: str, row: Mapping[str, Any]) -> Loss:
    """The loss in a row of a report's `quality`: nats for perplexities, the metric's own unit for all others."""
    dense, ours, interval = row["dense"], row["compressed"], row.get("interval")
    stderr = None if interval is None else (interval[1] - interval[0]) / (2 * _Z)
    name = metric.replace("_", " ")
    if metric == "perplexity":
        # The interval is of a difference of perplexities, which is small beside them.
        change = math.log(ours / dense)
        return Loss(change, None if stderr is None else stderr / ours, "ln(perplexity / dense's), nats a token")
    if metric in _HIGHER_IS_BETTER:
        return Loss(dense - ours, stderr, f"dense {name} - {name}, as a share of 1")
    return Loss(ours - dense, stderr, f"{name} - dense {name}")


def values_of(report: Report) -> dict[str, Any]:
    """What a study keeps of a report."""
    found = next(iter(report.quality.items()), None)
    if found is not None:
        metric, row = found
        loss, dense, ours = loss_of(metric, row), row["dense"], row["compressed"]
    else:
        metric = next(key for key in _DISTANCES if report.agreement.get(key) is not None)
        dense, ours = 0.0, report.agreement[metric]
        loss = Loss(ours, None, f"{metric.replace('_', ' ')} to the dense model's outputs")
    values = {
        "metric": metric, "dense": dense, "compressed": ours, "loss": loss.value, "loss_stderr": loss.stderr,
        "loss_is": loss.meaning, "cost": report.cost, "bytes_per_token": report.size["compressed_bytes_per_token"],
        "stored_bytes": report.size["compressed_ffn_bytes"], "model_bytes": report.size["compressed_bytes"],
    }  # fmt: skip
    rows = [row for row in report.latency if row["scope"] == "ffn"]
    passes = [row for row in rows if row["tokens"] > 1] or rows
    timed = {"batch_1": passes[:1], "large": passes[-1:], "decode": [row for row in rows if row["tokens"] == 1]}
    for name, chosen in timed.items():
        for row in chosen[:1]:
            seconds = row["seconds"]
            fastest = min(taken for variant, taken in seconds.items() if variant != "compressed")
            values |= {
                f"ffn_tokens_{name}": row["tokens"], f"ffn_seconds_{name}": seconds["compressed"],
                f"ffn_dense_seconds_{name}": fastest, f"ffn_relative_{name}": seconds["compressed"] / fastest,
            }  # fmt: skip
    return values


def cheapest_within(points: Sequence[Point], most: float) -> str:
    """Name the point of the least cost whose loss is at most `most`."""
    able = [(cost, point) for point in points if (cost := point.number("cost")) is not None]
    within = [(cost, point) for cost, point in able if (loss := point.number("loss")) is not None and loss <= most]
    if not within:
        return f"No point is within a loss of {most:g}."
    cost, best = min(within, key=lambda entry: entry[0])
    return f"Cheapest within a loss of {most:g}: {best.name}, cost {cost:.3f}, loss {best.number('loss'):.4f}."


def _short(key: str, point: Mapping[str, Any], between: str = "-") -> str:
    """Name an axis's value, by the last part of its key where that is enough."""
    last = key.rpartition(".")[2]
    clear = sum(other.rpartition(".")[2] == last for other in point) == 1
    text = f"{last if clear else key}{between}{json.dumps(point[key])}".replace('"', "")
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", text) if between == "-" else text
