"""Packing: a trained LookupFFN in its storage dtypes, run by the native kernel."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .. import kernels
from ..errors import CompressError
from ..kernels.layout import HALF_BYTES, SCALE, half_bytes, matrices
from .ffn import LookupFFN
from .geometry import Geometry
from .int4 import quantise_tables, split_columns

TableDtype = Literal["int4", "int8", "bfloat16", "float32"]
# w8a8: int8, and what the matrices but the hash's are applied to is rounded to 8 bits as well.
HashDtype = Literal["w8a8", "int8", "bfloat16", "float32"]

_DTYPES = {
    "int4": HALF_BYTES, "w8a8": torch.int8, "int8": torch.int8, "bfloat16": torch.bfloat16, "float32": torch.float32,
}  # fmt: skip
_INT8_MAX = 127


def packed_layout(
    geometry: Geometry, table_dtype: TableDtype, hash_dtype: HashDtype
) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Names, shapes and dtypes of the tensors that a packed student stores.

    Tables are in `table_dtype` (int4, two columns a byte, and int8 with a float32 scale a table), every weight matrix
    in `hash_dtype` (int8 and w8a8 with a float32 scale an output), vectors in float32. The diagonals of a structured
    hash, which are small, are never narrower than bfloat16. Raises CompressError for an unknown dtype.
    """
    for key, value, allowed in (
        ("table_dtype", table_dtype, get_args(TableDtype)),
        ("hash_dtype", hash_dtype, get_args(HashDtype)),
    ):
        if value not in allowed:
            raise CompressError(f"unknown {key} {value!r}", where=key, remedy=f"choose one of {', '.join(allowed)}")
    with torch.device("meta"):
        state = LookupFFN.from_geometry(geometry).state_dict()
    layout, weights = {}, matrices(geometry)
    for name, tensor in state.items():
        dtype, shape = torch.float32, tensor.shape
        if name == "tables":
            dtype = _DTYPES[table_dtype]
            shape = torch.Size((*shape[:2], half_bytes(shape[2]))) if table_dtype == "int4" else shape
        elif name in weights:
            dtype = _DTYPES[hash_dtype]
        elif name.endswith(".weight"):
            dtype = torch.float32 if hash_dtype == "float32" else torch.bfloat16
        layout[name] = shape, dtype
        if dtype in (torch.int8, HALF_BYTES):
            layout[_scale_name(name)] = tensor.shape[:1] if name == "tables" else tensor.shape[:-1], torch.float32
    return layout


def _scale_name(name: str) -> str:
    return "scales" if name == "tables" else name + SCALE


def quantise(values: Tensor, axes: int = 1) -> tuple[Tensor, Tensor]:
    """Symmetric int8 with one scale for all of the last `axes` axes, values = scale * int8.

    float [..., *axes] -> int8 of the same shape, float32 [...].
    """
    dims = tuple(range(-axes, 0))
    largest = values.abs().amax(dim=dims, keepdim=True).float()
    unit = torch.where(largest > 0, largest / _INT8_MAX, 1.0)
    rounded = torch.round(values / unit).clamp(-_INT8_MAX, _INT8_MAX).to(torch.int8)
    return rounded, (largest / _INT8_MAX).flatten(-axes).squeeze(-1)


def rounded(x: Tensor) -> Tensor:
    """x [..., k] as the nearest of 255 multiples of a token's largest magnitude / 127; its gradient is the identity."""
    largest = x.detach().abs().amax(dim=-1, keepdim=True)
    inverse = torch.where(largest > 1e-30, _INT8_MAX / largest, 0.0)
    return x + (torch.round(x * inverse) * (largest / _INT8_MAX) - x).detach()


def _round_inputs(student: LookupFFN) -> None:
    """Let the student round what its matrices but the hash's are applied to, as the kernel does."""
    neurons = student.neurons
    applied = (student.code, student.linear, *((neurons.gate, neurons.up, neurons.down) if neurons is not None else ()))
    for matrix in applied:
        if matrix is not None:
            matrix.register_forward_pre_hook(lambda module, arguments: (rounded(arguments[0]),))


