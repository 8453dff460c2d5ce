"""The device that training runs on: which one, how a batch gets there, and how it multiplies matrices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

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
    """Run matrix products in bfloat16 inside the block; `auto`: on CUDA alone. Weights and sums stay in float32."""
    narrow = dtype == "bfloat16" or (dtype == "auto" and device.type == "cuda")
    # cuDNN's attention takes milliseconds to prepare every shape that is new, and batches differ in theirs.
    cudnn = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=narrow):
            yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
