"""The device that training runs on: which one, how a batch gets there, and how it multiplies matrices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from .errors import CompressError


def choose_device(name: str | None) -> str:
    """Give the device to train on: CUDA where there is one, or that of a name. Raises CompressError: not there."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        found = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        raise CompressError(
            f"PyTorch cannot use `{name}`: {str(error).partition(chr(10))[0]}", where="--device",
            remedy=f"leave it out, or name one of {', '.join(found)}",
        ) from None  # fmt: skip
    return name


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Bring a tensor of the host to a device; a GPU copies it while the host goes on."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@contextmanager
def autocast(device: torch.device, dtype: str) -> Iterator[None]:
    """Run matrix products in bfloat16 inside the block; weights and sums stay in float32.

    dtype: `bfloat16`, `float32`, or `auto`: bfloat16 where the device multiplies it.
    """
    narrow = dtype == "bfloat16" or (dtype == "auto" and multiplies_bfloat16(device))
    # cuDNN's attention takes milliseconds to prepare every shape that is new, and batches differ in theirs.
    cudnn = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    attention: AbstractContextManager[object] = _WideAttention() if narrow and device.type == "cpu" else nullcontext()
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=narrow), attention:
            yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(cudnn)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions that multiply bfloat16: CUDA, and processors with AVX512-BF16 or AMX."""
    if device.type != "cpu":
        return device.type == "cuda"
    return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))


class _WideAttention(TorchFunctionMode):
    """Computes attention in float32: on the CPU its backward pass takes longer in bfloat16."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run any function as it is, attention on tensors made wide."""
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        args, kwargs = tree_map_only(Tensor, _wide, (args, kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            return func(*args, **kwargs)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor
