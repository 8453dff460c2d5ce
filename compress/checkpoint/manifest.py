"""The manifest: SHA-256 of every file of a checkpoint, and of itself."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..durable import file_problem, file_record, replace_text, seal, unseal
from ..errors import CheckpointError
from ..untrusted import is_inside, read_text
from .format import CONFIG_FILE
from .side_files import is_model_file

MANIFEST_FILE = "manifest.json"
VERSION = 2  # 1 had no checksum of its own
_LONGEST_NAME = 255  # bytes that a file system's names may have

Files = dict[str, dict[str, Any]]  # name -> bytes, sha256


@dataclass(frozen=True)
class Problem:
    """What is wrong with one file of a checkpoint, or with what it gives, and what to do."""

    file: str
    what: str
    remedy: str = "the checkpoint is not as it was made: fetch it again, or convert the model again"


def write_manifest(folder: Path, changed: Iterable[str] | None = None) -> None:
    """Record every file but the manifest itself and hidden ones; with `changed`, only those files are read again."""
    files = {} if changed is None else recorded_files(folder)
    for name in _names(folder) if changed is None else changed:
        files[name] = file_record(folder / name)
    replace_text(folder / MANIFEST_FILE, manifest_text(files))


def manifest_text(files: Mapping[str, Mapping[str, Any]]) -> str:
    """Give the text of the manifest that records these files; the same files give the same text."""
    return seal({"version": VERSION, "files": files}, sort_keys=True)


def recorded_files(folder: Path) -> Files:
    """Read a checkpoint's manifest: names, sizes and SHA-256 of its files.

    Raises CheckpointError where it is missing, damaged or newer than this version, or names a file outside the folder.
    """
    return parse_manifest(folder / MANIFEST_FILE)


def parse_manifest(path: Path) -> Files:
    """Read a manifest from wherever it lies, as `recorded_files` does."""
    try:
        text = read_text(path)  # newlines as they are
        return _checked(json.loads(text), text)
    except OSError:
        problem = "missing"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problem = f"damaged: {f'no {error}' if isinstance(error, KeyError) else error}"
    raise CheckpointError(problem, where=str(path), remedy="fetch the checkpoint again, or convert the model again")


def verify_files(folder: Path | str) -> list[Problem]:
    """Find files that are missing or not as the manifest recorded them, and weights that it does not record.

    Other files added since are no problem.
    """
    folder = Path(folder)
    try:
        files = recorded_files(folder)
    except CheckpointError as error:
        return [Problem(MANIFEST_FILE, error.message)]
    problems = [Problem(name, what) for name, entry in files.items() if (what := _check(folder, name, entry))]
    loaded = (name for name in added_files(folder) if name == CONFIG_FILE or is_model_file(PurePosixPath(name)))
    return problems + [Problem(name, "not recorded in the manifest") for name in loaded]


def added_files(folder: Path) -> list[str]:
    """Files of a checkpoint's folder that its manifest does not record, hidden ones aside."""
    files = recorded_files(folder)
    return [name for name in _names(folder) if name not in files]


def _checked(manifest: Any, text: str) -> Files:
    if not isinstance(manifest, dict):
        raise ValueError("it holds no JSON object")
    version, files = manifest["version"], manifest["files"]
    if type(version) is not int or version < 1:
        raise ValueError(f"its version is {version!r}")
    if version > VERSION:
        raise ValueError(f"it has version {version}, this version of compress reads up to {VERSION}")
    if version > 1:
        unseal(text, sort_keys=True)
    for name, entry in files.items():
        parts = PurePosixPath(name).parts
        strange = any(part.startswith(".") or len(part.encode()) > _LONGEST_NAME for part in parts)
        if not parts or name.startswith("/") or strange:
            raise ValueError(f"{name!r} is no file of a checkpoint")
        if type(entry["bytes"]) is not int or not isinstance(entry["sha256"], str):
            raise ValueError(f"the entry of {name} is no size and SHA-256")
    return dict(files)


def _check(folder: Path, name: str, entry: dict[str, Any]) -> str | None:
    path = folder / name
    if not is_inside(folder, path):
        return "lies outside the folder"
    return file_problem(path, entry)


def _names(folder: Path) -> list[str]:
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    names = (path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))
    return sorted(name for name in names if name != MANIFEST_FILE)
