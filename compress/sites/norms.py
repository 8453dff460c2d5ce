"""The normalisation behind each FFN: where the rest of the network first reads residual plus FFN output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from .discovery import trace_base
from .site import Site


def find_norms(
    model: nn.Module, sites: Sequence[Site], example: Mapping[str, Any] | None = None
) -> dict[str, str | None]:
    """Path (relative to `model`) of the first norm that each site's output goes into, by the site's name.

    Post-norm models have it in the same layer, pre-norm models in the next layer or behind the last one, and where the
    FFN's output is normalised before the residual it is that norm. None where there is none, or where it sees only
    some of the tokens. `model` must be dense.
    """
    seen = trace_base(model, example)
    norms: dict[str, str | None] = {}
    for linear, norm in seen.norms.items():
        norms.setdefault(linear.path, norm.path)
    return {site.name: norms.get(site.output) for site in sites}
