"""Sweeps: conversions at several settings, the trade-off, the cheapest point within a loss."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from compress.cli import app
from pico_tokenizer import save_pico
from typer.testing import CliRunner

import compress
from compress.distill.stopped import Stopped
from compress.errors import CompressError, RecipeError
from compress.evaluate.report import Report
from compress.studies import load_study, run_study
from compress.studies.conversions import cheapest_within, loss_of, values_of
from compress.studies.results import Point
from compress.studies.sweep import sweep_study

RECIPE = """\
version: 1
lookup: {budget: 0.5, memory: 40, bits: 4, rank: 16}
data: {sequence_length: 32, tokens: 2000}
fit: {tokens: 1000}
distill: {steps: 2, batch_tokens: 256}
finetune: {steps: 2, batch_tokens: 256}
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    save_pico(folder / "model", "llama")
    (folder / "text.txt").write_text("the old cat sat on a red hat and ran to the big dog.\n" * 300)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def invoke(work: Path, *arguments: str) -> Any:
    given = [str(work / "model"), str(work / "recipe.yaml"), "--data", str(work / "text.txt"), "--threads", "1"]
    return CliRunner().invoke(app, ["sweep", *given, *arguments])


def rows(out: Path) -> dict[str, dict[str, str]]:
    with open(out / "table.csv", newline="") as file:
        return {row["point"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def swept(work: Path) -> Path:
    """A sweep that was stopped in its second conversion, and went on."""
    out = work / "out"
    assignments = ["lookup.budget=0.5,0.75", "finetune.steps=0"]
    asked = iter(range(1000))
    options = {"data": str(work / "text.txt"), "threads": 1, "max_loss": 0.5}
    with pytest.raises(Stopped):
        compress.sweep(
            str(work / "model"), work / "recipe.yaml", out, overrides=assignments, stop=lambda: next(asked) == 30,
            **options,
        )  # fmt: skip
    journal = json.loads((out / "cells" / "budget-0.75-steps-0" / "model" / ".job" / "journal.json").read_text())
    assert journal["state"] == "running"
    result = invoke(
        work, *(part for one in assignments for part in ("--set", one)), "-o", str(out), "--max-loss", "0.5"
    )
    assert result.exit_code == 0, result.output
    return out


def test_a_sweep_gives_the_trade_off(swept: Path) -> None:
    found = rows(swept)
    assert [name.partition(", ")[2].partition(",")[0] for name in found] == ["budget 0.5", "budget 0.75"]
    small, large = found.values()
    assert 0 < float(small["cost"]) <= 0.5 < float(large["cost"]) <= 0.75
    assert float(small["bytes_per_token"]) < float(large["bytes_per_token"])
    for row, name in ((small, "budget-0.5-steps-0"), (large, "budget-0.75-steps-0")):
        folder = swept / "cells" / name / "model"
        assert compress.verify(folder) == []
        report = Report.from_json((folder / "report.json").read_text())
        assert float(row["cost"]) == report.cost
        assert float(row["stored_bytes"]) == report.size["compressed_ffn_bytes"]
        assert float(row["ffn_seconds_batch_1"]) > 0
        assert float(row["ffn_tokens_large"]) == 16 * float(row["ffn_tokens_batch_1"])
    text = (swept / "table.md").read_text()
    assert "Loss: ln(perplexity / dense" in text
    assert "Cheapest within a loss of 0.5: LookupFFN, budget 0.5" in text


def test_a_finished_sweep_is_not_done_again(work: Path, swept: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in swept.rglob("model.safetensors")}
    table = (swept / "table.csv").read_bytes()
    given = ["--set", "lookup.budget=0.5,0.75", "--set", "finetune.steps=0"]
    result = invoke(work, *given, "-o", str(swept), "--max-loss", "0")
    assert result.exit_code == 0, result.output
    assert before == {file: file.stat().st_mtime_ns for file in swept.rglob("model.safetensors")}
    assert (swept / "table.csv").read_bytes() in table or len(rows(swept)) == 2
    assert "ithin a loss of 0" in result.output


def test_the_cells_are_listed(work: Path) -> None:
    given = ["--set", "lookup.budget=0.25,0.5", "--set", "lookup.read=top1,top2", "--dry-run"]
    result = invoke(work, *given, "-o", str(work / "none"))
    assert result.exit_code == 0, result.output
    assert result.output.split() == [f"budget-{b}-read-{r}" for b in ("0.25", "0.5") for r in ("top1", "top2")]
    assert not (work / "none").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["lookup.budget=0.5"], "nothing to sweep over"),
        (["lookup.budget"], "not of the form key=value"),
        (["lookup.budget=0.5,0.5"], "given twice"),
        (["lookup.budget=0.1,0.2", "lookup.budget=0.3"], "is given twice"),
        (["lookup.budgets=0.1,0.2"], "did you mean `lookup.budget`"),
        (["lookup.budget=0.1,much"], "must be a number above 0"),
        (["lookup.budget=0.01,0.5"], "more than the budget of 0.01"),
        (["lookup.budget=0.01,0.5"], "budget-0.01: "),
    ],
)
def test_a_wrong_sweep_is_refused(work: Path, given: list[str], words: str) -> None:
    result = invoke(work, *(part for one in given for part in ("--set", one)), "-o", str(work / "wrong"))
    assert result.exit_code == 2, result.output
    assert words in result.output
    assert not (work / "wrong").exists()


