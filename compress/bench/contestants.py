"""Everything that runs the same FFNs: PyTorch and other engines on the dense ones, our kernel on students."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..evaluate import variants
from ..evaluate.variants import DenseFFN
from ..lookup import PackedLookupFFN
from . import engines
from .layers import Variant, dense_bytes, student_bytes
from .machine import available_memory

DENSE_INT8 = ("torch_int8", "torchao_int8", "onnxruntime_int8", "openvino_int8")
DENSE = ("torch_float32", "torch_bfloat16", *DENSE_INT8, "onnxruntime_float32", "openvino_float32")
_COPIES = 2.5  # of a variant's weights while it is made: its own, those it is made from, the layout that runs
_MEMORY_SHARE = 0.8  # of what the machine has left


class LeftOut(Exception):
    """Why a variant is not measured."""


def dense_variants(
    layers: Sequence[DenseFFN], threads: int, wanted: Sequence[str], left_out: dict[str, str]
) -> Iterator[Variant]:
    """The dense FFNs in every engine that is wanted and installed; `left_out` takes the reasons for the others.

    The last of `layers` only warms up.
    """
    parameters = sum(parameter.numel() for layer in layers for parameter in layer.parameters())
    example = torch.randn(256, layers[0].gate.in_features, generator=torch.Generator().manual_seed(0))
    stack = nn.ModuleList(layers)
    makers: dict[str, tuple[str | None, int, Callable[[], Sequence[Callable[[Tensor], object]]]]] = {
        "torch_float32": (None, 4, lambda: layers),
        "torch_bfloat16": (None, 2, lambda: list(variants.bfloat16(stack).children())),
        "torch_int8": (None, 1, lambda: list(variants.int8(stack).children())),
        "torchao_int8": ("torchao", 1, lambda: engines.torchao_int8(layers)),
        "onnxruntime_float32": ("onnxruntime", 4, lambda: engines.onnxruntime_layers(layers, False, threads)),
        "onnxruntime_int8": ("onnxruntime", 1, lambda: engines.onnxruntime_layers(layers, True, threads)),
        "openvino_float32": ("openvino", 4, lambda: engines.openvino_layers(layers, False, threads, example)),
        "openvino_int8": ("openvino", 1, lambda: engines.openvino_layers(layers, True, threads, example)),
    }
    for name in wanted:
        module, width, make = makers[name]
        try:
            if module is not None:
                _require(module, layers[0])
            _fits(parameters * width * (1 if name == "torch_float32" else _COPIES))
            made = make()
        except LeftOut as reason:
            left_out[name] = str(reason)
            continue
        dtype = torch.bfloat16 if name == "torch_bfloat16" else torch.float32
        yield Variant(name, made, dtype, dense_bytes(layers[0], width))


def student_variants(
    made: Mapping[str, Callable[[], Sequence[PackedLookupFFN]]], stored: Mapping[str, float], left_out: dict[str, str]
) -> Iterator[Variant]:
    """Students by name; `stored` is how many bytes all layers of each take."""
    for name, make in made.items():
        try:
            _fits(stored[name] * _COPIES)
        except LeftOut as reason:
            left_out[name] = str(reason)
            continue
        students = make()
        first = students[0]
        yield Variant(name, students, torch.float32, student_bytes(first.geometry, first.table_dtype, first.hash_dtype))


def _require(module: str, layer: DenseFFN) -> None:
    needed = (module, "onnx") if module == "onnxruntime" else (module,)
    for name in needed:
        if not engines.installed(name):
            raise LeftOut(f"{name} is not installed (pip install 'compress-lookup[bench]')")
    if layer.activation not in engines.ACTIVATIONS:
        raise LeftOut(f"no {layer.activation} in this engine")


def _fits(wanted: float) -> None:
    have = available_memory()
    if have is not None and wanted > _MEMORY_SHARE * have:
        raise LeftOut(f"would take {wanted / 1e9:.1f} GB of memory, {have / 1e9:.1f} GB are left; take fewer --layers")
