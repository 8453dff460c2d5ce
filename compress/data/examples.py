"""Data to evaluate on: text to predict, sentence pairs with a score, inputs with a label, or inputs alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError
from . import images
from .batching import FIXED_ORDER, Split, plan
from .encode import passages, whole_texts, windows
from .files import find_files
from .hub import HubData, load_hub
from .inputs import capped_length, longest_sequence, modality
from .labels import class_ids
from .sequences import Examples, Rows
from .tables import SUFFIXES, Table, canonical, read_table
from .text import Source, document_source, passage_source, record_source

if TYPE_CHECKING:
    from ..models import Pretrained

Kind = Literal["text", "pairs", "labelled", "unlabelled"]
HUB = "hub:"
_LONGEST = 512  # tokens a sequence, where the model takes more
_LABEL_FILES = ("labels.csv", "metadata.csv", "metadata.jsonl")
_WANTED = {
    "causal": "text", "masked": "text", "embedding": "sentence1, sentence2 and score, or text",
    "text-classification": "text and label",
}  # fmt: skip


@dataclass(frozen=True)
class EvalBatch:
    """Keyword arguments of the model and what its answers are held against.

    `targets`: for text, int64 [B, T], the token that the logits of each position should name (-100: none); for pairs
    float32 [B] scores, `second` holding the other sentences; for labelled inputs int64 [B] class ids. `rows` are the
    examples' positions in the data set.
    """

    inputs: dict[str, Tensor]
    rows: Rows
    targets: Tensor | None = None
    second: dict[str, Tensor] | None = None


@dataclass(frozen=True)
class EvalData:
    """Examples of one kind. `values`: score or class id of each example, where the kind has them."""

    kind: Kind
    examples: Examples
    rows: Rows
    description: str
    values: NDArray[Any] | None = None
    second: Examples | None = None

    @classmethod
    def held_out(cls, split: Split, task: str, description: str) -> EvalData:
        """Evaluate on a corpus's held-out part."""
        kind: Kind = "text" if task in ("causal", "masked") else "unlabelled"
        return cls(kind, split.examples, split.rows, description)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example; of a pair, both sentences."""
        lengths = self.examples.lengths if self.second is None else self.examples.lengths + self.second.lengths
        return lengths[self.rows]

    @property
    def tokens(self) -> int:
        """Positions that reach a site in one pass, padding not counted."""
        return int(self.lengths.sum())

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that is evaluated on."""
        hasher = hashlib.sha256(self.kind.encode())
        for examples in (self.examples, self.second):
            if examples is not None:
                examples.hash_into(hasher)
        for array in (self.rows, self.values):
            if array is not None:
                hasher.update(array.tobytes())
        return hasher.hexdigest()

    def limited(self, tokens: int) -> EvalData:
        """Keep evenly spread examples of about `tokens` tokens together, at least one."""
        if tokens >= self.tokens:
            return self
        count = max(1, len(self) * tokens // self.tokens)
        rows = self.rows[np.arange(count) * len(self) // count]
        return EvalData(self.kind, self.examples, rows, self.description, self.values, self.second)

    def batches(self, batch_tokens: int) -> Iterator[EvalBatch]:
        """Go once through all examples, in batches of about `batch_tokens` tokens; always the same."""
        for chosen in plan(self.lengths, batch_tokens, FIXED_ORDER):
            rows = self.rows[chosen]
            inputs = self.examples.collate(rows, None)
            targets = self.examples.targets(rows, inputs) if self.kind == "text" else None
            if self.values is not None:
                targets = torch.from_numpy(self.values[rows])
            yield EvalBatch(inputs, rows, targets, self.second.collate(rows, None) if self.second else None)


def load_examples(source: str, pretrained: Pretrained, *, sequence_length: int | None = None, split: str | None = None,
                  field: str = "text", seed: int = 0) -> EvalData:  # fmt: skip
    """Load data to evaluate a model on: a file, a folder, a glob, or `hub:NAME[:config][@revision]`.

    How it is read follows from the model's task and the data: causal and masked models predict text (half-overlapping
    windows, or passages, of `sequence_length` tokens, by default 512 or the model's longest; masks keyed by `seed`);
    embedding models take scored sentence pairs or text; classifiers take labelled text or images, or bare ones.
    `split` and `field` are for hub data sets and JSON lines. Raises DataError where the data is missing, damaged or
    does not fit.
    """
    notes: list[str] = []
    kind = modality(pretrained)
    hub = load_hub(source.removeprefix(HUB), split) if source.startswith(HUB) else None
    if kind == "images":
        return _pictures(source, hub, pretrained, notes)
    length = capped_length(
        pretrained, sequence_length or min(longest_sequence(pretrained) or _LONGEST, _LONGEST), notes
    )
    if hub is not None:
        return _from_table(source, hub.table(), hub.label_names(), pretrained, length, field, seed, notes)
    files = find_files(source, (".txt",))
    if len(files) == 1 and files[0].suffix.lower() in SUFFIXES:
        table = read_table(files[0], f"columns for this {pretrained.task} model: {_WANTED[pretrained.task]}")
        return _from_table(source, table, None, pretrained, length, field, seed, notes)
    make = document_source if pretrained.task == "causal" else passage_source
    return _text(source, [make(file) for file in files], pretrained, length, seed, notes)


def _from_table(source: str, table: Table, names: Sequence[str] | None, pretrained: Pretrained, length: int, field: str,
                seed: int, notes: list[str]) -> EvalData:  # fmt: skip
    task = pretrained.task
    scores = "score" if table.has("score") else "label"
    if task == "embedding" and table.has("sentence1", "sentence2", scores):
        first, second = (
            whole_texts(table.texts(name), pretrained, length, notes) for name in ("sentence1", "sentence2")
        )
        values = np.asarray(table.numbers(scores), np.float32)
        return EvalData(
            "pairs", first, np.arange(len(table)), _described(source, len(table), "pairs", notes), values, second
        )
    if not table.has(field := canonical(field)):
        raise DataError(
            f"the data has {', '.join(table.columns)}, which does not fit this {task} model",
            where=source,
            remedy=f"give {_WANTED[task]}",
        )
    texts = table.texts(field)
    if task == "text-classification":
        examples = whole_texts(texts, pretrained, length, notes)
        ids = (
            class_ids(table.columns["label"], pretrained.model.config, table.places, names, notes)
            if table.has("label")
            else None
        )
        kind: Kind = "unlabelled" if ids is None else "labelled"
        return EvalData(kind, examples, np.arange(len(table)), _described(source, len(table), "texts", notes), ids)
    return _text(source, [record_source(texts, 1)], pretrained, length, seed, notes)


def _text(
    source: str, sources: list[Source], pretrained: Pretrained, length: int, seed: int, notes: list[str]
) -> EvalData:
    examples: Examples
    if pretrained.task == "causal":
        examples, _ = windows(sources, pretrained, length, evaluation=True)
        unit = f"windows of {int(examples.lengths[0])} tokens, overlapping by half"
    else:
        examples, _ = passages(sources, pretrained, length, seed=seed)
        unit = "passages"
    data = EvalData.held_out(Split(examples, np.arange(len(examples.lengths))), pretrained.task, "")
    return EvalData(data.kind, examples, data.rows, _described(source, len(data), unit, notes))


def _pictures(source: str, hub: HubData | None, pretrained: Pretrained, notes: list[str]) -> EvalData:
    config = pretrained.model.config
    labels: Sequence[Any] | None
    if hub is not None:
        column = hub.column_of("ClassLabel")
        pictures: Sequence[Any] = hub.pictures()
        labels, names = (hub.rows[column], hub.label_names()) if column else (None, None)
        places: Sequence[str] = [source] * len(pictures)
    else:
        pictures, labels, places = _labelled_files(source)
        names = None
    examples = images.make_images(pictures, pretrained)
    use = labels is not None and pretrained.task == "image-classification"
    ids = class_ids(list(labels or ()), config, places, names, notes) if use else None
    kind: Kind = "unlabelled" if ids is None else "labelled"
    return EvalData(kind, examples, np.arange(len(pictures)), _described(source, len(pictures), "images", notes), ids)


def _labelled_files(source: str) -> tuple[list[Path], list[Any] | None, list[str]]:
    """Find images and their labels: a table with file_name and label, or else the names of the images' folders."""
    given = Path(source).expanduser()
    tables = (
        [given] if given.is_file() and given.suffix.lower() in SUFFIXES else [given / name for name in _LABEL_FILES]
    )
    found = next((table for table in tables if table.is_file()), None)
    if found is not None:
        table = read_table(found, "columns file_name and label")
        if not table.has("file_name"):
            raise DataError(
                f"the columns are {', '.join(table.columns)}", where=str(found), remedy="give file_name and label"
            )
        files = [found.parent / name for name in table.texts("file_name")]
        missing = next((row for row, file in enumerate(files) if not file.is_file()), None)
        if missing is not None:
            raise DataError(
                f"there is no {files[missing]}", where=table.places[missing], remedy="correct or remove the row"
            )
        return files, table.columns.get("label"), list(table.places)
    files = find_files(source, images.SUFFIXES)
    folders = [file.parent for file in files]
    labels = [folder.name for folder in folders] if given.is_dir() and given not in folders else None
    return files, labels, [str(file) for file in files]


def _described(source: str, count: int, unit: str, notes: list[str]) -> str:
    name = source if source.startswith(HUB) else Path(source).name
    return "; ".join([f"{name}: {count:,} {unit}", *notes])
