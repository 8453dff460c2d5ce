"""Studies of conversions: one model, one recipe, values set; quality over cost."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..checkpoint import FORMAT_VERSION
from ..conversion import convert, resume
from ..data import Corpus, EvalData, check_data, load_corpus
from ..distill.job import is_job
from ..distill.writing import is_unwritten, write_corpus
from ..errors import CompressError, RecipeError
from ..evaluate import Report
from ..evaluate.references import evaluate_dense
from ..evaluate.wording import bytes_text, count_text, number, time_text
from ..lock import in_turn
from ..models import load_pretrained
from ..plan import choose_sites, make_plan
from ..preparation import model_fingerprints, prepare
from ..recipe import Recipe, load_recipe, restore_recipe
from ..recipes.embedded import MODEL as EMBEDDED
from ..recipes.embedded.corpus import write_split
from ..sites import find_experts, find_sites
from ..streams import stream_of
from .pictures import Picture
from .results import Cell, Point
from .runner import Stop
from .settings import ConversionStudy, Width
from .tables import Column

MODEL = "model"  # the folder of a cell's conversion
_HIGHER_IS_BETTER = ("accuracy", "spearman", "token_agreement", "span_agreement")
_DISTANCES = ("cosine_distance", "difference", "output_error", "kl")  # where there is no metric
_AGREEMENT = ("kl", "cosine_distance", "top1")
_Z = 1.96  # half of a 95 % interval, in standard errors


@dataclass(frozen=True)
class Wanted:
    """A cell to be: a recipe to convert by, a finished conversion's folder, or a width of the dense model itself."""

    name: str
    point: str
    system: str
    recipe: Recipe  # says what data all is measured on
    finished: Path | None = None
    width: Width | None = None


