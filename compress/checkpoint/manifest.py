"""The manifest: SHA-256 of every file of a checkpoint, and of itself."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..durable import file_problem, file_record, replace_text, seal, unseal

MANIFEST_FILE = "manifest.json"
VERSION = 2  # 1 had no SHA-256 of its own


@dataclass(frozen=True)
class Problem:
    """What is wrong with one file of a checkpoint, or with what it gives."""

    file: str
    what: str


def write_manifest(folder: Path, changed: Iterable[str] | None = None) -> None:
    """Record every file but the manifest itself and hidden ones; with `changed`, only those files are read again."""
    files = {} if changed is None else dict(_read(folder)["files"])
    for name in _names(folder) if changed is None else changed:
        files[name] = file_record(folder / name)
    replace_text(folder / MANIFEST_FILE, seal({"version": VERSION, "files": files}, sort_keys=True))


def verify_files(folder: Path | str) -> list[Problem]:
    """Find files that are missing or not as the manifest recorded them; files added since are no problem."""
    folder = Path(folder)
    try:
        files = dict(_read(folder)["files"])
    except FileNotFoundError:
        return [Problem(MANIFEST_FILE, "missing")]
    except (ValueError, KeyError, TypeError) as error:
        return [Problem(MANIFEST_FILE, f"damaged: {error}")]
    return [Problem(name, what) for name, entry in files.items() if (what := file_problem(folder / name, entry))]


def _names(folder: Path) -> list[str]:
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    names = (path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))
    return sorted(name for name in names if name != MANIFEST_FILE)


def _read(folder: Path) -> dict[str, Any]:
    text = (folder / MANIFEST_FILE).read_text(encoding="utf-8")
    values = json.loads(text)
    if isinstance(values, dict) and values.get("version") == 1 and "sha256" not in values:
        return values
    return unseal(text, sort_keys=True)
