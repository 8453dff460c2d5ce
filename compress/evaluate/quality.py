"""Quality of two models on identical inputs: the task's metric for each, and how far their outputs agree."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from ..data import EvalBatch, EvalData
from .pooling import Pooling, pooling_of
from .statistics import Comparison, compare_correlations, compare_means

if TYPE_CHECKING:
    from ..models import Pretrained

Agreement = dict[str, Any]
_LOGITS = 1 << 25  # numbers of one model's logits held at once
_ROWS = 1 << 22  # numbers of logits turned into probabilities at once
_BATCH_TOKENS = 4096


def compare(dense: Pretrained, compressed: Pretrained, data: EvalData) -> tuple[dict[str, dict[str, Any]], Agreement]:
    """Measure a report's `quality` and `agreement`.

    Text: perplexity of causal models, standard error clustered by window; mean loss at masked tokens of masked ones, by
    passage. Labelled inputs: accuracy. Sentence pairs: Spearman correlation of the embeddings' cosines with the scores,
    pooled as the dense model's folder says. Inputs alone have no metric, only agreement.
    """
    measure: _Measure = _Embeddings(pooling_of(dense.folder)) if dense.task == "embedding" else _Logits(data.kind)
    with (
        torch.no_grad(),
        tqdm(total=data.tokens, desc="quality", unit=" tokens", unit_scale=True, disable=None, delay=2) as bar,
    ):
        for batch in data.batches(batch_tokens(dense)):
            measure.add(dense.model, compressed.model, batch)
            bar.update(int(data.examples.lengths[batch.rows].sum()))
    return measure.quality(dense.task), measure.agreement()


def batch_tokens(pretrained: Pretrained) -> int:
    """Tokens of a batch whose logits still fit: a large vocabulary makes them small."""
    if pretrained.task not in ("causal", "masked"):
        return _BATCH_TOKENS
    vocabulary = max(1, int(getattr(pretrained.model.config.get_text_config(), "vocab_size", 1)))
    return max(256, min(_BATCH_TOKENS, _LOGITS // vocabulary))


class _Measure(Protocol):
    """What is summed up over batches."""

    def add(self, dense: Any, compressed: Any, batch: EvalBatch) -> None: ...
    def quality(self, task: str) -> dict[str, dict[str, Any]]: ...
    def agreement(self) -> Agreement: ...


@dataclass
class _Logits:
    """Losses, hits, divergence and agreement of logits; one cluster an example."""

    kind: str
    dense: list[Tensor] = field(default_factory=list)  # sums over each example [B]
    compressed: list[Tensor] = field(default_factory=list)
    counts: list[Tensor] = field(default_factory=list)  # terms in each sum
    divergence: float = 0.0
    difference: float = 0.0  # of a single output, which is no distribution
    single: bool = False
    same: int = 0
    positions: int = 0

    def add(self, dense: Any, compressed: Any, batch: EvalBatch) -> None:
        ours, theirs = (_run(model, batch.inputs).logits for model in (compressed, dense))
        targets = None if batch.targets is None else batch.targets.to(ours.device)
        if self.kind == "text":
            assert targets is not None
            keep = targets != -100  # [B, T]
            example = keep.nonzero()[:, 0]  # [N]: which example a predicted position belongs to
            self._add(theirs, ours, keep, targets[keep], example, len(targets))
        else:
            keep = torch.ones(len(ours), dtype=torch.bool, device=ours.device)
            self._add(theirs, ours, keep, targets, torch.arange(len(ours), device=ours.device), len(ours))

    def _add(
        self, theirs: Tensor, ours: Tensor, keep: Tensor, targets: Tensor | None, example: Tensor, examples: int
    ) -> None:
        """Sum up over the positions that `keep` marks; `targets` and `example` are theirs, [N]."""
        index = keep.flatten().nonzero()[:, 0]  # [N]
        flat = [logits.reshape(-1, logits.shape[-1]) for logits in (theirs, ours)]
        sums = torch.zeros(2, examples, dtype=torch.float64, device=ours.device)
        chunk = max(1, _ROWS // ours.shape[-1])
        for start in range(0, len(index), chunk):
            part = slice(start, start + chunk)
            rows = (logits[index[part]].float() for logits in flat)  # [n, C]
            wanted, answered = (functional.log_softmax(row, dim=-1) for row in rows)
            self.divergence += float((wanted.exp() * (wanted - answered)).sum(dtype=torch.float64))
            self.same += int((wanted.argmax(-1) == answered.argmax(-1)).sum())
            if targets is not None:
                for total, log_probabilities in zip(sums, (wanted, answered), strict=True):
                    total.index_add_(0, example[part], self._score(log_probabilities, targets[part]))
        self.positions += len(index)
        if ours.shape[-1] == 1:
            self.single = True
            self.difference += float((ours - theirs).abs().sum(dtype=torch.float64))
        if targets is not None:
            self.dense.append(sums[0].cpu())
            self.compressed.append(sums[1].cpu())
            self.counts.append(torch.bincount(example, minlength=examples).cpu())

    def _score(self, log_probabilities: Tensor, targets: Tensor) -> Tensor:
        """Loss of a predicted token in nats, or whether the class is right: [n] float64."""
        if self.kind == "text":
            return -log_probabilities.gather(1, targets[:, None])[:, 0].double()
        return (log_probabilities.argmax(-1) == targets).double()

    def quality(self, task: str) -> dict[str, dict[str, Any]]:
        if not self.counts:
            return {}
        counts = torch.cat(self.counts).numpy()
        used = counts > 0  # a short passage may have no masked token
        dense, compressed = (torch.cat(part).numpy()[used] for part in (self.dense, self.compressed))
        if not used.any():
            return {}
        tokens = {"tokens": int(counts.sum())}
        if self.kind == "labelled":
            return {"accuracy": compare_means(dense, compressed, counts[used], unit="examples").to_dict()}
        if task == "causal":
            found = compare_means(dense, compressed, counts[used], unit="windows", transform=np.exp)
            return {"perplexity": {**found.to_dict(), **tokens}}
        return {"masked_loss": {**compare_means(dense, compressed, counts[used], unit="passages").to_dict(), **tokens}}

    def agreement(self) -> Agreement:
        seen = max(1, self.positions)
        if self.single:
            return {"kl": None, "top1": None, "positions": self.positions, "difference": self.difference / seen}
        return {"kl": max(0.0, self.divergence / seen), "top1": self.same / seen, "positions": self.positions}


@dataclass
class _Embeddings:
    """Cosines of sentence pairs, and of each sentence's two embeddings."""

    pooling: Pooling
    scores: list[Tensor] = field(default_factory=list)
    cosines: list[Tensor] = field(default_factory=list)  # [2, B]: dense, compressed
    distances: list[Tensor] = field(default_factory=list)

    def add(self, dense: Any, compressed: Any, batch: EvalBatch) -> None:
        sides = [batch.inputs] if batch.second is None else [batch.inputs, batch.second]
        vectors = [[embed(model, side, self.pooling) for model in (dense, compressed)] for side in sides]
        self.distances += [1 - functional.cosine_similarity(theirs, ours).double().cpu() for theirs, ours in vectors]
        if batch.second is not None and batch.targets is not None:
            first, second = vectors
            both = [functional.cosine_similarity(a, b).double().cpu() for a, b in zip(first, second, strict=True)]
            self.cosines.append(torch.stack(both))
            self.scores.append(batch.targets)

    def quality(self, task: str) -> dict[str, dict[str, Any]]:
        if not self.scores:
            return {}
        dense, compressed = torch.cat(self.cosines, dim=1).numpy()
        found: Comparison = compare_correlations(torch.cat(self.scores).numpy(), dense, compressed, unit="pairs")
        return {"spearman": found.to_dict()}

    def agreement(self) -> Agreement:
        distances = torch.cat(self.distances)
        return {"kl": None, "top1": None, "positions": len(distances), "cosine_distance": float(distances.mean())}


def embed(model: Any, inputs: dict[str, Tensor], pooling: Pooling) -> Tensor:
    """Embeddings of a batch, not normalised: [B, d] float32; images, which have no mask, count every position."""
    hidden = _run(model, inputs).last_hidden_state.float()  # [B, T, d]
    mask = inputs.get("attention_mask")
    if mask is None:
        mask = torch.ones(hidden.shape[:2], dtype=torch.long)
    return pooling(hidden, mask.to(hidden.device))


def _run(model: Any, inputs: dict[str, Tensor]) -> Any:
    device = next(model.parameters()).device
    return model(**{key: value.to(device) for key, value in inputs.items()}, return_dict=True)
