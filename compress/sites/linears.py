"""Linear layers in the two forms transformers has: nn.Linear and GPT-2's Conv1D, which stores its weight transposed."""

from __future__ import annotations

from functools import cache

from torch import Tensor, nn


@cache
def _conv1d() -> type[nn.Module]:
    from transformers.pytorch_utils import Conv1D

    return Conv1D


def is_linear(module: nn.Module) -> bool:
    """Whether the module is y = W x + b on the last dimension."""
    return isinstance(module, (nn.Linear, _conv1d()))


def is_pointwise(module: nn.Module) -> bool:
    """Whether the module is a convolution of width 1: a linear layer too, but on the second dimension."""
    return isinstance(module, (nn.Conv1d, nn.Conv2d)) and set(module.kernel_size) == {1}


def widths(module: nn.Module) -> tuple[int, int]:
    """(d_in, d_out), from the weight."""
    d_out, d_in = weight(module).shape
    return d_in, d_out


def weight(module: nn.Module) -> Tensor:
    """View of the weight as [d_out, d_in]."""
    stored = module.weight
    assert isinstance(stored, Tensor)
    return stored if isinstance(module, nn.Linear) else stored.t()


def bias(module: nn.Module) -> Tensor | None:
    """Bias [d_out], or None."""
    stored = module.bias
    assert stored is None or isinstance(stored, Tensor)
    return stored
