"""Replace every dense FFN of a model by another kind, to train from scratch or to go on from its weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from .baselines.mongoose import MongooseFFN
from .baselines.slide import SlideFFN
from .baselines.vanilla import VanillaFFN
from .dense import DenseWeights
from .errors import CompressError
from .lookup import LookupFFN
from .sites import Site, check_replaceable, find_sites, site_weights, swap

DENSE = {"vanilla": VanillaFFN, "slide": SlideFFN, "mongoose": MongooseFFN}
KINDS = ("lookup", *DENSE)


def replace_ffn(model: nn.Module, kind: str = "lookup", *, keep_weights: bool = False, **settings: Any) -> list[str]:
    """Put a module of another kind at every site of `model`, in place; returns the sites' names.

    kind: "lookup", "vanilla", "slide" or "mongoose"; settings: the module's own (LookupFFN, baselines.VanillaFFN, ...).
    The last three have as many neurons as the site unless `d_hidden` is given, and a bias where the site has one.
    keep_weights: whether they start from the dense weights; otherwise everything is fresh.
    A transformers model with LookupFFNs is from then on what `compress.load(..., trainable=True)` gives: what its
    `save_pretrained`, or a Trainer, writes loads like any other checkpoint, with students stored in float32.
    Raises CompressError for an unknown kind or setting, and for a LookupFFN that should keep weights; SiteError where
    no site is found or one cannot be replaced. The model is then as it was.
    """
    if kind not in KINDS:
        raise CompressError(f"unknown kind of FFN {kind!r}", where="kind", remedy=f"choose one of {', '.join(KINDS)}")
    if keep_weights and kind == "lookup":
        raise CompressError(
            "a LookupFFN cannot start from dense weights as they are", where="keep_weights",
            remedy="distil one from the pretrained model: compress convert MODEL RECIPE",
        )  # fmt: skip
    sites = find_sites(model)
    for site in sites:
        check_replaceable(site)
    modules = [_module(kind, site, site_weights(model, site, copy=False), keep_weights, settings) for site in sites]
    for site, module in zip(sites, modules, strict=True):
        swap(model, site, module.train(model.training))
    if kind == "lookup":
        _make_loadable(model, sites)
    return [site.name for site in sites]


def _make_loadable(model: nn.Module, sites: Sequence[Site]) -> None:
    from transformers import PreTrainedModel

    from .checkpoint.quantizer import attach_students

    if isinstance(model, PreTrainedModel):
        attach_students(model, sites)


def _module(kind: str, site: Site, dense: DenseWeights, keep_weights: bool, settings: dict[str, Any]) -> nn.Module:
    module: nn.Module
    try:
        if kind == "lookup":
            module = LookupFFN(site.d_in, site.d_out, gated=site.gated, activation=site.activation, **settings)
        elif keep_weights:
            module = DENSE[kind].from_dense(dense, site.activation, **settings)
        else:
            settings = {"d_hidden": site.d_hidden, "bias": dense.biased, **settings}
            module = DENSE[kind](site.d_in, site.d_out, gated=site.gated, activation=site.activation, **settings)
    except TypeError as error:
        raise CompressError(
            f"{kind} does not take these settings: {error}", where="settings", remedy="give the module's own settings"
        ) from None
    return module.to(dense.down.device)
