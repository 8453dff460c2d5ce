"""What is checked before a compressed checkpoint's tensors are read: which files they are, what these claim."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open

from ..errors import CheckpointError
from ..int8_linear import Int8Linear
from ..untrusted import is_inside, links_outside
from .format import CheckpointConfig

if TYPE_CHECKING:
    from torch import nn

_DTYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.int8: "I8",
    torch.uint8: "U8",
}  # as safetensors names them
_SLACK = 1 << 26  # numbers that no file holds: a new head's weights, tables of positions


def check_files(folder: Path, files: Sequence[str]) -> None:
    """Raise CheckpointError unless all weight files are safetensors, and no file of the folder lies elsewhere.

    Of a model from the hub `folder` is no folder here: huggingface_hub has put its files together.
    """
    for file in files:
        if not file.endswith(".safetensors"):
            raise CheckpointError(
                f"{Path(file).name} is no safetensors file; a compressed checkpoint is read from nothing else",
                where=str(folder), remedy="fetch the checkpoint again, or convert the model again",
            )  # fmt: skip
    if not folder.is_dir():
        return
    outside = [file for file in files if not is_inside(folder, Path(file))] or links_outside(folder)
    if outside:
        raise CheckpointError(
            f"{outside[0]} lies outside the checkpoint's folder", where=str(folder),
            remedy="use checkpoints whose files are all their own; put the files themselves where links are",
        )  # fmt: skip


def check_sizes(model: nn.Module, checkpoint: CheckpointConfig, files: Sequence[str]) -> None:
    """Raise CheckpointError where a model with its students in place, still without memory, is larger than its files.

    Students are stored number for number; the rest may be a new head's, or read in a wider dtype than its file has.
    """
    stored = sum(Path(file).stat().st_size for file in files)
    layouts = [placement.layout().values() for placement in checkpoint.sites]
    students = sum(shape.numel() * dtype.itemsize for layout in layouts for shape, dtype in layout)
    rest = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    rest -= sum(shape.numel() for layout in layouts for shape, _ in layout)
    if students > stored or rest > 2 * stored + _SLACK:
        raise CheckpointError(
            f"config.json describes students of {students} bytes and {rest} other numbers, the weight files have "
            f"{stored} bytes",
            where="config.json", remedy="fetch the checkpoint again; `compress verify` names the damaged files",
        )  # fmt: skip


def check_dtypes(model: nn.Module, checkpoint: CheckpointConfig, files: Sequence[str]) -> None:
    """Raise CheckpointError where tensors of students or int8 layers have other dtypes than config.json says.

    transformers would cast them. It may also have renamed the modules around them: a tensor is known by its name inside
    its module and its shape.
    """
    wanted: dict[tuple[str, tuple[int, ...]], Counter[str]] = defaultdict(Counter)
    layouts = [placement.layout() for placement in checkpoint.sites]
    layouts += [module.layout() for module in model.modules() if isinstance(module, Int8Linear)]
    for layout in layouts:
        for name, (shape, dtype) in layout.items():
            wanted[name, tuple(shape)][_DTYPES[dtype]] += 1
    names = sorted({name for name, _ in wanted}, key=len, reverse=True)
    stored: dict[tuple[str, tuple[int, ...]], Counter[str]] = defaultdict(Counter)
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118  # no mapping
                if ends := [name for name in names if key.endswith(f".{name}")]:
                    entry = tensors.get_slice(key)
                    stored[ends[0], tuple(entry.get_shape())][entry.get_dtype()] += 1
    for (name, size), dtypes in wanted.items():
        found = stored[name, size]
        if dtypes - found and found.total() >= dtypes.total():
            raise CheckpointError(
                f"{name} {list(size)} is stored as {', '.join(sorted(found))}, "
                f"config.json says {', '.join(sorted(dtypes))}",
                where="the checkpoint's safetensors files", remedy="fetch the checkpoint again",
            )  # fmt: skip
