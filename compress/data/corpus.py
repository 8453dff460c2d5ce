"""The distillation data of a recipe: a part to train on and a part held out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..recipe import DataSettings
from ..tasks import HEADS, Task
from . import audio, images, records, tables
from .batching import Split
from .encode import blank_windows, pairs, passages, windows
from .files import find_files
from .hub import HubRecordings, load_hub
from .inputs import Modality, capped_length, modality
from .manifest import audio_files
from .paired import Paired, unwritten
from .sentences import with_sentences
from .sequences import Examples, Rows
from .tables import read_table
from .text import Source, document_source, field_source, passage_source, record_source

if TYPE_CHECKING:
    from pathlib import Path

    from ..models import Pretrained

LEAST_HELD_OUT = 4096  # tokens, where a quarter of the data is more than that
_STRETCHES = 8  # held-out text comes from so many places
_SENTENCES: dict[Task, float] = {"embedding": 1.0}  # share of a text's passages that are taken apart
_SUFFIXES = {
    "text": (".txt",), "jsonl": (".jsonl",), "pairs": tables.SUFFIXES, "images": images.SUFFIXES,
    "audio": audio.SUFFIXES,
}  # fmt: skip
_SOURCES: dict[Modality, tuple[str, ...]] = {
    "text": ("text", "jsonl", "pairs", "teacher"), "images": ("images",), "audio": ("audio",)
}  # fmt: skip
_UNITS = {
    "Images": "images", "Windows": "windows", "BlankWindows": "windows that the dense model writes",
    "Recordings": "recordings", "Records": "records",
}  # fmt: skip
_PAIRS = "sentence pairs: TSV, CSV or JSON lines with sentence1 and sentence2"
_TARGETS = "TSV, CSV or JSON lines with source and target"


@dataclass(frozen=True)
class Corpus:
    """Data to distil on. `description` says what it is and what was capped; `fingerprint` is a SHA-256 (hex).

    The fingerprint covers everything a batch is made of: token ids or image bytes, special tokens or the image
    processor, and the settings.
    """

    train: Split
    holdout: Split
    description: str
    fingerprint: str


def check_data(data: DataSettings) -> None:
    """Check that local data is there, before anything is loaded. Raises DataError."""
    if data.source == "audio" and data.path is not None:
        for name in ("soundfile", "soxr"):
            audio.library(name)
        audio_files(data.path)
    elif data.source not in ("hub", "teacher"):
        _files(data)


def load_corpus(data: DataSettings, pretrained: Pretrained, seed: int) -> Corpus:
    """Read, tokenise and divide a recipe's data for a model.

    Where an encoder-decoder model gets data without targets, its own dense form is to write them: the examples are
    `Unwritten`. Raises DataError: missing, unreadable or empty data, less than two sequences, data of the wrong kind
    for the model, no tokenizer, image processor or feature extractor.
    """
    notes: list[str] = []
    kind = modality(pretrained)
    if data.source not in (*_SOURCES[kind], "hub") and not data.fields:
        raise DataError(
            f"the model reads {kind}, the data is {data.source}",
            where="data.source",
            remedy=f"give data of source {', '.join(_SOURCES[kind])} or hub",
        )
    make = _records if data.fields else {"images": _images, "audio": _audio, "text": _text}[kind]
    examples, exhausted = make(data, pretrained, seed, notes)
    if writes_targets(pretrained, examples):
        examples = unwritten(examples, pretrained, data.sequence_length)
        guess = int(examples.lengths_in("decoder")[0])
        notes.append(f"the dense model writes what its decoder is distilled on, {guess} tokens each at a guess")
    if len(examples.lengths) < 2:
        raise DataError(
            f"one sequence of {int(examples.lengths[0])} tokens is all there is: none is left to hold out",
            where=f"data.{'name' if data.source == 'hub' else 'path'}",
            remedy="give more data, or lower data.sequence_length",
        )
    train, holdout = hold_out(examples.lengths, data.holdout, seed, scattered=kind != "text" or bool(data.fields))
    ends = np.cumsum(examples.lengths[train])
    train = train[: max(1, int(np.searchsorted(ends, data.tokens, side="right")))]
    splits = Split(examples, train, random=True), Split(examples, holdout)
    if exhausted and splits[0].tokens < data.tokens - int(examples.lengths.max()):
        notes.append(f"data.tokens = {data.tokens:,} is more than there is")
    unit = _UNITS.get(type(getattr(examples, "source", examples)).__name__, "passages")
    summary = (
        f"{data.source}: {splits[0].tokens:,} tokens in {len(train):,} {unit} to train on, "
        f"{splits[1].tokens:,} in {len(holdout):,} held out"
    )
    return Corpus(*splits, "; ".join([summary, *notes]), _fingerprint(data, seed, examples))


def writes_targets(pretrained: Pretrained, examples: Examples) -> bool:
    """Whether a model's decoder needs what the examples do not have. Raises DataError where it cannot write it."""
    config = pretrained.model.config
    if not getattr(config, "is_encoder_decoder", False) or isinstance(examples, Paired):
        return False
    if HEADS[pretrained.task].answer == "any":
        raise DataError(
            "the model's decoder reads text, the data has none for it, and without a head the model writes none",
            where="data.source",
            remedy="give `source: pairs` with source and target, or a model with its head",
        )
    return pretrained.task.endswith("seq2seq")


