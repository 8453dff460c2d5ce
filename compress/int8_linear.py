"""A linear layer in int8, what it is applied to in 8 bits too: what the rest of a model becomes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.weak import WeakIdKeyDictionary

from . import kernels
from .lookup.packed import quantise, rounded
from .sites import linears


class _Last(NamedTuple):
    """What a layer was bound of, and the version of each."""

    values: Tensor
    scale: Tensor
    bias: Tensor | None
    version: list[int]
    bound: kernels.Bound


class Int8Linear(nn.Module):
    """y = x W^T + b with W = scale * values, [..., d_in] -> [..., d_out], in the dtype of x.

    values: int8 [d_out, d_in]; scale, bias: float32 [d_out]. x becomes 8-bit integers as it comes, with one scale a
    token. On the CPU the native kernel multiplies; elsewhere, and where a gradient is asked for, the dequantised layer
    is applied to the rounded x in float32.
    """

    def __init__(self, d_in: int, d_out: int, bias: bool = True) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(d_out, d_in, dtype=torch.int8), requires_grad=False)
        self.scale = nn.Parameter(torch.zeros(d_out, dtype=torch.float32), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(d_out, dtype=torch.float32), requires_grad=False) if bias else None
        # Models ask their linears for `weight.dtype`, transformers for the number of outputs; whoever multiplies by
        # this one fails on its shape.
        self.register_buffer("weight", torch.empty(d_out, 0, device="cpu"), persistent=False)
        self._last: _Last | None = None

    @classmethod
    @torch.no_grad()
    def of(cls, linear: nn.Module) -> Int8Linear:
        """Round a linear layer (nn.Linear or Conv1D), one scale an output."""
        weight, bias = linears.weight(linear), linears.bias(linear)
        made = cls(weight.shape[1], weight.shape[0], bias is not None).to(weight.device)
        values, scale = quantise(weight.float())
        made.values.copy_(values)
        made.scale.copy_(scale)
        if made.bias is not None and bias is not None:
            made.bias.copy_(bias)
        return made.train(linear.training)

    @torch.no_grad()
    def dequantised(self) -> nn.Linear:
        """A trainable float32 layer with exactly the weights that are stored."""
        d_out, d_in = self.values.shape
        made = nn.Linear(d_in, d_out, bias=self.bias is not None, device=self.values.device)
        made.weight.copy_(self.values * self.scale[:, None])
        if self.bias is not None:
            made.bias.copy_(self.bias)
        return made.train(self.training)

    def layout(self) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Names, shapes and dtypes of the tensors that are stored."""
        return {name: (tensor.shape, torch.int8 if name == "values" else torch.float32)
                for name, tensor in self.named_parameters()}  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """[..., d_in] -> [..., d_out]."""
        if not kernels.is_observed(x) and kernels.available():
            y = self._bound()(x.float())
        elif x.is_cpu and not (x.requires_grad and torch.is_grad_enabled()):
            y = torch.ops.compress.int8_linear(x.float(), self.values, self.scale, self.bias)
        else:
            return self.reference(x)
        return y if x.dtype == torch.float32 else y.to(x.dtype)

    def _bound(self) -> kernels.Bound:
        """Bind the parameters as they are now; where nothing changed, without the time of a look at `_BOUND`."""
        own, last = self._parameters, self._last
        values, scale, bias = own["values"], own["scale"], own.get("bias")
        assert values is not None
        assert scale is not None
        version = _version(values, scale, bias)
        if (
            last is None or last.values is not values or last.scale is not scale or last.bias is not bias
            or last.version != version
        ):  # fmt: skip
            last = self._last = _Last(values, scale, bias, version, _bound(values, scale, bias))
        return last.bound

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._last = None  # in inference mode no version tells of what is loaded
        _BOUND.pop(self.values, None)
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}

    def reference(self, x: Tensor) -> Tensor:
        """What the kernel computes, in float32 PyTorch, [..., d_in] -> [..., d_out] in the dtype of x."""
        return functional.linear(rounded(x.float()), self.values * self.scale[:, None], self.bias).to(x.dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> Int8Linear:
        def move(tensor: Tensor) -> Tensor:  # a model's cast to bfloat16 must not round what is stored wider
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype or not tensor.numel() else tensor.to(moved.device)

        return super()._apply(move, recurse)

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        d_out, d_in = self.values.shape
        return f"in_features={d_in}, out_features={d_out}, bias={self.bias is not None}"


# What is bound to a layer's values, when they are first used, and the version that it was made of.
_BOUND: WeakIdKeyDictionary = WeakIdKeyDictionary()


def _version(*tensors: Tensor | None) -> list[int]:
    # Made in inference mode, a tensor counts no changes; of those only what is loaded is noticed.
    return [0 if tensor is None or tensor.is_inference() else tensor._version for tensor in tensors]


def _bound(values: Tensor, scale: Tensor, bias: Tensor | None) -> kernels.Bound:
    version = _version(values, scale, bias)
    found = _BOUND.get(values)
    if found is None or found[0] != version:
        d_out, d_in = values.shape
        found = version, kernels.bind_linear(kernels.prepare_linear(values, scale, bias), d_in, d_out)
        _BOUND[values] = found
    bound: kernels.Bound = found[1]
    return bound


def _int8_linear(x: Tensor, values: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    if kernels.available():
        return _bound(values, scale, bias)(x)
    return functional.linear(rounded(x), values * scale[:, None], bias)


_LIBRARY = torch.library.Library("compress", "FRAGMENT")
_LIBRARY.define(
    "int8_linear(Tensor x, Tensor values, Tensor scale, Tensor? bias) -> Tensor", tags=torch.Tag.pt2_compliant_tag
)
_LIBRARY.impl("int8_linear", _int8_linear, "CPU")


@torch.library.register_fake("compress::int8_linear")
def _int8_linear_fake(x: Tensor, values: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(scale))
