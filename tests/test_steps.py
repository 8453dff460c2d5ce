"""How far a stage is, said in a log."""

from __future__ import annotations

import pytest

from compress.distill import steps
from compress.distill.steps import Steps


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(steps.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_a_minute_with_what_is_left(clock, capsys):
    with Steps("end to end", 1000, begun=100) as told:
        for step in range(101, 1001):
            clock[0] += 1.0
            told.tell(step, 0.5 / step)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 14
    assert lines[0] == "end to end: step 161 of 1000, error 0.0031, about 13:59 left"
    assert lines[-1] == "end to end: step 941 of 1000, error 0.0005, about 00:59 left"


def test_steps_that_are_taken_again_do_not_upset_it(clock, capsys):
    with Steps("site", 100) as told:
        for step in (1, 50, 10, 20):
            clock[0] += 61.0
            told.tell(step)
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == [
        "site: step 50 of 100", "site: step 20 of 100"
    ]  # fmt: skip


def test_the_rate_is_that_of_the_steps_told_of(clock):
    with Steps("site", 100, begun=10) as told:
        assert told.rate is None
        for step in range(11, 31):
            clock[0] += 0.5
            told.tell(step)
            assert told.rate is None if step == 11 else told.rate == 2.0


def test_what_takes_less_than_a_minute_is_not_told(clock, capsys):
    with Steps("writing", 10, unit="example") as told:
        for count in range(1, 11):
            clock[0] += 5.0
            told.tell(count)
    assert not capsys.readouterr().out
