"""Fits of the hash's projections: bounds are met, costs are those of students, the study gives its table."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from compress.cli import app
from typer.testing import CliRunner

from compress.errors import CompressError
from compress.lookup.budget import projection_cost
from compress.lookup.geometry import Geometry
from compress.lookup.projections import build_projection
from compress.studies import parse_study
from compress.studies.hash_fits import Projections, compared
from compress.studies.projections import fit, multiply_adds
from compress.studies.results import Point

STUDY = """
version: 1
kind: projections
sizes: {lowrank: [4], hadamard: [4], bh4: [4], acdc: [1]}
steps: 2
"""


def random_map(d_out: int, d_in: int) -> torch.Tensor:
    return torch.randn(d_out, d_in, generator=torch.Generator().manual_seed(0)) / math.sqrt(d_in)


def test_low_rank_meets_the_bound_of_its_singular_values() -> None:
    left, right = random_map(24, 4), random_map(4, 16)
    assert fit(left @ right, "lowrank", 4).error < 1e-6
    target = random_map(24, 16)
    u, s, v = torch.linalg.svd(target, full_matrices=False)
    best = (target - u[:, :5] * s[:5] @ v[:5]).norm() / target.norm()
    found = fit(target, "lowrank", 5)
    assert found.error == pytest.approx(best.item(), abs=1e-5)
    assert found.parameters == 5 * (24 + 16)
    assert fit(target, "dense").error == 0.0


@pytest.mark.parametrize("kind", ["bh4", "acdc"])
def test_a_map_of_the_projection_s_own_is_nearer_than_a_random_one(kind) -> None:
    # Not exactly found: the problem is not convex.
    torch.manual_seed(3)
    own = build_projection(Geometry(16, 16, 16, 1, kind, block=4))
    with torch.no_grad():
        target = own(torch.eye(16)).T
    assert fit(target, kind, 4, steps=60).error < 0.8 * fit(random_map(16, 16), kind, 4, steps=60).error


def test_costs_are_those_of_students() -> None:
    for kind, size, settings in (("bh4", 8, {"block": 8}), ("acdc", 4, {}), ("dense", 0, {})):
        g = Geometry(32, 32, 8, 6, kind, **settings)
        assert multiply_adds(kind, size, 48, 32) == projection_cost(g)
    assert multiply_adds("lowrank", 8, 48, 32) == 8 * (32 + 48)
    assert multiply_adds("acdc", 8, 48, 32) == 2 * multiply_adds("acdc", 4, 48, 32)
    with pytest.raises(CompressError, match="block"):
        multiply_adds("bh4", 7, 48, 32)


def test_larger_projections_are_nearer_and_bh4_beats_acdc_at_no_more_multiply_adds() -> None:
    target = random_map(32, 32)
    bh4 = [fit(target, "bh4", size, steps=60) for size in (2, 8)]
    acdc = [fit(target, "acdc", size, steps=60) for size in (1, 4)]
    assert bh4[0].error > bh4[1].error
    assert acdc[0].error > acdc[1].error
    assert bh4[0].multiply_adds < acdc[1].multiply_adds
    assert bh4[0].error < acdc[1].error


def test_fits_are_seeded_and_their_scale_does_not_matter() -> None:
    target = random_map(16, 16)
    first = fit(target, "bh4", 4, steps=20, seed=1)
    assert fit(target, "bh4", 4, steps=20, seed=1) == first
    assert fit(target, "bh4", 4, steps=20, seed=2) != first
    assert fit(100 * target, "bh4", 4, steps=20, seed=1).error == pytest.approx(first.error, rel=1e-3)


def test_study_writes_table_and_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "tiny.yaml"
    file.write_text(STUDY)
    done = CliRunner().invoke(app, ["study", str(file), "-o", str(tmp_path / "out"), "--threads", "1"])
    assert done.exit_code == 0, done.output
    assert "256 x 256 maps" in done.output
    lines = (tmp_path / "out" / "table.csv").read_text().splitlines()
    assert len(lines) == 6
    assert lines[0].startswith("point,system,cells,multiply_adds,parameters,random,neurons")
    assert lines[1].startswith("dense,dense,1,65536,65536,0.0,0.0")
    assert "BH4, block 4" in (tmp_path / "out" / "table.md").read_text()
    for name in ("error-random.png", "error-neurons.png"):
        assert (tmp_path / "out" / name).stat().st_size > 0


def test_sizes_and_sites_that_do_not_fit_are_refused_at_once() -> None:
    with pytest.raises(CompressError, match="block"):
        Projections(parse_study(STUDY.replace("bh4: [4]", "bh4: [7]"), "tiny"))  # type: ignore[arg-type]
    with pytest.raises(CompressError, match="no site"):
        Projections(parse_study(STUDY + "site: nowhere\n", "tiny"))  # type: ignore[arg-type]


def test_bh4_is_compared_with_what_costs_no_more() -> None:
    def point(name: str, system: str, cost: float, error: float) -> Point:
        return Point(name, system, 1, {"multiply_adds": cost, "random": error})

    points = [point("cheap", "ACDC", 10, 0.9), point("dear", "low rank", 30, 0.1), point("b", "BH4", 20, 0.5)]
    assert "b 0.500 against 0.900 of cheap" in compared(points, "random")[0]
    assert "nearer in 1 of 1" in compared(points, "random")[0]
    assert compared(points[:2], "random") == []
