"""What a recipe can say: one frozen section per key, with types, ranges and defaults."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, PrivateAttr, model_validator
from pydantic_core import PydanticCustomError

from .document import dump_document

VERSION = 1
HUB = "hub:"


def _integral(value: Any) -> Any:
    """`2e6` is a whole number too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def to_tuple(value: Any) -> Any:
    """A list of YAML as a tuple."""
    return tuple(value) if isinstance(value, list) else value


def refusal(message: str, remedy: str) -> PydanticCustomError:
    """A mistake in the words that the user is to read."""
    return PydanticCustomError("refused", "{message}", {"message": message, "remedy": remedy})


def _power_of_two(value: int) -> int:
    if value & (value - 1):
        raise refusal(f"{value} is not a power of two", f"choose {1 << value.bit_length() - 1}, say")
    return value


Whole = Annotated[int, BeforeValidator(_integral)]
Count = Annotated[Whole, Ge(0)]
Positive = Annotated[Whole, Ge(1)]
PositiveNumber = Annotated[float, Gt(0)]
NonNegativeNumber = Annotated[float, Ge(0)]
Auto = Literal["auto"]
TrainingDtype = Literal["auto", "float32", "bfloat16"]  # of matrix products; auto: bfloat16 where it is fast
Names = Annotated[tuple[str, ...], BeforeValidator(to_tuple)]


