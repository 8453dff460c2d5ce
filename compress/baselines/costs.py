"""What an FFN costs per token at batch 1, whatever its kind: multiply-adds, bytes read, parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from ..errors import CompressError
from ..lookup import LookupFFN, PackedLookupFFN, budget


@dataclass(frozen=True)
class Costs:
    """Costs of one FFN, or of several together.

    multiply_adds and bytes_read: per token at batch 1; an exponential counts 10, a lone addition half of one; bytes at
    the width that the parameters have. parameters: how many numbers are stored.
    """

    multiply_adds: float
    bytes_read: float
    parameters: int

    def __add__(self, other: Costs) -> Costs:
        return Costs(
            self.multiply_adds + other.multiply_adds,
            self.bytes_read + other.bytes_read,
            self.parameters + other.parameters,
        )


def costs(module: nn.Module) -> Costs:
    """Costs of an FFN of this library, or of all that a model holds; a module that serves twice counts once.

    Raises CompressError where there is none.
    """
    found = _own(module)
    if found is None:
        parts = list(_parts(module, set()))
        if not parts:
            raise CompressError(
                f"{type(module).__name__} holds no feed-forward network whose costs are known",
                remedy="put some in with compress.replace_ffn",
            )
        found = sum(parts[1:], parts[0])
    return found


def _parts(module: nn.Module, seen: set[nn.Module]) -> Iterator[Costs]:
    """Costs of the FFNs inside a module; what an FFN is made of counts with it."""
    for child in module.children():
        if child not in seen:
            seen.add(child)
            own = _own(child)
            yield from _parts(child, seen) if own is None else (own,)


def _own(module: nn.Module) -> Costs | None:
    if isinstance(module, LookupFFN):
        g, count = module.geometry, sum(parameter.numel() for parameter in module.parameters())
        return Costs(budget.cost(g), budget.bytes_per_token(g, "float32", "float32"), count)
    if isinstance(module, PackedLookupFFN):
        g, table_dtype, hash_dtype = module.geometry, module.table_dtype, module.hash_dtype
        count = sum(parameter.numel() for parameter in module.parameters())
        return Costs(budget.cost(g), budget.bytes_per_token(g, table_dtype, hash_dtype), count)
    own = getattr(module, "costs", None)
    found = own() if callable(own) else None
    return found if isinstance(found, Costs) else None
