"""What a model is made of: its FFNs, dense and compressed, and their share of its parameters, work and bytes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ..checkpoint import read_config
from ..data.inputs import longest_sequence
from ..lookup import PackedLookupFFN, budget
from ..plan import dense_geometry
from ..sites import Site, example_inputs, find_experts, find_sites
from .setting import public_name
from .sizes import int8_bytes, stored_bytes, stored_width
from .students import Student, ffn_cost, ffn_sizes, storage, students

if TYPE_CHECKING:
    from ..models import Pretrained

FORMAT = 1
SEQUENCE_LENGTH = 128  # tokens: work on attention depends on it


def inspect_model(pretrained: Pretrained) -> dict[str, Any]:
    """Describe a dense or a compressed model; the values of `compress inspect --json`.

    sites: sizes of each, `dense` and `compressed` (None where it is dense) with parameters, multiply_adds per token,
    bytes stored and bytes_per_token read, a dense FFN in int8.  experts: layers with a mixture of experts, no sites.
    total: the same of the whole model; ffn_share is the FFNs' part of all multiply-adds at `sequence_length` tokens
    (None where the model cannot be counted).
    Raises SiteError where there is no FFN.
    """
    model = pretrained.model
    compressed = any(isinstance(module, PackedLookupFFN) for module in model.modules())
    dense = _hollow(model) if compressed else model
    sites = find_sites(dense)
    found = students(model, sites)
    length = min(SEQUENCE_LENGTH, longest_sequence(pretrained) or SEQUENCE_LENGTH)
    rest = _other_multiply_adds(model, sites, length)
    ffn = sum(dense_geometry(site).cost for site in sites)
    sizes = ffn_sizes(sites, found)
    width = _rest_width(pretrained) if compressed else stored_width(pretrained.folder)
    total: dict[str, Any] = {
        "dense": {
            "parameters": _parameters(dense),
            **_work(ffn, rest),
            "bytes": stored_bytes(dense, width),
            "int8_bytes": int8_bytes(dense),
            "ffn_bytes": sizes["dense_ffn_int8_bytes"],
            "ffn_bytes_per_token": sizes["dense_bytes_per_token"],
        },
        "compressed": None,
    }
    if found:
        total["compressed"] = {
            "parameters": _parameters(model),
            **_work(ffn * (ffn_cost(sites, found) or 0.0), rest),
            "bytes": stored_bytes(model, width, found.values()),
            "ffn_bytes": sizes["compressed_ffn_bytes"],
            "ffn_bytes_per_token": sizes["compressed_bytes_per_token"],
        }
    return {
        "format": FORMAT,
        "model": public_name(pretrained.source),
        "task": pretrained.task,
        "architecture": type(model).__name__,
        "sequence_length": length,
        "sites": [_site(site, found.get(site.name)) for site in sites],
        "experts": find_experts(dense),
        "total": total,
    }


def _site(site: Site, student: Student | None) -> dict[str, Any]:
    dense = dense_geometry(site)
    described: dict[str, Any] = {
        "name": site.name,
        "d_in": site.d_in,
        "d_hidden": site.d_hidden,
        "d_out": site.d_out,
        "gated": site.gated,
        "activation": site.activation,
        "obstacle": site.obstacle,
        "dense": {
            "parameters": dense.parameters,
            "multiply_adds": dense.cost,
            "bytes": dense.int8_bytes,
            "bytes_per_token": dense.int8_bytes,
        },
        "compressed": None,
    }
    if student is not None:
        geometry, dtypes = student.geometry, storage(student)
        described["compressed"] = {
            **geometry.to_dict(),
            **dtypes,
            "parameters": _parameters(student),
            "multiply_adds": budget.cost(geometry),
            "bytes": budget.stored_bytes(geometry, **dtypes),
            "bytes_per_token": budget.bytes_per_token(geometry, **dtypes),
        }
    return described


def _work(ffn: float, rest: float | None) -> dict[str, Any]:
    return {
        "multiply_adds": None if rest is None else ffn + rest,
        "ffn_multiply_adds": ffn,
        "ffn_share": None if rest is None else ffn / (ffn + rest),
    }


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _rest_width(pretrained: Pretrained) -> int:
    """Bytes of a weight that is no student's, as the checkpoint's source stored it."""
    dtype = getattr(torch, read_config(pretrained.folder).rest_dtype or "float32", torch.float32)
    return dtype.itemsize if isinstance(dtype, torch.dtype) else torch.float32.itemsize


def _architecture(model: Any) -> nn.Module:
    """Build the dense model of a config, without memory for its weights."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        built: nn.Module = type(model)._from_config(config, attn_implementation="eager").eval()
    return built


def _hollow(model: nn.Module) -> nn.Module:
    """Build the dense model with zeros for weights, enough to find its FFNs; zeros take no memory until written to."""
    hollow: Any = _architecture(model)._apply(lambda tensor: torch.zeros_like(tensor, device="cpu"))
    hollow.tie_weights()
    return cast(nn.Module, hollow)


@torch.no_grad()
def _other_multiply_adds(model: nn.Module, sites: Sequence[Site], length: int) -> float | None:
    """Multiply-adds per token of all but the FFNs: matrix products, convolutions and attention over `length` tokens.

    Counted on meta tensors by torch's FlopCounterMode; None where the model's code does not run on them.
    """
    from torch.utils.flop_counter import FlopCounterMode

    hollow = _architecture(model)
    positions: list[int] = []
    handles = [
        hollow.get_submodule(site.output).register_forward_hook(
            lambda module, args, output: positions.append(output.shape[:-1].numel())
        )
        for site in sites
    ]
    counter = FlopCounterMode(display=False)
    try:
        with counter:
            hollow(**_example(hollow, length))
    except (RuntimeError, NotImplementedError, ValueError, TypeError):
        return None
    finally:
        for handle in handles:
            handle.remove()
    products = sum(count * dense_geometry(site).parameters for site, count in zip(sites, positions, strict=True))
    return (counter.get_total_flops() / 2 - products) / max(positions)


def _example(hollow: nn.Module, length: int) -> Mapping[str, Tensor]:
    inputs = example_inputs(hollow)
    if "input_ids" in inputs and "decoder_input_ids" not in inputs:
        inputs["input_ids"] = torch.zeros(1, length, dtype=torch.long, device="meta")
    return inputs
