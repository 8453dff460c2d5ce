"""The manifest: SHA-256 of every file of a checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..untrusted import is_inside, read_json
from .files import replace_text

MANIFEST_FILE = "manifest.json"
VERSION = 1


@dataclass(frozen=True)
class Problem:
    """What is wrong with one file of a checkpoint, or with what it gives."""

    file: str
    what: str


def write_manifest(folder: Path, changed: Iterable[str] | None = None) -> None:
    """Record every file but the manifest itself and hidden ones; with `changed`, only those files are read again."""
    files = {} if changed is None else dict(_read(folder)["files"])
    for name in _names(folder) if changed is None else changed:
        files[name] = {"bytes": (folder / name).stat().st_size, "sha256": _digest(folder / name)}
    text = json.dumps({"version": VERSION, "files": files}, indent=1, sort_keys=True) + "\n"
    replace_text(folder / MANIFEST_FILE, text)


def verify_files(folder: Path | str) -> list[Problem]:
    """Find files that are missing or not as the manifest recorded them; files added since are no problem."""
    folder = Path(folder)
    try:
        files = _read(folder)["files"]
        if not isinstance(files, dict) or not files:
            raise TypeError("it lists no files")
        return [Problem(name, what) for name, entry in files.items() if (what := _check(folder, name, entry))]
    except FileNotFoundError:
        return [Problem(MANIFEST_FILE, "missing")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [Problem(MANIFEST_FILE, f"damaged: {error}")]


def _check(folder: Path, name: str, entry: dict[str, Any]) -> str | None:
    path = folder / name
    if not is_inside(folder, path):
        return "lies outside the folder"
    if not path.is_file():
        return "missing"
    if (size := path.stat().st_size) != entry["bytes"]:
        return f"{size} bytes, not {entry['bytes']} as recorded"
    return None if _digest(path) == entry["sha256"] else "altered: its SHA-256 is not the recorded one"


def _names(folder: Path) -> list[str]:
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    names = (path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))
    return sorted(name for name in names if name != MANIFEST_FILE)


def _read(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = read_json(folder / MANIFEST_FILE)
    return manifest


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
