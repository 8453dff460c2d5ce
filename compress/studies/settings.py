"""The settings of each kind of study; sections are read as a recipe's are."""

from __future__ import annotations

import itertools
import re
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ..recipe.settings import Count, Positive, PositiveNumber, Section, Whole, refusal, to_tuple

Width = Literal["float32", "bfloat16", "int8"]
Scalar = str | bool | int | float | None
Value = Scalar | Annotated[tuple[Scalar, ...], BeforeValidator(to_tuple)]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise refusal(f"`{value}` cannot name a folder", "use letters, digits, `-`, `_` and `.`, and no blanks")
    return value


Name = Annotated[str, AfterValidator(_name)]
Seeds = Annotated[tuple[Count, ...], BeforeValidator(to_tuple)]


def _distinct(entries: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuse a list without entries, and two that would have one folder."""
    names = [entry.name for entry in entries]
    if not names:
        raise refusal("the list has no entries", "list some: [{name: dense, ...}]")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise refusal(f"two entries have the name `{twice}`", "give each a name of its own")
    return entries


def _once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len({repr(value) for value in values}) < len(values):
        raise refusal("a value is given twice", "list each once")
    return values


def _distinct_values(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        raise refusal("the axis has no values", "list some")
    return _once(values)


class ModelSettings(Section):
    """The encoder: RoBERTa's, with the FFNs of the cell. `positions`: learned as there, or rotary as in RoFormer."""

    layers: Positive = 4
    hidden: Positive = 256
    heads: Positive = 4
    positions: Literal["learned", "rotary"] = "learned"

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.hidden % self.heads:
            raise refusal(f"{self.heads} heads do not divide hidden: {self.hidden}", "choose other numbers")
        return self


class TextSettings(Section):
    """The text. `path`: file, folder or glob of texts; without it the source of Python's standard library."""

    path: str | None = None
    vocabulary: Annotated[Whole, Ge(261), Le(1 << 16)] = 2048  # of a byte-level BPE that is learned from it
    sequence_length: Annotated[Whole, Ge(8)] = 128
    holdout: Annotated[float, Gt(0), Lt(1)] = 0.04  # of a text that is given; the library's modules have their sides
    held_out_tokens: Positive = 65_536  # at most, of the held-out text


class LearningRates(Section):
    """The peak step size in a model with FFNs of a kind.

    `tables`: of a LookupFFN's tables; `hash`: of its hash's weights, over their root mean square at the start.
    """

    vanilla: PositiveNumber = 1e-3
    slide: PositiveNumber = 1e-3
    mongoose: PositiveNumber = 1e-3
    lookup: PositiveNumber = 1e-3
    tables: PositiveNumber = 1e-3
    hash: PositiveNumber = 0.01


class TrainingSettings(Section):
    """The schedule, the same for every cell."""

    steps: Positive = 1000
    batch: Positive = 16  # sequences
    learning_rate: LearningRates = LearningRates()
    warmup: Annotated[float, Ge(0), Lt(1)] = 0.1  # of the steps
    weight_decay: Annotated[float, Ge(0)] = 0.01
    mask: Annotated[float, Gt(0), Lt(1)] = 0.15
    dtype: Literal["float32", "bfloat16"] = "float32"  # bfloat16: autocast


class TimingSettings(Section):
    """What is timed behind the training, on the CPU."""

    batches: Annotated[tuple[Positive, ...], BeforeValidator(to_tuple)] = (1, 16)  # sequences
    seconds: Annotated[float, Ge(0)] = 2.0  # a measurement, at least; 0: nothing is timed


class SystemCell(Section):
    """A point of the table: a kind of FFN with its sizes. `seeds`: in place of the study's."""

    name: Name
    ffn: Literal["vanilla", "slide", "mongoose", "lookup"]
    settings: dict[str, Scalar] = Field(default={})
    seeds: Seeds | None = None


class PretrainingStudy(Section):
    """Masked-language models trained from scratch, one for each system and seed."""

    version: Whole
    kind: Literal["pretraining"]
    model: ModelSettings = ModelSettings()
    data: TextSettings = TextSettings()
    training: TrainingSettings = TrainingSettings()
    timing: TimingSettings = TimingSettings()
    seeds: Seeds = (0,)
    reference: str | None = None  # the vanilla cell that times are compared with; by default one of width 4 d
    cells: Annotated[tuple[SystemCell, ...], BeforeValidator(to_tuple), AfterValidator(_distinct)]


class ConversionCell(Section):
    """A way to spend the budget: values of the recipe that all its cells have."""

    name: Name
    set: dict[str, Value] = Field(default={})


class ConversionStudy(Section):
    """Conversions of one model by one recipe: each system at every combination of the axes' values."""

    version: Whole
    kind: Literal["conversion"]
    model: str | None = None
    recipe: str
    data: str | None = None
    axes: dict[str, Annotated[tuple[Value, ...], BeforeValidator(to_tuple), AfterValidator(_distinct_values)]] = Field(
        default={}
    )
    # The dense model itself, in these widths.
    dense: Annotated[tuple[Width, ...], BeforeValidator(to_tuple)] = ()
    systems: Annotated[tuple[ConversionCell, ...], BeforeValidator(to_tuple), AfterValidator(_distinct)] = (
        ConversionCell(name="LookupFFN"),
    )
    max_loss: Annotated[float, Ge(0)] | None = None

    def points(self) -> list[dict[str, Value]]:
        """Every combination of the axes' values, the last axis changing fastest."""
        return [dict(zip(self.axes, values, strict=True)) for values in itertools.product(*self.axes.values())]


Sizes = Annotated[tuple[Positive, ...], BeforeValidator(to_tuple), AfterValidator(_once)]


class ProjectionSizes(Section):
    """The sizes at which each projection is fitted; none leaves it out."""

    lowrank: Sizes = (8, 16, 24, 40, 72)  # rank; from 16 on at the cost of a BH4 of width 256 below
    hadamard: Sizes = (16, 64)  # rank of the code
    bh4: Sizes = (4, 8, 16, 32)  # block
    acdc: Sizes = (1, 4, 8)  # layers


class ProjectionsStudy(Section):
    """The hash's projections, each fitted to a random map and to neurons of a model, by default the embedded one."""

    version: Whole
    kind: Literal["projections"]
    model: str | None = None
    site: str | None = None  # whose neurons; by default the first
    sizes: ProjectionSizes = ProjectionSizes()
    steps: Positive = 300
    seed: Count = 0


Study = PretrainingStudy | ConversionStudy | ProjectionsStudy
KINDS: dict[str, type[Any]] = {
    "pretraining": PretrainingStudy, "conversion": ConversionStudy, "projections": ProjectionsStudy
}  # fmt: skip
