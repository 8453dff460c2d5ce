"""Plain text and records -> pieces: stretches of documents for causal models, passages for encoders."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import DataError
from .files import read_blocks, read_lines

STRETCH = 1 << 15  # characters; long enough that what a tokenizer does at its ends does not matter
_WRAPPED_WIDTH = 120  # characters: hard-wrapped text has no longer line
_WRAPPED_LINES = 1.5  # lines a paragraph: fewer, and each line is a paragraph of its own
_LOOK = 2000  # lines that show how a file is laid out

Piece = tuple[str, bool]  # text, and whether a document ends with it


@dataclass(frozen=True)
class Source:
    """A stream of pieces; `weight` is its share of what is read when not everything is."""

    weight: int
    pieces: Callable[[], Iterator[Piece]]


def document_source(path: Path) -> Source:
    """Read a text file as one document, in stretches that end where a line does."""
    return Source(path.stat().st_size, lambda: _stretches(path))


def passage_source(path: Path) -> Source:
    """Read a text file as passages: its paragraphs where it is hard-wrapped, its non-empty lines where it is not."""
    passages = paragraphs if is_wrapped(islice(read_lines(path), _LOOK)) else lines
    return Source(path.stat().st_size, lambda: ((text, True) for text in passages(read_lines(path))))


def record_source(texts: Iterable[str], weight: int) -> Source:
    """Take every text as a document of its own."""
    return Source(weight, lambda: ((text, True) for text in texts))


def _stretches(path: Path) -> Iterator[Piece]:
    rest = ""
    for block in read_blocks(path):
        rest += block
        while len(rest) >= 2 * STRETCH:
            end = _end_of_line(rest, STRETCH)
            yield rest[:end], False
            rest = rest[end:]
    if rest:
        yield rest, True


def _end_of_line(text: str, limit: int) -> int:
    """Find the last place up to `limit` where a line ends and the next begins with text, or any place for want of one.

    Tokenizers join white space: a cut inside it would give tokens that the whole text does not have.
    """
    end = limit
    while (end := text.rfind("\n", limit // 2, end)) >= 0:
        if not text[end + 1].isspace():
            return end + 1
    return text.rfind(" ", 1, limit) if " " in text[1:limit] else limit


def is_wrapped(sample: Iterable[str]) -> bool:
    """Tell whether paragraphs run over several short lines, as in a book; `sample` is the beginning of a file."""
    rows = [line.strip() for line in sample]
    filled = sum(map(bool, rows))
    count = sum(bool(row) and (index == 0 or not rows[index - 1]) for index, row in enumerate(rows))
    return filled >= _WRAPPED_LINES * count > _WRAPPED_LINES and max(map(len, rows)) <= _WRAPPED_WIDTH


def lines(rows: Iterable[str]) -> Iterator[str]:
    """Yield the non-empty lines."""
    return (text for row in rows if (text := row.strip()))


def paragraphs(rows: Iterable[str]) -> Iterator[str]:
    """Yield the stretches of non-empty lines."""
    held: list[str] = []
    for row in rows:
        if text := row.strip():
            held.append(text)
        elif held:
            yield "\n".join(held)
            held = []
    if held:
        yield "\n".join(held)


def read_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read JSON lines: line number (from 1) and object. Raises DataError with the line."""
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(
                f"not JSON: {error}", where=f"{path}:{number}", remedy="write one JSON object a line"
            ) from None
        if not isinstance(record, dict):
            raise DataError(
                "the line is not a JSON object", where=f"{path}:{number}", remedy="write one JSON object a line"
            )
        yield number, record


def field_source(path: Path, field: str) -> Source:
    """Read one text field of JSON lines, a document a record. Raises DataError where a record lacks it."""

    def texts() -> Iterator[Piece]:
        for number, record in read_records(path):
            if not isinstance(record.get(field), str):
                raise DataError(
                    f"the record has no text in `{field}`",
                    where=f"{path}:{number}",
                    remedy=f"set data.field to one of its keys: {', '.join(record)}",
                )
            if record[field]:
                yield record[field], True

    return Source(path.stat().st_size, texts)
