"""The process whose passes are counted: `python -m compress.bench.counted`, told by `counters.worker`.

It reads its work as one line of JSON and says where it stands, one word a line, then waits for a line to go on:
`prepare` before what is not counted, `start` and `stop` around what is.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Sequence

import torch
from torch import nn

from .counters import Mark, Segment
from .machine import Memory
from .systems import Setup, tokens

_WARM_UP = 10  # calls, of which the first prepare weights and make the interpreter specialise its code


def main() -> None:
    """Run every segment."""
    work = json.loads(sys.stdin.readline())
    setup, count = Setup.from_dict(work["setup"]), work["layers"]
    torch.set_num_threads(1)
    memory = Memory()
    made: tuple[str, Sequence[nn.Module]] = ("", [])
    with torch.no_grad():
        for values in work["segments"]:
            segment = Segment(**values)
            if made[0] != segment.system:
                made = ("", [])  # before the next takes memory
                made = (segment.system, setup.layers(segment.system, count + 1))
            run(segment, made[1], setup.dense.d_in, memory)


def run(segment: Segment, layers: Sequence[nn.Module], width: int, memory: Memory) -> None:
    """Run a segment on all layers but the last, which only warms up code and interpreter."""
    *timed, spare = layers
    warm, *rest = (tokens(segment.tokens, width, segment.inputs, seed) for seed in range(len(layers)))
    for layer in [*timed, *[spare] * _WARM_UP]:
        layer(warm)
    gc.collect()
    gc.disable()
    memory.sweep()
    _mark("prepare")
    for layer in timed if segment.state == "warm" else [spare]:
        layer(warm)
    _mark("start")
    for layer, x in zip(timed, rest, strict=True):
        layer(x)
    _mark("stop")
    gc.enable()


def _mark(mark: Mark) -> None:
    sys.stdout.write(f"{mark}\n")
    sys.stdout.flush()
    sys.stdin.readline()


if __name__ == "__main__":
    main()
