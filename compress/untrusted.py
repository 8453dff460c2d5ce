"""Folders from strangers: which files belong to one, and JSON up to a bound."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

_MOST_BYTES = 1 << 26  # room for an index of weights with hundreds of thousands of tensors


def is_inside(folder: Path, path: Path) -> bool:
    """Whether a path, all links followed, lies in `folder`, or in the blobs that a snapshot of the hub links to."""
    try:
        root, target = folder.resolve(), path.resolve()
    except (OSError, RuntimeError, ValueError):  # a circle of links; no file name
        return False
    if target.is_relative_to(root):
        return True
    return root.parent.name == "snapshots" and target.is_relative_to(root.parents[1] / "blobs")


def links_outside(folder: Path) -> list[str]:
    """Name the links below a folder that lead out of it, sorted."""
    paths = (Path(parent, name) for parent, folders, files in os.walk(folder) for name in (*folders, *files))
    links = (path for path in paths if path.is_symlink() and not is_inside(folder, path))
    return sorted(path.relative_to(folder).as_posix() for path in links)


def read_text(path: Path) -> str:
    """Read a UTF-8 file, newlines as they are. Raises OSError where there is none, ValueError where it is too large."""
    if not path.is_file():  # a device or a pipe might never end
        raise FileNotFoundError(path)
    with open(path, "rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES} bytes")
    return content.decode("utf-8")


def read_json(path: Path) -> Any:
    """Parse a JSON file. Raises OSError where there is none, ValueError where it is damaged, too large or too deep."""
    text = read_text(path)
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
