"""What machines do to a conversion: killed at random moments, out of disk, told to end. Each time it is resumed.

`python trials.py TRIAL FOLDER [ARGUMENT]...` prints what came of it as one line of JSON. Processes are forked from one
that has everything imported, so that a trial takes as long as the conversion alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from compress.cli import main as command_line
from pico_tokenizer import WORDS, save_pico

import compress.evaluate.evaluation
from compress.checkpoint import is_compressed, verify_files
from compress.conversion import convert, resume
from compress.distill import clock
from compress.distill.job import Job
from compress.errors import DiskFullError

RECIPE = """\
version: 1
lookup: {budget: 0.4, memory: 40, bits: 4, rank: 16}
data: {sequence_length: 32, tokens: 4000}
fit: {tokens: 2000}
distill: {steps: 120, batch_tokens: 256}
finetune: {steps: 60, batch_tokens: 256, train: all}
"""
SAVE_SECONDS = (0.0, 0.05, 0.5, 20.0)
FULL = 3  # exit status of a trial that found no room
BALLAST = 16 << 20  # bytes of the file system whose room is swept


class Trials:
    """A pico model, a text and a recipe in a folder, and conversions of them in processes of their own."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        torch.set_num_threads(1)
        compress.evaluate.evaluation.measure_latency = lambda *args, **kwargs: []  # seconds in which nothing is written
        self.folder, self.draw = folder, random.Random(seed)
        self.text, self.recipe = folder / "text.txt", folder / "recipe.yaml"
        self.model = save_pico(folder / "model", "llama")
        draw = random.Random(0)
        lines = [" ".join(draw.choices(WORDS, k=draw.randint(4, 12))) + "." for _ in range(400)]
        self.text.write_text("\n".join(lines) + "\n")
        self.recipe.write_text(RECIPE)
        start = time.monotonic()
        assert wait(fork(lambda: self.go(folder / "whole"))) == 0
        self.seconds = time.monotonic() - start
        self.wanted = result_bytes(folder / "whole")

    def go(self, out: Path, save_seconds: float = 20.0, announce: Callable[[Any], None] = lambda plan: None) -> None:
        """Begin the conversion, or go on with it."""
        clock.SAVE_SECONDS, clock.MOST_SAVING = save_seconds, 1e9
        if out.exists():
            resume(out)
        else:
            convert(str(self.model), self.recipe, out, data=str(self.text), threads=1, announce=announce)


def fork(work: Callable[[], None], output: Path | None = None) -> int:
    """Run a function in a process of its own; its exit status says how it ended."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.dup2(os.open(output or os.devnull, os.O_WRONLY | os.O_CREAT), 1)
        if output:
            os.dup2(1, 2)
        work()
        status = 0
    except DiskFullError as error:
        os.write(1, str(error).encode())
        status = FULL
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def wait(pid: int) -> int:
    """Wait for a process: its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def result_bytes(out: Path) -> dict[str, bytes]:
    """What must not differ."""
    return {path.name: path.read_bytes() for path in sorted([*out.glob("*.safetensors"), out / "config.json"])}


def place(out: Path) -> str:
    """Where a killed job stands: its finished units and what it keeps of the next."""
    if not out.exists():
        return "before the job"
    journal = Job.open(out).journal
    if journal["state"] == "finished":
        return "finished"
    kept = {
        slot.rstrip("0123456789").partition("-")[0] for slots in journal.get("progress", {}).values() for slot in slots
    }
    return f"{len(journal['units'])} units" + (f", {'+'.join(sorted(kept))}" if kept else "")


def kills(folder: Path, count: str, seed: str) -> dict[str, Any]:
    """SIGKILL at random moments of jobs, which are resumed and killed again until they are through."""
    trials = Trials(folder, int(seed))
    draw, places = trials.draw, Counter[str]()
    jobs, differing, failed, done = 0, 0, 0, 0
    while done < int(count):
        out = folder / f"job-{jobs}"
        jobs += 1
        while True:
            delay = draw.random() * trials.seconds if done < int(count) else 1e9
            save_seconds = draw.choice(SAVE_SECONDS)
            pid = fork(lambda: trials.go(out, save_seconds))  # noqa: B023  # it runs at once
            deadline, ended = time.monotonic() + delay, (0, 0)
            while ended[0] == 0 and time.monotonic() < deadline:
                time.sleep(0.002)
                ended = os.waitpid(pid, os.WNOHANG)
            if ended[0]:
                failed += ended[1] != 0
                break
            os.kill(pid, signal.SIGKILL)
            wait(pid)
            done += 1
            places[place(out)] += 1
        differing += result_bytes(out) != trials.wanted
    return {
        "kills": done, "jobs": jobs, "differing": differing, "failed": failed,
        "left": [path.name for path in folder.glob(".*")], "seconds": trials.seconds, "places": dict(places),
    }  # fmt: skip


