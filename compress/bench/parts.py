"""Where the time of a PyTorch model goes: FFNs, attention, norms, embeddings, head, and what lies between them."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..evaluate.contestants import Contestant
from ..sites import Site

FFNS, ATTENTION, NORMS, EMBEDDINGS, HEAD, BETWEEN = "FFNs", "attention", "norms", "embeddings", "head", "between"
PARTS = (FFNS, ATTENTION, NORMS, EMBEDDINGS, HEAD, BETWEEN)
_ROUNDS = 5


def parts_of(model: nn.Module, sites: Sequence[Site]) -> dict[str, str]:
    """Dotted paths of the modules of a dense model that belong to a part, and which; of a head, what is in no block."""
    found = {path: FFNS for site in sites for path in (site.entry, *site.identities, *site.inputs, site.output)}
    blocks = {match[0] for path in found if (match := re.match(r".*?\.\d+(?=\.)", path))}
    for path, module in model.named_modules():
        if path in found or not path or any(path.startswith(f"{known}.") for known in found):
            continue
        shapes = [parameter.dim() for parameter in module.parameters()]
        leaf = not list(module.children())
        block = next((block for block in blocks if path.startswith(f"{block}.")), None)
        if isinstance(module, nn.Embedding):
            found[path] = EMBEDDINGS
        elif leaf and shapes and max(shapes) == 1:
            found[path] = NORMS
        elif block is not None and 2 in shapes and not any(known.startswith(f"{path}.") for known in found):
            found[path] = ATTENTION
        elif block is None and leaf and 2 in shapes:
            found[path] = HEAD
    return found


def seconds_by_part(model: nn.Module, parts: Mapping[str, str], contestant: Contestant) -> dict[str, float]:
    """Seconds of each part of a pass, medians of a few; a part within another counts as itself alone.

    parts: what `parts_of` says of the dense model; paths that this one lacks are passed over.
    """
    rounds = []
    for number in range(_ROUNDS):
        contestant.prepare(number)
        with _hooks(model, parts) as spent:
            start = time.perf_counter()
            contestant.run()
            whole = time.perf_counter() - start
        rounds.append({**dict.fromkeys(PARTS, 0.0), **spent, BETWEEN: whole - sum(spent.values())})
    return {part: statistics.median(each[part] for each in rounds) for part in PARTS}


@contextmanager
def _hooks(model: nn.Module, parts: Mapping[str, str]) -> Iterator[dict[str, float]]:
    """Add up the time inside each part's modules, that of other parts within them taken off."""
    spent: dict[str, float] = {}
    open_: list[tuple[float, float]] = []  # begin of each part's module, and time of those within it
    handles = []

    def begin(module: nn.Module, arguments: Any) -> None:
        open_.append((time.perf_counter(), 0.0))

    def end(part: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            start, within = open_.pop()
            taken = time.perf_counter() - start
            spent[part] = spent.get(part, 0.0) + taken - within
            if open_:
                outer, others = open_.pop()
                open_.append((outer, others + taken))

        return hook

    modules = dict(model.named_modules())
    for path, part in parts.items():
        if path in modules:
            handles += [modules[path].register_forward_pre_hook(begin), modules[path].register_forward_hook(end(part))]
    try:
        yield spent
    finally:
        for handle in handles:
            handle.remove()
