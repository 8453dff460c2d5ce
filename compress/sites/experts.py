"""Mixture-of-experts layers: which expert sees a token is routed, and they are no dense FFN."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..errors import ModelError
from .site import base_model

_LISTED = 8


def find_experts(model: nn.Module) -> list[str]:
    """Paths, relative to the base model, of the modules that hold experts: all of a mixture-of-experts layer.

    Shared experts, which see every token, and whatever else stands beside the routed ones, belong to the layer.
    """
    base = base_model(model)
    blocks: list[str] = []
    for name, module in base.named_modules():
        inside = any(name.startswith(f"{block}.") for block in blocks)
        if not inside and (_is_stack(module) or _is_named_so(name, module)):
            blocks.append(name.rpartition(".")[0] or name)
    return list(dict.fromkeys(blocks))


def experts_error(experts: Sequence[str], remedy: str) -> ModelError:
    """The error that names mixture-of-experts layers."""
    return ModelError(
        f"the model is a mixture of experts in {listed(experts)}: each expert sees only the tokens routed to it, so "
        "that no student can take its place",
        where=experts[0],
        remedy=remedy,
    )


def listed(paths: Sequence[str]) -> str:
    """Name the paths, of many only the first and the last."""
    if len(paths) <= _LISTED:
        return ", ".join(paths)
    return f"{', '.join(paths[:3])} and so on to {paths[-1]} ({len(paths)} of them)"


def _is_stack(module: nn.Module) -> bool:
    """Two stacks of matrices, one matrix an expert, that lead from d to f features (or to gate and up) and back.

    [E, f, d] and [E, d, f], or each matrix transposed. Two stacks of equal shape are something else: the blocks of
    block-diagonal matrices.
    """
    stacks = [p.shape for p in module.parameters(recurse=False) if p.dim() == 3 and min(p.shape) > 1]
    pairs = [(a, b) for a in stacks for b in stacks if a[0] == b[0] and a != b]
    return any(
        (a[2] == b[1] and a[1] in (b[2], 2 * b[2])) or (a[1] == b[2] and a[2] in (b[1], 2 * b[1])) for a, b in pairs
    )  # fmt: skip


def _is_named_so(name: str, module: nn.Module) -> bool:
    """Experts kept as separate modules look like any FFN, yet everyone calls them experts."""
    called = "expert" in name.rpartition(".")[2].lower() or "expert" in type(module).__name__.lower()
    return called and any(True for _ in module.parameters())
