"""Memory as the kernel wants it, and how fast the machine reads it."""

from __future__ import annotations

import torch
from torch import Tensor

from . import extension, layout


def huge_buffer(size: int) -> Tensor:
    """So many uninitialised bytes, in huge pages where the system grants them."""
    found = extension.find()
    return torch.empty(size, dtype=torch.uint8, device="cpu") if found is None else layout.huge_buffer(found, size)


def stream_read(block: Tensor) -> int:
    """Read all of a contiguous int64 tensor on the CPU as fast as torch's threads can; the exclusive or of its numbers.

    Raises KernelError on any other tensor.
    """
    extension.check("block", block, torch.int64, (-1,), torch.device("cpu"))
    native = extension.native(block)
    if native is None:
        return int(block.sum())  # reads it too
    found: int = native.stream_read(block.data_ptr(), block.nbytes, torch.get_num_threads())
    return found
