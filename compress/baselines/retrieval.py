"""What hash tables of neurons retrieve, how evenly they are filled, and what keeping them costs: measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from .slide import SlideFFN


@dataclass(frozen=True)
class Retrieval:
    """Measured of one FFN with hash tables; what needs inputs is None without them."""

    neurons: int
    training_steps: int
    rebuilds: int  # in training
    rebuild_multiply_adds: float  # in training, all of them together: hashing all neurons, and finding out when
    learning_multiply_adds: float  # in training, on learning the hash
    outdated: float  # share of the neurons' codes, over all tables, that a rebuild would change now
    largest_over_mean: float  # size of the largest bucket of any table over the mean size
    buckets_used: float  # share of the buckets that hold a neuron
    computed_in_training: float | None  # neurons per token
    computed: float | None  # neurons per token, in evaluation since the last training step
    retrieved_per_token: float | None = None  # neurons
    retrieved_per_chunk: float | None = None  # neurons
    recall: float | None = None  # of each token's largest neurons, by the token's own buckets
    recall_of_chunk: float | None = None  # the same, by its chunk's
    busiest_over_mean: float | None = None  # tokens that fall into the most frequent bucket of a table, over the mean


@torch.no_grad()
def measure(ffn: SlideFFN, x: Tensor | None, top: float) -> Retrieval:
    """Measure an FFN as it is, and on inputs [..., d_in]; nothing about it changes."""
    buckets, sizes = ffn.buckets, ffn.buckets.sizes
    counts = [neurons / tokens if tokens else None for neurons, tokens in ffn.computed.tolist()]
    found = {}
    if x is not None and x.numel():
        x = x.reshape(-1, x.shape[-1]).to(ffn.down.dtype)
        codes = ffn.query(x)
        alone, together = buckets.retrieve(codes), buckets.retrieve(codes, ffn.chunk)
        largest = functional.linear(x, ffn.gate.weight, ffn.gate.bias)
        largest = largest.topk(max(1, round(top * ffn.d_hidden))).indices
        shared = together.repeat_interleave(ffn.chunk, 0)[: x.shape[0]]
        visits = torch.zeros_like(sizes).scatter_add_(1, codes.t(), torch.ones_like(codes).t())
        found = {
            "retrieved_per_token": alone.sum(1).double().mean().item(),
            "retrieved_per_chunk": together.sum(1).double().mean().item(),
            "recall": alone.gather(1, largest).double().mean().item(),
            "recall_of_chunk": shared.gather(1, largest).double().mean().item(),
            "busiest_over_mean": (visits.max() / visits.double().mean()).item(),
        }
    return Retrieval(
        neurons=ffn.d_hidden,
        training_steps=ffn.schedule.steps,
        rebuilds=ffn.schedule.rebuilds,
        rebuild_multiply_adds=ffn.rebuild_cost(),
        learning_multiply_adds=ffn.learning_cost(),
        outdated=ffn.outdated(),
        largest_over_mean=(sizes.max() / sizes.double().mean()).item(),
        buckets_used=(sizes > 0).double().mean().item(),
        computed_in_training=counts[0],
        computed=counts[1],
        **found,
    )