def test_lists_and_single_values_are_no_axes() -> None:
    study = sweep_study("m", "demo", ["lookup.budget=0.1,0.2", "sites.exclude=[a, b]", "seed=3"])
    assert study.points() == [
        {"lookup.budget": budget, "sites.exclude": ("a", "b"), "seed": 3} for budget in (0.1, 0.2)
    ]


def test_a_study_of_conversions_has_several_systems(work: Path) -> None:
    (work / "study.yaml").write_text(
        "version: 1\nkind: conversion\nmodel: model\nrecipe: recipe.yaml\ndata: text.txt\n"
        "axes: {lookup.budget: [0.5]}\nsystems:\n  - {name: LookupFFN}\n"
        "  - {name: pruned, set: {lookup.tables: 0, lookup.rank: 0, lookup.bits: auto}}\n"
    )
    told: list[str] = []
    outcome = run_study(work / "study.yaml", work / "systems", threads=1, tell=told.append)
    assert not outcome.failed
    assert all((point.number("kl") or 0) > 0 and (point.number("top1") or 0) > 0 for point in outcome.points)
    assert "| KL to dense | same top-1 |" in (work / "systems" / "table.md").read_text()
    assert [(point.name, point.system) for point in outcome.points] == [
        ("LookupFFN, budget 0.5", "LookupFFN"), ("pruned, budget 0.5", "pruned"),
    ]  # fmt: skip
    other = load_study(work / "study.yaml", ["systems.1.set={lookup.neurons: 16, lookup.tables: 0, lookup.rank: 0}"])
    again: list[str] = []
    run_study(other, work / "systems", threads=1, tell=again.append)
    assert "done again: pruned-budget-0.5" in again[0]


def test_what_the_loss_is_measured_in() -> None:
    row = {"dense": 10.0, "compressed": 11.0, "interval": [0.8, 1.2]}
    loss = loss_of("perplexity", row)
    assert (round(loss.value, 5), round(loss.stderr or 0, 5)) == (0.09531, round(0.4 / 3.92 / 11, 5))
    assert loss_of("masked_loss", row).value == 1.0
    assert round(loss_of("accuracy", {"dense": 0.8, "compressed": 0.7}).value, 9) == 0.1
    assert round(loss_of("wer", {"dense": 0.1, "compressed": 0.3}).value, 9) == 0.2
    size = {"compressed_bytes_per_token": 1, "compressed_ffn_bytes": 2, "compressed_bytes": 3}
    values = values_of(Report({}, {"kl": None, "cosine_distance": 0.25}, [], size, [], cost=0.5))
    assert (values["loss"], values["metric"], values["cosine_distance"]) == (0.25, "cosine_distance", 0.25)
    assert "kl" not in values


def test_the_cheapest_point() -> None:
    points = [Point(f"p{c}", "s", 1, {"cost": c, "loss": loss}) for c, loss in ((0.5, 0.0), (0.25, 0.1), (0.1, 0.9))]
    failed = Point("none", "s", 0, {}, ("failed",))
    assert cheapest_within([*points, failed], 0.1) == "Cheapest within a loss of 0.1: p0.25, cost 0.250, loss 0.1000."
    assert cheapest_within(points, -1.0) == "No point is within a loss of -1."


def test_what_all_cells_need_is_checked_first(work: Path) -> None:
    study = work / "bad.yaml"
    study.write_text("version: 1\nkind: conversion\nrecipe: recipe.yaml\naxes: {lookup.budget: [0.5]}\n")
    with pytest.raises(RecipeError, match="names no data"):
        run_study(study, work / "bad", overrides=[f"model={work / 'model'}"])
    with pytest.raises(CompressError, match="no such file"):
        run_study(study, work / "bad", overrides=[f"model={work / 'model'}"], data=str(work / "none.txt"))
    assert not (work / "bad").exists()
