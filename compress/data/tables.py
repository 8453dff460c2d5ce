"""Tables of sentences, scores and labels: TSV, CSV and JSON lines -> named columns."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ..errors import DataError
from .files import read_lines
from .text import read_records

SUFFIXES = (".tsv", ".csv", ".jsonl", ".json")
_ALIASES = {"sentence": "text", "content": "text", "similarity": "score", "transcription": "text", "transcript": "text"}
_KNOWN = {"sentence1", "sentence2", "score", "label", "text", "file_name", "source", "target", *_ALIASES}
# The STS benchmark has no header: genre, file, year, number, score, two sentences (and, in part, their sources).
_STS_COLUMNS = (None, None, None, None, "score", "sentence1", "sentence2")


@dataclass(frozen=True)
class Table:
    """Columns of equal length by name; `places[i]` is where row i stands (`file:line`)."""

    columns: dict[str, list[Any]]
    places: Sequence[str]

    def __len__(self) -> int:
        return len(self.places)

    def has(self, *names: str) -> bool:
        """Tell whether all these columns are there."""
        return all(name in self.columns for name in names)

    def texts(self, name: str) -> list[str]:
        """Take a column of text. Raises DataError where a row has none."""
        for value, place in zip(self.columns[name], self.places, strict=True):
            if not isinstance(value, str) or not value.strip():
                raise DataError(f"there is no text in `{name}`", where=place, remedy="fill it in or remove the row")
        return self.columns[name]

    def numbers(self, name: str) -> list[float]:
        """Take a column of numbers. Raises DataError where a row has none."""
        values = []
        for value, place in zip(self.columns[name], self.places, strict=True):
            try:
                values.append(float(value))
            except (TypeError, ValueError):
                raise DataError(
                    f"`{name}` is {value!r}, not a number", where=place, remedy="correct or remove the row"
                ) from None
        return values


def canonical(name: str) -> str:
    """Give a column the name it goes by here."""
    return _ALIASES.get(name, name)


def both_sides(table: Table, names: tuple[str, str]) -> tuple[list[str], list[str]]:
    """Take what an encoder reads and what its decoder writes: columns of these names, source and target, or two alone.

    Raises DataError where there are none, or a row lacks text.
    """
    found = sides_of(table, names)
    if found is not None:
        return table.texts(found[0]), table.texts(found[1])
    raise DataError(
        f"the columns are {', '.join(table.columns)}",
        where=table.places[0],
        remedy="give source and target, or set data.field and data.target_field to the names that they have",
    )


def sides_of(table: Table, names: tuple[str, str]) -> tuple[str, str] | None:
    """Name the columns that `both_sides` takes; None where there are none."""
    choices = [(canonical(names[0]), canonical(names[1])), ("source", "target"), ("sentence1", "sentence2")]
    return next((choice for choice in choices if table.has(*choice)), None)


def read_table(path: Path, wanted: str, names: Sequence[str] = ()) -> Table:
    """Read a table with a header, the STS benchmark's form, two columns of sentences, or JSON lines.

    Columns `sentence` and `content` count as `text`. Tabs separate where the first line has one, and then quotes have
    no meaning. `names` are column names beside the usual ones. Raises DataError; `wanted` says what was looked for.
    """
    rows = _records(path) if path.suffix.lower() in (".jsonl", ".json") else _delimited(path, wanted, names)
    columns: dict[str, list[Any]] = {}
    places: list[str] = []
    for place, row in rows:
        if not columns:
            columns = {name: [] for name in row}
        if columns.keys() - row.keys():
            missing = ", ".join(sorted(columns.keys() - row.keys()))
            raise DataError(f"the row has no {missing}", where=place, remedy="give all rows the same fields")
        for name, values in columns.items():
            values.append(row[name])
        places.append(place)
    if not places:
        raise DataError("the file holds no rows", where=str(path), remedy=f"give {wanted}")
    return Table(columns, places)


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, record in read_records(path):
        yield f"{path}:{number}", {canonical(name): value for name, value in record.items()}


def _delimited(path: Path, wanted: str, known: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    rows = _cells(path)
    first = next(rows, None)
    if first is None:
        return
    names = [cell.strip() if cell.strip() in known else cell.strip().lower() for cell in first[1]]
    header: list[str | None]
    if (_KNOWN | set(known)).intersection(names):
        header = [canonical(name) for name in names]
    else:
        header, rows = _without_header(path, first[1], wanted), chain([first], rows)
    for number, cells in rows:
        if len(cells) < len(header):
            raise DataError(
                f"the row has {len(cells)} columns, not {len(header)}",
                where=f"{path}:{number}",
                remedy="correct the row",
            )
        yield f"{path}:{number}", {name: cell for name, cell in zip(header, cells, strict=False) if name}


def _cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and cells of each non-empty row."""
    lines = read_lines(path)
    first = next(lines, "")
    lines = chain([first], lines)
    if "\t" in first:
        yield from ((number, line.split("\t")) for number, line in enumerate(lines, 1) if line.strip())
        return
    reader = csv.reader(line + "\n" for line in lines)
    try:
        yield from ((reader.line_num, cells) for cells in reader if cells)
    except csv.Error as error:
        raise DataError(f"not CSV: {error}", where=f"{path}:{reader.line_num}", remedy="correct the row") from None


def _without_header(path: Path, cells: list[str], wanted: str) -> list[str | None]:
    if len(cells) >= len(_STS_COLUMNS) and _is_number(cells[4]):
        return [*_STS_COLUMNS]
    if len(cells) == 2:
        return ["sentence1", "sentence2"]
    if len(cells) == 3 and _is_number(cells[2]):
        return ["sentence1", "sentence2", "score"]
    raise DataError(
        f"the columns have no names that say what they are: {', '.join(cells[:8])}",
        where=f"{path}:1",
        remedy=f"give {wanted}; the first line names the columns: sentence1, sentence2, score; or text, label",
    )


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
