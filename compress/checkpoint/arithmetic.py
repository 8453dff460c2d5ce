"""Whether the kernel computes on this machine what the stored numbers say: beside PyTorch, part by part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .. import kernels
from ..int8_linear import Int8Linear
from ..lookup import PackedLookupFFN

# Relative error of the typical token: a number near the middle of two integers, or a bit of a hash near its
# hyperplane, may turn over and move its token by percents; a wrong product or row moves every token.
TOLERANCE = 1e-3
_TOKENS = 32  # compared of a part's first call


@contextmanager
def kernel_errors(model: nn.Module) -> Iterator[dict[str, float]]:
    """Compare, while the model runs, each part that the kernel computes with PyTorch on the same inputs.

    Yields the median over tokens of |y - y_torch| / |y_torch| by the part's path; empty where no kernel runs.
    """
    errors: dict[str, float] = {}

    def compare(path: str) -> Any:
        @torch.no_grad()
        def hook(part: PackedLookupFFN | Int8Linear, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            x, y = arguments[0].flatten(0, -2), output.flatten(0, -2)
            if path in errors or not len(x):
                return
            step = -(-len(x) // _TOKENS)
            x, y = x[::step], y[::step].float()
            wanted = part.reference(x.float())
            apart = torch.where(y.isnan() & wanted.isnan(), 0.0, y - wanted).norm(dim=-1)
            size = wanted.nan_to_num().norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
            errors[path] = float((apart / size).median())

        return hook

    runs = kernels.available() and all(parameter.device.type == "cpu" for parameter in model.parameters())
    parts = [(path, part) for path, part in model.named_modules() if isinstance(part, PackedLookupFFN | Int8Linear)]
    hooks = [part.register_forward_hook(compare(path)) for path, part in parts if runs]
    try:
        yield errors
    finally:
        for hook in hooks:
            hook.remove()
