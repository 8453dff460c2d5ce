"""Data to evaluate on: text to predict, sentence pairs with a score, inputs with a label or transcript, or alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError
from ..tasks import HEADS
from . import audio, images
from .batching import FIXED_ORDER, Split, plan
from .corpus import writes_targets
from .encode import pairs, passages, whole_texts, windows
from .files import find_files
from .hub import HubData, load_hub
from .inputs import capped_length, longest_sequence, modality, tokenizer_of
from .labels import class_ids
from .manifest import labelled_images, labelled_recordings, transcribed_recordings
from .paired import Paired, unwritten
from .records import make_records
from .sequences import Examples, Rows
from .tables import SUFFIXES, Table, both_sides, canonical, read_table, sides_of
from .text import Source, document_source, passage_source, record_source

if TYPE_CHECKING:
    from ..models import Pretrained
    from ..recipe import DataSettings

Kind = Literal["text", "written", "pairs", "labelled", "unlabelled"]
HUB = "hub:"
_LONGEST = 512  # tokens a sequence, where the model takes more
_SECONDS = 30.0  # of a recording in one piece, where nothing is known of it that would have to be cut too


@dataclass(frozen=True)
class EvalBatch:
    """Keyword arguments of the model and what its answers are held against.

    `targets`: for text, int64 [B, T], the token that the logits of each position should name (-100: none); for pairs
    float32 [B] scores, `second` holding the other sentences; for labelled inputs int64 [B] class ids. `references` are
    transcripts, where there are any. `rows` are the examples' positions in the data set.
    """

    inputs: dict[str, Tensor]
    rows: Rows
    targets: Tensor | None = None
    second: dict[str, Tensor] | None = None
    references: list[str] | None = None


@dataclass(frozen=True)
class EvalData:
    """Examples of one kind; "written" is text by the dense model. `values`: scores or class ids, where it has them."""

    kind: Kind
    examples: Examples
    rows: Rows
    description: str
    values: NDArray[Any] | None = None
    second: Examples | None = None
    references: Sequence[str] | None = None  # transcripts

    @classmethod
    def held_out(cls, split: Split, task: str, description: str) -> EvalData:
        """Evaluate on a corpus's held-out part."""
        kind: Kind = "text" if task in ("causal", "masked") or isinstance(split.examples, Paired) else "unlabelled"
        return cls(kind, split.examples, split.rows, description).with_examples(split.examples)

    def with_examples(self, examples: Examples) -> EvalData:
        """Put in the same examples with what the dense model wrote for them."""
        written = isinstance(examples, Paired) and examples.written > 0
        return replace(self, kind="written" if written else self.kind, examples=examples)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example; of a pair, both sentences."""
        return self.lengths_of(self.rows)

    def lengths_of(self, rows: Rows) -> NDArray[np.int64]:
        """Tokens of some examples."""
        lengths = self.examples.lengths if self.second is None else self.examples.lengths + self.second.lengths
        return lengths[rows]

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
        for text in self.references or ():
            hasher.update(text.encode())
        return hasher.hexdigest()

    def limited(self, tokens: int) -> EvalData:
        """Keep evenly spread examples of about `tokens` tokens together, at least one."""
        if tokens >= self.tokens:
            return self
        count = max(1, len(self) * tokens // self.tokens)
        rows = self.rows[np.arange(count) * len(self) // count]
        return replace(self, rows=rows)

    def batches(self, batch_tokens: int) -> Iterator[EvalBatch]:
        """Go once through all examples, in batches of about `batch_tokens` tokens; always the same."""
        for chosen in plan(self.lengths, batch_tokens, FIXED_ORDER):
            rows = self.rows[chosen]
            inputs = self.examples.collate(rows, None)
            targets = self.examples.targets(rows, inputs) if self.kind in ("text", "written") else None
            if self.values is not None:
                targets = torch.from_numpy(self.values[rows])
            second = self.second.collate(rows, None) if self.second else None
            references = [self.references[int(row)] for row in rows] if self.references is not None else None
            yield EvalBatch(inputs, rows, targets, second, references)


def load_as(read: DataSettings, source: str, pretrained: Pretrained) -> EvalData:
    """Load data to evaluate on as a recipe reads its own, so that numbers agree with those of its conversion."""
    return load_examples(
        source, pretrained, sequence_length=read.sequence_length, sides=(read.field, read.target_field),
        fields=read.fields,
    )  # fmt: skip


def load_examples(source: str, pretrained: Pretrained, *, sequence_length: int | None = None, split: str | None = None,
                  field: str = "text", sides: tuple[str, str] = ("source", "target"),
                  fields: Mapping[str, str] | None = None, seed: int = 0) -> EvalData:  # fmt: skip
    """Load data to evaluate a model on: a file, a folder, a glob, or `hub:NAME[:config][@revision]`.

    How it is read follows from the model's task and the data: causal and masked models predict text (half-overlapping
    windows, or passages, of `sequence_length` tokens, by default 512 or the model's longest; masks keyed by `seed`);
    embedding models take scored sentence pairs or text; classifiers take labelled text, images or recordings, or bare
    ones; models that write take sources and targets (columns of the names `sides`) or sources alone; models that
    transcribe take recordings, with or without a table of file_name and text; of JSON lines with `fields` the
    model's processor makes inputs alone.
    `split` and `field` are for hub data sets and JSON lines. Raises DataError where the data is missing, damaged or
    does not fit.
    """
    notes: list[str] = []
    kind = modality(pretrained)
    hub = load_hub(source.removeprefix(HUB), split) if source.startswith(HUB) else None
    if fields and hub is None:
        found: Examples = make_records(find_files(source, (".jsonl",)), fields, pretrained, sequence_length or _LONGEST)
        if writes_targets(pretrained, found):
            found = unwritten(found, pretrained, sequence_length or _LONGEST)
        count = len(found.lengths)
        return EvalData("unlabelled", found, np.arange(count), _described(source, count, "records", notes))
    if kind == "images":
        return _pictures(source, hub, pretrained, notes)
    if kind == "audio":
        return _recordings(source, hub, pretrained, sequence_length or _LONGEST, notes)
    length = capped_length(
        pretrained, sequence_length or min(longest_sequence(pretrained) or _LONGEST, _LONGEST), notes
    )
    if hub is not None:
        return _from_table(source, hub.table(), hub.label_names(), pretrained, length, field, sides, seed, notes)
    files = find_files(source, (".txt",))
    if len(files) == 1 and files[0].suffix.lower() in SUFFIXES:
        table = read_table(files[0], f"columns for this {pretrained.task} model: {HEADS[pretrained.task].data}", sides)
        return _from_table(source, table, None, pretrained, length, field, sides, seed, notes)
    make = document_source if pretrained.task == "causal" else passage_source
    return _text(source, [make(file) for file in files], pretrained, length, seed, notes)


def _from_table(source: str, table: Table, names: Sequence[str] | None, pretrained: Pretrained, length: int, field: str,
                sides: tuple[str, str], seed: int, notes: list[str]) -> EvalData:  # fmt: skip
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
    if task == "seq2seq" and sides_of(table, sides) is not None:
        both = pairs(*both_sides(table, sides), pretrained, length, notes)
        return EvalData("text", both, np.arange(len(table)), _described(source, len(table), "pairs", notes))
    if not table.has(field := canonical(field)):
        raise DataError(
            f"the data has {', '.join(table.columns)}, which does not fit this {task} model",
            where=source,
            remedy=f"give {HEADS[task].data}",
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
    if writes_targets(pretrained, examples):
        examples = unwritten(examples, pretrained, length)
    data = EvalData.held_out(Split(examples, np.arange(len(examples.lengths))), pretrained.task, "")
    return EvalData(data.kind, examples, data.rows, _described(source, len(data), unit, notes))


def _recordings(source: str, hub: HubData | None, pretrained: Pretrained, length: int, notes: list[str]) -> EvalData:
    classes = pretrained.task == "audio-classification"
    found: Sequence[Any]
    known: Sequence[Any] | None
    names = None
    if hub is not None:
        found, table = hub.recordings(), hub.table()
        places: Sequence[str] = table.places
        known, names = table.columns.get("label" if classes else "text"), hub.label_names()
    else:
        found, known, places = (labelled_recordings if classes else transcribed_recordings)(source)
    examples: Examples = audio.make_recordings(found, pretrained, _SECONDS if known is None else None, notes, places)
    ids = class_ids(known, pretrained.model.config, places, names, notes) if classes and known is not None else None
    if writes_targets(pretrained, examples):
        examples = unwritten(examples, pretrained, length)
    count = len(examples.lengths)
    kind: Kind = "unlabelled" if ids is None else "labelled"
    references = None if classes or known is None else [str(text) for text in known]
    if references is not None:
        tokenizer_of(pretrained)  # without one nothing can be told from what is said
    return EvalData(
        kind, examples, np.arange(count), _described(source, count, "recordings", notes), ids, references=references
    )


def _pictures(source: str, hub: HubData | None, pretrained: Pretrained, notes: list[str]) -> EvalData:
    config = pretrained.model.config
    labels: Sequence[Any] | None
    if hub is not None:
        column = hub.column_of("ClassLabel")
        pictures: Sequence[Any] = hub.pictures()
        labels, names = (hub.rows[column], hub.label_names()) if column else (None, None)
        places: Sequence[str] = [source] * len(pictures)
    else:
        pictures, labels, places = labelled_images(source)
        names = None
    examples: Examples = images.make_images(pictures, pretrained)
    if writes_targets(pretrained, examples):
        examples = unwritten(examples, pretrained, _LONGEST)
    use = labels is not None and pretrained.task == "image-classification"
    ids = class_ids(list(labels or ()), config, places, names, notes) if use else None
    kind: Kind = "unlabelled" if ids is None else "labelled"
    return EvalData(kind, examples, np.arange(len(pictures)), _described(source, len(pictures), "images", notes), ids)


def _described(source: str, count: int, unit: str, notes: list[str]) -> str:
    name = source if source.startswith(HUB) else Path(source).name
    return "; ".join([f"{name}: {count:,} {unit}", *notes])
