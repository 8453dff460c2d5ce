"""Compressed models in OpenVINO: the operation `LookupFFN` as an extension library, and the export that uses it."""

from .export import export
from .library import extension

__all__ = ["export", "extension"]
