"""Replace every dense FFN of a model by a fresh module, to train from scratch."""

from __future__ import annotations

from typing import Any

from torch import nn

from .errors import CompressError
from .lookup import LookupFFN
from .sites import find_sites, swap

KINDS = {"lookup": LookupFFN}


def replace_ffn(model: nn.Module, kind: str = "lookup", **settings: Any) -> list[str]:
    """Put a freshly initialised module at every site of `model`, in place; returns the sites' names.

    kind: "lookup".  settings: the module's own (tables, bits, projection, ...).  Raises CompressError for an unknown
    kind, SiteError where no site is found.
    """
    if kind not in KINDS:
        raise CompressError(f"unknown kind of FFN {kind!r}", where="kind", remedy=f"choose one of {', '.join(KINDS)}")
    sites = find_sites(model)
    for site in sites:
        module = KINDS[kind](site.d_in, site.d_out, gated=site.gated, activation=site.activation, **settings)
        swap(model, site, module)
    return [site.name for site in sites]
