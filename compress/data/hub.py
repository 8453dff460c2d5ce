"""Data sets of the Hugging Face hub, through the `datasets` library."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError
from .tables import Table, canonical

_ROWS = 1000  # read at once
_EVALUATION_SPLITS = ("validation", "test", "dev", "train")


@dataclass(frozen=True)
class HubData:
    """One split of a hub data set; `rows` is a `datasets.Dataset`."""

    name: str
    split: str
    rows: Any

    def column_of(self, feature: str) -> str | None:
        """Find the first column of a feature type (`Image`, `ClassLabel`)."""
        return next((name for name, kind in self.rows.features.items() if type(kind).__name__ == feature), None)

    def texts(self, column: str) -> Iterator[str]:
        """Yield a column's non-empty texts. Raises DataError where it holds something else."""
        if column not in self.rows.column_names:
            raise DataError(
                f"the data set has no column `{column}`",
                where=f"hub:{self.name}",
                remedy=f"set data.field to one of {', '.join(self.rows.column_names)}",
            )
        for start in range(0, len(self.rows), _ROWS):
            for text in self.rows[start : start + _ROWS][column]:
                if not isinstance(text, str):
                    raise DataError(
                        f"the column `{column}` holds no text", where=f"hub:{self.name}", remedy="set data.field"
                    )
                if text.strip():
                    yield text

    def table(self) -> Table:
        """Read all columns but images and recordings, under the names that tables use."""
        left_out = (self.column_of("Image"), self.column_of("Audio"))
        names = [name for name in self.rows.column_names if name not in left_out]
        columns = {canonical(name): list(self.rows[name]) for name in names}
        return Table(columns, [f"hub:{self.name}, {self.split}, row {index}" for index in range(len(self.rows))])

    def label_names(self) -> list[str] | None:
        """Name the classes where the data set does."""
        column = self.column_of("ClassLabel")
        return list(self.rows.features[column].names) if column else None

    def recordings(self) -> HubRecordings:
        """Take the audio column, undecoded. Raises DataError where there is none."""
        import datasets

        column = self.column_of("Audio")
        if column is None:
            raise DataError(
                "the data set has no column of recordings",
                where=f"hub:{self.name}",
                remedy=f"choose another; this one has {', '.join(self.rows.column_names)}",
            )
        return HubRecordings(self.rows.cast_column(column, datasets.Audio(decode=False)), column)

    def pictures(self) -> HubPictures:
        """Take the image column. Raises DataError where there is none."""
        column = self.column_of("Image")
        if column is None:
            raise DataError(
                "the data set has no column of images",
                where=f"hub:{self.name}",
                remedy=f"choose another; this one has {', '.join(self.rows.column_names)}",
            )
        return HubPictures(self.rows, column)


class HubPictures(Sequence[Any]):
    """The images of a data set, decoded when they are asked for."""

    def __init__(self, rows: Any, column: str) -> None:
        self.rows, self.column = rows, column

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        return self.rows[index][self.column]


class HubRecordings(Sequence[Any]):
    """The recordings of a data set: each the bytes of a file, or the path of one."""

    def __init__(self, rows: Any, column: str) -> None:
        self.rows, self.column = rows, column

    def chosen(self, rows: Sequence[int]) -> HubRecordings:
        """Some of them."""
        return HubRecordings(self.rows.select(rows), self.column)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        value = self.rows[int(index)][self.column]
        return value["bytes"] if value["bytes"] is not None else Path(value["path"])


def load_hub(name: str, split: str | None) -> HubData:
    """Load a split of `id[:config][@revision]`; None takes the first of validation, test, dev, train.

    The whole data set is downloaded, or comes from the cache. Raises DataError where neither works.
    """
    import datasets

    identifier, _, revision = name.partition("@")
    identifier, _, config = identifier.partition(":")
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(identifier, config or None, split=split, revision=revision or None)
    except Exception as error:  # the library lets through whatever its transport raises
        raise DataError(
            f"the data set cannot be loaded: {str(error).strip().partition(chr(10))[0]}",
            where=f"hub:{name}" + (f", split {split}" if split else ""),
            remedy="check the id (owner/name[:config][@revision]), the split and the connection, or give a local file",
        ) from error
    if split is None:
        split = next((known for known in _EVALUATION_SPLITS if known in rows), next(iter(rows)))
        rows = rows[split]
    return HubData(name, split, rows)
