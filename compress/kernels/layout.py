"""The layout that the native kernel reads: one LookupFFN's canonical tensors in panels, aligned and in huge pages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import KernelError
from .memory import huge_buffer

if TYPE_CHECKING:
    from ..lookup.geometry import Geometry

# The order of each tuple is that of the enums in kernels/ffn.h.
PROJECTIONS = ("hadamard", "lowrank", "dense", "bh4", "acdc")
ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "relu", "relu2", "silu", "tanh", "sigmoid")
DTYPES = (torch.float32, torch.bfloat16, torch.int8)
HALF_BYTES = torch.uint8  # what tables in 4 bits are stored as, two columns a byte (lookup/int4.py)
_TABLES = (*DTYPES, HALF_BYTES)

SETTINGS = 14  # integers that describe one packed LookupFFN
PANEL = 16  # outputs of a matrix that lie side by side
ROW_UNIT = 64  # columns of a table's rows that are read together
BH4_FACTORS = 4
HADAMARD_FACTORS = 2
ACDC_LAYERS = 4


SCALE = "_scale"  # behind the name of a matrix in int8: one float32 an output, matrix = scale * int8


def half_bytes(width: int) -> int:
    """Bytes of a row of `width` columns in 4 bits."""
    return -(-width // ROW_UNIT) * ROW_UNIT // 2


def parameter_shapes(g: Geometry) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a packed LookupFFN, tables not in 4 bits; scales of integers aside."""
    shapes: dict[str, tuple[int, ...]] = {"bias": (g.d_out,)}
    if g.rank:
        shapes |= {"code.weight": (g.rank, g.d_in), "code.bias": (g.rank,), "linear.weight": (g.d_out, g.rank)}
    if g.neurons:
        shapes |= {"neurons.gate.weight": (g.neurons, g.d_in), "neurons.gate.bias": (g.neurons,)}
        shapes |= {"neurons.down.weight": (g.d_out, g.neurons)}
        if g.gated:
            shapes |= {"neurons.up.weight": (g.neurons, g.d_in), "neurons.up.bias": (g.neurons,)}
    if g.tables:
        shapes["tables"] = (g.tables, g.rows, g.d_out)
        shapes["hash.projection.bias"] = (g.hash_bits,)
        shapes["hash.projection.weight"] = {
            "hadamard": (g.repeats, HADAMARD_FACTORS, g.padded),
            "lowrank": (g.hash_bits, g.rank),
            "dense": (g.hash_bits, g.d_in),
            "bh4": (g.repeats, BH4_FACTORS, g.padded // max(g.block, 1), g.block, g.block),
            "acdc": (g.repeats, ACDC_LAYERS, 2, g.padded),
        }[g.projection]
        if g.cells == 2:
            shapes["log_temperature"] = ()
    return shapes


def matrices(g: Geometry) -> list[str]:
    """Names of the weight matrices, which share a storage dtype; a structured hash's diagonals are not among them."""
    names = [name for name in parameter_shapes(g) if name.endswith(".weight")]
    return [name for name in names if name != "hash.projection.weight" or g.projection not in ("hadamard", "acdc")]


def _checked(params: Mapping[str, Tensor], g: Geometry) -> tuple[torch.dtype, torch.dtype]:
    """Dtypes of the weight matrices and of the tables; KernelError where tensors are missing, extra or do not fit."""
    shapes, weights = parameter_shapes(g), matrices(g)
    if "tables" in params and params["tables"].dtype in (torch.int8, HALF_BYTES):
        shapes["scales"] = (g.tables,)
    if "tables" in params and params["tables"].dtype == HALF_BYTES:
        shapes["tables"] = (g.tables, g.rows, half_bytes(g.d_out))
    shapes |= {
        name + SCALE: shapes[name][:-1] for name in weights if name in params and params[name].dtype == torch.int8
    }
    if missing := sorted(shapes.keys() - params.keys()):
        raise _misfit(f"tensors are missing: {', '.join(missing)}")
    if extra := sorted(params.keys() - shapes.keys()):
        raise _misfit(f"tensors that this geometry does not have: {', '.join(extra)}")
    for name, shape in shapes.items():
        tensor = params[name]
        if tuple(tensor.shape) != shape:
            raise _misfit(f"{name} has shape {list(tensor.shape)}, not {list(shape)}")
        if tensor.device.type != "cpu":
            raise _misfit(f"{name} is on {tensor.device}; the native kernel runs on the CPU")
        allowed = _TABLES if name == "tables" else DTYPES if name in weights else DTYPES[: 1 + name.endswith(".weight")]
        if tensor.dtype not in allowed:
            raise _misfit(f"{name} has dtype {tensor.dtype}, not one of {', '.join(map(str, allowed))}")
    if "scales" in params and not bool(((params["scales"] >= 0) & params["scales"].isfinite()).all()):
        raise _misfit("scales holds a number that is negative or not finite")
    weight_dtypes = {params[name].dtype for name in weights}
    if len(weight_dtypes) > 1:
        raise _misfit(f"weight matrices of several dtypes: {', '.join(sorted(map(str, weight_dtypes)))}")
    return weight_dtypes.pop() if weight_dtypes else torch.float32, params[
        "tables"
    ].dtype if g.tables else torch.float32


def _misfit(problem: str) -> KernelError:
    return KernelError(
        problem, where="compress.kernels.prepare", remedy="pass the tensors of a packed LookupFFN of this geometry"
    )


def settings(g: Geometry, weight_dtype: torch.dtype, table_dtype: torch.dtype, input_bits: int) -> list[int]:
    """Tell the kernel everything about a packed LookupFFN in integers (enum setting in kernels/ffn.h)."""
    return [
        g.d_in, g.d_out, g.tables, g.bits, PROJECTIONS.index(g.projection), g.block, g.rank, g.neurons, int(g.gated),
        ACTIVATIONS.index(g.activation), g.cells, _TABLES.index(table_dtype), DTYPES.index(weight_dtype),
        input_bits,
    ]  # fmt: skip


def panels(matrix: Tensor) -> Tensor:
    """[..., n, k] in panels of 16 outputs, zero-padded.

    float32 [..., n / 16, k, 16], bfloat16 [..., n / 16, k / 2, 16, 2], int8 [..., n / 16, k / 4, 16, 4] with the second
    and the third of each four exchanged (v_load_byte_pairs in kernels/vector.h).
    """
    n, k = matrix.shape[-2:]
    together = 4 // matrix.dtype.itemsize
    matrix = functional.pad(matrix, (0, -k % together, 0, -n % PANEL))
    matrix = matrix.unflatten(-1, (-1, together)).unflatten(-3, (-1, PANEL))  # [..., panel, 16, k / together, together]
    if together == 4:
        matrix = matrix[..., [0, 2, 1, 3]]
    return matrix.transpose(-3, -2).contiguous()


def _pad_rows(tensor: Tensor) -> Tensor:
    """Zeros behind the first axis up to whole panels."""
    return functional.pad(tensor, (0, 0) * (tensor.dim() - 1) + (0, -tensor.shape[0] % PANEL))


def _by_table(tensor: Tensor, g: Geometry) -> Tensor:
    """[H * t, ...] -> [groups * t * 16, ...]: in a group of 16 tables first all their first bits, then the second."""
    grouped = _pad_rows(tensor.unflatten(0, (g.tables, g.bits))).unflatten(0, (-1, PANEL))  # [groups, 16, t, ...]
    return grouped.transpose(1, 2).flatten(0, 2)


def _bh4_panels(weight: Tensor, g: Geometry, hadamard_from: int) -> Tensor:
    """Panels of every b x b block, [R, 4, D / b, b, b]; with a Hadamard transform of size `hadamard_from` folded in."""
    if hadamard_from > 1:
        weight = (hadamard_matrix(hadamard_from) @ weight.double()).to(weight.dtype)
    if g.block < PANEL:  # several blocks on the diagonal of a larger one
        side = min(PANEL, g.padded) // g.block
        blocks = weight.unflatten(2, (-1, side))  # [R, 4, D / (side b), side, b, b]
        weight = weight.new_zeros(*blocks.shape[:3], PANEL, PANEL)
        for i in range(side):
            at = slice(i * g.block, (i + 1) * g.block)
            weight[..., at, at] = blocks[..., i, :, :]
    return panels(weight)


def hadamard_matrix(size: int) -> Tensor:
    """Unnormalised Hadamard matrix in natural (Sylvester) order, float64."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), matrix)
    return matrix


def _rotations(size: int) -> Tensor:
    """Cosines and sines that the fast DCTs of all sizes n up to `size` need, [2, size]; those of n at [n / 2, n)."""
    angles = torch.zeros(size, dtype=torch.float64)
    n = 2
    while n <= size:
        angles[n // 2 : n] = (2 * torch.arange(n // 2, dtype=torch.float64) + 1) * math.pi / (4 * n)
        n *= 2
    return torch.stack((angles.cos(), angles.sin()))


def _parts(params: Mapping[str, Tensor], g: Geometry, hadamard_from: int) -> dict[str, Tensor]:
    """Every part of the weights buffer, under its name in the kernel."""
    inputs = [name for name in ("code", "neurons.gate", "neurons.up") if f"{name}.weight" in params]
    parts = {"output_bias": params["bias"]}
    if inputs:
        parts["input"] = panels(torch.cat([_pad_rows(params[f"{name}.weight"]) for name in inputs]))
        parts["input_bias"] = torch.cat([_pad_rows(params[f"{name}.bias"]) for name in inputs])
        if f"{inputs[0]}.weight{SCALE}" in params:
            parts["input_scale"] = torch.cat([_pad_rows(params[f"{name}.weight{SCALE}"]) for name in inputs])
    for part, name in (("linear", "linear.weight"), ("down", "neurons.down.weight")):
        if name in params:
            parts[part] = panels(_pad_rows(params[name].T).T)
        if name + SCALE in params:
            parts[part + SCALE] = params[name + SCALE]
    if not g.tables:
        return parts
    weight, bias = params["hash.projection.weight"], params["hash.projection.bias"]
    if g.projection in ("lowrank", "dense"):
        parts["hash"], parts["hash_bias"] = panels(_by_table(weight, g)), _by_table(bias, g)
    elif g.projection == "hadamard":
        parts["hash"] = functional.pad(weight.float(), (0, -g.padded % PANEL))
        parts["hash_bias"] = functional.pad(bias.view(g.tables, g.bits).T, (0, -g.tables % PANEL))
    elif g.projection == "bh4":
        parts["hash"], parts["hash_bias"] = _bh4_panels(weight, g, hadamard_from), bias
    else:
        parts["hash"], parts["hash_bias"] = weight.float(), bias
        parts["rotations"] = _rotations(g.padded)
    if (scale := params.get("hash.projection.weight" + SCALE)) is not None:
        by_block = g.projection == "bh4"
        parts["hash_scale"] = (
            functional.pad(scale.flatten(-2), (0, -g.padded % PANEL)) if by_block else _by_table(scale, g)
        )
    if "scales" in params:
        parts["scales"] = params["scales"]
    if "log_temperature" in params:
        parts["sharpness"] = 2.0 * torch.exp(-params["log_temperature"].double())
    return parts


@torch.no_grad()
def prepare(
    extension: ModuleType, params: Mapping[str, Tensor], g: Geometry, input_bits: int
) -> tuple[list[Tensor], list[int]]:
    """See `compress.kernels.prepare`."""
    weight_dtype, table_dtype = _checked(params, g)
    if input_bits != 16 and not (input_bits == 8 and (weight_dtype == torch.int8 or not matrices(g))):
        raise _misfit(f"inputs of {input_bits} bits beside matrices in {weight_dtype}")
    numbers = settings(g, weight_dtype, table_dtype, input_bits if matrices(g) else 16)
    layout = extension.layout(numbers)
    weights = huge_buffer(layout["weight_bytes"]).zero_()
    for name, tensor in _parts(params, g, layout["hadamard_from"]).items():
        offset, _ = layout["parts"][name]
        dtype = torch.float32 if tensor.dtype == torch.float64 else tensor.dtype
        part = weights[offset : offset + tensor.numel() * dtype.itemsize]
        part.view(dtype).copy_(tensor.reshape(-1))
    tables = huge_buffer(layout["table_bytes"])
    if g.tables:
        rows = tables.view(table_dtype).view(g.tables, g.rows, -1)  # [H, R, d_out padded]
        stored = params["tables"].shape[-1]
        rows[..., :stored] = params["tables"]
        rows[..., stored:] = 0
    return [weights, tables], numbers


@torch.no_grad()
def prepare_linear(values: Tensor, scale: Tensor, bias: Tensor | None) -> list[Tensor]:
    """See `compress.kernels.prepare_linear`: panels [n / 16, k / 4, 16, 4], scale [n], bias [n] or [0], n padded."""
    laid = panels(values)
    memory = huge_buffer(laid.nbytes).view(torch.int8).view(laid.shape)
    memory.copy_(laid)
    return [memory, _pad_rows(scale), scale.new_empty(0) if bias is None else _pad_rows(bias)]


def linear_sizes(laid: Tensor) -> tuple[int, int]:
    """Outputs and inputs, padded, of a layer that `prepare_linear` laid out."""
    panels, groups, _, together = laid.shape
    return panels * PANEL, groups * together