class PackedLookupFFN(nn.Module):
    """A LookupFFN for inference, [..., d_in] -> [..., d_out], with tensors in canonical shapes and storage dtypes.

    On the CPU the fused native kernel runs it; elsewhere, without the kernel or where a gradient is asked for, its
    dequantised parameters run in float32 PyTorch (w8a8: over rounded inputs), which is also what the kernel is tested
    against.
    """

    def __init__(self, geometry: Geometry, table_dtype: TableDtype = "int4", hash_dtype: HashDtype = "int8"):
        super().__init__()
        self.geometry, self.table_dtype, self.hash_dtype = geometry, table_dtype, hash_dtype
        for name, (shape, dtype) in packed_layout(geometry, table_dtype, hash_dtype).items():
            *parents, leaf = name.split(".")
            owner: nn.Module = self
            for parent in parents:
                if not hasattr(owner, parent):
                    owner.add_module(parent, nn.Module())
                owner = owner.get_submodule(parent)
            owner.register_parameter(leaf, nn.Parameter(torch.zeros(shape, dtype=dtype), requires_grad=False))
        self._forget()

    @property
    def input_bits(self) -> int:
        """What the inputs of its int8 matrices become in the kernel (`compress.kernels.prepare`)."""
        return 8 if self.hash_dtype == "w8a8" else 16

    def _forget(self) -> None:
        # Derived from the parameters, so kept out of the module tree: never saved, never moved, made when first used.
        self._prepared: tuple[list[Tensor], list[int]] | None = None
        self._bound: kernels.Bound | None = None
        object.__setattr__(self, "_reference", None)

    @torch.no_grad()
    def dequantised(self) -> LookupFFN:
        """A trainable float32 LookupFFN with exactly the parameters that are stored."""
        stored = self.state_dict()
        if self.table_dtype == "int4" and self.geometry.tables:
            stored["tables"] = split_columns(stored["tables"], self.geometry.d_out)
        state = {name: value.detach().float() for name, value in stored.items()}
        for name in list(state):
            if (scale := state.pop(_scale_name(name), None)) is not None:
                state[name] = state[name] * scale.reshape(*scale.shape, *(1,) * (state[name].dim() - scale.dim()))
        device = self.get_parameter("bias").device
        with torch.device("meta"):
            student = LookupFFN.from_geometry(self.geometry)
        student = student.to_empty(device=device)
        student.load_state_dict(state)
        return student

    def forward(self, x: Tensor) -> Tensor:
        """[..., d_in] -> [..., d_out], in the dtype of x; arithmetic is float32."""
        if not kernels.is_observed(x) and self._bound is not None:
            y = self._bound(x.float())
            return y if x.dtype == torch.float32 else y.to(x.dtype)
        if not x.is_cpu or not kernels.available() or (x.requires_grad and torch.is_grad_enabled()):
            return self._float32()(x)
        self._ensure_prepared()
        assert self._prepared is not None
        return kernels.lookup_ffn(x.float(), *self._prepared).to(x.dtype)

    @torch.compiler.assume_constant_result  # torch.compile runs it while it traces, and looks no further into it
    def _ensure_prepared(self) -> bool:
        """Lay out for the kernel; the tables then live there alone, not twice."""
        if self._prepared is None:
            prepared, numbers = kernels.prepare(self.state_dict(), self.geometry, self.input_bits)
            self._prepared, self._bound = (prepared, numbers), kernels.bind(prepared, numbers)
            if self.geometry.tables:
                tables = self.get_parameter("tables")
                rows = prepared[1].view(tables.dtype).view(*tables.shape[:2], -1)
                tables.data = rows[..., : tables.shape[-1]]  # rows may lie apart
        return True

    def reference(self, x: Tensor) -> Tensor:
        """What the kernel computes, in float32 PyTorch, [..., d_in] -> [..., d_out]; keeps nothing in memory."""
        y: Tensor = self._dequantised_rounding()(x)
        return y

    def _dequantised_rounding(self) -> LookupFFN:
        made = self.dequantised().requires_grad_(False)
        if self.input_bits == 8:
            _round_inputs(made)
        return made

    def _float32(self) -> LookupFFN:
        reference: LookupFFN | None = self.__dict__["_reference"]
        if reference is None:
            reference = self._dequantised_rounding()
            object.__setattr__(self, "_reference", reference)
        return reference

    def _apply(self, fn: Any, recurse: bool = True) -> PackedLookupFFN:
        self._forget()

        def move(tensor: Tensor) -> Tensor:  # a model's cast to bfloat16 must not round what is stored wider
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._forget()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prepared": None, "_bound": None, "_reference": None}

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        sizes = {**self.geometry.to_dict(), "table_dtype": self.table_dtype, "hash_dtype": self.hash_dtype}
        return ", ".join(f"{key}={value}" for key, value in sizes.items())


@torch.no_grad()
def pack(ffn: LookupFFN, table_dtype: TableDtype = "int4", hash_dtype: HashDtype = "int8") -> PackedLookupFFN:
    """Round a trained student to its storage dtypes.

    Tables in `table_dtype` (int4, int8: one float32 scale a table), weight matrices in `hash_dtype` (int8, w8a8: one an
    output), the rest in float32.
    """
    packed = PackedLookupFFN(ffn.geometry, table_dtype, hash_dtype).to(ffn.bias.device)
    state = {name: value.detach().clone() for name, value in ffn.state_dict().items()}
    for name, parameter in packed.named_parameters():
        if parameter.dtype == HALF_BYTES:
            state[name], state[_scale_name(name)] = quantise_tables(state[name])
        elif parameter.dtype == torch.int8:
            state[name], state[_scale_name(name)] = quantise(state[name], 2 if name == "tables" else 1)
    packed.load_state_dict(state)
    return packed
