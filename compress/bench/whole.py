"""The whole model in every way that a user might run it: PyTorch and OpenVINO, dense and compressed."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from ..sites import StandIn, check_replaceable, example_inputs, find_sites, swap
from .engines import installed
from .run import FORMAT, SETTLING

if TYPE_CHECKING:
    from rich.table import Table

REFERENCE = "torch float32"
COMPRESSED = "compressed"
BOUND = "without FFNs"
_CALIBRATION = 16  # batches that int8 takes ranges from; speed does not depend on them


@dataclass(frozen=True)
class Shape:
    """Sequences of a pass, and tokens of each."""

    sequences: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.sequences} x {self.tokens}"

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read `32x16`. Raises ValueError."""
        sequences, tokens = (int(part) for part in text.split("x"))
        if sequences < 1 or tokens < 1:
            raise ValueError(text)
        return cls(sequences, tokens)


class _Pass:
    """A pass over fresh random inputs, right behind another: as in a process that runs nothing else."""

    def __init__(self, model: nn.Module, source: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype) -> None:
        self.model, self.source, self.shape, self.dtype = model, source, shape, dtype
        self.inputs: dict[str, Tensor] = {}

    def prepare(self, round_: int) -> None:
        """Let the threads of the engine before fall asleep, and run once on other inputs."""
        time.sleep(SETTLING)
        for seed in (2 * round_, 2 * round_ + 1):
            made = random_inputs(self.source, self.shape, seed)
            self.inputs = {k: v.to(self.dtype) if v.is_floating_point() else v for k, v in made.items()}
            if seed % 2 == 0:
                self.run()

    def run(self) -> object:
        """Run the model."""
        return self.model(**self.inputs)


def random_inputs(example: Mapping[str, Tensor], shape: Shape, seed: int) -> dict[str, Tensor]:
    """Inputs of a shape like an example's: token ids [B, T] that the example has, a mask of ones, or noise [B, ...]."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, value in example.items():
        if value.is_floating_point():
            made[name] = torch.randn(shape.sequences, *value.shape[1:], generator=generator)
            continue
        size = (shape.sequences, shape.tokens)
        ids = value.flatten()
        made[name] = ids[torch.randint(0, len(ids), size, generator=generator)]
    if "input_ids" in made:
        made["attention_mask"] = torch.ones_like(made["input_ids"])
    return made


def bench_model(
    dense: Pretrained, compressed: Pretrained, shapes: Sequence[Shape], *, seconds: float, threads: int | None = None
) -> dict[str, Any]:
    """Time a pass of the dense and of the compressed model in every way that is installed, interleaved.

    Beside each engine's fastest kind stands the bound: the dense model with its FFNs gone. Returns `machine`, `layer`
    (what ran), `rows` (shape, rounds, and seconds by name) and `left_out` with reasons by name.
    """
    left_out: dict[str, str] = {}
    source = example_inputs(dense.model)
    source = {name: value for name, value in source.items() if name in ("input_ids", "pixel_values")}
    if not source:
        raise CompressError(
            f"models that read {dense.model.main_input_name} are not timed whole here", where="--whole",
            remedy="time them on their own data: compress eval",
        )  # fmt: skip
    open_rest(compressed.model)
    rows = []
    with threads_set(threads) as count, torch.no_grad():
        runs = dict(_torch_models(dense, compressed))
        runs |= _openvino_models(dense, compressed, source, count, left_out)
        for shape in shapes:
            passes = {
                name: _Pass(run, source, shape, torch.bfloat16 if name.endswith("bfloat16") else torch.float32)
                for name, run in runs.items()
            }
            taken, rounds = interleave(passes, seconds)
            rows.append(
                {"shape": str(shape), "tokens": shape.sequences * shape.tokens, "rounds": rounds, "seconds": taken}
            )
        machine = {"processor": processor(), "isa": kernels.isa(), "threads": count}
    name = type(dense.model).__name__
    return {"format": FORMAT, "machine": machine, "model": name, "rows": rows, "left_out": left_out}


def tables(result: Mapping[str, Any]) -> Iterator[Table]:
    """One table a shape."""
    for row in result["rows"]:
        made = table(
            f"{result['model']}, {row['shape']} tokens, median of {row['rounds']} rounds",
            ["", "time", "against torch float32", "against the best dense int8"],
        )
        seconds = row["seconds"]
        best = min(seconds[name] for name in seconds if name.endswith("int8") and not name.startswith(COMPRESSED))
        for name, taken in seconds.items():
            made.add_row(name, time_text(taken), f"{seconds[REFERENCE] / taken:.2f}x", f"{best / taken:.2f}x")
        yield made


def _torch_models(dense: Pretrained, compressed: Pretrained) -> Iterator[tuple[str, nn.Module]]:
    sites = find_sites(dense.model)
    yield REFERENCE, dense.model
    yield "torch bfloat16", variants.bfloat16(dense.model)
    int8 = variants.int8_model(dense.model, sites)
    yield "torch int8", int8
    yield f"torch int8 {BOUND}", variants.int8(without_ffns(dense.model))
    yield f"{COMPRESSED}, torch float32", compressed.model
    rounded = copy.deepcopy(compressed.model)
    quantise_rest(rounded)
    yield f"{COMPRESSED}, torch int8", rounded


def without_ffns(model: nn.Module) -> nn.Module:
    """A copy of a dense model whose FFNs hand their input on: the bound of whatever replaces them."""
    left = copy.deepcopy(model)
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
    calibration = [random_inputs(source, Shape(1, 32), 10_000 + i) for i in range(_CALIBRATION)]
    runs: dict[str, nn.Module] = {}
    for prefix, suffix, pretrained in (("", "", dense), ("", f" {BOUND}", bound), (f"{COMPRESSED}, ", "", compressed)):
        graph = to_openvino(pretrained, library)
        graphs = {names[0]: graph, names[1]: quantised(graph, calibration)}
        for name, made in graphs.items():
            if suffix and name == names[0]:
                continue
            runs[f"{prefix}{name}{suffix}"] = Compiled(core, made, INFERENCE_NUM_THREADS=threads)
    return runs
