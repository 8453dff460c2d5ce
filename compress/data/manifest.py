"""Files with a table beside them that says what each is: images and their labels, recordings and their transcripts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from . import audio, images
from .files import find_files
from .tables import SUFFIXES, Table, read_table

_TABLES = ("labels.csv", "metadata.csv", "metadata.jsonl")


def labelled_images(source: str) -> tuple[list[Path], list[Any] | None, list[str]]:
    """Find images, their labels and where those stand: in a table, or else as the names of the images' folders."""
    return _labelled(source, images.SUFFIXES)


def labelled_recordings(source: str) -> tuple[list[Path], list[Any] | None, list[str]]:
    """Find recordings, their labels and where those stand: in a table, or else as the names of their folders."""
    return _labelled(source, audio.SUFFIXES)


def transcribed_recordings(source: str) -> tuple[list[Path], list[str] | None, list[str]]:
    """Find recordings, their transcripts (None: there are none) and where those stand.

    Raises DataError where a table is given that has no column of transcripts.
    """
    found = _table(source)
    if found is None or (Path(source).expanduser().is_dir() and not found[1].has("text")):
        files, places = audio_files(source)
        return files, None, list(places)
    path, table = found
    if not table.has("text"):
        raise DataError(
            f"there is no column of transcripts: the columns are {', '.join(table.columns)}", where=str(path),
            remedy="give file_name and text, or the folder of recordings alone",
        )  # fmt: skip
    return _files(path, table), table.texts("text"), list(table.places)


def audio_files(source: str) -> tuple[list[Path], Sequence[str]]:
    """List recordings, and where each is named: those of a table, or else a file, a folder or a glob."""
    found = _table(source)
    if found is not None:
        return _files(*found), found[1].places
    files = find_files(source, audio.SUFFIXES)
    return files, [str(file) for file in files]


def _labelled(source: str, suffixes: tuple[str, ...]) -> tuple[list[Path], list[Any] | None, list[str]]:
    found = _table(source)
    if found is not None:
        path, table = found
        return _files(path, table), table.columns.get("label"), list(table.places)
    files, given = find_files(source, suffixes), Path(source).expanduser()
    folders = [file.parent for file in files]
    labels = [folder.name for folder in folders] if given.is_dir() and given not in folders else None
    return files, labels, [str(file) for file in files]


def _table(source: str) -> tuple[Path, Table] | None:
    """Read the table that is given, or that lies in the folder that is."""
    given = Path(source).expanduser()
    named = given.is_file() and given.suffix.lower() in SUFFIXES
    path = next((path for path in ([given] if named else [given / name for name in _TABLES]) if path.is_file()), None)
    if path is None:
        return None
    table = read_table(path, "columns file_name and label, or file_name and text")
    if not table.has("file_name"):
        raise DataError(
            f"the columns are {', '.join(table.columns)}", where=str(path),
            remedy="give file_name, and label or text beside it",
        )  # fmt: skip
    return path, table


def _files(path: Path, table: Table) -> list[Path]:
    files = [path.parent / name for name in table.texts("file_name")]
    missing = next((row for row, file in enumerate(files) if not file.is_file()), None)
    if missing is not None:
        raise DataError(
            f"there is no {files[missing]}", where=table.places[missing], remedy="correct or remove the row"
        )
    return files
