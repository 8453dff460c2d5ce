"""What a model is made of: its FFNs, dense and compressed, and their share of its parameters, work and bytes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ..checkpoint import read_config
from ..data.inputs import longest_sequence, longest_target
from ..plan import dense_geometry
from ..sites import Site, example_inputs, find_experts, find_sites
from ..students import PackedStudent, bytes_per_token, cost
from ..students import stored_bytes as student_bytes
from .setting import public_name
from .sizes import int8_bytes, stored_bytes, stored_width
from .students import Student, ffn_sizes, storage, students

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
    compressed = any(isinstance(module, PackedStudent) for module in model.modules())
    dense = _hollow(model) if compressed else model
    sites = find_sites(dense)
    found = students(model, sites)
    length = min(SEQUENCE_LENGTH, longest_sequence(pretrained) or SEQUENCE_LENGTH)
    written = min(length, longest_target(pretrained) or length)
    rest, positions = _other_multiply_adds(model, sites, length, written)
    # A decoder's sites see fewer tokens than the encoder's: per token means per position of the longer of the two.
    shares = {site.name: count / max(positions) for site, count in zip(sites, positions, strict=True)}
    ffn = sum(dense_geometry(site).cost * shares[site.name] for site in sites)
    ours = sum(
        (cost(found[site.name].geometry) if site.name in found else dense_geometry(site).cost) * shares[site.name]
        for site in sites
    )
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
            **_work(ours, rest),
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
            "multiply_adds": cost(geometry),
            "bytes": student_bytes(geometry, **dtypes),
            "bytes_per_token": bytes_per_token(geometry, **dtypes),
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
def _other_multiply_adds(
    model: nn.Module, sites: Sequence[Site], length: int, written: int
) -> tuple[float | None, list[int]]:
    """Multiply-adds per token of all but the FFNs: matrix products, convolutions and attention.

    At `length` tokens, where a decoder reads some of its own at `written` of those.
    Counted on meta tensors by torch's FlopCounterMode; None where the model's code does not run on them. Beside it the
    positions that each site had.
    """
    from torch.utils.flop_counter import FlopCounterMode

    hollow = _architecture(model)
    positions = dict.fromkeys((site.name for site in sites), 0)

    def count(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            positions[name] += output.shape[:-1].numel()

        return hook

    handles = [hollow.get_submodule(site.output).register_forward_hook(count(site.name)) for site in sites]
    counter = FlopCounterMode(display=False)
    try:
        with counter:
            hollow(**_example(hollow, length, written))
    except (RuntimeError, NotImplementedError, ValueError, TypeError):
        return None, [1] * len(sites)
    finally:
        for handle in handles:
            handle.remove()
    counts = list(positions.values())
    products = sum(positions[site.name] * dense_geometry(site).parameters for site in sites)
    return (counter.get_total_flops() / 2 - products) / max(counts), counts


def _example(hollow: nn.Module, length: int, written: int) -> Mapping[str, Tensor]:
    inputs = example_inputs(hollow)
    for name, size in (("input_ids", length), ("decoder_input_ids", written)):
        if name in inputs:
            inputs[name] = torch.zeros(inputs[name].shape[0], size, dtype=torch.long, device="meta")
    return inputs
