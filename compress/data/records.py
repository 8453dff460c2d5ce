"""JSON records as model inputs: named fields of each become arguments of the model's own processor."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError
from ..streams import Stream
from .audio import wave_of
from .images import open_picture, patches
from .inputs import longest_sequence
from .sequences import Draw, Hasher, Rows
from .text import read_records

if TYPE_CHECKING:
    from ..models import Pretrained

FILES = ("images", "audio")  # arguments whose fields name files
_AT_ONCE = 64  # records
_ALONE = threading.Lock()  # a fast tokenizer whose padding one thread sets while another one uses it raises


@dataclass(frozen=True)
class Records:
    """Records, read when their batch is made. `columns`: argument of the processor -> value of each record.

    `tokens` counts what the model's text (or main) part sees of each, `patches` what its image tower sees.
    """

    columns: Mapping[str, Sequence[Any]]
    processor: Any
    accepted: frozenset[str]
    length: int
    tokens: NDArray[np.int64]
    patches: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each record, the image tower's with them."""
        return self.tokens + self.patches

    def lengths_in(self, stream: Stream) -> NDArray[np.int64]:
        """Tokens of each record that the image tower sees, or the rest."""
        return self.patches if stream == "images" else self.tokens

    def collate(self, rows: Rows, draw: Draw | None) -> dict[str, Tensor]:
        """Give what the processor makes of the records and the model takes."""
        arguments = {
            name: [self._value(name, values[int(row)]) for row in rows] for name, values in self.columns.items()
        }
        options: dict[str, Any] = {"padding": True}
        if "images" not in arguments and "audio" not in arguments:
            options |= {"truncation": True, "max_length": self.length}
        with _ALONE:
            made = self.processor(**arguments, return_tensors="pt", **options)
        return {
            name: value.float() if value.is_floating_point() else value
            for name, value in made.items()
            if name in self.accepted and isinstance(value, Tensor)
        }

    def targets(self, rows: Rows, inputs: dict[str, Tensor]) -> None:
        """Records predict no tokens."""

    def hash_into(self, hasher: Hasher) -> None:
        """Feed a hash all values, files by their bytes."""
        for name, values in self.columns.items():
            hasher.update(f"{name} {len(values)} {self.length}".encode())
            for value in values:
                data = value.read_bytes() if isinstance(value, Path) else str(value).encode()
                hasher.update(len(data).to_bytes(8, "little"))
                hasher.update(data)
        hasher.update(repr(self.processor).encode())

    def _value(self, name: str, value: Any) -> Any:
        if name == "images":
            return open_picture(value)
        return wave_of(value, self.processor.feature_extractor.sampling_rate) if name == "audio" else value


def make_records(files: Sequence[Path], fields: Mapping[str, str], pretrained: Pretrained, length: int) -> Records:
    """Read JSON lines for a model; `fields` says which field of a record is which argument of its processor.

    Raises DataError, with file and line, where a record lacks a field or a file that it names, and where the processor
    does not take them.
    """
    columns: dict[str, list[Any]] = {argument: [] for argument in fields}
    for path in files:
        for number, record in read_records(path):
            for argument, field in fields.items():
                columns[argument].append(_checked(record, argument, field, path, number))
    if not next(iter(columns.values())):
        raise DataError("there is no record in the data", where=str(files[0]), remedy="give one JSON object a line")
    model: Any = pretrained.model
    accepted = frozenset(inspect.signature(model.forward).parameters)
    limit = min(length, longest_sequence(pretrained) or length)
    count = len(next(iter(columns.values())))
    nothing = np.zeros(count, np.int64)
    records = Records(columns, _processor(pretrained, fields), accepted, limit, nothing, nothing)
    tokens: list[int] = []
    seen: list[int] = []
    for start in range(0, count, _AT_ONCE):
        rows = np.arange(start, min(start + _AT_ONCE, count))
        batch = _tried(records, rows, fields)
        mask, pixels = batch.get("attention_mask"), batch.get("pixel_values")
        tokens += [0] * len(rows) if mask is None else mask.sum(-1).tolist()
        seen += [0 if pixels is None else patches(model, pixels)] * len(rows)
    if not any(tokens):  # images alone: the model's main part
        tokens, seen = seen, [0] * count
    return Records(
        columns, records.processor, accepted, limit, np.asarray(tokens, np.int64), np.asarray(seen, np.int64)
    )


def _tried(records: Records, rows: Rows, fields: Mapping[str, str]) -> dict[str, Tensor]:
    try:
        batch = records.collate(rows, None)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise DataError(
            f"the model's processor does not take {', '.join(fields)}: {str(error).partition(chr(10))[0]}",
            where="data.fields",
            remedy=f"name arguments of {type(records.processor).__name__}: text, text_pair, images or audio, say",
        ) from None
    if not batch:
        raise DataError(
            f"of {', '.join(fields)} the model's processor makes nothing that the model takes",
            where="data.fields",
            remedy="name all that the model reads",
        )
    return batch


def _checked(record: dict[str, Any], argument: str, field: str, path: Path, number: int) -> Any:
    value = record.get(field)
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f"the record has no text in `{field}`",
            where=f"{path}:{number}",
            remedy=f"set data.fields.{argument} to one of its keys: {', '.join(record)}",
        )
    if argument not in FILES:
        return value
    file = path.parent / value
    if not file.is_file():
        raise DataError(f"there is no {file}", where=f"{path}:{number}", remedy="correct or remove the record")
    return file


def _processor(pretrained: Pretrained, fields: Mapping[str, str]) -> Any:
    if not set(fields) & set(FILES):
        return getattr(pretrained.processor, "tokenizer", pretrained.processor)
    import transformers

    try:  # pillow alone, as for images without text
        return transformers.AutoProcessor.from_pretrained(pretrained.folder, backend="pil")
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise DataError(
            f"the model's processor cannot be loaded: {str(error).partition(chr(10))[0]}",
            where=pretrained.source,
            remedy="put preprocessor_config.json and the tokenizer's files beside its weights",
        ) from error