def hold_out(lengths: NDArray[np.int64], share: float, seed: int, *, scattered: bool) -> tuple[Rows, Rows]:
    """Divide examples into rows to train on and rows held out, keyed by `seed`; both are in ascending order.

    Held out is `share`, or LEAST_HELD_OUT tokens where a quarter of the data is more: in stretches spread over the
    data, because neighbours in a text are alike, or scattered.
    """
    count = len(lengths)
    least = min(LEAST_HELD_OUT / float(lengths.mean()), count / 4)
    held = min(max(1, math.ceil(max(share * count, least))), count - 1)
    generator = np.random.default_rng((seed, 1))
    if scattered:
        rows = np.sort(generator.permutation(count)[:held])
    else:
        stretches = min(_STRETCHES, held)
        parts = []
        for index in range(stretches):
            first, end = count * index // stretches, count * (index + 1) // stretches
            size = min(held * (index + 1) // stretches - held * index // stretches, end - first)
            start = first + int(generator.integers(end - first - size + 1))
            parts.append(np.arange(start, start + size))
        rows = np.concatenate(parts)
    return np.setdiff1d(np.arange(count), rows), rows


def _files(data: DataSettings) -> list[Path]:
    if data.path is None:
        raise DataError("the recipe names no data", where="data.path", remedy="set it, or give --data PATH")
    files = find_files(data.path, _SUFFIXES[data.source])
    empty = next((file for file in files if file.stat().st_size == 0), None)
    if empty is not None:
        raise DataError("the file is empty", where=str(empty), remedy="fill or remove it")
    if data.source == "text" and files[0].suffix.lower() in (".json", ".jsonl"):
        raise DataError(
            "JSON lines would be read as plain text", where=str(files[0]), remedy="set data.source to jsonl or pairs"
        )
    return files


def _images(data: DataSettings, pretrained: Pretrained, seed: int, notes: list[str]) -> tuple[Examples, bool]:
    pictures = load_hub(data.name or "", data.split).pictures() if data.source == "hub" else _files(data)
    whole = images.make_images(pictures, pretrained)
    most = _to_read(data) // whole.tokens + 1
    if len(pictures) <= most:
        return whole, True
    # Images lie sorted by class: a beginning would be no sample.
    chosen = np.sort(np.random.default_rng((seed, 2)).permutation(len(pictures))[:most])
    return images.make_images([pictures[int(index)] for index in chosen], pretrained), False


def _records(data: DataSettings, pretrained: Pretrained, seed: int, notes: list[str]) -> tuple[Examples, bool]:
    return records.make_records(_files(data), data.fields, pretrained, data.sequence_length), True


def _audio(data: DataSettings, pretrained: Pretrained, seed: int, notes: list[str]) -> tuple[Examples, bool]:
    if data.source == "hub":
        found: Sequence[Any] = load_hub(data.name or "", data.split).recordings()
        places: Sequence[str] = [f"hub:{data.name}, row {row}" for row in range(len(found))]
    else:
        found, places = audio_files(data.path or "")
    whole = audio.make_recordings(found, pretrained, data.seconds, notes, places)
    # Recordings lie sorted by speaker or by day: a beginning would be no sample.
    order = np.random.default_rng((seed, 2)).permutation(len(found))
    tokens = np.bincount(whole.which, whole.lengths, len(found))
    most = int(np.searchsorted(np.cumsum(tokens[order]), _to_read(data))) + 1
    if most >= len(found):
        return whole, True
    rows = np.sort(order[:most]).tolist()
    part = found.chosen(rows) if isinstance(found, HubRecordings) else [found[row] for row in rows]
    return audio.make_recordings(part, pretrained, data.seconds, [], [places[row] for row in rows]), False


def _text(data: DataSettings, pretrained: Pretrained, seed: int, notes: list[str]) -> tuple[Examples, bool]:
    causal = pretrained.task == "causal"
    if causal and data.sentences not in ("auto", 0):
        raise DataError(
            "texts are taken apart into sentences for encoders alone; a causal model reads them whole",
            where="data.sentences",
            remedy="leave it out",
        )
    length = capped_length(pretrained, data.sequence_length, notes)
    if data.source == "teacher":
        written = length if data.written_length == "auto" else capped_length(pretrained, data.written_length, notes)
        return blank_windows(pretrained, length, written, _to_read(data), seed), False
    if getattr(pretrained.model.config, "is_encoder_decoder", False) and data.source in ("pairs", "hub"):
        both = _both_sides(data)
        if both is not None:
            return pairs(*both, pretrained, length, notes), True
    sources = _sources(data, causal)
    if causal:
        return windows(sources, pretrained, length, wanted=_to_read(data))
    share = _SENTENCES.get(pretrained.task, 0.0) if data.sentences == "auto" else data.sentences
    sources = [with_sentences(source, share, (seed, 3, index)) for index, source in enumerate(sources)]
    return passages(sources, pretrained, length, wanted=_to_read(data), seed=seed)


def _both_sides(data: DataSettings) -> tuple[list[str], list[str]] | None:
    """Sources and targets; None of a hub data set that has no targets. Raises DataError where a file has none."""
    names = (data.field, data.target_field)
    if data.source == "hub":
        hub = load_hub(data.name or "", data.split)
        columns = hub.rows.column_names
        names = names if set(names) <= set(columns) else ("source", "target")
        return tables.both_sides(hub.table(), names) if set(names) <= set(columns) else None
    sides: tuple[list[str], list[str]] = ([], [])
    for file in _files(data):
        for side, texts in zip(sides, tables.both_sides(read_table(file, _TARGETS, names), names), strict=True):
            side += texts
    return sides


def _to_read(data: DataSettings) -> int:
    """Tokens that leave data.tokens to train on when the held-out part is taken away."""
    return data.tokens + max(math.ceil(data.tokens * data.holdout / (1 - data.holdout)), LEAST_HELD_OUT)


def _sources(data: DataSettings, causal: bool) -> list[Source]:
    if data.source == "hub":
        hub = load_hub(data.name or "", data.split)
        if data.field not in hub.rows.column_names and {"sentence1", "sentence2"} <= set(hub.rows.column_names):
            return [_sentences([*hub.texts("sentence1"), *hub.texts("sentence2")])]
        return [record_source(hub.texts(data.field), 1)]
    files = _files(data)
    if data.source == "text":
        return [document_source(file) if causal else passage_source(file) for file in files]
    if data.source == "jsonl":
        return [field_source(file, data.field) for file in files]
    sources = []
    for file in files:
        table = read_table(file, _PAIRS)
        if not table.has("sentence1", "sentence2"):
            raise DataError(f"the columns are {', '.join(table.columns)}", where=f"{file}:1", remedy=f"give {_PAIRS}")
        sources.append(_sentences([*table.texts("sentence1"), *table.texts("sentence2")]))
    return sources


def _sentences(texts: list[str]) -> Source:
    unique = list(dict.fromkeys(texts))
    return record_source(unique, len(unique))


def _fingerprint(data: DataSettings, seed: int, examples: Examples) -> str:
    hasher = hashlib.sha256(data.model_dump_json(exclude={"path", "name"}).encode())
    hasher.update(f"{seed} {type(examples).__name__}".encode())
    examples.hash_into(hasher)
    return hasher.hexdigest()
