"""MONGOOSE: SLIDE with a hash that is learned, and tables that are built again only when codes have drifted."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CompressError
from .schedule import DriftSchedule
from .slide import SlideFFN
from .triplet import attach, triplet_loss

PAIRS = 16  # positives, and negatives, that a token brings to the loss at most


class MongooseFFN(SlideFFN):
    """SLIDE with a learned hash (MONGOOSE, ICLR 2021), [..., d_in] -> [..., d_out].

    `projection` [L K, width] starts as SLIDE's and learns, by a triplet loss on `samples` tokens of each training step
    that is attached to the output (any training loop trains it), to find a token's `top` share of neurons by inner
    product. Every `check_every` training steps the share of codes that the neurons' movement has changed is estimated;
    above `threshold` the tables are built again, and the projection as it then is hashes neurons and tokens until the
    next time. Other settings are SLIDE's. Raises CompressError for one out of range.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int | None = None,
        *,
        top: float = 0.02,
        samples: int = 64,
        margin: float = 1.0,
        check_every: int = 50,
        threshold: float = 0.3,
        **settings: Any,
    ) -> None:
        for key, value, most in (("top", top, 1.0), ("margin", margin, 2.0), ("threshold", threshold, 1.0)):
            if not 0 < value <= most:
                raise CompressError(
                    f"{key} = {value!r} is out of range", where=key, remedy=f"choose more than 0, at most {most}"
                )
        super().__init__(d_in, d_out, **settings)
        self.top, self.samples, self.margin = top, samples, margin
        self.schedule = DriftSchedule(check_every, threshold)
        self.projection = nn.Parameter(self.buckets.projection / math.sqrt(self.buckets.projection.shape[1]))

    def rebuild(self) -> None:
        """Put the neurons, as they are now, into their buckets, by the projection as it is now."""
        self.buckets.build(self.keys(), getattr(self, "projection", None))

    def output(self, x: Tensor) -> Tensor:
        """[N, d_in] -> [N, d_out]."""
        y = super().output(x)
        if self.training and torch.is_grad_enabled() and x.shape[0] and self.buckets.bits:
            y = attach(y, self.hash_loss(x))
        return y

    def hash_loss(self, x: Tensor) -> Tensor:
        """The triplet loss on `samples` of the tokens [N, d_in], evenly spaced: a scalar, for the projection alone."""
        x = x.detach()[:: max(1, x.shape[0] // self.samples)][: self.samples]
        keys = self.keys()
        query = x if self.gate.bias is None else torch.cat((x, torch.ones_like(x[:, :1])), 1)
        projected, key = ((v @ self.projection.t()).unflatten(1, (self.buckets.tables, -1)) for v in (query, keys))
        return triplet_loss(
            projected, key, query @ keys.t(), self.buckets.retrieve(self.query(x)),
            top=self.top, pairs=PAIRS, margin=self.margin,
        )  # fmt: skip

    @property
    def hash_cost(self) -> float:
        """Multiply-adds of hashing one vector."""
        return float(self.projection.numel())

    def rebuild_cost(self) -> float:
        """Multiply-adds of all rebuilds and all looks at drift in training so far."""
        share = 1 / max(1, self.buckets.bits)
        return (self.schedule.rebuilds + self.schedule.checks * share) * self.d_hidden * self.hash_cost
