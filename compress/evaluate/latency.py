"""Latency of the FFNs alone and of the whole model, dense in three widths and compressed, on fresh real inputs."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..dense import ACTIVATIONS
from ..distill.activations import Tap, observe
from ..padding import RealRows
from ..sites import Site, site_weights
from ..streams import answer_stream, stream_of
from . import variants
from .contestants import Contestant, DecodeStep, FFNs, WholeModel
from .inputs import Pool
from .students import students

if TYPE_CHECKING:
    from ..tasks import Task

BATCHES = (1, 16)
SECONDS = 6.0  # of measuring a row, where the least rounds do not take longer
MIN_ROUNDS, MAX_ROUNDS = 3, 50
_WARM_UP = 2  # rounds that are not counted, where they are short: prepared weights, oneDNN's primitives, caches
_RECORDED_TOKENS, _RECORDED_BYTES = 4096, 1 << 29  # of sites' inputs, at most
_RECORDED_AT_ONCE = 4  # sequences


@contextmanager
def threads_set(count: int | None) -> Iterator[int]:
    """Run the block with so many threads (None: as it is) and restore the number; gives the count in use."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def interleave(contestants: Mapping[str, Contestant], seconds: float = SECONDS) -> tuple[dict[str, float], int]:
    """Time all contestants in turn, each on the same fresh inputs a round; median seconds of each, and the rounds.

    The order rotates from round to round, so that neither drift nor what the last one left in the cache favours any.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    warm, rounds = 0, 0
    begin = time.perf_counter()
    with torch.no_grad():
        while warm == 0 or (warm < _WARM_UP and time.perf_counter() - begin < seconds):
            _round(contestants, warm)
            warm += 1
        begin = time.perf_counter()
        while rounds < MIN_ROUNDS or (rounds < MAX_ROUNDS and time.perf_counter() - begin < seconds):
            for name, taken in _round(contestants, warm + rounds).items():
                times[name].append(taken)
            rounds += 1
    return {name: statistics.median(taken) for name, taken in times.items()}, rounds


def _round(contestants: Mapping[str, Contestant], number: int) -> dict[str, float]:
    """Seconds of one pass of each."""
    order = list(contestants)
    shift = number % len(order)
    seconds = {}
    for name in order[shift:] + order[:shift]:
        contestants[name].prepare(number)
        start = time.perf_counter()
        contestants[name].run()
        seconds[name] = time.perf_counter() - start
    return seconds


def measure_latency(
    task: Task, dense: nn.Module, compressed: nn.Module, sites: Sequence[Site], pool: Pool, *,
    batches: Sequence[int] = BATCHES, threads: int | None = None, seconds: float = SECONDS,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of a report's `latency`: scopes "ffn" and "model" at each batch size, and a decoding step of generation.

    `sites` are those of `dense`. `batch` counts sequences, `tokens` the positions of one pass that reach sites, of
    encoder and decoder together; a decoding step is batch 1 with one token and cached keys and values. All contestants
    of a row have the same inputs and threads. The whole compressed model runs as it is loaded, all but its students in
    float32; the dense int8 model has every linear layer in int8. Weights are as warm as the passes before leave them:
    what fits the last-level cache beside the other contestants is read from there, and only larger models come from
    memory.
    Raises SiteError where the int8 model would not be one.
    """
    dense, compressed = (_on_cpu(model) for model in (dense, compressed))
    sites = [site for site in sites if site.activation in ACTIVATIONS]  # others cannot be computed alone
    with threads_set(threads) as count:
        models = {
            "dense_float32": dense,
            "dense_bfloat16": variants.bfloat16(dense),
            "dense_int8": variants.int8_model(dense, sites),
            "compressed": compressed,
        }
        stacks = _ffns(dense, compressed, sites)
        streams = [stream_of(dense, site.output) for site in sites]
        recorded, positions = _record(dense, sites, pool)
        settings = [(batch, [batch * count for count in positions], False) for batch in batches]
        decodes = answer_stream(dense)
        if task == "causal" or (decodes == "decoder" and "decoder_input_ids" in pool.batch(1, 0)):
            settings.insert(0, (1, [int(stream == decodes) for stream in streams], True))
        rows: list[dict[str, Any]] = []
        with tqdm(total=2 * len(settings), desc="latency", unit=" rows", disable=None, delay=2) as bar:
            for batch, counts, decoding in settings:
                tokens = sum(dict(zip(streams, counts, strict=True)).values())
                ffns = {name: FFNs(stack, recorded, counts, _dtype(name)) for name, stack in stacks.items()}
                whole = {
                    name: DecodeStep(model, pool, _dtype(name))
                    if decoding
                    else WholeModel(model, pool, batch, _dtype(name))
                    for name, model in models.items()
                }
                entrants: list[tuple[str, Mapping[str, Contestant]]] = [("ffn", ffns), ("model", whole)]
                for scope, contestants in entrants:
                    taken, rounds = interleave(contestants, seconds)
                    row = {"scope": scope, "batch": batch, "tokens": tokens, "threads": count}
                    rows.append({**row, "seconds": taken, "rounds": rounds})
                    bar.update()
    return rows


def _ffns(dense: nn.Module, compressed: nn.Module, sites: Sequence[Site]) -> dict[str, Sequence[nn.Module]]:
    """Every contestant's FFNs alone, one a site; where the compressed model stayed dense it has the float32 one."""
    plain = nn.ModuleList(variants.DenseFFN(site_weights(dense, site), site.activation) for site in sites)
    found = students(compressed, sites)
    return {
        "dense_float32": list(plain),
        "dense_bfloat16": list(variants.bfloat16(plain).children()),
        "dense_int8": list(variants.int8(plain).children()),
        "compressed": [found.get(site.name, ffn) for site, ffn in zip(sites, plain, strict=True)],
    }


@torch.no_grad()
def _record(dense: nn.Module, sites: Sequence[Site], pool: Pool) -> tuple[list[Tensor], list[int]]:
    """Record each site's inputs [N, d_in] in the dense model, and count the positions a sequence has there."""
    taps = [Tap(site, None) for site in sites]
    parts: list[list[Tensor]] = [[] for _ in sites]
    most = min(_RECORDED_TOKENS, _RECORDED_BYTES // (4 * sum(site.d_in for site in sites)))
    count, step, positions = 0, 0, [0] * len(sites)
    while count < most:
        inputs = pool.batch(_RECORDED_AT_ONCE, step)
        with observe(dense, taps) as traces:
            dense(**inputs)
        for tap, part in zip(taps, parts, strict=True):
            part.append(traces[tap.site.name].rows(RealRows(dense, inputs), tap.stream)[0])
        positions = [part[0].shape[0] // _RECORDED_AT_ONCE for part in parts]
        count, step = count + max(part[-1].shape[0] for part in parts), step + 1
    return [torch.cat(part) for part in parts], positions


def _dtype(name: str) -> torch.dtype:
    return torch.bfloat16 if name == "dense_bfloat16" else torch.float32


def _on_cpu(model: nn.Module) -> nn.Module:
    """Give the model itself where it is on the CPU, else a copy."""
    if all(parameter.device.type == "cpu" for parameter in model.parameters()):
        return model
    return copy.deepcopy(model).to("cpu")
