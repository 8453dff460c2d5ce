"""Where a step of the end-to-end stage spends its time, on the CPU.

`python -m compress.recipes.step_times MODEL RECIPE --data PATH` begins a conversion in a temporary folder, takes a few
steps and prints a table: the parts of a step, and its tokens a second.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import torch

from compress import kernels
from compress.conversion import convert
from compress.data import Split
from compress.distill import endtoend
from compress.distill.endtoend import EndToEnd
from compress.distill.stopped import Stopped
from compress.lookup.ffn import Hash

WARMING = 3  # steps before those that count
PARTS = {  # a part's name, and the part that it is within
    "batch": None, "teacher": None, "student, forward": None, "hash": "student, forward",
    "scores": "student, forward", "gather": "student, forward", "backward": None, "scores, backward": "backward",
    "gather, backward": "backward", "gradient's norm": None, "optimiser": None,
}  # fmt: skip


class Watch:
    """Adds up the seconds of functions that it stands in for."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.replaced: list[tuple[Any, str, Any]] = []

    def time(self, owner: Any, name: str, part: str) -> None:
        """Replace an attribute, a function, by itself with a clock."""
        function: Callable[..., Any] = getattr(owner, name)
        self.replaced.append((owner, name, function))

        def timed(*arguments: Any, **keywords: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                self.seconds[part] += time.perf_counter() - begin

        setattr(owner, name, timed)

    def restore(self) -> None:
        """Put everything back."""
        for owner, name, function in reversed(self.replaced):
            setattr(owner, name, function)


def measure(model: str, recipe: str, data: str | None, overrides: list[str], steps: int, threads: int | None) -> str:
    """Take steps; give the table in Markdown."""
    watch = Watch()
    watch.time(Split, "batch", "batch")
    watch.time(Hash, "forward", "hash")
    watch.time(kernels, "margin_scores", "scores")
    watch.time(kernels, "gather", "gather")
    watch.time(kernels, "margin_scores_backward", "scores, backward")
    watch.time(kernels, "gather_backward", "gather, backward")
    watch.time(torch.Tensor, "backward", "backward")
    watch.time(endtoend, "clip", "gradient's norm")
    taken: list[float] = []  # when each step began
    step = EndToEnd.train_step

    def counted(self: EndToEnd, batch: dict[str, torch.Tensor]) -> float | None:
        if not taken:
            watch.time(self.dense, "forward", "teacher")
            watch.time(self.converted, "forward", "student, forward")
            watch.time(self.optimiser, "step", "optimiser")
        taken.append(time.perf_counter())
        if len(taken) == WARMING + 1:
            watch.seconds = dict.fromkeys(PARTS, 0.0)
        if len(taken) > WARMING + steps:
            raise Stopped
        return step(self, batch)

    watch.replaced.append((EndToEnd, "train_step", step))
    EndToEnd.train_step = counted  # type: ignore[method-assign]
    try:
        with TemporaryDirectory() as folder:
            convert(model, recipe, f"{folder}/out", data=data, overrides=overrides, device="cpu", threads=threads)
    except Stopped:
        pass
    finally:
        watch.restore()
    return table(watch.seconds, taken[-1] - taken[WARMING], steps)


def table(seconds: dict[str, float], whole: float, steps: int) -> str:
    """Milliseconds and shares of a step, a row a part."""
    rows = [f"| {'of it, ' if PARTS[part] else ''}{part} | {1e3 * spent / steps:.1f} | {spent / whole:.1%} |"
            for part, spent in seconds.items()]  # fmt: skip
    rest = whole - sum(spent for part, spent in seconds.items() if not PARTS[part])
    rows += [f"| errors and everything else | {1e3 * rest / steps:.1f} | {rest / whole:.1%} |"]
    rows += [f"| a step | {1e3 * whole / steps:.1f} | |"]
    return "\n".join(["| part | ms | share |", "|---|---:|---:|", *rows])


def main() -> None:
    """Read the options and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("recipe")
    parser.add_argument("--data")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int)
    chosen = parser.parse_args()
    print(measure(chosen.model, chosen.recipe, chosen.data, chosen.overrides, chosen.steps, chosen.threads))


if __name__ == "__main__":
    main()
