"""The profile: counts are read right, energy adds up, work and statements follow from the numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compress.cli import app
from typer.testing import CliRunner, Result

from compress.baselines import SlideFFN
from compress.bench import energy, machine, perf, valgrind
from compress.bench import profile as profiling
from compress.bench.counters import Counts, Segment
from compress.bench.machine import Cache
from compress.bench.stacks import profiled
from compress.bench.statements import statements
from compress.bench.systems import (
    DENSE,
    DENSE_INT8,
    NOTHING,
    PAPER,
    SHIPPED,
    SLIDE,
    SLIDE_SKEWED,
    SYSTEMS,
    Setup,
    tokens,
)
from compress.errors import CompressError
from compress.lookup.budget import bytes_per_token, cost

SIZES = {"hidden": 32, "intermediate": 64, "gated": False, "activation": "gelu"}
PAPERS = {"tables": 6, "bits": 4, "projection": "bh4", "block": 8}
TINY = ["--hidden", 32, "--tables", 6, "--bits", 4, "--block", 8, "--layers", 1, "--seconds", 0, "--threads", 1]


@pytest.fixture(autouse=True)
def small_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "last_level_cache", lambda: 1 << 20)


@pytest.fixture
def setup() -> Setup:
    return profiled(SIZES, PAPERS, 0.25, None, None)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["bench", "--profile", *(str(argument) for argument in arguments)])


def test_perf_output_is_read() -> None:
    text = """# started on Wed Nov 25 19:20:21 2026

