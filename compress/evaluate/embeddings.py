"""Embeddings of two models: their agreement, and how well their cosines follow the scores of sentence pairs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..data import EvalBatch
from ..streams import accepted, real_tokens
from .pooling import Pooling
from .statistics import Comparison, compare_correlations


@dataclass
class Embeddings:
    """Cosines of sentence pairs, and of each sentence's two embeddings."""

    pooling: Pooling
    scores: list[Tensor] = field(default_factory=list)
    cosines: list[Tensor] = field(default_factory=list)  # [2, B]: dense, compressed
    distances: list[Tensor] = field(default_factory=list)

    def add(self, dense: Any, compressed: Any, batch: EvalBatch) -> None:
        """Take a batch's embeddings by both models."""
        sides = [batch.inputs] if batch.second is None else [batch.inputs, batch.second]
        vectors = [[embed(model, side, self.pooling) for model in (dense, compressed)] for side in sides]
        self.distances += [1 - functional.cosine_similarity(theirs, ours).double().cpu() for theirs, ours in vectors]
        if batch.second is not None and batch.targets is not None:
            first, second = vectors
            both = [functional.cosine_similarity(a, b).double().cpu() for a, b in zip(first, second, strict=True)]
            self.cosines.append(torch.stack(both))
            self.scores.append(batch.targets)

    def quality(self, task: str) -> dict[str, dict[str, Any]]:
        """Spearman correlation with the scores, where the data has any."""
        if not self.scores:
            return {}
        dense, compressed = torch.cat(self.cosines, dim=1).numpy()
        found: Comparison = compare_correlations(torch.cat(self.scores).numpy(), dense, compressed, unit="pairs")
        return {"spearman": found.to_dict()}

    def agreement(self) -> dict[str, Any]:
        """How far the embeddings are from the dense model's."""
        distances = torch.cat(self.distances)
        return {"kl": None, "top1": None, "positions": len(distances), "cosine_distance": float(distances.mean())}


def embed(model: Any, inputs: dict[str, Tensor], pooling: Pooling) -> Tensor:
    """Embeddings of a batch, not normalised: [B, d] float32; images, which have no mask, count every position."""
    hidden = run(model, inputs).last_hidden_state.float()  # [B, T, d]
    mask = real_tokens(model, inputs, "main", hidden.shape[1])
    if mask is None:
        mask = torch.ones(hidden.shape[:2], dtype=torch.bool)
    return pooling(hidden, mask.long().to(hidden.device))


def run(model: Any, inputs: dict[str, Tensor]) -> Any:
    """The model's outputs for a batch, on whatever device it is."""
    device = next(model.parameters()).device
    return model(**{key: value.to(device) for key, value in accepted(model, inputs).items()}, return_dict=True)