class Conversions:
    """Cells that convert one model, or measure it; everything that all share is loaded and checked.

    device, threads, trust_remote_code: as in `convert`.  library_text: whether recipes without data take the source of
    Python's standard library.  Raises a CompressError for whatever a user can mend.
    """

    def __init__(
        self, model: str, wanted: Sequence[Wanted], title: str, *, max_loss: float | None = None,
        library_text: bool = False, device: str | None = None, threads: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:  # fmt: skip
        self.model, self._title, self.max_loss, self.library_text = model, title, max_loss, library_text
        self.device, self.threads, self.trusted = device, threads, trust_remote_code
        self.wanted = {one.name: one for one in wanted}
        trained = {one.recipe.training_tokens for one in wanted if one.width is None}
        self._over_tokens = len(trained) > 1
        pretrained = load_pretrained(model, trust_remote_code=trust_remote_code)
        sites, experts = find_sites(pretrained.model), find_experts(pretrained.model)
        self.fingerprints = model_fingerprints(pretrained.folder)
        shared = {"format": FORMAT_VERSION, **self.fingerprints}
        self.cells: list[Cell] = []
        self.corpora: dict[str, str] = {}  # fingerprints
        loaded: dict[str, Corpus] = {}
        streams = {site.name: stream_of(pretrained.model, site.output) for site in sites}
        with TemporaryDirectory() as folder:
            for one in wanted:
                recipe = self._placed(one.recipe, Path(folder))
                choose_sites(sites, recipe, experts)
                data = recipe.fingerprint("data", "seed")
                if data not in loaded:
                    check_data(recipe.data)
                    loaded[data] = load_corpus(recipe.data, pretrained, recipe.seed)
                    self.corpora[data] = loaded[data].fingerprint
                if one.finished is None and one.width is None:
                    try:
                        make_plan(sites, recipe, loaded[data], streams, experts)
                    except CompressError as error:
                        where = f"{one.name}: {error.where}" if error.where else one.name
                        raise type(error)(error.message, where=where, remedy=error.remedy) from None
                identity = {"library": shared, "data": self.corpora[data]}
                if one.width is None:
                    identity["recipe"] = recipe.resolved()
                else:
                    identity |= {"width": one.width, "evaluation": recipe.fingerprint("eval", "data", "seed")}
                if one.finished is not None:
                    identity["report"] = read_report(one.finished).to_dict()
                self.cells.append(Cell(one.name, one.point, one.system, identity))

    @classmethod
    def of_study(cls, study: ConversionStudy, **options: Any) -> Conversions:
        """What a study describes; `options` as above. Without a model it is the one that comes with the program."""
        wanted = [
            Wanted(f"dense-{width}", f"dense {width}", f"dense {width}", _recipe(study, {}), width=width)
            for width in dict.fromkeys(study.dense)
        ]
        for system in study.systems:
            for point in study.points():
                several = len(study.systems) > 1 or study.dense or not point
                name = "-".join([*([system.name] if several else []), *(_short(key, point) for key in point)])
                label = ", ".join([system.name, *(_short(key, point, " ") for key in point)])
                wanted.append(Wanted(name, label, system.name, _recipe(study, {**system.set, **point})))
        title = f"# {Path(study.model or 'the embedded model').name} by the recipe {Path(study.recipe).stem}"
        return cls(
            study.model or str(EMBEDDED), wanted, title, max_loss=study.max_loss,
            library_text=study.model is None, **options,
        )  # fmt: skip

    def _placed(self, recipe: Recipe, folder: Path) -> Recipe:
        """The recipe with the library's source, written into `folder`, where it has no data."""
        if recipe.has_data or not self.library_text:
            return recipe
        texts = folder / "train.txt", folder / "heldout.txt"
        folder.mkdir(parents=True, exist_ok=True)
        with in_turn(folder / ".lock"):
            if not all(text.is_file() for text in texts):
                texts = write_split(folder)
        return restore_recipe(recipe.stored(), recipe.text, "the recipe", [
            f"data.path={json.dumps(str(texts[0]))}", f"eval.data={json.dumps(recipe.eval.data or str(texts[1]))}"
        ])  # fmt: skip

    def run(self, cell: Cell, folder: Path, stop: Stop) -> dict[str, Any]:
        """Convert, or go on with a conversion that was stopped; or measure what is there."""
        one = self.wanted[cell.name]
        recipe = self._placed(one.recipe, folder.parent.parent / "text")
        report = (
            read_report(one.finished) if one.finished is not None
            else self._convert(recipe, folder / MODEL, stop) if one.width is None
            else self._dense(recipe, one.width)
        )  # fmt: skip
        return values_of(report) | ({"training_tokens": recipe.training_tokens} if one.width is None else {})

    def _convert(self, recipe: Recipe, out: Path, stop: Stop) -> Report:
        options: dict[str, Any] = {
            "device": self.device, "threads": self.threads, "trust_remote_code": self.trusted, "stop": stop,
        }  # fmt: skip
        made = resume(out, **options) if is_job(out) else convert(self.model, recipe, out, **options)
        return made or read_report(out)  # of a job that was finished already there is only the file

    def _dense(self, recipe: Recipe, width: Width) -> Report:
        prepared = prepare(self.model, recipe, {"device": "cpu", "trust_remote_code": self.trusted})
        examples = prepared.examples
        if is_unwritten(prepared.corpus) and recipe.eval.data is None:
            corpus, _ = write_corpus(prepared.pretrained, prepared.corpus)
            examples = EvalData.held_out(corpus.holdout, prepared.pretrained.task, corpus.description)
        return evaluate_dense(prepared.pretrained, width, examples, threads=self.threads)

    @property
    def title(self) -> str:
        """What was converted by what."""
        return self._title

    @property
    def columns(self) -> list[Column]:
        """Quality, cost, sizes, times; what was trained on, where that differs."""
        return [*COLUMNS, *([Column("training_tokens", "tokens trained on", count_text)] if self._over_tokens else [])]

    @property
    def pictures(self) -> list[Picture]:
        """The loss over each cost, and over the tokens trained on where these differ."""
        return [
            Picture(f"loss-over-{name}.png", key, label, "loss", "loss against the dense model")
            for name, key, label in (
                ("cost", "cost", "multiply-adds of the FFNs, dense = 1"),
                ("bytes", "bytes_per_token", "bytes of FFN weights read per token"),
                ("time", "ffn_relative_batch_1", "time of the FFNs at batch 1, fastest dense = 1"),
                *([("tokens", "training_tokens", "tokens trained on")] if self._over_tokens else []),
            )
        ]

    def notes(self, points: Sequence[Point]) -> list[str]:
        """What the loss is measured in, and the cheapest point within the allowed one."""
        meanings = dict.fromkeys(p.values["loss_is"] for p in points if "loss_is" in p.values)
        notes = [f"Loss: {meaning}, ± its standard error (paired bootstrap)." for meaning in meanings]
        if points and any(point.cells for point in points):
            dense = next(point for point in points if point.cells).values
            notes.append(f"Dense: {dense['metric'].replace('_', ' ')} {number(dense['dense'], dense['metric'])}.")
        if self.max_loss is not None and notes:
            notes.append(cheapest_within(points, self.max_loss))
        return notes


def _recipe(study: ConversionStudy, values: Mapping[str, Any]) -> Recipe:
    overrides = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    recipe = load_recipe(study.recipe, overrides)
    recipe = recipe if study.data is None else recipe.with_data(study.data)
    if not recipe.has_data and study.model is not None:
        raise RecipeError(
            "the recipe names no data to distil on", where=f"{study.recipe}, data.path",
            remedy="pass --data PATH (or hub:NAME), or put data.path into the recipe",
        )  # fmt: skip
    return recipe


def read_report(folder: Path) -> Report:
    """The report of a finished conversion."""
    return Report.from_json((folder / "report.json").read_text(encoding="utf-8"))


def _columns() -> list[Column]:
    def times(value: float) -> str:
        return f"{value:.2f}x"

    def plain(value: float) -> str:
        return f"{value:.4g}"

    return [
        Column("compressed", "quality", plain),
        Column("loss", "loss", lambda value: f"{value:.4f}"),
        Column("kl", "KL to dense", lambda value: f"{value:.3f}"),
        Column("cosine_distance", "1 - cosine to dense", lambda value: f"{value:.3f}"),
        Column("top1", "same top-1", lambda value: f"{value:.1%}"),
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
    values |= {key: report.agreement[key] for key in _AGREEMENT if report.agreement.get(key) is not None}
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
