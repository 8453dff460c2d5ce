"""Tasks in processes of their own: a crash or a hang of one stops no other."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context

Task = Callable[[], None]


def run_all(tasks: Sequence[Task], workers: int, seconds: float) -> Iterator[tuple[int, float, str | None]]:
    """Run each task in a fork of this process; yields (position, seconds, how it failed or None) in the order they end."""
    fork = get_context("fork")
    waiting, running = list(enumerate(tasks)), {}
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
            yield position, time.monotonic() - began, failure


def _quietly(task: Task) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    task()
    sys.exit(0)


def _death(code: int) -> str:
    return f"the process died of {signal.Signals(-code).name}" if code < 0 else f"the process ended with code {code}"
