"""The Python face of the native kernel: table look-ups and their hashes, for training and for inference.

Every function checks its tensors, runs natively where they are on the CPU and the extension is there, and in PyTorch
(`torch_kernels`) otherwise, so that callers never branch. `COMPRESS_ISA` forces a lower instruction set;
`COMPRESS_REQUIRE_KERNEL=1` makes a missing extension an error.
"""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import torch  # before the extension, so that both share torch's libgomp and its threads
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from . import kernel_layout, torch_kernels
from .errors import KernelError

if TYPE_CHECKING:
    from .lookup.geometry import Geometry

MAX_BITS = 16
MAX_WIDTH = 1 << 24
_INSTALL = "reinstall compress-lookup with a C compiler at hand (Debian: apt install gcc python3-dev)"


@functools.cache
def _extension() -> ModuleType | None:
    try:
        extension = importlib.import_module("compress._kernels")
    except ImportError:
        return None
    wanted = os.environ.get("COMPRESS_ISA")
    if wanted:
        _select(extension, wanted)
    return extension


def _select(extension: ModuleType, isa: str) -> None:
    levels = extension.levels()
    if isa not in levels:
        raise KernelError(
            f"instruction set {isa!r} is not to be had here", where="environment variable COMPRESS_ISA",
            remedy=f"choose one of {', '.join(levels)}, or unset it for the best",
        )  # fmt: skip
    extension.select_level(levels.index(isa))


@functools.cache
def _extension_or_warning() -> ModuleType | None:
    extension = _extension()
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
    return _extension() is not None


def isa() -> str:
    """Instruction set in use: "avx512_vnni", "avx512", "avx2", "neon" or "scalar"; "torch" without the extension.

    Raises KernelError where COMPRESS_ISA names one that this processor lacks.
    """
    extension = _extension()
    return extension.level_name() if extension else "torch"


def _native(*tensors: Tensor) -> ModuleType | None:
    """Find the extension, where it can run on these tensors."""
    return _extension_or_warning() if all(tensor.device.type == "cpu" for tensor in tensors) else None


def _refuse(name: str, problem: str, remedy: str) -> KernelError:
    return KernelError(f"{name} {problem}", where="compress.kernels", remedy=remedy)