4000000,,instructions:u,573151,100.00,,
1000000,,L1-dcache-loads:u,573151,100.00,,
50000,,L1-dcache-load-misses:u,573151,100.00,5.00,of all L1-dcache accesses
<not supported>,,LLC-loads:u,0,100.00,,
<not counted>,,LLC-load-misses:u,0,0.00,,
"""
    counts = perf.parse(text, layers=4)
    assert counts == Counts("perf", 1e6, 250e3, (12.5e3, None, None))
    assert counts.hit(0) == pytest.approx(0.95)
    assert counts.hit(1) is None


def test_callgrind_dump_is_read() -> None:
    text = (
        "events: Ir Dr Dw I1mr D1mr D1mw ILmr DLmr DLmw\nsummary: 1\n\n0 3 0 21\n\ntotals: 1760628 4988378 42444 8 33"
    )
    assert valgrind.parse(text) == {
        "Ir": 1760628, "Dr": 4988378, "Dw": 42444, "I1mr": 8, "D1mr": 33, "D1mw": 0, "ILmr": 0, "DLmr": 0, "DLmw": 0
    }  # fmt: skip
    with pytest.raises(CompressError, match="without events"):
        valgrind.parse("")


def test_simulated_caches_have_a_power_of_two_of_sets() -> None:
    assert valgrind.simulated(Cache(32 << 10, 8)) == Cache(32 << 10, 8)
    assert valgrind.simulated(Cache(48 << 10, 12)) == Cache(48 << 10, 12)
    made = valgrind.simulated(Cache(260 << 20, 20))
    sets = made.size // (made.ways * made.line)
    assert sets & (sets - 1) == 0
    assert 130 << 20 < made.size <= 260 << 20


def test_caches_of_the_machine_and_given_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        ("Data", "1", "48K", "12"),
        ("Instruction", "1", "32K", "8"),
        ("Unified", "2", "2M", "16"),
        ("Unified", "3", "36M", "12"),
    ]
    for number, values in enumerate(rows):
        folder = tmp_path / f"index{number}"
        folder.mkdir()
        for name, value in zip(("type", "level", "size", "ways_of_associativity"), values, strict=True):
            (folder / name).write_text(value + "\n")
        (folder / "coherency_line_size").write_text("64\n")
    monkeypatch.setattr(machine, "_CACHES", tmp_path)
    expected = Cache(48 << 10, 12), Cache(2 << 20, 16), Cache(36 << 20, 12)
    assert machine.data_caches() == expected
    assert profiling.find_caches(None, None) == (expected, "this machine's")
    given, whose = profiling.find_caches("32K,1M,8M", valgrind.Valgrind())
    assert ([cache.size for cache in given], whose) == ([32 << 10, 1 << 20, 8 << 20], "given")
    with pytest.raises(CompressError, match="own caches"):
        profiling.find_caches("32K,1M,8M", perf.Perf())
    monkeypatch.setattr(machine, "_CACHES", tmp_path / "none")
    assert profiling.find_caches(None, None)[1] == "a common desktop's"


def test_energy_of_published_sizes_and_between() -> None:
    assert energy.cache_access(8 << 10) == pytest.approx(10)
    assert energy.cache_access(32 << 10) == pytest.approx(20)
    assert energy.cache_access(1 << 20) == pytest.approx(100)
    assert energy.cache_access(16 << 10) == pytest.approx(200**0.5)  # halfway in the logarithm
    assert energy.cache_access(32 << 20) == pytest.approx(500)  # 32 times as large is 5 times as dear, again
    assert energy.cache_access(1 << 40) == energy.MEMORY_ACCESS


def test_energy_against_a_sum_by_hand() -> None:
    sizes = (32 << 10, 1 << 20, 32 << 20)
    # 1000 x (3.7 + 0.9); 500 words at 20; 10 lines of 8 words at 100; 5 at 500; 2 from memory at 1300
    made = energy.estimate(1000, "float32", 500, (10, 5, 2), sizes, 64)
    assert made.arithmetic == pytest.approx(4600)
    assert made.first == pytest.approx(10_000)
    assert made.second == pytest.approx(8_000)
    assert made.last == pytest.approx(20_000)
    assert made.memory == pytest.approx(20_800)
    assert made.total == pytest.approx(63_400)
    assert energy.estimate(1000, "int8", 0, (0, 0, 0), sizes, 64).total == pytest.approx(300)


def test_work_of_each_system(setup: Setup) -> None:
    dense = setup.layers(DENSE, 1)[0]
    assert setup.costs(DENSE, dense, 7).multiply_adds == setup.dense.cost
    assert setup.costs(DENSE, dense, 7).bytes_read == 4 * setup.dense.parameters
    assert setup.costs(DENSE_INT8, setup.layers(DENSE_INT8, 1)[0], 7).bytes_read == setup.dense.parameters
    student = setup.costs(PAPER, setup.layers(PAPER, 1)[0], 1)
    assert student.multiply_adds == cost(setup.paper)
    assert student.bytes_read == pytest.approx(bytes_per_token(setup.paper, "int8", "int8"))
    assert setup.shipped.projection == "hadamard"
    slide = setup.layers(SLIDE, 1)[0]
    one, many = setup.costs(SLIDE, slide, 1), setup.costs(SLIDE, slide, 64)
    assert one.multiply_adds < many.multiply_adds  # a chunk's tokens compute each other's neurons
    assert one.bytes_read < many.bytes_read


def test_layers_are_the_same_in_every_process(setup: Setup) -> None:
    again = Setup.from_dict(json.loads(json.dumps(setup.to_dict())))
    assert again == setup
    for system in SYSTEMS:
        x = tokens(5, 32, "even", 0)
        with torch.no_grad():
            first, second = (each.layers(system, 2)[1](x) for each in (setup, again))
        assert torch.equal(first, second)


def test_skewed_neurons_fill_buckets_unevenly(setup: Setup) -> None:
    def largest(system: str) -> int:
        layer = setup.layers(system, 1)[0]
        assert isinstance(layer, SlideFFN)
        return int(layer.buckets.sizes.max())

    assert largest(SLIDE_SKEWED) > largest(SLIDE)
    alike = tokens(50, 32, "alike", 0)
    assert torch.nn.functional.cosine_similarity(alike[0], alike[1:], dim=1).min() > 0.5


def row(
    system: str, tokens: int, inputs: str, instructions: float, missed: float, state: str = "cold"
) -> dict[str, Any]:
    return {"system": system, "tokens": tokens, "inputs": inputs, "state": state, "source": "cachegrind",
            "instructions": instructions, "references": 1000.0, "missed": (missed, missed / 2, missed / 4)}  # fmt: skip


def latency(gain: float) -> list[dict[str, Any]]:
    seconds = {DENSE: gain, DENSE_INT8: 2.0, SLIDE: 3.0, PAPER: 1.0, SHIPPED: 1.0}
    return [{"threads": 1, "batch": 1, "seconds": seconds}]


@pytest.mark.parametrize(
    ("missed", "gain", "change", "holds"),
    [(100, 3.0, 0.0, [True, True, True]), (600, 2.0, 0.3, [False, False, False])],
)
def test_statements_follow_the_numbers(missed, gain, change, holds) -> None:
    counts = [
        row(PAPER, 1, "even", 100.0, missed), row(PAPER, 1, "alike", 100.0 * (1 + change), missed),
        row(SLIDE, 1, "even", 100.0, 1), row(SLIDE, 1, "alike", 150.0, 1),
    ]  # fmt: skip
    made = statements({"counts": counts, "latency": latency(gain)})
    assert [statement.holds for statement in made] == holds
    assert f"{100 - missed / 10:.1f} %" in made[0].evidence
    assert f"{gain:.2f}x" in made[1].evidence
    assert "SLIDE at 1 token +50.00 %" in made[2].evidence


def test_without_a_counter_there_are_no_counts_and_why_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perf, "missing", lambda: "perf is away")
    monkeypatch.setattr(valgrind, "missing", lambda: "valgrind is away")
    done = invoke(*TINY, "--batch", "1,2", "--json", tmp_path / "profile.json", "--report", tmp_path / "pictures")
    assert done.exit_code == 0, done.output
    assert "perf is away" in done.output
    assert "valgrind is away" in done.output
    assert "Counts of a layer" not in done.output
    assert "Energy a token" not in done.output
    assert "not measured" in done.output
    found = json.loads((tmp_path / "profile.json").read_text())
    assert {each["instructions"] for each in found["counts"]} == {None}
    assert found["energy"] == []
    assert [(each["threads"], each["batch"]) for each in found["latency"]] == [(1, 1), (1, 2)]
    assert all(set(each["seconds"]) == set(SYSTEMS) for each in found["latency"])
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["latency.png"]
    assert invoke(*TINY, "--batch", 1, "--counters", "perf").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--counters", "guess"), "unknown source 'guess'"),
        (("--caches", "32K,1M"), "no list of three"),
        (("--caches", "1M,32K,32M"), "no list of three"),
        (("--only", "torch_int8"), "means nothing"),
        (("--whole",), "means nothing"),
        (("--block", 7), "block"),
    ],
)
def test_mistakes_get_a_message(arguments: tuple[object, ...], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perf, "missing", lambda: "perf is away")
    done = invoke("--hidden", 64, *arguments)
    assert done.exit_code == 2
    assert message in done.output + str(done.exception or "")


def test_passes_that_a_simulation_cannot_take_are_named() -> None:
    left_out: dict[str, str] = {}
    passes = list(profiling.segments([1, 16, 128], 16, left_out))
    assert {segment.tokens for segment in passes} == {1, 16}
    assert list(left_out) == ["counts at 128 tokens"]
    assert Segment(PAPER, 16, "alike") in passes
    assert passes[0] == Segment(NOTHING, 1)
    assert list(profiling.segments([128], 16, left_out)) == []


@pytest.mark.long
@pytest.mark.skipif(valgrind.missing() is not None, reason="valgrind is not installed")
def test_valgrind_counts_passes() -> None:
    setup = profiled({**SIZES, "intermediate": 512}, PAPERS, 0.25, None, None)  # far more weights than bookkeeping
    segments = [Segment(NOTHING, 2), Segment(DENSE, 2), Segment(DENSE, 2, state="warm"), Segment(PAPER, 2)]
    caches = Cache(1 << 10, 2), Cache(4 << 10, 4), Cache(8 << 20, 8)
    nothing, cold, warm, student = valgrind.Valgrind().count(setup.to_dict(), segments, caches)
    assert all(counts.source == "cachegrind" for counts in (nothing, cold, warm, student))
    for counts in (nothing, cold, warm, student):
        first, second, last = counts.missed
        assert counts.instructions > counts.references > first > second > last
    assert nothing.instructions < student.instructions < cold.instructions
    weights = 4 * setup.dense.parameters / 64
    assert cold.missed[2] >= weights > 2 * warm.missed[2]  # a cold pass takes all weights from memory, a warm one none
    assert cold.missed[2] - warm.missed[2] == pytest.approx(weights, rel=0.1)
