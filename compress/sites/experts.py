"""Mixture-of-experts layers are refused: which expert sees a token is routed, and they are no dense FFN."""

from __future__ import annotations

from torch import nn

from ..errors import ModelError


def refuse_experts(model: nn.Module) -> None:
    """Raise ModelError naming the first experts module, if there is one."""
    for name, module in model.named_modules():
        if _is_stack(module) or _is_named_so(name, module):
            raise ModelError(
                f"{type(model).__name__} is a mixture of experts: {name} ({type(module).__name__}) holds experts, and "
                "each sees only the tokens routed to it",
                where=name,
                remedy="convert a model whose feed-forward networks are dense",
            )


def _is_stack(module: nn.Module) -> bool:
    """Two stacks of matrices, one matrix an expert, that multiply one after the other: [E, m, d] and [E, d, f]."""
    stacks = [p.shape for p in module.parameters(recurse=False) if p.dim() == 3 and p.shape[0] > 1]
    return any(a[0] == b[0] and (a[2] == b[1] or a[1] == b[2]) for i, a in enumerate(stacks) for b in stacks[i + 1 :])


def _is_named_so(name: str, module: nn.Module) -> bool:
    """Experts kept as separate modules look like any FFN, yet everyone calls them experts."""
    called = "expert" in name.rpartition(".")[2].lower() or "expert" in type(module).__name__.lower()
    return called and any(True for _ in module.parameters())
