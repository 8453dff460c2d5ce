"""How narrow a student's products may be (`lookup.hash_dtype: auto`): measured on what it gets in its own model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .lookup.packed import TableDtype
from .students import PackedStudent, Student, pack

_KEPT = 128  # tokens of a call
_HARMLESS = 2e-3  # share of an answer's energy that rounding inputs to 8 bits may move; students leave 0.05 and more


@torch.no_grad()
def site_inputs(model: nn.Module, entries: Sequence[str], batches: Iterable[Mapping[str, Any]]) -> dict[str, Tensor]:
    """What the modules at `entries` get when the model runs the batches, [N, d_in] each; nothing for idle ones.

    Of each call at most 128 tokens are kept, evenly spread.
    """
    found: dict[str, list[Tensor]] = {}

    def keep(entry: str) -> Any:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            x = arguments[0].flatten(0, -2)
            found.setdefault(entry, []).append(x[:: -(-len(x) // _KEPT) or 1].clone())

        return hook

    hooks = [model.get_submodule(entry).register_forward_pre_hook(keep(entry)) for entry in entries]
    training = model.training
    try:
        for batch in batches:
            model.eval()(**batch)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return {entry: torch.cat(parts) for entry, parts in found.items()}


@torch.no_grad()
def moved_by_rounding(wide: nn.Module, narrow: nn.Module, x: Tensor) -> float:
    """|narrow(x) - wide(x)|^2 / |wide(x) - mean|^2 of the typical token, for two students of one site; x [N, d_in]."""
    y = wide(x)
    apart = (narrow(x) - y).square().sum(-1)
    size = (y - y.mean(0)).square().sum(-1)
    return float((apart / size.clamp_min(torch.finfo(size.dtype).tiny)).median())


def pack_narrowest(student: Student, table_dtype: TableDtype, x: Tensor | None) -> PackedStudent:
    """Round to int8, and the inputs of its matrices to 8 bits where that moves the answers to x [N, d_in] too little.

    To 16 bits where it moves more, as with features far larger than the others, or where there is no x.
    """
    narrow, wide = (pack(student, table_dtype, dtype).eval() for dtype in ("w8a8", "int8"))
    if x is None or not len(x) or not moved_by_rounding(wide, narrow, x) <= _HARMLESS:
        return wide
    return narrow
