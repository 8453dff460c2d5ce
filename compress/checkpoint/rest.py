"""What is no student in int8: which linear layers, and how they get into a model and out again."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, CompressError
from ..int8_linear import Int8Linear
from ..sites import base_model_path
from ..sites.linears import bias, is_linear, widths


@dataclass(frozen=True)
class Int8Rest:
    """Paths of the linear layers in int8: `base` relative to the base model, `head` to the model with its head."""

    base: tuple[str, ...] = ()
    head: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, values: Any) -> Int8Rest:
        """Read plain values of `config.json`. Raises TypeError where they are none."""
        if not isinstance(values, dict) or not values.keys() <= {"base", "head"}:
            raise TypeError(f"int8 is {values!r}")
        for paths in values.values():
            if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
                raise TypeError(f"int8 names {paths!r}")
            if len(set(paths)) < len(paths):
                raise TypeError("int8 names a layer twice")
        return cls(*(tuple(values.get(part, ())) for part in ("base", "head")))

    def to_dict(self) -> dict[str, list[str]]:
        """Plain values for `config.json`."""
        return {"base": list(self.base), "head": list(self.head)}

    def __bool__(self) -> bool:
        return bool(self.base or self.head)

    def paths(self, model: nn.Module) -> list[str]:
        """Paths relative to `model`; a model under another head than the one that was saved has that in no int8."""
        prefix = f"{path}." if (path := base_model_path(model)) else ""
        saved: Any = getattr(model.config, "architectures", None) or ()
        head = self.head if type(model).__name__ in saved else ()
        return [*(f"{prefix}{path}" for path in self.base), *head]

    def place(self, model: nn.Module) -> None:
        """Put empty layers in the places of a dense model's. Raises CheckpointError where there is no linear layer."""
        modules = dict(model.named_modules(remove_duplicate=False))
        for path in (paths := self.paths(model)):
            linear = modules.get(path)
            if linear is None or not _is_plain(linear):
                raise CheckpointError(
                    f"{type(model).__name__} has no linear layer {path}", where="config.json, quantization_config",
                    remedy="load the checkpoint as the architecture that it was made from",
                )  # fmt: skip
            with torch.device("meta"):
                empty = Int8Linear(*widths(linear), bias(linear) is not None)
            _put(model, path, empty)
        _untie(model, paths)


def quantise_rest(model: nn.Module) -> Int8Rest:
    """Round every linear layer of a model with packed students to int8, in place; other layers stay as they are.

    A head tied to the embeddings becomes a layer of its own. Subclasses of nn.Linear stay too: their owners read their
    weights in their own ways.
    """
    prefix = f"{path}." if (path := base_model_path(model)) else ""
    paths = [path for path, module in model.named_modules() if _is_plain(module)]
    for path in paths:
        _put(model, path, Int8Linear.of(model.get_submodule(path)))
    _untie(model, paths)
    inside = tuple(path.removeprefix(prefix) for path in paths if path.startswith(prefix))
    return Int8Rest(inside, tuple(path for path in paths if not path.startswith(prefix)))


def open_rest(model: nn.Module) -> None:
    """Put trainable float32 layers with exactly the stored weights in the places of all that are in int8."""
    for path, layer in list(model.named_modules()):
        if isinstance(layer, Int8Linear):
            _put(model, path, layer.dequantised())


@torch.no_grad()
def check_rest(model: nn.Module, batch: Mapping[str, Tensor]) -> None:
    """Raise CompressError where a dense model does not run with its linear layers in int8, on a batch of arguments."""
    rounded = copy.deepcopy(model)
    quantise_rest(rounded)
    device = next(model.parameters()).device
    try:
        rounded(**{name: tensor.to(device) for name, tensor in batch.items()})
    except Exception as error:
        raise CompressError(
            f"{type(model).__name__} does not run with linear layers in int8, whose weights it reads itself: {error}",
            where="pack.rest", remedy="write `rest: keep`",
        ) from error  # fmt: skip


def stored_tensors(layer: nn.Module, path: str) -> dict[str, Tensor]:
    """What a checkpoint holds of a layer, in int8 or opened. Raises CheckpointError where it is neither."""
    if not isinstance(layer, Int8Linear):
        if not _is_plain(layer):
            raise CheckpointError(
                f"{path} is not the linear layer that the model's quantization_config describes", where=path,
                remedy="leave the layers of a loaded checkpoint in their places",
            )  # fmt: skip
        layer = Int8Linear.of(layer)
    return {f"{path}.{name}": tensor.detach() for name, tensor in layer.named_parameters()}


def _is_plain(module: nn.Module) -> bool:
    return is_linear(module) and (type(module) is nn.Linear or not isinstance(module, nn.Linear))


def _put(model: nn.Module, path: str, layer: nn.Module) -> None:
    """At `path`, and wherever else the model holds the same layer."""
    old = model.get_submodule(path)
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children passes over a module that comes twice
            if child is old:
                setattr(parent, name, layer)


def _untie(model: nn.Module, paths: Iterable[str]) -> None:
    """Let transformers tie these layers' weights to nothing."""
    for path in paths:
        getattr(model, "all_tied_weights_keys", {}).pop(f"{path}.weight", None)
