"""Studies: read with care, run cell by cell, killed and gone on with, failures recorded."""

from __future__ import annotations

import csv
import importlib.util
import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from compress.cli import app
from typer.testing import CliRunner

import compress.studies.runner as runner
from compress.baselines.costs import costs
from compress.distill.stopped import Stopped
from compress.errors import DiskFullError, JobError, RecipeError
from compress.studies import bundled_studies, grid_of, load_study, parse_study, run_study
from compress.studies.masked_text import MASK, load_masked_text
from compress.studies.pretraining import Pretraining
from compress.studies.results import Cell, Result, points_of
from compress.studies.settings import PretrainingStudy, TextSettings
from compress.studies.tables import to_csv
from compress.studies.training import held_out_loss, model_of, train

STUDY = """\
# A study of pico size.
version: 1
kind: pretraining
model: {layers: 2, hidden: 32, heads: 2}
data: {path: text.txt, vocabulary: 280, sequence_length: 16, held_out_tokens: 256}
training: {steps: 4, batch: 2}
timing: {batches: [1], seconds: 0}
cells:
  - {name: vanilla, ffn: vanilla, settings: {d_hidden: 64}, seeds: [0, 1]}
  - {name: slide, ffn: slide, settings: {d_hidden: 64, bits: 3, tables: 4, chunk: 8, rebuild_every: 1}}
  - {name: mongoose, ffn: mongoose, settings: {d_hidden: 64, bits: 3, tables: 4, chunk: 8, check_every: 2}}
  - {name: bh4, ffn: lookup, settings: {tables: 8, bits: 4, block: 8}}
"""
CELLS = ["vanilla-seed0", "vanilla-seed1", "slide-seed0", "mongoose-seed0", "bh4-seed0"]
TIMES = ("training_seconds",)
WORDS = [
    "the",
    "old",
    "cat",
    "sat",
    "on",
    "a",
    "red",
    "hat",
    "and",
    "ran",
    "to",
    "see",
    "my",
    "big",
    "dog",
    "in",
    "town",
]


def text(folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(len(WORDS), (300, 12), generator=generator).tolist()
    (folder / "text.txt").write_text("\n".join(" ".join(WORDS[i] for i in row) for row in rows))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    text(tmp_path)
    (tmp_path / "pico.yaml").write_text(STUDY)
    return tmp_path / "pico.yaml"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study that ran to its end, timed."""
    folder = tmp_path_factory.mktemp("finished")
    text(folder)
    (folder / "pico.yaml").write_text(STUDY)
    outcome = run_study(folder / "pico.yaml", folder / "out", overrides=["timing.seconds=0.01"], threads=1)
    assert not outcome.failed, outcome.failed
    return folder / "out"


def table(out: Path, ignored: tuple[str, ...] = TIMES) -> list[dict[str, str]]:
    """The rows of a study's table without what no two runs share."""
    with open(out / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if key not in ignored} for row in rows]


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["study", *arguments])


class Numbers:
    """A study without models: a cell gives its number, or what `failing` says."""

    title, columns, pictures = "numbers", (), ()

    def __init__(self, *names: str, failing: dict[str, BaseException] | None = None, **identity: Any) -> None:
        self.cells = [Cell(name, name, "s", {"name": name, **identity}) for name in names]
        self.failing, self.ran = failing or {}, []

    def run(self, cell: Cell, folder: Path, stop: Any) -> dict[str, Any]:
        self.ran.append(cell.name)
        if cell.name in self.failing:
            raise self.failing[cell.name]
        return {"loss": float(len(cell.name))}

    def notes(self, points: Any) -> list[str]:
        return []


def test_every_cell_gives_its_loss_costs_and_times(finished: Path) -> None:
    rows = {row["point"]: row for row in table(finished, ())}
    assert list(rows) == ["vanilla", "slide", "mongoose", "bh4"]
    assert [row["cells"] for row in rows.values()] == ["2", "1", "1", "1"]
    study = load_study(finished.parent / "pico.yaml")
    assert isinstance(study, PretrainingStudy)
    for cell in study.cells:
        row, (model, names) = rows[cell.name], model_of(study, cell, 0, 280)
        one = costs(model.get_submodule(names[0]))
        assert float(row["parameters"]) == one.parameters
        assert 0 < float(row["multiply_adds"]) <= 1.01 * costs(model_of(study, study.cells[0], 0, 280)[0]).multiply_adds
        assert 4 < float(row["loss"]) < 6
        assert all(float(row[key]) > 0 for key in ("loss_stderr", "ffn_us_1", "model_us_1", "ffn_relative_1"))
    values = [
        json.loads((finished / "cells" / f"vanilla-seed{s}" / "result.json").read_text())["values"] for s in (0, 1)
    ]
    assert float(rows["vanilla"]["loss"]) == pytest.approx((values[0]["loss"] + values[1]["loss"]) / 2)
    assert float(rows["vanilla"]["loss_stderr"]) == pytest.approx(abs(values[0]["loss"] - values[1]["loss"]) / 2)
    assert float(rows["slide"]["rebuilds"]) > 0
    assert 0 < float(rows["slide"]["computed"]) <= 64
    assert float(rows["bh4"]["int8_loss"]) == pytest.approx(float(rows["bh4"]["loss"]), abs=0.05)
    markdown = (finished / "table.md").read_text()
    assert all(name in markdown for name in ("held-out loss", "| bh4 |", "recall of the largest"))
    assert not list(finished.rglob("state.safetensors"))


