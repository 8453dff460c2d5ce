"""Instruction sets of this machine, for tests that run at each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from compress import kernels

_extension = kernels._extension()
LEVELS: list[str] = _extension.levels() if _extension else []
# What the fused forward differs by: an AVX-512 processor may lack the paired dot products of bytes.
FORWARD_LEVELS = (["avx512 without vnni"] if LEVELS and _extension.vnni() and "avx512" in LEVELS else []) + LEVELS


@contextmanager
def using_level(name: str) -> Iterator[None]:
    before = kernels.isa()
    kernels._select(_extension, name.split()[0])
    _extension.set_vnni(not name.endswith("without vnni"))
    try:
        yield
    finally:
        kernels._select(_extension, before)
        _extension.set_vnni(True)


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
