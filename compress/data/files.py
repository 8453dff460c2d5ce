"""Which files a path names, and their text."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from ..errors import DataError

_BLOCK = 1 << 16  # characters read at once


def find_files(path: str, suffixes: tuple[str, ...]) -> list[Path]:
    """List what a path names, in alphabetical order: a file, a folder's files with one of `suffixes`, or a glob's hits.

    Raises DataError where there is nothing.
    """
    given = Path(path).expanduser()
    if given.is_file():
        return [given]
    if given.is_dir():
        found = [file for file in given.rglob("*") if file.suffix.lower() in suffixes and file.is_file()]
        problem = f"the folder holds no {', '.join(suffixes)} file"
    elif glob.has_magic(path):
        found = [Path(hit) for hit in glob.glob(str(given), recursive=True) if Path(hit).is_file()]
        problem = "no file matches"
    else:
        found, problem = [], "no such file or folder"
    if not found:
        raise DataError(
            problem,
            where=str(given.absolute()),
            remedy="give a file, a folder or a glob; a recipe's paths start at the recipe file, others here",
        )
    return sorted(found)


def read_blocks(path: Path) -> Iterator[str]:
    """Read a UTF-8 file in blocks of characters, line ends as single newlines. Raises DataError where it is no text."""
    with _opened(path) as file:
        while block := file.read(_BLOCK):
            yield block


def read_lines(path: Path) -> Iterator[str]:
    """Read a UTF-8 file line by line, without line ends. Raises DataError where it is no text."""
    with _opened(path) as file:
        for line in file:
            yield line.removesuffix("\n")


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield file
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8 text: byte {error.object[error.start]:#04x} cannot be decoded",
            where=str(path),
            remedy="convert the file to UTF-8, or choose the data.source that reads it",
        ) from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(path), remedy="check the file") from None
