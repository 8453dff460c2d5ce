"""The native extension: where it is, which instruction set it uses, and what every call into it checks first."""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from types import ModuleType

import torch  # before the extension, so that both share torch's libgomp and its threads
from torch import Tensor

from ..errors import KernelError

_INSTALL = "reinstall compress-lookup with a C compiler at hand (Debian: apt install gcc python3-dev)"


@functools.cache
def find() -> ModuleType | None:
    """Import the extension; None where it is missing. Raises KernelError where COMPRESS_ISA names what is not there."""
    try:
        extension = importlib.import_module("compress._kernels")
    except ImportError:
        return None
    wanted = os.environ.get("COMPRESS_ISA")
    if wanted:
        select(extension, wanted)
    return extension


def select(extension: ModuleType, isa: str) -> None:
    """Use an instruction set. Raises KernelError for one that this processor lacks."""
    levels = extension.levels()
    if isa not in levels:
        raise KernelError(
            f"instruction set {isa!r} is not to be had here", where="environment variable COMPRESS_ISA",
            remedy=f"choose one of {', '.join(levels)}, or unset it for the best",
        )  # fmt: skip
    extension.select_level(levels.index(isa))


@functools.cache
def _find_or_warn() -> ModuleType | None:
    extension = find()
    if extension is None:
        if os.environ.get("COMPRESS_REQUIRE_KERNEL") == "1":
            raise KernelError(
                "the native kernel is missing, and COMPRESS_REQUIRE_KERNEL=1 requires it",
                where="compress._kernels", remedy=_INSTALL,
            )  # fmt: skip
        warnings.warn(
            f"the native kernel is missing: PyTorch does its work, slower; to mend it, {_INSTALL}", stacklevel=3
        )
    return extension


@torch.compiler.assume_constant_result
def available() -> bool:
    """Whether the native extension is installed."""
    return find() is not None


def isa() -> str:
    """Instruction set in use: "avx512_vnni", "avx512", "avx2", "neon" or "scalar"; "torch" without the extension.

    Raises KernelError where COMPRESS_ISA names one that this processor lacks.
    """
    extension = find()
    return extension.level_name() if extension else "torch"


def native(*tensors: Tensor) -> ModuleType | None:
    """Find the extension, where it can run on these tensors."""
    return _find_or_warn() if all(tensor.device.type == "cpu" for tensor in tensors) else None


def refuse(name: str, problem: str, remedy: str) -> KernelError:
    """Say what of a call does not fit."""
    return KernelError(f"{name} {problem}", where="compress.kernels", remedy=remedy)


def check(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> None:
    """Raise KernelError unless the tensor is contiguous and as described; -1 in `shape` stands for any size."""
    if tensor.dtype != dtype:
        raise refuse(name, f"has dtype {tensor.dtype}, not {dtype}", f"convert it: {name}.to({dtype})")
    if tensor.dim() != len(shape) or any(
        want not in (-1, have) for have, want in zip(tensor.shape, shape, strict=True)
    ):
        raise refuse(name, f"has shape {list(tensor.shape)}, not {list(shape)}", "make the shapes agree (-1: any size)")
    if tensor.device != device:
        raise refuse(name, f"is on {tensor.device}, another tensor on {device}", "move them to one device")
    if not tensor.is_contiguous():
        raise refuse(name, "is not contiguous", f"pass {name}.contiguous()")


def required() -> ModuleType:
    """Give the extension. Raises KernelError where it is missing."""
    extension = find()
    if extension is None:
        raise KernelError("the native kernel is missing", where="compress._kernels", remedy=_INSTALL)
    return extension
