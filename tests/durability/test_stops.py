"""Killed, stopped or told to end, a conversion goes on where it was and gives the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_job import FIRST, begin, copied, in_stage, trial
from trials import result_bytes

from compress.conversion import resume
from compress.distill import clock as clocks
from compress.distill.clock import Clock
from compress.distill.job import Job
from compress.distill.stopped import Stopped
from compress.errors import JobError


@pytest.mark.parametrize("count", [4, pytest.param(100, marks=pytest.mark.long)])
def test_killed_at_random_moments_it_gives_the_same_bytes(tmp_path: Path, count: int) -> None:
    found = trial("kills", tmp_path, count, count)
    assert found["kills"] == count
    assert (found["differing"], found["failed"], found["left"]) == (0, 0, []), found


def test_stopped_it_keeps_the_step_and_goes_on_behind_it(
    work: Path, stopped: Path, tmp_path: Path, done: list[str]
) -> None:
    out = copied(stopped, tmp_path / "out")
    state = Job.open(out).journal["progress"]["finetune"]["state"]["values"]
    assert state["step"] > 0
    resume(out)
    assert done[0] == str(state["step"])
    assert result_bytes(out) == result_bytes(work / "whole")
    assert {path.name for path in (out / ".job").iterdir()} == {"journal.json", "journal.copy.json", "lock"}


@pytest.mark.parametrize(
    ("calls", "slots"),
    [
        pytest.param(2, {"held0"}, marks=pytest.mark.slow),
        (12, {"train-0-0"}),
        pytest.param(60, {"state"}, marks=pytest.mark.slow),
    ],
)
def test_a_site_keeps_recordings_and_training(work: Path, tmp_path: Path, calls: int, slots: set[str]) -> None:
    out = tmp_path / "out"
    with pytest.raises(Stopped):
        begin(work, out, stop=in_stage(out, "distill", calls))
    assert set(Job.open(out).journal["progress"][f"distill/{FIRST}"]) == slots
    resume(out)
    assert result_bytes(out) == result_bytes(work / "whole")


def test_saving_takes_less_than_a_twentieth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(clocks.time, "monotonic", lambda: now)
    clock = Clock()
    for cost, interval in ((0.2, 20.0), (0.9, 20.0), (5.0, 20.0), (1.0, 100.0), (0.1, 20.0)):
        begun = now
        while not clock.due():
            now += 0.01
        assert now - begun == pytest.approx(interval, abs=0.02)
        with clock.saving():
            now += cost
        assert clock.cost == pytest.approx(cost)


HOLD = """
import sys, time
from pathlib import Path
from compress.distill.job import Job
with Job.open(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_refused_and_a_dead_one_is_not_waited_for(stopped: Path, tmp_path: Path) -> None:
    out = copied(stopped, tmp_path / "out")
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(JobError, match=f"another process works on this job: process {process.pid}"):
        resume(out)
    assert Job.open(out).running()
    process.kill()
    process.wait()
    # The number in the file is a dead process's, and after a start of the machine may be anyone's: here it is ours.
    (out / ".job" / "lock").write_text(f"process {os.getpid()}\n")
    assert not Job.open(out).running()
    with Job.open(out).lock():
        pass


def test_what_a_process_killed_while_it_created_a_job_leaves_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".out.creating-1"
    (left / ".job").mkdir(parents=True)
    Job.create(tmp_path / "out", {"fingerprints": {}})
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_signals_end_a_job_behind_a_durable_state(tmp_path: Path) -> None:
    found = trial("signals", tmp_path)
    for name, code in (("int", 130), ("term", 143), ("hanging", 130)):
        assert found[name]["code"] == code
        assert found[name]["last"].endswith(f"continue with: {found[name]['resume']}")
        assert found[name]["seconds"] < 10
    assert "state" in found["int"]["kept"]
    assert "state" in found["term"]["kept"]
    assert found["twice"]["code"] == -2
    assert found["twice"]["last"].endswith(found["twice"]["resume"])
    assert found["twice"]["seconds"] < 2
