"""Bytes of a model's parameters as files store them, and in int8."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..int8_linear import Int8Linear
from ..students import PackedStudent, Student

_WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}  # safetensors' names
_FLOAT32 = 4


def stored_width(folder: Path | None) -> int:
    """Bytes of a floating-point weight in a folder's safetensors, where most bytes are; 4 where there are none.

    Models are computed with in float32, whatever width their files have, and a checkpoint keeps that width.
    """
    counts: Counter[int] = Counter()
    for file in sorted(folder.glob("*.safetensors")) if folder is not None else ():
        for name, entry in _header(file).items():
            if name != "__metadata__" and entry["dtype"] in _WIDTHS:
                begin, end = entry["data_offsets"]
                counts[_WIDTHS[entry["dtype"]]] += end - begin
    return counts.most_common(1)[0][0] if counts else _FLOAT32


def stored_bytes(model: nn.Module, width: int) -> int:
    """Bytes of a model's files: floating-point weights have `width` bytes, but those of students and int8 layers."""
    exact = (module for module in model.modules() if isinstance(module, Student | PackedStudent | Int8Linear))
    own = {id(parameter) for module in exact for parameter in module.parameters()}
    total = 0
    for tensor in _tensors(model):
        kept = id(tensor) in own or not tensor.is_floating_point()
        total += tensor.numel() * (tensor.element_size() if kept else width)
    return total


def int8_bytes(model: nn.Module) -> int:
    """Bytes with every matrix at one byte a weight and every vector in float32."""
    return sum(tensor.numel() * (1 if tensor.dim() > 1 else _FLOAT32) for tensor in _tensors(model))


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters and stored buffers, shared ones once."""
    yield from model.parameters()
    stored = set(model.state_dict())
    yield from (buffer for name, buffer in model.named_buffers() if name in stored)


def _header(file: Path) -> dict[str, dict[str, Any]]:
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header: dict[str, dict[str, Any]] = json.loads(stream.read(length))
    return header
