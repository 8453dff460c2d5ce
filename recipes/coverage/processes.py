"""Tasks in processes of their own: a crash or a hang of one stops no other."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from typing import Any

Task = Callable[[], None]


def run_all(tasks: Sequence[Task], workers: int, seconds: float) -> Iterator[tuple[int, str | None]]:
    """Run each task in a fork of this process; yields (position, how it failed) as they end."""
    fork = get_context("fork")
    waiting = list(enumerate(tasks))
    running: dict[int, tuple[Any, float]] = {}
    while waiting or running:
        while waiting and len(running) < workers:
            position, task = waiting.pop(0)
            process = fork.Process(target=_quietly, args=(task,))
            process.start()
            running[position] = (process, time.monotonic())
        time.sleep(0.01)
        for position, (process, began) in list(running.items()):
            if process.exitcode is None and time.monotonic() < began + seconds:
                continue
            failure = None
            if process.exitcode is None:
                process.kill()
                failure = f"stopped after {seconds:.0f} s"
            process.join()
            if failure is None and process.exitcode:
                failure = _death(process.exitcode)
            del running[position]
            yield position, failure


def _quietly(task: Task) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    task()
    sys.exit(0)


def _death(code: int) -> str:
    return f"the process died of {signal.Signals(-code).name}" if code < 0 else f"the process ended with code {code}"
