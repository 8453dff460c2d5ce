"""The whole model in every way that a user might run it: PyTorch, OpenVINO and llama.cpp, dense and compressed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import kernels
from ..checkpoint import open_rest, quantise_rest
from ..errors import CompressError, ModelError
from ..evaluate import variants
from ..evaluate.latency import interleave, threads_set
from ..evaluate.setting import processor
from ..evaluate.tables import table
from ..evaluate.wording import time_text
from ..models import Pretrained
from ..sites import StandIn, check_replaceable, example_inputs, find_sites, swap, usable_token_ids
from . import llamacpp
from .engines import installed
from .parts import PARTS, parts_of, seconds_by_part
from .run import FORMAT
from .shapes import RandomPool, Shape, contestant
from .sized import sharing_copy

if TYPE_CHECKING:
    from rich.table import Table

REFERENCE = "torch float32"
COMPRESSED = "compressed"
ENGINES = ("torch", "openvino", "llamacpp")
BOUND = "without FFNs"
DEFAULT_SHAPES = {False: [Shape(1, 16), Shape(32, 32)], True: [Shape(1, 1, 128), Shape(1, 128)]}  # of causal models?
_INT8 = ("int8", "Q8_0")  # how the names of models in 8 bits end
_CALIBRATION = 16  # batches that int8 takes ranges from; speed does not depend on them


def bench_model(
    dense: Pretrained, compressed: Pretrained, shapes: Sequence[Shape], *, seconds: float, threads: int | None = None,
    engines: Sequence[str] = ENGINES,
) -> dict[str, Any]:  # fmt: skip
    """Time a pass of the dense and of the compressed model in every way that is installed, interleaved.

    engines: those of ENGINES that take part; PyTorch always does.
    Beside each engine's fastest kind stands the bound: the dense model with its FFNs gone. Returns `machine`, `model`
    (its class), `rows` (shape, rounds, seconds by name, and of PyTorch's models by part) and `left_out` with reasons
    by name.
    """
    left_out: dict[str, str] = {}
    source = _example(dense.model)
    if any(shape.past for shape in shapes) and dense.task != "causal":
        raise CompressError(
            f"{type(dense.model).__name__} does not generate token by token", where="--shape",
            remedy="leave out the shapes with a +",
        )  # fmt: skip
    open_rest(compressed.model)
    parts = parts_of(dense.model, find_sites(dense.model))
    rows = []
    with threads_set(threads) as count, torch.no_grad():
        runs = dict(_torch_models(dense, compressed))
        if "openvino" in engines:
            runs |= _openvino_models(dense, compressed, source, count, left_out)
        if "llamacpp" in engines and dense.task == "causal":
            runs |= _llamacpp_models(dense, shapes, count, left_out)
        for shape in shapes:
            passes = {
                name: contestant(run, source, shape, torch.bfloat16 if name.endswith("bfloat16") else torch.float32)
                for name, run in runs.items()
                if not shape.past or getattr(run, "stateful", True)
            }
            left_out |= dict.fromkeys(runs.keys() - passes, f"keeps no keys and values: not at {shape}")
            taken, rounds = interleave(passes, seconds)
            spent = {name: seconds_by_part(runs[name], parts, each) for name, each in passes.items() if "torch" in name}
            rows.append({
                "shape": str(shape), "tokens": shape.sequences * shape.tokens, "rounds": rounds, "seconds": taken,
                "parts": spent,
            })  # fmt: skip
        machine = {"processor": processor(), "isa": kernels.isa(), "threads": count}
    name = type(dense.model).__name__
    return {"format": FORMAT, "machine": machine, "model": name, "rows": rows, "left_out": left_out}


def _example(model: Any) -> dict[str, Tensor]:
    """What a pass reads, as an example: all usable token ids, or pixels."""
    found = example_inputs(model)
    example = {name: value for name, value in found.items() if name in ("input_ids", "pixel_values")}
    if not example:
        raise CompressError(
            f"models that read {model.main_input_name} are not timed whole here", where="--whole",
            remedy="time them on their own data: compress eval",
        )  # fmt: skip
    if "input_ids" in example:
        example["input_ids"] = torch.tensor(usable_token_ids(model.config))
    return example


def tables(result: Mapping[str, Any]) -> Iterator[Table]:
    """Two tables a shape: whole passes, and where their time goes in PyTorch."""
    for row in result["rows"]:
        made = table(
            f"{result['model']}, {row['shape']} tokens, median of {row['rounds']} rounds",
            ["", "time", "against torch float32", "against the best dense int8"],
        )
        seconds = row["seconds"]
        best = min(seconds[name] for name in seconds if name.endswith(_INT8) and not name.startswith(COMPRESSED))
        for name, taken in seconds.items():
            made.add_row(name, time_text(taken), f"{seconds[REFERENCE] / taken:.2f}x", f"{best / taken:.2f}x")
        yield made
        made = table(f"{result['model']}, {row['shape']} tokens: time by part, measured apart", ["", *PARTS])
        for name, spent in row["parts"].items():
            made.add_row(name, *(time_text(spent[part]) for part in PARTS))
        yield made


def _torch_models(dense: Pretrained, compressed: Pretrained) -> Iterator[tuple[str, nn.Module]]:
    sites = find_sites(dense.model)
    yield REFERENCE, dense.model
    yield "torch bfloat16", variants.bfloat16(dense.model)
    int8 = variants.int8_model(dense.model, sites)
    yield "torch int8", int8
    yield f"torch int8 {BOUND}", variants.int8(without_ffns(dense.model))
    yield f"{COMPRESSED}, torch float32", compressed.model
    rounded = sharing_copy(compressed.model)
    quantise_rest(rounded)
    yield f"{COMPRESSED}, torch int8", rounded


def without_ffns(model: nn.Module) -> nn.Module:
    """A copy of a dense model whose FFNs hand their input on: the bound of whatever replaces them."""
    left = sharing_copy(model)
    for site in find_sites(left):
        check_replaceable(site)
        if site.d_in != site.d_out:
            raise ModelError(
                f"{site.name} is {site.d_in} wide before and {site.d_out} behind: nothing can hand it on",
                where=site.name, remedy="leave --whole out",
            )  # fmt: skip
        swap(left, site, StandIn(nn.Identity()))
    return left


def _openvino_models(
    dense: Pretrained, compressed: Pretrained, source: Mapping[str, Tensor], threads: int, left_out: dict[str, str]
) -> dict[str, nn.Module]:
    names = ("openvino float32", "openvino int8")
    missing = next((name for name in ("openvino", "nncf") if not installed(name)), None)
    if missing is not None:
        left_out |= dict.fromkeys(names, f"{missing} is not installed (pip install 'compress-lookup[openvino]')")
        return {}
    from ..openvino.graph import Compiled, quantised, to_openvino
    from ..openvino.library import extension, openvino

    library = extension()
    core = openvino().Core()
    core.add_extension(str(library))
    bound = copy.copy(dense)
    bound.model = without_ffns(dense.model)  # type: ignore[assignment]
    calibration = [RandomPool(source, 32).batch(1, 10_000 + i) for i in range(_CALIBRATION)]
    runs: dict[str, nn.Module] = {}
    for prefix, suffix, pretrained in (("", "", dense), ("", f" {BOUND}", bound), (f"{COMPRESSED}, ", "", compressed)):
        graph = to_openvino(pretrained, library)
        graphs = {names[0]: graph, names[1]: quantised(graph, calibration)}
        for name, made in graphs.items():
            if suffix and name == names[0]:
                continue
            runs[f"{prefix}{name}{suffix}"] = Compiled(core, made, INFERENCE_NUM_THREADS=threads)
    return runs


def _llamacpp_models(
    dense: Pretrained, shapes: Sequence[Shape], threads: int, left_out: dict[str, str]
) -> dict[str, nn.Module]:
    """The dense model in llama.cpp's kinds of numbers: it has no operation for a student."""
    kinds = {f"llama.cpp {kind}": number for kind, number in llamacpp.KINDS.items()}
    missing = next((name for name in ("llama_cpp", "gguf") if not installed(name)), None)
    if missing is not None:
        left_out |= dict.fromkeys(kinds, f"{missing} is not installed (pip install 'compress-lookup[llamacpp]')")
        return {}
    context = max(2 * shape.past or shape.sequences * shape.tokens for shape in shapes)
    sequences = max(shape.sequences for shape in shapes)
    try:
        return dict(llamacpp.llamacpp_models(dense.model, kinds, context, sequences, threads))
    except CompressError as error:
        left_out |= dict.fromkeys(kinds, error.message)
        return {}
