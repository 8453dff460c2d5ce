"""What a measurement was made with: models, data, versions, processor. No path of this machine goes in."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import kernels
from ..data import EvalData

if TYPE_CHECKING:
    from ..models import Pretrained


def setting(dense: Pretrained, compressed: Pretrained, data: EvalData | None, threads: int) -> dict[str, Any]:
    """Give a report's `setting`."""
    return {
        "compressed": public_name(compressed.source),
        "dense": public_name(dense.source),
        "revision": dense.revision,
        "task": dense.task,
        "data": data and data.description,
        "data_tokens": data and data.tokens,
        "data_fingerprint": data and data.fingerprint,
        "threads": threads,
        "processor": processor(),
        "isa": kernels.isa(),
        "versions": {name: version(name) for name in ("compress-lookup", "torch", "transformers")},
    }


def public_name(source: str) -> str:
    """Give a hub id as it is, of a folder only its name."""
    path = Path(source).expanduser()
    return path.resolve().name if path.exists() else source


def processor() -> str:
    """Name the processor, as well as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.lower().startswith(("model name", "hardware")))
    return next((name for name in named if name), platform.processor() or platform.machine())
