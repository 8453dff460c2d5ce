"""Text files of a checkpoint, replaced as a whole."""

from __future__ import annotations

import os
from pathlib import Path

RECIPE_FILE = "recipe.yaml"
RESOLVED_RECIPE_FILE = "recipe.resolved.yaml"
REPORT_FILE = "report.json"


def replace_text(path: Path, text: str) -> None:
    """Write a file so that a reader, or a crash, sees the old text or the new one."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
