"""The profile of the dense FFN, SLIDE and LookupFFN on a CPU: time over batch and threads, counts, energy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ..errors import CompressError
from ..evaluate.latency import threads_set
from . import energy, perf, valgrind
from .counters import Caches, Choice, Counter, Counts, Segment, State
from .machine import DESKTOP, Cache, data_caches, parse_size
from .run import bench
from .systems import NOTHING, PAPER, SLIDE, SLIDE_SKEWED, SYSTEMS, Setup, arithmetic

FORMAT = 1
BATCHES = (1, 16, 128, 512)
_NOT_COUNTED = Counts("none", None, None, (None, None, None))
STATES: tuple[State, ...] = ("cold", "warm")


def find_counter(choice: Choice) -> tuple[Counter | None, dict[str, str]]:
    """The source of counts to use, and reasons by the names of those that are not to be had.

    Raises CompressError where the one that is asked for is among these.
    """
    sources: dict[str, tuple[str | None, Counter]] = {}
    if choice in ("auto", "perf"):
        sources["perf"] = (perf.missing(), perf.Perf())
    if choice in ("auto", "cachegrind"):
        sources["cachegrind"] = (valgrind.missing(), valgrind.Valgrind())
    reasons = {name: reason for name, (reason, _) in sources.items() if reason is not None}
    found = next((counter for reason, counter in sources.values() if reason is None), None)
    if found is None and choice in reasons:
        raise CompressError(
            reasons[choice], where="--counters", remedy="leave --counters out, or choose another source"
        )
    return found, reasons


def find_caches(given: str | None, counter: Counter | None) -> tuple[Caches, str]:
    """The caches that counts are of, and whose they are; `given` as 32K,1M,32M overrides the machine's in a simulation.

    Raises CompressError for sizes that are none, do not grow, or are not to be chosen.
    """
    own = data_caches()
    if given is None:
        return (DESKTOP, "a common desktop's") if own is None else (own, "this machine's")
    if counter is not None and counter.name == "perf":
        raise CompressError("perf counts what the machine's own caches do", where="--caches",
                            remedy="leave --caches out, or simulate: --counters cachegrind")  # fmt: skip
    try:
        sizes = [parse_size(part) for part in given.split(",")]
        first, second, last = (Cache(size, like.ways) for size, like in zip(sizes, DESKTOP, strict=True))
    except ValueError:
        sizes = []
    if not sizes or not 1024 <= sizes[0] < sizes[1] < sizes[2]:
        raise CompressError(f"{given} is no list of three growing caches", where="--caches", remedy="write 32K,1M,32M")
    return (first, second, last), "given"


def profile(
    setup: Setup, *, batches: Sequence[int], threads: Sequence[int], layers: int, seconds: float,
    choice: Choice = "auto", caches: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure every system at each batch size (tokens) and number of threads.

    Returns `machine`, `caches`, `work` (multiply-adds a token, bytes touched a pass), `latency` (rows as those of
    `bench`, with their threads and streaming rate), `counts` a layer, `energy` in picojoules a token, and `left_out`.
    Raises CompressError as `find_counter` and `find_caches` do, before anything is measured.
    """
    counter, left_out = find_counter(choice)
    levels, whose = find_caches(caches, counter)
    variants = [setup.variant(system, layers) for system in SYSTEMS]
    work = [
        {"system": system, "tokens": tokens, **asdict(setup.costs(system, variant.layers[0], tokens))}  # type: ignore[arg-type]
        for system, variant in zip(SYSTEMS, variants, strict=True)
        for tokens in batches
    ]
    latency: list[dict[str, Any]] = []
    machine: dict[str, Any] = {}
    for count in threads:
        with threads_set(count):
            result = bench(variants, setup.dense.d_in, batches=batches, seconds=seconds)
        machine = result["machine"]
        rate = machine.pop("streaming_rate")
        latency += [{"threads": machine.pop("threads", count), "streaming_rate": rate, **row} for row in result["rows"]]
    del variants
    passes = list(segments(batches, None if counter is None else counter.most_tokens, left_out))
    counts = [_NOT_COUNTED] * len(passes) if counter is None else counter.count(setup.to_dict(), passes, levels)
    counted = list(zip(passes, counts, strict=True))
    return {
        "format": FORMAT,
        "machine": machine,
        "caches": {"whose": whose, "levels": [asdict(level) for level in levels]},
        "setup": setup.to_dict(),
        "work": work,
        "latency": latency,
        "counts": [{**asdict(segment), **asdict(counts)} for segment, counts in counted],
        "energy": [row for segment, counts in counted if (row := _energy(work, segment, counts, levels)) is not None],
        "energy_source": energy.SOURCE,
        "left_out": left_out,
    }


def segments(batches: Sequence[int], most_tokens: int | None, left_out: dict[str, str]) -> Iterator[Segment]:
    """The passes to count, a system's together; `left_out` takes the batch sizes that would take too long."""
    sizes = [size for size in batches if most_tokens is None or size <= most_tokens]
    if not sizes:
        left_out["counts"] = f"a simulation of more than {most_tokens} tokens takes too long"
        return
    if omitted := [str(size) for size in batches if size not in sizes]:
        left_out[f"counts at {', '.join(omitted)} tokens"] = f"a simulation of more than {most_tokens} takes too long"
    yield Segment(NOTHING, sizes[0])
    for system in SYSTEMS:
        for tokens in sizes:
            yield from (Segment(system, tokens, "even", state) for state in STATES)
        if system in (SLIDE, PAPER):
            yield from (Segment(system, tokens, "alike") for tokens in sizes)
    for tokens in sizes:
        yield Segment(SLIDE_SKEWED, tokens, "even")
        yield Segment(SLIDE_SKEWED, tokens, "alike")


def _energy(
    work: Sequence[Mapping[str, Any]], segment: Segment, counts: Counts, levels: Caches
) -> dict[str, Any] | None:
    """Picojoules a token of a pass over even tokens; None for what has no arithmetic, or where counts are missing."""
    costs = next((row for row in work if (row["system"], row["tokens"]) == (segment.system, segment.tokens)), None)
    first, second, last = counts.missed
    if costs is None or segment.inputs != "even" or counts.references is None:
        return None
    if first is None or second is None or last is None:
        return None
    sizes = levels[0].size, levels[1].size, levels[2].size
    made = energy.estimate(
        costs["multiply_adds"] * segment.tokens, arithmetic(segment.system), counts.references, (first, second, last),
        sizes, levels[0].line,
    )  # fmt: skip
    each = {name: value / segment.tokens for name, value in (*asdict(made).items(), ("total", made.total))}
    return {"system": segment.system, "tokens": segment.tokens, "state": segment.state, **each}
