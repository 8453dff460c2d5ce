"""Instruction sets of this machine, for tests that run at each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from compress import kernels
from compress.kernels import extension

_extension = extension.find()
LEVELS: list[str] = _extension.levels() if _extension else []


@contextmanager
def using_level(name: str) -> Iterator[None]:
    before = kernels.isa()
    extension.select(_extension, name)
    try:
        yield
    finally:
        extension.select(_extension, before)


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
