"""Error per site: what is left of each FFN behind residual and norm, on the inputs its student really gets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..distill.activations import Activations, Tap, observe
from ..distill.objectives import BehindNorm
from ..padding import RealRows
from ..sites import Site
from ..streams import accepted, stream_of

_TOKENS = 8192
_BYTES = 1 << 29  # recorded tensors held at once; wide or deep models get fewer tokens


@torch.no_grad()
def site_errors(
    dense: nn.Module, compressed: nn.Module, sites: Sequence[Site], norms: Mapping[str, str | None],
    converted: Iterable[str], batches: Iterable[Mapping[str, Tensor]],
) -> list[dict[str, Any]]:  # fmt: skip
    """Share unexplained at each converted site, in the order of `sites`; None for a site that stayed dense.

    0 is the dense model's residual plus FFN output, 1 the error of the mean answer. The student sees what the
    compressed model before it gives, so errors of earlier sites count too. `norms` as `find_norms` gives them.
    """
    names = set(converted)
    taps = [Tap(site, norms[site.name], stream_of(dense, site.output)) for site in sites if site.name in names]
    found = _errors(dense, compressed, taps, batches) if taps else {}
    return [{"name": site.name, "error": found.get(site.name)} for site in sites]


def _errors(
    dense: nn.Module, compressed: nn.Module, taps: Sequence[Tap], batches: Iterable[Mapping[str, Tensor]]
) -> dict[str, float]:
    answers = [
        replace(tap, site=replace(tap.site, output=tap.site.entry)) for tap in taps
    ]  # students answer themselves
    per_token = 4 * sum(3 * tap.site.d_out for tap in taps)  # bytes
    limit = max(1, min(_TOKENS, _BYTES // per_token))
    seen = {tap.stream: 0 for tap in taps}
    recorded: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {tap.site.name: [] for tap in taps}
    for batch in tqdm(batches, desc="errors per site", unit=" batches", disable=None, delay=2):
        if all(count >= limit for count in seen.values()):
            break
        real, inputs = RealRows(dense, batch), accepted(dense, batch)
        with observe(dense, taps, stop=True) as wanted:
            dense(**inputs)
        with observe(compressed, answers, stop=True) as answered:
            compressed(**inputs)
        new = dict.fromkeys(seen, 0)
        for tap in taps:
            if seen[tap.stream] >= limit:
                continue
            goal = wanted[tap.site.name].rows_behind(real, tap.stream)  # [N, d_out]
            _, y, behind = answered[tap.site.name].rows(real, tap.stream)
            residual = behind - y if tap.norm is not None else torch.zeros_like(y)
            recorded[tap.site.name].append((y, residual, goal))
            new[tap.stream] = y.shape[0]
        seen = {stream: count + new[stream] for stream, count in seen.items()}
    errors = {}
    for tap in taps:
        y, residual, goal = (torch.cat(part)[:limit] for part in zip(*recorded.pop(tap.site.name), strict=True))
        data = Activations(y, residual, goal)  # the input is not needed
        objective = BehindNorm(None if tap.norm is None else dense.get_submodule(tap.norm))
        objective.calibrate(data)
        errors[tap.site.name] = float(objective(y, data))
    return errors
