"""One architecture: build, find the sites, put students in, save; in another process load again and compare."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

STEPS = ("built", "sites found", "verified", "converted", "reloaded equal")


@dataclass
class Outcome:
    """How far an architecture came."""

    passed: list[str] = field(default_factory=list)  # of STEPS
    sites: int = 0
    convertible: int = 0
    activations: list[str] = field(default_factory=list)
    reason: str | None = None  # why it came no further
    note: str | None = None  # why sites that were found cannot be converted
    experts: bool = False  # whether it is refused as a mixture of experts

    @property
    def whole(self) -> bool:
        """Whether it passed everything."""
        return len(self.passed) == len(STEPS)

    def write(self, folder: Path) -> None:
        """Keep it where the parent process, or the next one, reads it."""
        (folder / "outcome.json").write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Outcome:
        """Read what `write` kept; nothing passed where the process ended before."""
        path = folder / "outcome.json"
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else cls()


def preload() -> None:
    """Import once what the process of every architecture needs."""
    for name in (
        *("torch._dynamo", "transformers.generation", "transformers.models.llama.modeling_llama"),
        *("transformers.quantizers.auto", "compress.checkpoint", "compress.models", "compress.sites"),
    ):
        importlib.import_module(name)


def convert(folder: Path, architecture: str) -> None:
    """First process: all steps up to the checkpoint, in `folder`/out, with the outputs that it must give again."""
    import transformers

    from compress.checkpoint import Placement, save_checkpoint
    from compress.errors import CompressError, ModelError
    from compress.lookup import LookupFFN, pack
    from compress.models import Pretrained
    from compress.sites import example_inputs, find_sites, swap

    from .pico import pico_model

    torch.set_num_threads(1)
    outcome = Outcome()
    outcome.write(folder)
    try:
        model = pico_model(getattr(transformers, architecture))
        outcome.passed.append(STEPS[0])
        outcome.write(folder)
        found = find_sites(model)
        sites = [site for site in found if site.obstacle is None]
        outcome.sites, outcome.convertible = len(found), len(sites)
        outcome.activations = sorted({site.activation + " gated" * site.gated for site in found})
        blocked = [site for site in found if site.obstacle]
        if blocked:
            rest = f" (and {len(blocked) - 1} more)" if len(blocked) > 1 else ""
            outcome.note = f"{blocked[0].name}{rest}: {blocked[0].obstacle}"
        outcome.passed.append(STEPS[1])
        outcome.write(folder)
        if not sites:
            return
        batch = example_inputs(model)
        dense = answers(model, batch)
        swaps = [swap(model, site, _Exact(model, site)) for site in sites]
        exact = answers(model, batch)
        for done in reversed(swaps):
            done.undo()
        if difference := _difference(dense, exact, tolerance=1e-4):
            outcome.reason = f"with the FFNs computed from their weights {difference}"
            return
        outcome.passed.append(STEPS[2])
        source, out = folder / "dense", folder / "out"
        model.save_pretrained(source)
        placements = []
        for site in sites:
            student = LookupFFN(
                site.d_in, site.d_out, tables=4, bits=3, projection="hadamard", rank=8, neurons=8, gated=site.gated,
                activation=site.activation,
            ).eval()  # fmt: skip
            with torch.no_grad():
                student.tables.normal_()
            packed = pack(student).eval()
            swap(model, site, packed)
            placements.append(Placement.of(model, site, packed))
        converted = answers(model, batch)
        if not _difference(dense, converted, tolerance=1e-4):
            outcome.reason = "the students change nothing in the output"
            return
        out.mkdir()
        save_checkpoint(
            out, model=model, source=Pretrained(model, None, "causal", f"pico/{architecture}", None, source),
            placements=placements, recipe_text="version: 1\n", resolved_recipe="version: 1\n", report=None,
            probe_batch=batch,
        )  # fmt: skip
        torch.save({"batch": batch, "answers": converted}, folder / "expected.pt")
        outcome.passed.append(STEPS[3])
    except CompressError as error:
        outcome.reason, outcome.experts = error.message, isinstance(error, ModelError)
    except Exception as error:
        outcome.reason = f"{type(error).__name__}: {error}"
    finally:
        outcome.write(folder)


def reload(folder: Path, auto: str) -> None:
    """Second process: load `folder`/out through an Auto class and compare its outputs with those recorded."""
    import transformers

    import compress  # noqa: F401  # knows the format

    torch.set_num_threads(1)
    outcome = Outcome.read(folder)
    try:
        model = getattr(transformers, auto).from_pretrained(folder / "out").eval()
        for parameter in model.parameters():  # where a file's bytes lie in memory moves the last bit of matrix products
            parameter.data = parameter.data.clone()
        expected = torch.load(folder / "expected.pt")
        outcome.reason = _difference(expected["answers"], answers(model, expected["batch"]), tolerance=0.0)
        if outcome.reason is None:
            outcome.passed.append(STEPS[4])
        else:
            outcome.reason = f"loaded again {outcome.reason}"
    except Exception as error:
        outcome.reason = f"{type(error).__name__}: {error}"
    finally:
        outcome.write(folder)


@torch.no_grad()
def answers(model: nn.Module, batch: dict[str, Tensor]) -> list[Tensor]:
    """Every floating-point tensor of the model's output, caches aside."""
    torch.manual_seed(0)
    output: Any = model(**batch, return_dict=True)
    values = [value for key, value in output.items() if "past" not in key and "cache" not in key]
    return [tensor for value in values for tensor in _tensors(value)]


def _tensors(value: Any) -> Sequence[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    return [tensor for item in value for tensor in _tensors(item)] if isinstance(value, (list, tuple)) else []


def _difference(wanted: Sequence[Tensor], given: Sequence[Tensor], tolerance: float) -> str | None:
    """Tell how outputs differ by more than `tolerance` of their largest number; None where they do not."""
    if len(wanted) != len(given):
        return f"there are {len(given)} outputs instead of {len(wanted)}"
    for a, b in zip(wanted, given, strict=True):
        if a.shape != b.shape:
            return f"an output is {list(b.shape)}, not {list(a.shape)}"
        if not bool(a.isfinite().all()):
            return "the output holds numbers that are not finite"
        error = (a - b).abs().max().item() if a.numel() else 0.0
        if not error <= tolerance * a.abs().max().clamp_min(1.0).item():
            return f"an output differs by {error:.2g}"
    return None


class _Exact(nn.Module):
    """The dense FFN computed from its weights and the name of its activation."""

    def __init__(self, model: nn.Module, site: Any) -> None:
        super().__init__()
        from compress.sites import site_weights

        self.weights, self.activation = site_weights(model, site), site.activation

    def forward(self, x: Tensor) -> Tensor:
        return self.weights.output(x, self.activation)
