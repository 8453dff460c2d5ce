"""Where the pretrained models and data sets for asset-dependent tests are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ASSETS = Path(os.environ.get("COMPRESS_ASSETS", Path(__file__).resolve().parents[2] / "shared"))


def asset(path: str) -> Path:
    """A file or folder of the assets; the test is skipped where it is absent."""
    found = ASSETS / path
    if not found.exists():
        pytest.skip(f"needs {path} in COMPRESS_ASSETS")
    return found