def test_pictures_where_matplotlib_is(finished: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("flops", "bytes", "time-1"):
        assert (finished / f"loss-over-{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_cells_are_listed(study: Path) -> None:
    result = invoke(str(study), "-o", str(study.parent / "out"), "--dry-run")
    assert result.exit_code == 0, result.output
    assert result.output.split() == CELLS
    assert not (study.parent / "out").exists()


def test_a_killed_study_goes_on_and_ends_the_same(study: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = study.parent / "out"
    asked = iter(range(100))
    with pytest.raises(Stopped):  # in the middle of the second cell
        run_study(study, out, stop=lambda: next(asked) == 7, threads=1)
    assert (out / "cells" / "vanilla-seed1" / "state.safetensors").is_file()
    assert [row["point"] for row in table(out)] == ["vanilla"]
    assert (out / "loss-over-flops.png").is_file() or importlib.util.find_spec("matplotlib") is None
    told: list[str] = []
    outcome = run_study(study, out, tell=told.append, threads=1)
    assert [line.split(": ")[1].split(";")[0] for line in told] == CELLS[1:]
    timed = table(finished, ())[0].keys() - table(out, ())[0].keys()
    assert table(out) == table(finished, (*TIMES, *timed))
    before = (out / "table.csv").read_bytes()
    again: list[str] = []
    assert run_study(study, out, tell=again.append, threads=1).points == outcome.points
    assert not again
    assert (out / "table.csv").read_bytes() == before


@pytest.mark.slow
def test_a_process_that_is_killed(study: Path, finished: Path) -> None:
    out = study.parent / "out"
    command = [sys.executable, "-m", "compress", "study", str(study), "-o", str(out), "--threads", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if "cell 3 of" in line)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    result = invoke(str(study), "-o", str(out), "--threads", "1")
    assert result.exit_code == 0, result.output
    timed = table(finished, ())[0].keys() - table(out, ())[0].keys()
    assert table(out) == table(finished, (*TIMES, *timed))


@pytest.mark.parametrize(
    ("wrong", "line", "words"),
    [
        ("kind: pretraining\nseeds: [0]", 4, ("`cells` is missing",)),
        ("kind: pretrainin", 3, ("no kind of study", "did you mean `kind: pretraining`")),
        (
            "kind: pretraining\nsteps: 3\ncells: [{name: a, ffn: slide}]",
            4,
            ("unknown key `steps`", "did you mean `seeds`"),
        ),
        ("kind: pretraining\ncells: []", 4, ("no entries", "cells")),
        ("kind: pretraining\ncells: [{name: a b, ffn: slide}]", 4, ("cannot name a folder",)),
        ("kind: pretraining\ncells: [{name: a, ffn: slied}]", 4, ("one of vanilla", "did you mean `slide`")),
        ("kind: pretraining\ncells: [{name: a, ffn: slide, size: 1}]", 4, ("unknown key `cells.0.size`",)),
        ("kind: pretraining\nmodel: {hidden: 30}\ncells: [{name: a, ffn: slide}]", 4, ("do not divide",)),
        ("kind: conversion\nrecipe: demo\naxes: {lookup.budget: []}", 5, ("lookup.budget", "no values")),
    ],
)
def test_a_wrong_study_is_refused_with_its_line(wrong: str, line: int, words: tuple[str, ...]) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_study(f"# wrong\nversion: 1\n{wrong}\n", "s.yaml")
    said = str(caught.value)
    assert all(word in said for word in words), said
    assert f"s.yaml:{line}" in said or "missing" in said


def test_settings_that_no_ffn_has_are_refused_before_anything_runs(study: Path) -> None:
    for setting, words in (("cells.1.settings.bitz=3", "bitz"), ("cells.3.settings.bits=17", "bits")):
        result = invoke(str(study), "-o", str(study.parent / "out"), "--set", setting)
        assert result.exit_code == 2, result.output
        assert words in result.output
        assert "cells." in result.output
    assert not (study.parent / "out").exists()
    with pytest.raises(RecipeError, match="no vanilla cell"):
        grid_of(load_study(study, ["reference=slide"]))


def test_a_failing_cell_is_recorded_and_the_rest_goes_on(study: Path) -> None:
    out = study.parent / "out"
    arguments = [str(study), "-o", str(out), "--threads", "1", "--set", "training.learning_rate.slide=1e30"]
    result = invoke(*arguments)
    assert result.exit_code == 1, result.output
    assert "1 of 5 cells failed" in result.output
    rows = {row["point"]: row for row in table(out)}
    assert "diverged" in rows["slide"]["error"]
    assert all(rows[name]["loss"] for name in ("vanilla", "mongoose", "bh4"))
    assert "Failed: slide-seed0" in (out / "table.md").read_text()
    told: list[str] = []
    assert not run_study(study, out, tell=told.append, threads=1).failed  # its rate alone has changed
    assert told[0] == "changed or damaged since they were made (learning rate), and done again: slide-seed0"
    assert told[1].startswith("cell 3 of 5: slide-seed0")


def test_only_changed_cells_are_done_again(tmp_path: Path) -> None:
    out, told = tmp_path / "out", []
    runner.run_grid(Numbers("a", "b"), out)
    changed = Numbers("a", "b", "c")
    changed.cells[1] = Cell("b", "b", "s", {"name": "b", "bits": 3})
    runner.run_grid(changed, out, tell=told.append)
    assert changed.ran == ["b", "c"]
    assert "(bits), and done again: b" in told[0]
    with pytest.raises(JobError, match=r"another study: changed since it began: .*data"):
        runner.run_grid(Numbers("a", "b", "c", data="other"), out)
    with pytest.raises(JobError, match="another study"):
        runner.run_grid(Numbers("x", "y"), out)
    (out / "cells" / "a" / "result.json").write_text("{}")
    again = Numbers("a", "c")
    outcome = runner.run_grid(again, out, tell=told.append)
    assert again.ran == ["a"]
    assert [point.name for point in outcome.points] == ["a", "c"]


def test_what_ends_a_study_and_what_does_not(tmp_path: Path) -> None:
    out = tmp_path / "out"
    grid = Numbers("a", "b", failing={"a": ValueError("no such\nluck")})
    outcome = runner.run_grid(grid, out)
    assert [(result.cell.name, result.error) for result in outcome.failed] == [("a", "ValueError: no such luck")]
    assert "ValueError: no such luck" in (out / "table.csv").read_text()
    retried = Numbers("a", "b")
    assert not runner.run_grid(retried, out).failed
    assert retried.ran == ["a"]
    full = Numbers("a", "b", "c", "d", failing={"c": DiskFullError("no room")})
    with pytest.raises(DiskFullError):
        runner.run_grid(full, out)
    assert full.ran == ["c"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("")
    with pytest.raises(JobError, match="something else"):
        runner.run_grid(grid, tmp_path / "other")


def test_processes_share_the_cells_of_a_study(tmp_path: Path) -> None:
    out, told = tmp_path / "out", []

    class Meanwhile(Numbers):
        """One whose second cell sees another process begin."""

        def run(self, cell: Cell, folder: Path, stop: Any) -> dict[str, Any]:
            if cell.name == "b":
                code = f"""
                    import sys
                    sys.path.insert(0, {str(Path(__file__).parent)!r})
                    from pathlib import Path
                    import test_studies, compress.studies.runner as runner
                    from compress.errors import JobError
                    out = Path({str(out)!r})
                    other = test_studies.Numbers("a", "b", "c", "d", failing={{"d": ValueError("bad")}})
                    runner.run_grid(other, out, tell=print)
                    print(other.ran)
                    other.cells[0] = test_studies.Cell("a", "a", "s", {{"name": "a", "bits": 3}})
                    try:
                        runner.run_grid(other, out)
                    except JobError as error:
                        print(error)
                """
                done = subprocess.run(
                    [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
                )
                told.append(done.stdout)
            return super().run(cell, folder, stop)

    grid = Meanwhile("a", "b", "c", "d")
    outcome = runner.run_grid(grid, out)
    assert grid.ran == ["a", "b"]
    assert [(result.cell.name, result.error) for result in outcome.failed] == [("d", "ValueError: bad")]
    assert [point.name for point in outcome.points] == ["a", "b", "c", "d"]
    assert "['c', 'd']" in told[0]
    assert "left to other processes, which run them now: 1 cell" in told[0]
    assert "another process works on this study as it was; changed since: bits" in told[0]
    assert "still to do" not in (out / "table.md").read_text()


def test_means_and_standard_errors() -> None:
    def result(name: str, point: str, error: str | None = None, **values: Any) -> Result:
        return Result(Cell(name, point, "s", {}), values, error, 1.0)

    one, two = points_of(
        [
            result("a0", "a", loss=1.0, loss_stderr=9.0, cost=4, metric="m"),
            result("a1", "a", loss=2.0, loss_stderr=9.0, cost=4, metric="m"),
            result("b0", "b", "broken"),
            result("b1", "b", loss=3.0, loss_stderr=0.5, cost=None),
        ]
    )
    assert one.values == {"loss": 1.5, "loss_stderr": 0.5, "cost": 4, "metric": "m"}
    assert (two.cells, two.values["loss_stderr"], two.errors) == (1, 0.5, ("b0: broken",))
    assert two.number("cost") is None
    assert to_csv([one, two]).splitlines()[1:] == ["a,s,2,1.5,0.5,4,m,", "b,s,1,3.0,0.5,,,b0: broken"]


def test_every_system_sees_the_same_tokens_and_the_same_start(study: Path) -> None:
    grid = grid_of(load_study(study))
    assert isinstance(grid, Pretraining)
    body = [
        {name: value for name, value in model.named_parameters() if not any(name.startswith(ffn) for ffn in names)}
        for model, names in (model_of(grid.study, cell, 0, 280) for cell in grid.study.cells)
    ]
    assert all(torch.equal(value, other[name]) for other in body[1:] for name, value in body[0].items())
    data = grid.text
    blocks, again = next(data.batches(4, 0)), next(data.batches(4, 0))
    assert torch.equal(blocks, again)
    assert not torch.equal(blocks, next(data.batches(4, 1)))
    later = data.batches(4, 0)
    next(later)
    assert torch.equal(next(later), next(data.batches(4, 0, begin=1)))
    inputs, positions = data.masked(blocks, 0.3, 0, 7)
    assert torch.equal(inputs, data.masked(blocks, 0.3, 0, 7)[0])
    assert not torch.equal(inputs, data.masked(blocks, 0.3, 0, 8)[0])
    assert positions.shape == (4, round(0.3 * 15))
    changed = inputs != blocks
    assert changed.sum() <= positions.numel()
    assert not changed.scatter(1, positions, False).any()
    assert (inputs == MASK).sum() >= positions.numel() / 2


def test_a_long_enough_training_learns(study: Path, tmp_path: Path) -> None:
    """Words, not only their frequencies: below what unigrams give."""
    (tmp_path / "text.txt").write_text("the old cat sat on a red hat and ran to the big dog.\n" * 400)
    chosen = load_study(
        study, ["training.steps=300", "training.batch=8", "training.mask=0.2", "training.learning_rate.vanilla=5e-3"]
    )
    assert isinstance(chosen, PretrainingStudy)
    data = load_masked_text(chosen.data)
    model, _ = model_of(chosen, chosen.cells[0], 0, data.vocabulary)
    train(model, chosen, chosen.cells[0], 0, data, folder=tmp_path, device="cpu", stop=lambda: False)
    loss, stderr = held_out_loss(model, data, 0.2, "cpu")
    assert loss + 5 * stderr < data.unigram_loss


def test_the_standard_library_is_the_text_unless_one_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    from compress.recipes.embedded import corpus

    side = [corpus.Module(f"{name}.py", name, f"import {name}\n" * 60) for name in ("json", "os")]
    monkeypatch.setattr(corpus, "collect", lambda: corpus.Corpus(side[:1], side[1:]))
    data = load_masked_text(TextSettings(vocabulary=270, held_out_tokens=256))
    assert "Python's standard library" in data.description
    assert data.held_out.shape[1] == data.train.shape[1] == 128


@pytest.mark.parametrize("name", sorted(bundled_studies()))
def test_bundled_studies_run_at_pico_size(name: str, tmp_path: Path) -> None:
    chosen = load_study(name)
    if not isinstance(chosen, PretrainingStudy):
        pytest.skip("needs a pretrained model")
    text(tmp_path)
    small = [
        "model.layers=1", "model.hidden=32", "model.heads=2", "data.vocabulary=280", "data.sequence_length=16",
        "data.held_out_tokens=64", "training.steps=1", "training.batch=2", "timing.seconds=0", "seeds=[0]",
    ]  # fmt: skip
    for number, cell in enumerate(chosen.cells):
        small.append(f"cells.{number}.seeds=[0]")
        sizes = {"d_hidden": 64} if cell.ffn != "lookup" else {"tables": 4, "block": 8}
        small += [f"cells.{number}.settings.{key}={value}" for key, value in sizes.items() if key in cell.settings]
    arguments = [argument for setting in small for argument in ("--set", setting)]
    result = invoke(
        name, "-o", str(tmp_path / "out"), "--data", str(tmp_path / "text.txt"), "--device", "cpu", *arguments
    )
    assert result.exit_code == 0, result.output
    assert len(table(tmp_path / "out")) == len(chosen.cells)


def test_the_bundled_studies_are_listed() -> None:
    result = invoke()
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.output.splitlines()] == sorted(bundled_studies())
    assert all(len(line.split()) > 4 for line in result.output.splitlines())
