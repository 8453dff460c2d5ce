"""The method: LookupFFN, its parts, its closed-form start and its packed form, in pure PyTorch."""

from .ffn import LookupFFN
from .geometry import Geometry
from .packed import PackedLookupFFN, pack

__all__ = ["Geometry", "LookupFFN", "PackedLookupFFN", "pack"]
