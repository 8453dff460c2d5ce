"""Which files belong to a folder: those inside it, whatever a name or a link says."""

from __future__ import annotations

import os
from pathlib import Path


def is_inside(folder: Path, path: Path) -> bool:
    """Whether a path, all links followed, lies in `folder`, or is a blob that a snapshot of the hub's cache links to."""
    try:
        root, target = folder.resolve(), path.resolve()
    except (OSError, RuntimeError, ValueError):  # a circle of links; no file name
        return False
    if target.is_relative_to(root):
        return True
    return root.parent.name == "snapshots" and target.is_relative_to(root.parents[1] / "blobs")


def links_outside(folder: Path) -> list[str]:
    """Name the links below a folder that lead out of it, sorted."""
    found = []
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent, name) for name in (*folders, *files)):
            if path.is_symlink() and not is_inside(folder, path):
                found.append(path.relative_to(folder).as_posix())
    return sorted(found)
