"""Compressed models in OpenVINO: the operation `LookupFFN` as an extension library, and the export that uses it.

Importing this brings in neither PyTorch nor OpenVINO: a program that only runs an exported model needs no more than
`extension`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .library import extension

if TYPE_CHECKING:
    from .exporting import export as export

__all__ = ["export", "extension"]


def __getattr__(name: str) -> Any:
    if name == "export":
        from .exporting import export

        return export
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
