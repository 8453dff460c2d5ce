"""Training that diverges: begun again, left dense, or back to the last good state, and always told."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_job import FIRST, SECOND, begin
from trials import result_bytes

import compress.evaluate.evaluation
from compress.checkpoint import read_config, verify_files
from compress.conversion import convert, resume
from compress.distill.endtoend import EndToEnd
from compress.distill.job import Job
from compress.distill.layerwise import SiteDistiller
from compress.distill.objectives import BehindNorm
from compress.distill.stopped import Stopped
from compress.errors import SiteError
from compress.recipe import load_recipe


def failing(monkeypatch: pytest.MonkeyPatch, calls: range, error: float = math.nan) -> None:
    """Let training of the second site, told by its scale, give such errors at some of its steps."""
    forward, count = BehindNorm.forward, {"steps": 0}

    def wrong(self: BehindNorm, answer: torch.Tensor, data: Any) -> torch.Tensor:
        loss = forward(self, answer, data)
        if answer.requires_grad and getattr(self, "second", False):
            count["steps"] += 1
            if count["steps"] in calls:
                return loss * error
        return loss

    run = SiteDistiller.run

    def marked(self: SiteDistiller, *args: Any) -> Any:
        self.objective.second = self.tap.site.name == SECOND
        return run(self, *args)

    monkeypatch.setattr(BehindNorm, "forward", wrong)
    monkeypatch.setattr(SiteDistiller, "run", marked)


SLOW = pytest.mark.slow


@pytest.mark.parametrize("error", [math.nan, *(pytest.param(e, marks=SLOW) for e in (math.inf, 1e9))])
def test_a_site_begins_again_with_smaller_steps(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: float
) -> None:
    out = tmp_path / "out"
    failing(monkeypatch, range(50, 51), error)
    report = begin(work, out)
    assert any(SECOND in note and "smaller steps" in note for note in report.notes)
    assert {site.name for site in read_config(out).sites} == {FIRST, SECOND}
    unit = Job.open(out).journal["units"][f"distill/{SECOND}"]
    assert unit["restarts"] == 1
    assert unit["distilled"] < unit["fitted"]


def test_a_site_that_keeps_diverging_stays_dense_and_everything_says_so(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compress.cli import app
    from typer.testing import CliRunner

    out = tmp_path / "out"
    failing(monkeypatch, range(50, 10_000))
    report = begin(work, out)
    assert [site.name for site in read_config(out).sites] == [FIRST]
    assert [site["error"] is None for site in report.sites] == [False, True]
    assert any(f"{SECOND} stayed dense" in sentence for sentence in report.sentences())
    assert json.loads((out / "report.json").read_text())["notes"] == report.notes
    assert f"{SECOND} stayed dense" in (out / "README.md").read_text()
    resolved = load_recipe(out / "recipe.resolved.yaml")
    assert resolved.overrides[-1].sites == (SECOND,)
    assert resolved.overrides[-1].keep_dense
    assert Job.open(out).journal["plan"]["sites"][SECOND] is None
    assert 0.4 < Job.open(out).journal["plan"]["cost"] == pytest.approx(report.cost)
    assert f"{SECOND}: stays dense" in CliRunner().invoke(app, ["status", str(out)]).output
    monkeypatch.undo()
    monkeypatch.setattr(compress.evaluate.evaluation, "measure_latency", lambda *args, **kwargs: [])
    # The resolved recipe makes the same model.
    convert(str(work / "model"), resolved.with_data(str(work / "text.txt")), tmp_path / "again", threads=1)
    assert result_bytes(tmp_path / "again") == result_bytes(out)


def test_a_diverging_job_gives_the_same_bytes_when_it_is_stopped(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Explosions that depend on the state alone: steps far too large."""
    overrides = ("distill.learning_rate=3.0", "finetune.learning_rate=1.0")
    whole, out = tmp_path / "whole", tmp_path / "out"
    monkeypatch.setattr("compress.distill.divergence._EXPLODED", 1.0)
    report = begin(work, whole, *overrides)
    assert any("diverged" in note for note in report.notes), report.notes
    seen = 0

    def stop() -> bool:
        nonlocal seen
        seen += 1
        return seen % 110 == 0

    with pytest.raises(Stopped):
        begin(work, out, *overrides, stop=stop)
    while Job.open(out).journal["state"] != "finished":
        try:
            again = resume(out, stop=stop)
        except Stopped:
            continue
    assert result_bytes(out) == result_bytes(whole)
    assert again.notes == report.notes


def test_where_all_sites_diverge_it_is_an_error(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BehindNorm, "forward", lambda self, answer, data: answer.sum() * math.nan)
    for attempt in (begin, lambda work, out: resume(out)):
        with pytest.raises(SiteError, match="every site"):
            attempt(work, tmp_path / "out")


@pytest.mark.parametrize("last", [pytest.param(41, marks=SLOW), 10_000])
def test_the_whole_model_falls_back_to_its_last_good_state(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    compute, count = EndToEnd.error, {"steps": 0}

    def wrong(self: EndToEnd, batch: Any, *dtype: str) -> torch.Tensor:
        error = compute(self, batch, *dtype)
        count["steps"] += torch.is_grad_enabled()
        return error * math.nan if torch.is_grad_enabled() and 40 <= count["steps"] < last else error

    monkeypatch.setattr(EndToEnd, "error", wrong)
    out = tmp_path / "out"
    report = begin(work, out)
    unit = Job.open(out).journal["units"]["finetune"]
    assert unit["restarts"] == (1 if last == 41 else 2)
    assert ("diverged" in unit) == (last > 41)
    assert any(note.startswith("End to end, training diverged") for note in report.notes)
    if last > 41:
        assert "ended at step 35" in unit["diverged"]
    assert verify_files(out) == []