def _check(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> None:
    """Raise KernelError unless the tensor is contiguous and as described; -1 in `shape` stands for any size."""
    if tensor.dtype != dtype:
        raise _refuse(name, f"has dtype {tensor.dtype}, not {dtype}", f"convert it: {name}.to({dtype})")
    if tensor.dim() != len(shape) or any(
        want not in (-1, have) for have, want in zip(tensor.shape, shape, strict=True)
    ):
        raise _refuse(
            name, f"has shape {list(tensor.shape)}, not {list(shape)}", "make the shapes agree (-1: any size)"
        )
    if tensor.device != device:
        raise _refuse(name, f"is on {tensor.device}, another tensor on {device}", "move them to one device")
    if not tensor.is_contiguous():
        raise _refuse(name, "is not contiguous", f"pass {name}.contiguous()")


def _check_reads(tables: Tensor, codes: Tensor, weights: Tensor) -> None:
    device = tables.device
    _check("tables", tables, torch.float32, (-1, -1, -1), device)
    _check("codes", codes, torch.int32, (-1, tables.shape[0], -1), device)
    if codes.shape[2] not in (1, 2):
        raise _refuse("codes", f"reads {codes.shape[2]} cells a table", "read 1 or 2")
    _check("weights", weights, torch.float32, tuple(codes.shape), device)
    if codes.shape[0] * codes.shape[2] >= 1 << 31:
        raise _refuse("codes", f"has {codes.shape[0]} tokens, too many for one call", "split the batch")


def _check_codes(extension: ModuleType, codes: Tensor, rows: int) -> None:
    if not extension.codes_valid(codes.data_ptr(), codes.numel(), rows):
        raise _refuse("codes", f"holds a code outside [0, {rows})", "pass codes of as many bits as the tables have")


def gather(tables: Tensor, codes: Tensor, weights: Tensor) -> Tensor:
    """Read rows of tables: y[n] = sum_h sum_c weights[n, h, c] * tables[h, codes[n, h, c]].

    tables [H, R, d] float32, codes [N, H, C] int32 with C 1 or 2, weights [N, H, C] float32 -> y [N, d] float32.
    Sums run over h, then c, whatever the thread count. Raises KernelError on tensors or codes that do not fit.
    """
    _check_reads(tables, codes, weights)
    extension = _native(tables)
    if extension is None:
        return torch_kernels.gather(tables, codes, weights)
    (count, rows, width), (tokens, _, cells) = tables.shape, codes.shape
    _check_codes(extension, codes, rows)
    y = tables.new_empty(tokens, width)
    extension.gather(
        tables.data_ptr(), codes.data_ptr(), weights.data_ptr(), y.data_ptr(), tokens, count, rows, width, cells,
        torch.get_num_threads(),
    )  # fmt: skip
    return y


def gather_backward(grad_y: Tensor, tables: Tensor, codes: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `gather` with respect to its tables and weights, given grad_y [N, d] float32.

    Returns grad_tables [H, R, d] and grad_weights [N, H, C], float32; the same bits at any thread count.
    Raises KernelError on tensors or codes that do not fit.
    """
    _check_reads(tables, codes, weights)
    (count, rows, width), (tokens, _, cells) = tables.shape, codes.shape
    _check("grad_y", grad_y, torch.float32, (tokens, width), tables.device)
    extension = _native(tables)
    if extension is None:
        return torch_kernels.gather_backward(grad_y, tables, codes, weights)
    _check_codes(extension, codes, rows)
    grad_tables, grad_weights = torch.empty_like(tables), torch.empty_like(weights)
    extension.advise_huge(grad_tables.data_ptr(), grad_tables.nbytes)  # fresh memory: fewer page faults
    extension.gather_backward(
        grad_y.data_ptr(), tables.data_ptr(), codes.data_ptr(), weights.data_ptr(), grad_tables.data_ptr(),
        grad_weights.data_ptr(), tokens, count, rows, width, cells, torch.get_num_threads(),
    )  # fmt: skip
    return grad_tables, grad_weights


def huge_buffer(size: int) -> Tensor:
    """So many uninitialised bytes, in huge pages where the system grants them."""
    extension = _extension()
    return (
        torch.empty(size, dtype=torch.uint8, device="cpu")
        if extension is None
        else kernel_layout.huge_buffer(extension, size)
    )


def stream_read(block: Tensor) -> int:
    """Read all of a contiguous int64 tensor on the CPU as fast as torch's threads can; the exclusive or of its numbers.

    Raises KernelError on any other tensor.
    """
    _check("block", block, torch.int64, (-1,), torch.device("cpu"))
    extension = _native(block)
    if extension is None:
        return int(block.sum())  # reads it too
    found: int = extension.stream_read(block.data_ptr(), block.nbytes, torch.get_num_threads())
    return found


def _check_hash(z: Tensor) -> None:
    _check("z", z, torch.float32, (-1, -1, -1), z.device)
    if not 1 <= z.shape[2] <= MAX_BITS:
        raise _refuse("z", f"has {z.shape[2]} bits a table", f"use 1 to {MAX_BITS}")


def margin_scores(z: Tensor) -> tuple[Tensor, Tensor]:
    """Hash: code_h = sum_j [z_hj > 0] 2^(t-1-j), score_h = sum_j |z_hj| / prod_j (1 + exp(-2 |z_hj|)).

    z [N, H, t] float32 -> codes [N, H] int32, scores [N, H] float32 (LookupFFN, arXiv 2403.07221). z == 0 gives bit 0.
    Raises KernelError on a tensor that does not fit.
    """
    _check_hash(z)
    extension = _native(z)
    if extension is None:
        return torch_kernels.margin_scores(z)
    tokens, tables, bits = z.shape
    codes = z.new_empty(tokens, tables, dtype=torch.int32)
    scores = z.new_empty(tokens, tables)
    extension.margin_scores(
        z.data_ptr(), bits, tokens * tables, codes.data_ptr(), scores.data_ptr(), torch.get_num_threads()
    )
    return codes, scores


def margin_scores_backward(z: Tensor, scores: Tensor, grad_scores: Tensor) -> Tensor:
    """Gradient with respect to z [N, H, t] of the `scores` [N, H] that `margin_scores` gave; |z| has slope 0 at 0.

    Raises KernelError on tensors that do not fit.
    """
    _check_hash(z)
    tokens, tables, bits = z.shape
    _check("scores", scores, torch.float32, (tokens, tables), z.device)
    _check("grad_scores", grad_scores, torch.float32, (tokens, tables), z.device)
    extension = _native(z)
    if extension is None:
        return torch_kernels.margin_scores_backward(z, scores, grad_scores)
    grad_z = torch.empty_like(z)
    extension.margin_scores_backward(
        z.data_ptr(), scores.data_ptr(), grad_scores.data_ptr(), bits, tokens * tables, grad_z.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return grad_z


def _required() -> ModuleType:
    extension = _extension()
    if extension is None:
        raise KernelError("the native kernel is missing", where="compress._kernels", remedy=_INSTALL)
    return extension


def prepare(
    params: Mapping[str, Tensor] | nn.Module, geometry: Geometry, input_bits: int = 16
) -> tuple[list[Tensor], list[int]]:
    """Lay out a packed LookupFFN for `lookup_ffn`, once after loading.

    `params`, a mapping or the module itself, holds its tensors under their canonical names and shapes, on the CPU:
    weight matrices all float32, all bfloat16 or all int8 with float32 scales beside them, tables float32, bfloat16 or
    int8 with float32 `scales`, the rest float32. Returns the `prepared` tensors and the `geometry` integers of the op.
    float32 BH4 blocks take up the Hadamard transform within a block; narrower ones do not: the products would need
    float32, with more bytes. `input_bits`: what int8 matrices are applied to becomes integers of 8 or 16 bits.
    Raises KernelError where tensors do not fit the geometry or the extension is missing.
    """
    if isinstance(params, nn.Module):
        params = params.state_dict()
    with torch.device("cpu"):  # whatever the default is
        return kernel_layout.prepare(_required(), params, geometry, input_bits)


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
            raise _refuse(
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
    if len(prepared) != 2 or len(geometry) != kernel_layout.SETTINGS or not 1 <= geometry[1] <= MAX_WIDTH:
        raise _refuse_prepared()
    (weights, tables), (d_in, d_out, *_) = prepared, geometry
    # The bias alone takes so many bytes; what does not fit must not allocate an answer.
    if 4 * d_out > weights.nbytes or not (_is_plain(weights) and _is_plain(tables)):
        raise _refuse_prepared()
    try:
        ffn = _required().PackedFFN(geometry, weights.data_ptr(), weights.nbytes, tables.data_ptr(), tables.nbytes)
    except ValueError as error:
        raise _refuse("prepared", f"is {error}", "pass both results of `prepare`") from None
    return Bound(ffn.run, d_in, d_out, prepared)


def _lookup_ffn(x: Tensor, prepared: Sequence[Tensor], geometry: Sequence[int]) -> Tensor:
    return bind(prepared, geometry)(x)


def _is_plain(buffer: Tensor) -> bool:
    return buffer.is_cpu and buffer.is_contiguous()


def _refuse_prepared() -> KernelError:
    return _refuse("prepared", "is not what `prepare` returned", "pass both its results unchanged")


def prepare_linear(values: Tensor, scale: Tensor, bias: Tensor | None) -> list[Tensor]:
    """Lay out an int8 linear layer for `bind_linear`: values int8 [d_out, d_in]; scale, bias float32 [d_out].

    Raises KernelError where they do not fit each other or the extension is missing.
    """
    device = torch.device("cpu")
    _check("values", values, torch.int8, (-1, -1), device)
    for name, vector in (("scale", scale), *((("bias", bias),) if bias is not None else ())):
        _check(name, vector, torch.float32, (len(values),), device)
    return kernel_layout.prepare_linear(_required(), values, scale, bias)


def bind_linear(prepared: Sequence[Tensor], d_in: int, d_out: int) -> Bound:
    """Let the kernel read an int8 layer that `prepare_linear` laid out; a call gives y = x W^T + b.

    x becomes 8-bit integers with a scale a token; a token's result depends neither on the others nor on the threads.
    Raises KernelError where the sizes do not fit.
    """
    panels, scale, bias = prepared
    count, width = kernel_layout.linear_sizes(panels)
    if not (0 <= width - d_in < 4 and 0 <= count - d_out < kernel_layout.PANEL):
        raise _refuse("prepared", f"does not fit {d_in} inputs and {d_out} outputs", "pass the layer's numbers of them")
    linear = _required().PackedLinear(
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
