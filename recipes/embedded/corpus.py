"""The embedded model's text: the source of Python's standard library, split by module into training and held-out text.

`python -m compress.recipes.embedded.corpus DIR` writes `train.txt` and `heldout.txt`.

A unit of the split is a top-level module or package, and goes wholly to one side. The side is a hash of the unit's
name, so a unit that two Python versions share is on the same side in both. Tests belong to neither side: some
distributions leave them out, and those of a held-out module would make its text easy.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

END_OF_TEXT = "<|endoftext|>"
HELD_OUT_PER_MILLE = 40

# Third-party code, tests, and documentation kept as Python files.
EXCLUDED_DIRECTORIES = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "pydoc_data"}
TABLE_LINE = re.compile(r"""\s*[(\[{]?\s*(?:[bur]?['"]|0x|[0-9])""")


@dataclass(frozen=True)
class Module:
    """One source file: its path relative to the standard library, the unit of the split, and its text."""

    path: str
    unit: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """The library's modules on the two sides of the split."""

    train: list[Module]
    held_out: list[Module]


def unit_of(path: Path) -> str:
    """Name the unit that a file belongs to, given its path relative to the standard library.

    A pure-Python twin (`_pydecimal`, `_strptime`) belongs with the module that it serves.
    """
    name = path.with_suffix("").parts[0]
    return re.sub(r"^(?:_py)?_*", "", name)


def is_held_out(unit: str) -> bool:
    """Tell the side of a unit from the hash of its name."""
    digest = hashlib.sha256(unit.encode()).digest()
    return int.from_bytes(digest[:8], "big") % 1000 < HELD_OUT_PER_MILLE


def _is_table(text: str) -> bool:
    """Recognize generated tables (code pages, entities): half of the lines start with a literal."""
    lines = [line for line in text.splitlines() if line.strip()]
    return sum(bool(TABLE_LINE.match(line)) for line in lines) > 0.5 * len(lines)


def _read(library: Path) -> Iterator[Module]:
    """Yield the library's readable source files in order of their paths, without tables and near-copies."""
    seen: set[str] = set()
    for file in sorted(library.rglob("*.py"), key=lambda file: file.relative_to(library).as_posix()):
        path = file.relative_to(library)
        if EXCLUDED_DIRECTORIES.intersection(path.parts[:-1]) or path.parts[0].startswith(
            ("config-", "_sysconfigdata")
        ):
            continue
        try:
            text = file.read_bytes().decode().replace("\r\n", "\n").rstrip() + "\n"
        except UnicodeDecodeError:  # not in UTF-8
            continue
        lines = {line.strip() for line in text.splitlines()} - {""}
        # A file of which four fifths were seen before (codecs made from one template) is a copy.
        if len(lines) < 5 or _is_table(text) or len(lines & seen) > 0.8 * len(lines):
            continue
        seen |= lines
        yield Module(path.as_posix(), unit_of(path), text)


def collect(library: Path | None = None) -> Corpus:
    """Read and split the standard library, by default that of the running Python."""
    library = library or Path(sysconfig.get_path("stdlib"))
    train: list[Module] = []
    held_out: list[Module] = []
    for module in _read(library):
        (held_out if is_held_out(module.unit) else train).append(module)
    return Corpus(train, held_out)


def join(modules: list[Module]) -> str:
    """Concatenate modules into one text, each closed by the end-of-text token."""
    return "".join(module.text + END_OF_TEXT for module in modules)


def write_split(folder: str | Path) -> tuple[Path, Path]:
    """Write `train.txt` and `heldout.txt` into a folder and return their paths; the same bytes for the same Python."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    corpus = collect()
    files = folder / "train.txt", folder / "heldout.txt"
    for file, modules in zip(files, (corpus.train, corpus.held_out), strict=True):
        file.write_text(join(modules), encoding="utf-8", newline="\n")
    return files


def main() -> None:
    """Write the two texts and say what they hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where train.txt and heldout.txt go")
    for file in write_split(parser.parse_args().folder):
        text = file.read_text(encoding="utf-8")
        print(f"{file}: {file.stat().st_size:,} bytes, {text.count(END_OF_TEXT)} files")


if __name__ == "__main__":
    main()