def limits(folder: Path, *sizes: str) -> dict[str, Any]:
    """A limit on the size of files, in bytes."""
    trials = Trials(folder)

    def limited(out: Path, size: int) -> int:
        def work() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            trials.go(out, 0.0)

        return fork(work, folder / f"{size}.txt")

    return _full(trials, folder, [int(size) for size in sizes], limited)


def rooms(folder: Path, step: str, most: str, save_seconds: str) -> dict[str, Any]:
    """A file system of its own with room for `step` bytes, and more, up to `most`; needs the right to mount."""
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={BALLAST}", "tmpfs", disk], check=True)
    try:
        trials = Trials(disk)
        ballast = disk / "ballast"

        def filled(out: Path, room: int) -> int:
            def fill(plan: Any) -> None:
                used = os.statvfs(disk)
                ballast.write_bytes(bytes(max(0, used.f_bavail * used.f_frsize - room)))

            return fork(lambda: trials.go(out, float(save_seconds), fill), folder / f"{room}.txt")

        return _full(trials, folder, list(range(int(step), int(most), int(step))), filled, ballast)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def _full(
    trials: Trials, folder: Path, sizes: list[int], begin: Callable[[Path, int], int], ballast: Path | None = None
) -> dict[str, Any]:
    """Run into each limit; without it, go on; look for half-written files in between."""
    statuses, messages, differing, halves, failed = Counter[int](), {}, 0, 0, 0
    for size in sizes:
        out = trials.folder / f"full-{size}"
        statuses[status := wait(begin(out, size))] += 1
        told = folder / f"{size}.txt"
        if ballast is not None:
            ballast.unlink(missing_ok=True)
        if status == FULL:
            message = told.read_text(errors="replace").split("no room to write ")[-1]
            messages[message.partition(":")[0]] = "no room to write " + message
            if out.exists() and is_compressed(out):
                halves += verify_files(out) != []
        failed += wait(fork(lambda: trials.go(out))) != 0  # noqa: B023  # it runs at once
        differing += result_bytes(out) != trials.wanted
        subprocess.run(["rm", "-rf", out, told], check=True)
    return {
        "statuses": {str(key): value for key, value in statuses.items()}, "differing": differing, "halves": halves,
        "failed": failed, "messages": messages,
    }  # fmt: skip


def signals(folder: Path) -> dict[str, Any]:
    """SIGINT and SIGTERM in training, where a step is short, and in a computation that is no step; SIGINT twice."""
    trials = Trials(folder)
    found = {}
    for name, numbers, hang in (
        ("int", [signal.SIGINT], False), ("term", [signal.SIGTERM], False), ("hanging", [signal.SIGINT], True),
        ("twice", [signal.SIGINT, signal.SIGINT], True),
    ):  # fmt: skip
        out, told = folder / name, folder / f"{name}.txt"

        def work(out: Path = out, hang: bool = hang) -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in a background job have it ignored
            if hang:
                from compress.distill.stages import Stages

                Stages.finetune = lambda self: time.sleep(60)  # type: ignore[method-assign]
            sys.argv = [
                "compress", "convert", str(trials.model), str(trials.recipe), "-o", str(out), "--data",
                str(trials.text), "--threads", "1", "--set", f"distill.steps={0 if hang else 100_000}",
            ]  # fmt: skip
            command_line()

        pid = fork(work, told)
        deadline = time.monotonic() + 60
        while place(out) != ("2 units" if hang else "0 units") and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(1.0)
        start = time.monotonic()
        for number in numbers:
            os.kill(pid, number)
            time.sleep(0.1)
        code = wait(pid)
        found[name] = {
            "code": code, "seconds": time.monotonic() - start, "last": told.read_text().strip().splitlines()[-1],
            "kept": place(out), "resume": f"compress resume {out}",
        }  # fmt: skip
    return found


if __name__ == "__main__":
    trial, where, *arguments = sys.argv[1:]
    with contextlib.redirect_stdout(sys.stderr):
        outcome = {"kills": kills, "limits": limits, "rooms": rooms, "signals": signals}[trial](Path(where), *arguments)
    print(json.dumps(outcome))
