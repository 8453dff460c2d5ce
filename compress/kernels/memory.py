"""Memory as the kernel wants it, and how fast the machine reads it."""

from __future__ import annotations

import ctypes
import weakref

import torch
from torch import Tensor

from . import extension


def huge_buffer(size: int) -> Tensor:
    """So many uninitialised bytes, beside the last that were asked for and in huge pages where the system grants them.

    Raises MemoryError.
    """
    found = extension.find()
    if found is None or not size:
        return torch.empty(size, dtype=torch.uint8, device="cpu")
    address = found.arena_take(size)
    memory = (ctypes.c_char * size).from_address(address)
    # Where the interpreter ends, tensors may still be read.
    weakref.finalize(memory, found.arena_release, address).atexit = False
    return torch.frombuffer(memory, dtype=torch.uint8)


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
