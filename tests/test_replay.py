"""Which steps are recorded and replayed, with a stand-in for the GPU's graphs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.distill.replay import Replay


class Machine:
    """Steps that add up their batches; a graph of it repeats the step that was recorded, on what its inputs hold."""

    def __init__(self) -> None:
        self.recording, self.waits, self.recorded = False, False, 0
        self.taken: list[float] = []

    def step(self, batch: Mapping[str, Tensor]) -> Tensor:
        if self.recording and self.waits:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.batch = batch
        return torch.zeros(())

    @contextmanager
    def graph(self, graph: Any, pool: object, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        assert pool == (None if not self.recorded else "the first one's")
        self.recording, graph.machine = True, self
        try:
            yield
        finally:
            self.recording = False
        graph.batch, self.recorded = self.batch, self.recorded + 1


class Graph:
    def pool(self) -> str:
        return "the first one's"

    def replay(self) -> None:
        self.machine.taken.append(float(self.batch["x"].sum()))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", made.graph)
    return made


def replay_of() -> Replay:
    made = Replay(torch.device("cpu"))
    assert not made.usable
    made.usable = True
    return made


def batch(value: float, size: int = 4) -> dict[str, Tensor]:
    return {"x": torch.full((size,), value)}


def test_the_fourth_step_of_a_shape_is_recorded_and_replayed_on_its_own_batch(machine: Machine) -> None:
    replay = replay_of()
    errors = [replay.take(batch(value), machine.step) for value in range(6)]
    assert [error is None for error in errors] == [True] * 3 + [False] * 3
    assert machine.taken == [12.0, 16.0, 20.0]
    assert machine.recorded == 1


def test_each_shape_is_recorded_by_itself_and_no_more_than_four(machine: Machine) -> None:
    replay = replay_of()
    for _ in range(3):
        for size in range(1, 7):
            assert replay.take(batch(1.0, size), machine.step) is None
    errors = [replay.take(batch(2.0, size), machine.step) for size in range(1, 7)]
    assert [error is None for error in errors] == [False] * 4 + [True] * 2
    assert machine.taken == [2.0, 4.0, 6.0, 8.0]
    assert replay.take(batch(3.0, 2), machine.step) is not None
    assert (machine.taken[-1], machine.recorded) == (6.0, 4)


def test_a_mask_is_never_recorded(machine: Machine) -> None:
    replay = replay_of()
    for _ in range(6):
        assert replay.take({**batch(1.0), "attention_mask": torch.ones(4)}, machine.step) is None
    assert machine.recorded == 0


def test_forgotten_it_records_anew(machine: Machine) -> None:
    replay = replay_of()
    for _ in range(4):
        replay.take(batch(1.0), machine.step)
    replay.forget()
    machine.recorded = 0  # a pool of its own again
    assert [replay.take(batch(1.0), machine.step) is None for _ in range(4)] == [True, True, True, False]
    assert machine.recorded == 1


def test_a_step_that_cannot_be_recorded_is_tried_once(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    replay = replay_of()
    machine.waits = True
    assert all(replay.take(batch(1.0), machine.step) is None for _ in range(4))
    assert not replay.usable
    assert "cannot be recorded (operation not permitted when stream is capturing)" in capsys.readouterr().out
    machine.waits = False
    assert all(replay.take(batch(1.0), machine.step) is None for _ in range(8))
    assert machine.recorded == 0
