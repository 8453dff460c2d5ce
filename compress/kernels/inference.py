"""Packed students and int8 layers: laid out once, read by the kernel once, run in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from ..errors import KernelError
from . import layout
from .extension import check, refuse, required

if TYPE_CHECKING:
    from ..lookup.geometry import Geometry

MAX_WIDTH = 1 << 24


def prepare(
    params: Mapping[str, Tensor] | nn.Module, geometry: Geometry, input_bits: int = 16
) -> tuple[list[Tensor], list[int]]:
    """Lay out a packed LookupFFN for `lookup_ffn`, once after loading.

    `params`, a mapping or the module itself, holds its tensors under their canonical names and shapes, on the CPU:
    weight matrices all float32, all bfloat16 or all int8 with float32 scales beside them, tables float32, bfloat16, or
    int8 or two columns of 4 bits a byte with float32 `scales`, the rest float32. Returns the `prepared` tensors and the
    `geometry` integers of the op. float32 BH4 blocks take up the Hadamard transform within a block; narrower ones do
    not: the products would need float32, with more bytes. `input_bits`: what int8 matrices are applied to becomes
    integers of 8 or 16 bits.
    Raises KernelError where tensors do not fit the geometry or the extension is missing.
    """
    if isinstance(params, nn.Module):
        params = params.state_dict()
    with torch.device("cpu"):  # whatever the default is
        return layout.prepare(required(), params, geometry, input_bits)


class Bound:
    """A layer that the kernel has read once, so that a call costs little: x [..., d_in] -> y [..., d_out], float32.

    run: the kernel's, on addresses of x and y.  buffers: what it reads.
    A call raises KernelError on an x that is not float32 on the CPU, or of another width.
    """

    __slots__ = ("_buffers", "_d_in", "_d_out", "_run")

    def __init__(
        self, run: Callable[[int, int, int, int], None], d_in: int, d_out: int, buffers: Sequence[Tensor]
    ) -> None:
        self._run, self._d_in, self._d_out, self._buffers = run, d_in, d_out, buffers

    def __call__(self, x: Tensor) -> Tensor:
        """[..., d_in] -> [..., d_out]."""
        if x.dtype != torch.float32 or not x.is_cpu or x.shape[-1:] != (self._d_in,):
            raise refuse(
                "x", f"is {x.dtype} {list(x.shape)} on {x.device}", f"pass float32 [..., {self._d_in}] on the CPU"
            )
        x = x.contiguous()
        # empty_like takes half of new_empty's time
        y = torch.empty_like(x) if self._d_in == self._d_out else x.new_empty(*x.shape[:-1], self._d_out)
        self._run(x.data_ptr(), y.data_ptr(), y.numel() // self._d_out, torch.get_num_threads())
        return y


def bind(prepared: Sequence[Tensor], geometry: Sequence[int]) -> Bound:
    """Let the kernel read a packed LookupFFN, as `prepare` laid it out; a call does what `lookup_ffn` does.

    Raises KernelError where the two are not what `prepare` returned.
    """
    if len(prepared) != 2 or len(geometry) != layout.SETTINGS or not 1 <= geometry[1] <= MAX_WIDTH:
        raise _refuse_prepared()
    (weights, tables), (d_in, d_out, *_) = prepared, geometry
    # The bias alone takes so many bytes; what does not fit must not allocate an answer.
    if 4 * d_out > weights.nbytes or not (_is_plain(weights) and _is_plain(tables)):
        raise _refuse_prepared()
    try:
        ffn = required().PackedFFN(geometry, weights.data_ptr(), weights.nbytes, tables.data_ptr(), tables.nbytes)
    except ValueError as error:
        raise refuse("prepared", f"is {error}", "pass both results of `prepare`") from None
    return Bound(ffn.run, d_in, d_out, prepared)


def _lookup_ffn(x: Tensor, prepared: Sequence[Tensor], geometry: Sequence[int]) -> Tensor:
    return bind(prepared, geometry)(x)


def _is_plain(buffer: Tensor) -> bool:
    return buffer.is_cpu and buffer.is_contiguous()


def _refuse_prepared() -> KernelError:
    return refuse("prepared", "is not what `prepare` returned", "pass both its results unchanged")


def prepare_linear(values: Tensor, scale: Tensor, bias: Tensor | None) -> list[Tensor]:
    """Lay out an int8 linear layer for `bind_linear`: values int8 [d_out, d_in]; scale, bias float32 [d_out].

    Raises KernelError where they do not fit each other or the extension is missing.
    """
    device = torch.device("cpu")
    check("values", values, torch.int8, (-1, -1), device)
    for name, vector in (("scale", scale), *((("bias", bias),) if bias is not None else ())):
        check(name, vector, torch.float32, (len(values),), device)
    required()
    return layout.prepare_linear(values, scale, bias)


def bind_linear(prepared: Sequence[Tensor], d_in: int, d_out: int) -> Bound:
    """Let the kernel read an int8 layer that `prepare_linear` laid out; a call gives y = x W^T + b.

    x becomes 8-bit integers with a scale a token; a token's result depends neither on the others nor on the threads.
    Raises KernelError where the sizes do not fit.
    """
    panels, scale, bias = prepared
    count, width = layout.linear_sizes(panels)
    if not (0 <= width - d_in < 4 and 0 <= count - d_out < layout.PANEL):
        raise refuse("prepared", f"does not fit {d_in} inputs and {d_out} outputs", "pass the layer's numbers of them")
    linear = required().PackedLinear(
        panels.data_ptr(), scale.data_ptr(), bias.data_ptr() if len(bias) else 0, d_in, d_out
    )
    return Bound(linear.run, d_in, d_out, prepared)


_LIBRARY = torch.library.Library("compress", "FRAGMENT")
_LIBRARY.define("lookup_ffn(Tensor x, Tensor[] prepared, int[] geometry) -> Tensor", tags=torch.Tag.pt2_compliant_tag)
_LIBRARY.impl("lookup_ffn", _lookup_ffn, "CPU")


@torch.library.register_fake("compress::lookup_ffn")
def _lookup_ffn_fake(x: Tensor, prepared: Sequence[Tensor], geometry: Sequence[int]) -> Tensor:
    return x.new_empty(*x.shape[:-1], geometry[1])


def lookup_ffn(x: Tensor, prepared: Sequence[Tensor], geometry: Sequence[int]) -> Tensor:
    """Run a packed LookupFFN on the CPU, x [..., d_in] -> y [..., d_out], float32: the op `compress::lookup_ffn`.

    `prepared` and `geometry` are what `prepare` returned. Arithmetic is float32, but what int8 matrices are applied to
    becomes integers with a scale a token, of 16 bits or of `input_bits` (a hash's always of 16); where the processor
    has AVX-512 VNNI int8 rows are summed in integers, their weights as 16-bit fractions of a group's largest. A token's
    result depends neither on the other tokens of its batch nor on the thread count.
    Raises KernelError on tensors that do not fit.
    """
    if is_observed(x):
        y: Tensor = torch.ops.compress.lookup_ffn(x, prepared, geometry)
        return y
    return _lookup_ffn(x, prepared, geometry)


def is_observed(x: Tensor) -> bool:
    """Whether a call on x must be an operator: on another device, for a gradient, a trace, a transform or a profile.

    Otherwise the kernel is called directly: PyTorch's dispatcher takes longer than a small layer's arithmetic.
    """
    return (
        torch.compiler.is_compiling() or type(x) is not Tensor or not x.is_cpu or x.requires_grad
        or is_in_torch_dispatch_mode() or torch._C._are_functorch_transforms_active()
        or torch._C._is_tracing() or torch.autograd._profiler_enabled()
    )  # fmt: skip
