"""The whole model in every way that a user might run it: PyTorch, OpenVINO and llama.cpp, dense and compressed."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
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

COMPRESSED = "compressed"
BOUND = "without FFNs"
# Of causal models "static int8" has attention in int8 too, keys and values apart from it; "int8" rounds matrices alone.
WAYS = {
    "torch": ("torch float32", "torch bfloat16", "torch int8"),
    "openvino": ("openvino float32", "openvino int8", "openvino static int8"),
    "llamacpp": tuple(f"llama.cpp {kind}" for kind in llamacpp.KINDS),
}
DEFAULT_SHAPES = {False: [Shape(1, 16), Shape(32, 32)], True: [Shape(1, 1, 128), Shape(1, 128)]}  # of causal models?
_INT8 = ("int8", "Q8_0")  # how the names of models in 8 bits end
_CALIBRATION = 16  # batches that int8 takes ranges from; speed does not depend on them


def chosen(only: str | None) -> frozenset[str]:
    """The ways that `--only` names, by themselves or by their engine; all where it is None. Raises CompressError."""
    every = frozenset(way for ways in WAYS.values() for way in ways)
    if only is None:
        return every
    named = [name.strip() for name in only.split(",")]
    if unknown := [name for name in named if name not in WAYS and name not in every]:
        raise CompressError(
            f"no way to run a model is called {unknown[0]}", where="--only",
            remedy=f"choose of {', '.join([*WAYS, *sorted(every)])}",
        )  # fmt: skip
    return frozenset(way for name in named for way in WAYS.get(name, (name,)))


def bench_model(
    dense: Pretrained, compressed: Pretrained, shapes: Sequence[Shape], *, seconds: float, threads: int | None = None,
    ways: Collection[str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Time a pass of the dense and of the compressed model in every way that is installed, interleaved.

    ways: those of WAYS that take part; by default all.
    Beside each engine's fastest kind stands the bound: the dense model with its FFNs gone. Returns `machine`, `model`
    (its class), `rows` (shape, rounds, seconds by name, and of PyTorch's models by part) and `left_out` with reasons
    by name.
    """
    wanted = chosen(None) if ways is None else ways
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
        runs = dict(_torch_models(dense, compressed, wanted))
        runs |= _openvino_models(dense, compressed, source, count, wanted, left_out)
        if dense.task == "causal":
            runs |= _llamacpp_models(dense, shapes, count, wanted, left_out)
        for shape in shapes:
            passes = {
                name: contestant(run, source, shape, torch.bfloat16 if name.endswith("bfloat16") else torch.float32)
                for name, run in runs.items()
                if not shape.past or getattr(run, "stateful", True)
            }
            left_out |= dict.fromkeys(runs.keys() - passes, f"keeps no keys and values: not at {shape}")
            if not passes:
                raise CompressError(
                    f"nothing is left to time at {shape}: {'; '.join(left_out.values()) or 'not for this model'}",
                    where="--only", remedy="leave --only out",
                )  # fmt: skip
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
    """Two tables a shape: whole passes, against the first and the best dense int8; where time goes in PyTorch."""
    for row in result["rows"]:
        seconds = row["seconds"]
        against = {next(iter(seconds)): next(iter(seconds.values()))}
        int8 = [name for name in seconds if name.endswith(_INT8) and not name.startswith(COMPRESSED)]
        if int8:
            against["the best dense int8"] = min(seconds[name] for name in int8)
        made = table(
            f"{result['model']}, {row['shape']} tokens, median of {row['rounds']} rounds",
            ["", "time", *(f"against {name}" for name in against)],
        )
        for name, taken in seconds.items():
            made.add_row(name, time_text(taken), *(f"{other / taken:.2f}x" for other in against.values()))
        yield made
        if row["parts"]:
            made = table(f"{result['model']}, {row['shape']} tokens: time by part, measured apart", ["", *PARTS])
            for name, spent in row["parts"].items():
                made.add_row(name, *(time_text(spent[part]) for part in PARTS))
            yield made


def _torch_models(
    dense: Pretrained, compressed: Pretrained, wanted: Collection[str]
) -> Iterator[tuple[str, nn.Module]]:
    float32, bfloat16, int8 = WAYS["torch"]
    if float32 in wanted:
        yield float32, dense.model
    if bfloat16 in wanted:
        yield bfloat16, variants.bfloat16(dense.model)
    if int8 in wanted:
        yield int8, variants.int8_model(dense.model, find_sites(dense.model))
        yield f"{int8} {BOUND}", variants.int8(without_ffns(dense.model))
    if float32 in wanted:
        yield f"{COMPRESSED}, {float32}", compressed.model
    if int8 in wanted:
        rounded = sharing_copy(compressed.model)
        quantise_rest(rounded)
        yield f"{COMPRESSED}, {int8}", rounded


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
    dense: Pretrained, compressed: Pretrained, source: Mapping[str, Tensor], threads: int, wanted: Collection[str],
    left_out: dict[str, str],
) -> dict[str, nn.Module]:  # fmt: skip
    float32, int8, static = WAYS["openvino"]
    names = [name for name in (float32, int8, *([static] if dense.task == "causal" else [])) if name in wanted]
    missing = next((name for name in ("openvino", "nncf") if not installed(name)), None)
    if missing is not None:
        left_out |= dict.fromkeys(names, f"{missing} is not installed (pip install 'compress-lookup[openvino]')")
    if missing is not None or not names:
        return {}
    from ..openvino.graph import Compiled, kept_state, quantised, to_openvino, weights_quantised
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
        for name in names:
            if suffix and name == float32:
                continue
            if name == float32:
                made = graph
            elif name == int8 and kept_state(pretrained) is not None:
                made = weights_quantised(graph)
            else:
                made = quantised(graph, calibration)
            kept = {} if name == float32 else {"KV_CACHE_PRECISION": "u8"}  # OpenVINO's own choice
            runs[f"{prefix}{name}{suffix}"] = Compiled(core, made, INFERENCE_NUM_THREADS=threads, **kept)
    return runs


def _llamacpp_models(
    dense: Pretrained, shapes: Sequence[Shape], threads: int, wanted: Collection[str], left_out: dict[str, str]
) -> dict[str, nn.Module]:
    """The dense model in llama.cpp's kinds of numbers: it has no operation for a student."""
    kinds = {
        way: number for way, number in zip(WAYS["llamacpp"], llamacpp.KINDS.values(), strict=True) if way in wanted
    }
    if not kinds:
        return {}
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