class Section(BaseModel):
    """A section of a recipe: frozen, strict about types, closed to unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class SitesSettings(Section):
    """Which FFNs are converted: fnmatch patterns on site names."""

    include: Names = ("*",)
    exclude: Names = ()


class LookupSettings(Section):
    """Sizes and choices of the students; `auto` fills what is left of `budget` and `memory`."""

    student: Literal["lookup", "factors"] = "lookup"
    budget: PositiveNumber = 0.25  # multiply-adds over the dense FFN's
    memory: PositiveNumber = 2.0  # stored bytes over the dense FFN's in int8
    tables: Count | Auto = "auto"
    bits: Annotated[Whole, Ge(1), Le(16)] | Auto = "auto"
    projection: Literal["hadamard", "lowrank", "bh4", "dense", "acdc"] = "hadamard"
    rank: Count | Auto = "auto"
    neurons: Count | Auto = "auto"
    block: Annotated[Positive, AfterValidator(_power_of_two)] = 64
    read: Literal["top1", "top2"] = "top1"
    hash_dtype: Literal["auto", "w8a8", "int8", "bfloat16", "float32"] = "auto"


class Override(LookupSettings):
    """Other settings for some sites; what is not written stays as the `lookup` section has it.

    Sites are named by patterns (`sites`) or by their positions in the order of execution (`layers`).
    """

    sites: Names | None = None
    layers: Annotated[tuple[Whole, ...], BeforeValidator(to_tuple)] | None = None
    keep_dense: bool = False

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if bool(self.sites) == bool(self.layers):
            raise refusal("the override does not say which sites it is for", "give it either `sites` or `layers`")
        if not self.changes and not self.keep_dense:
            raise refusal("the override changes nothing", "give it keys of `lookup`, or keep_dense: true")
        if self.changes and self.keep_dense:
            raise refusal(f"sites that stay dense have no {', '.join(self.changes)}", "keep the one or the other")
        return self

    @property
    def changes(self) -> dict[str, Any]:
        """The `lookup` keys that were written."""
        return {key: getattr(self, key) for key in LookupSettings.model_fields if key in self.model_fields_set}


class DataSettings(Section):
    """The distillation data. `path`: file, folder or glob; `name`: hub id, `id[:config][@revision]`."""

    source: Literal["text", "jsonl", "pairs", "images", "audio", "hub", "teacher"] = "text"
    path: str | None = None
    name: str | None = None
    split: str = "train"  # of a hub data set
    field: str = "text"  # of a JSON record or a hub data set's row
    target_field: str = "target"  # what the decoder is to write
    fields: dict[str, str] = {}  # argument of the model's processor: field of a JSON record
    sequence_length: Annotated[Whole, Ge(4)] = 256
    written_length: Annotated[Whole, Ge(4)] | Auto = "auto"  # of a text that the dense model writes
    sentences: Annotated[float, Ge(0), Le(1)] | Auto = "auto"  # share of an encoder's passages that are taken apart
    seconds: PositiveNumber = 30.0  # of a recording in one piece
    tokens: Positive = 2_000_000
    holdout: Annotated[float, Gt(0), Lt(1)] = 0.02

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.source == "hub":
            if self.path is not None:
                raise refusal("source: hub does not read `path`", "give `name`, or another source")
            if self.name is None:
                raise refusal("source: hub needs a data set", "give its id as `name`")
        elif self.source == "teacher" and (self.path is not None or self.name is not None):
            raise refusal("source: teacher reads no data: the dense model writes it", "leave out `path` and `name`")
        elif self.written_length != "auto" and self.source != "teacher":
            raise refusal(
                f"source: {self.source} does not read `written_length`", "leave it out, or give source: teacher"
            )
        elif self.name is not None:
            raise refusal(f"source: {self.source} does not read `name`", "give `path`, or source: hub")
        if self.written_length != "auto" and self.written_length < self.sequence_length:
            raise refusal("`written_length` is less than `sequence_length`", "a text must give one sequence or more")
        if self.fields and self.source != "jsonl":
            raise refusal(f"source: {self.source} does not read `fields`", "leave them out, or give source: jsonl")
        return self


class FitSettings(Section):
    """The closed-form start."""

    tokens: Positive = 200_000
    ridge: NonNegativeNumber = 1e-3


class DistillSettings(Section):
    """Layer by layer."""

    steps: Count = 2000
    batch_tokens: Positive = 4096
    learning_rate: PositiveNumber | Auto = "auto"
    objective: Literal["block", "output"] = "block"
    inputs: Literal["student", "teacher"] = "student"
    dtype: TrainingDtype = "auto"


class FinetuneSettings(Section):
    """End to end."""

    steps: Count = 4000
    batch_tokens: Positive = 1024
    learning_rate: PositiveNumber | Auto = "auto"
    train: Literal["lookup", "norms", "all"] = "all"
    temperature: PositiveNumber = 1.0
    hidden_weight: NonNegativeNumber | Auto = "auto"
    dtype: TrainingDtype = "auto"


class PackSettings(Section):
    """Storage of the result; `rest` is everything that is no student."""

    table_dtype: Literal["int4", "int8", "bfloat16", "float32"] = "int4"
    rest: Literal["keep", "int8"] = "keep"


class EvalSettings(Section):
    """What the result is measured on: data, a path or `hub:NAME`, and tasks of lm-evaluation-harness by name."""

    data: str | None = None
    tasks: Names = ()

    @model_validator(mode="after")
    def _names(self) -> Self:
        for task in self.tasks:
            if "/" in task or task.endswith((".yaml", ".yml")):  # such files run code, and recipes come from strangers
                raise refusal(f"`{task}` is no name of a task", "name one; a file is given with compress eval --task")
        return self


class Recipe(Section):
    """A whole recipe, every value filled in. `text` is what the user wrote."""

    version: Whole
    sites: SitesSettings = SitesSettings()
    lookup: LookupSettings = LookupSettings()
    overrides: Annotated[tuple[Override, ...], BeforeValidator(to_tuple)] = ()
    data: DataSettings = DataSettings()
    fit: FitSettings = FitSettings()
    distill: DistillSettings = DistillSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    pack: PackSettings = PackSettings()
    eval: EvalSettings = EvalSettings()
    seed: Count = 0

    _text: str = PrivateAttr(default="")

    @property
    def text(self) -> str:
        """The recipe's text as it was read, without overrides from the command line."""
        return self._text

    @property
    def has_data(self) -> bool:
        """Whether the recipe says where its data is."""
        return self.data.path is not None or self.data.source in ("hub", "teacher")

    @property
    def training_tokens(self) -> int:
        """Tokens that a site is trained on, layer by layer and end to end, where all of the data reaches it."""
        stages: tuple[DistillSettings | FinetuneSettings, ...] = (self.distill, self.finetune)
        return sum(stage.steps * stage.batch_tokens for stage in stages)

    def with_data(self, path: str) -> Recipe:
        """Put other data in: a path, relative to the working directory, or `hub:NAME`. Gives a new recipe."""
        place: dict[str, str | None]
        if path.startswith(HUB):
            place = {"source": "hub", "path": None, "name": path.removeprefix(HUB)}
        else:
            source = "text" if self.data.source in ("hub", "teacher") else self.data.source
            place = {"source": source, "path": str(Path(path).expanduser().absolute()), "name": None}
        place["written_length"] = "auto"  # nothing is written any more
        copy = self.model_copy(update={"data": self.data.model_copy(update=place)})
        copy._text = self._text
        return copy

    def keeping_dense(self, names: Sequence[str]) -> Recipe:
        """Leave some sites dense, by an override behind all others. Gives a new recipe."""
        if not names:
            return self
        dense = Override(sites=tuple(glob.escape(name) for name in names), keep_dense=True)
        copy = self.model_copy(update={"overrides": (*self.overrides, dense)})
        copy._text = self._text
        return copy

    def resolved(self) -> dict[str, Any]:
        """Plain values, all filled in, paths reduced to names: nothing of this machine is left."""
        values = self.model_dump(mode="json", exclude={"overrides"})
        values["data"]["path"] = _name(self.data.path)
        values["eval"]["data"] = _name(self.eval.data)
        overrides = [override.model_dump(mode="json", exclude_unset=True) for override in self.overrides]
        order = list(type(self).model_fields)
        return dict(sorted({**values, "overrides": overrides}.items(), key=lambda item: order.index(item[0])))

    def dump(self) -> str:
        """Write the resolved recipe as YAML; the same recipe gives the same text."""
        return dump_document(self.resolved())

    def stored(self) -> dict[str, Any]:
        """Plain values as written, paths as they are on this machine: what a job keeps to go on with."""
        return self.model_dump(mode="json", exclude_unset=True)

    def fingerprint(self, *sections: str) -> str:
        """SHA-256 (hex) of the resolved content, or of some of its sections."""
        values = self.resolved()
        chosen = {key: values[key] for key in sections} if sections else values
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()


def _name(path: str | None) -> str | None:
    return path if path is None or path.startswith(HUB) else Path(path).name
