"""Studies of the hash's projections: each fitted to a random map and to a model's neurons."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CompressError, RecipeError
from ..evaluate.latency import threads_set
from ..evaluate.wording import count_text
from ..models import load_pretrained
from ..sites import find_sites, site_weights
from .pictures import Picture
from .projections import RATES, Kind, fit, geometry
from .results import Cell, Point
from .runner import Stop
from .settings import ProjectionsStudy
from .tables import Column

NAMES: dict[Kind, str] = {
    "dense": "dense", "lowrank": "low rank", "hadamard": "Hadamard of a code", "bh4": "BH4", "acdc": "ACDC"
}  # fmt: skip
_SIZES: dict[Kind, str] = {"lowrank": "rank", "hadamard": "rank", "bh4": "block", "acdc": "layers"}
_TARGETS = {"random": "a random map", "neurons": "the rows of W1"}


class Projections:
    """The cells of a study of projections: each kind at each size, fitted to both targets, on the CPU.

    threads, trust_remote_code: as in `convert`.  Raises a CompressError for whatever a user can mend.
    """

    def __init__(
        self, study: ProjectionsStudy, *, device: str | None = None, threads: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:  # fmt: skip
        if device not in (None, "cpu"):
            raise CompressError("projections are fitted on the CPU", where="--device", remedy="leave it out")
        self.study, self.threads = study, threads
        rows, self.described = neurons(study.model, study.site, trust_remote_code)
        random = torch.randn(rows.shape, generator=torch.Generator().manual_seed(study.seed)) / math.sqrt(rows.shape[1])
        self.targets = {"random": random, "neurons": rows}
        sizes = [("dense", 0)] + [(kind, size) for kind in _SIZES for size in getattr(study.sizes, kind)]
        self.chosen: dict[str, tuple[Kind, int]] = {}
        self.cells: list[Cell] = []
        for kind, size in sizes:
            geometry(kind, size, *rows.shape)  # raises for a size that does not fit
            label = f"{NAMES[kind]}, {_SIZES[kind]} {size}" if size else NAMES[kind]
            name = f"{kind}-{size}" if size else kind
            identity = {
                "projection": kind, "size": size, "steps": study.steps, "seed": study.seed, "rates": list(RATES),
                "neurons": hashlib.sha256(rows.numpy().tobytes()).hexdigest(),
            }  # fmt: skip
            self.chosen[name] = (kind, size)
            self.cells.append(Cell(name, label, NAMES[kind], identity))

    def run(self, cell: Cell, folder: Path, stop: Stop) -> dict[str, Any]:
        """Fit to both targets."""
        kind, size = self.chosen[cell.name]
        values: dict[str, Any] = {}
        with threads_set(self.threads):
            for name, target in self.targets.items():
                found = fit(target, kind, size, steps=self.study.steps, seed=self.study.seed, stop=stop)
                values |= {"multiply_adds": found.multiply_adds, "parameters": found.parameters, name: found.error}
        return values

    @property
    def title(self) -> str:
        """What was fitted."""
        d_out, d_in = self.targets["neurons"].shape
        return f"# Projections of the hash as {d_out} x {d_in} maps: a random one, and {self.described}"

    @property
    def columns(self) -> list[Column]:
        """Cost, parameters, both errors."""
        return [
            Column("multiply_adds", "multiply-adds", count_text),
            Column("parameters", "parameters", count_text),
            *(Column(key, f"error, {text}", lambda value: f"{value:.4f}") for key, text in _TARGETS.items()),
        ]

    @property
    def pictures(self) -> list[Picture]:
        """The error over the cost, for each target."""
        return [
            Picture(f"error-{key}.png", "multiply_adds", "multiply-adds", key, f"relative error, {text}")
            for key, text in _TARGETS.items()
        ]

    def notes(self, points: Sequence[Point]) -> list[str]:
        """What an error is, and BH4 beside the best of the others that cost no more."""
        return [
            "Error: of the matrix that the projection multiplies by, up to a scale, which no bit depends on, relative "
            "to the target, in the Frobenius norm; 0 is exact, 1 no better than nothing. Low rank is the singular "
            f"value decomposition, dense exact; the others are trained for {self.study.steps} steps.",
            *(note for key in _TARGETS for note in compared(points, key)),
        ]


def compared(points: Sequence[Point], key: str) -> list[str]:
    """One paragraph: each BH4's error beside the least of the other kinds at no more multiply-adds."""
    costs = [(point, point.number("multiply_adds"), point.number(key)) for point in points]
    known = [(point, cost, error) for point, cost, error in costs if cost is not None and error is not None]
    parts, better = [], 0
    for point, cost, error in known:
        rivals = [(e, p.name) for p, c, e in known if p.system != NAMES["bh4"] and c <= cost]
        if point.system == NAMES["bh4"] and rivals:
            least, name = min(rivals)
            better += error < least
            parts.append(f"{point.name} {error:.3f} against {least:.3f} of {name}")
    if not parts:
        return []
    return [
        f"BH4 beside the best of the others that cost no more, on {_TARGETS[key]}: {'; '.join(parts)}. "
        f"BH4 is nearer in {better} of {len(parts)}."
    ]


def neurons(model: str | None, site: str | None, trust_remote_code: bool = False) -> tuple[Tensor, str]:
    """Rows of a dense FFN's W1, [d, d_in] with d_in of them at most, evenly spaced; and what they are.

    model: by default the one in this package; site: a site's name, by default the first. Raises RecipeError for none.
    """
    source = model or str(resources.files("compress.recipes.embedded") / "model")
    pretrained = load_pretrained(source, trust_remote_code=trust_remote_code)
    sites = {each.name: each for each in find_sites(pretrained.model)}
    name = next(iter(sites)) if site is None else site
    if name not in sites:
        raise RecipeError(f"the model has no site {name}", where="site", remedy=f"choose one of {', '.join(sites)}")
    gate = site_weights(pretrained.model, sites[name]).gate.cpu()
    count = min(gate.shape)
    chosen = torch.arange(count) * gate.shape[0] // count
    owner = "the embedded model" if model is None else Path(model).name
    return gate[chosen].contiguous(), f"{count} of the {gate.shape[0]} rows of W1 of {owner}, {name}"
