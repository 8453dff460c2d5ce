"""Pico models converted by hand: students that keep every neuron, exact or disturbed, in memory and on disk."""

from __future__ import annotations

from pathlib import Path

import families
import pico
import pico_tokenizer
import torch
from torch import nn

from compress.checkpoint import Int8Rest, Placement, quantise_rest, save_checkpoint
from compress.lookup import LookupFFN, pack
from compress.models import Pretrained, load_pretrained
from compress.sites import Site, example_inputs, find_sites, site_weights, swap

TEXT = "the cat sat on the mat, and the dog ran to the hill.\nwho is there? a man with a hat.\n"


def dense_folder(folder: Path, family: str) -> Path:
    """Save a pico model with its tokenizer or image processor, its weights large enough that every FFN matters."""
    families.louder(pico.FAMILIES[family]()).save_pretrained(folder)
    pico_tokenizer.PROCESSORS[family]().save_pretrained(folder)
    return folder


@torch.no_grad()
def student(model: nn.Module, site: Site, noise: float = 0.0) -> LookupFFN:
    """All neurons of the dense FFN, tables that add nothing; `noise` disturbs W2, relative to its weights."""
    weights = site_weights(model, site)
    made = LookupFFN(
        site.d_in, site.d_out, tables=3, bits=3, projection="lowrank", rank=4, neurons=site.d_hidden, gated=site.gated,
        activation=site.activation,
    ).eval()  # fmt: skip
    made.tables.zero_()
    made.linear.weight.zero_()
    for linear, weight, bias in (
        (made.neurons.gate, weights.gate, weights.gate_bias), (made.neurons.up, weights.up, weights.up_bias),
    ):  # fmt: skip
        if weight is not None:
            linear.weight.copy_(weight)
            linear.bias.zero_() if bias is None else linear.bias.copy_(bias)
    generator = torch.Generator().manual_seed(3)
    disturbance = torch.randn(weights.down.shape, generator=generator) * weights.down.std()
    made.neurons.down.weight.copy_(weights.down + noise * disturbance)
    made.bias.zero_() if weights.down_bias is None else made.bias.copy_(weights.down_bias)
    return made.requires_grad_(False)


def pair(
    folder: Path, noise: float = 0.0, *, packed: bool = False, keep: tuple[int, ...] = ()
) -> tuple[Pretrained, Pretrained]:
    """The dense model of a folder and the same with students; sites at the positions `keep` stay dense."""
    dense, converted = (load_pretrained(str(folder)) for _ in range(2))
    for position, site in enumerate(find_sites(converted.model)):
        if position not in keep:
            made = student(converted.model, site, noise)
            swap(converted.model, site, pack(made, hash_dtype="float32").eval() if packed else made)
    return dense, converted


def save(source: Path, out: Path, noise: float = 0.0, recipe: str = "version: 1\n", *, int8_rest: bool = False) -> Path:
    """Write a checkpoint made from a folder."""
    converted = load_pretrained(str(source))
    batch = example_inputs(converted.model)
    placements = []
    for site in find_sites(converted.model):
        packed = pack(student(converted.model, site, noise), hash_dtype="float32").eval()
        swap(converted.model, site, packed)
        placements.append(Placement.of(converted.model, site, packed))
    int8 = quantise_rest(converted.model) if int8_rest else Int8Rest()
    out.mkdir()
    save_checkpoint(
        out, model=converted.model, source=converted, placements=placements, recipe_text=recipe,
        resolved_recipe=recipe, report=None, probe_batch=batch, int8=int8,
    )  # fmt: skip
    return out
