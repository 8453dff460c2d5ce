"""Logits of two models: losses, hits, divergence, and where they say the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..data import EvalBatch
from ..data.sequences import IGNORED
from ..streams import answer_stream, real_tokens
from ..tasks import Answer
from .embeddings import run
from .statistics import compare_means

_ROWS = 1 << 22  # numbers of logits turned into probabilities at once
_NOWHERE = -1e4  # a logit that leaves no probability
_UNITS = {
    "causal": "windows", "masked": "passages", "seq2seq": "pairs", "token-classification": "texts",
    "question-answering": "texts", "image-seq2seq": "images",
}  # fmt: skip


@dataclass
class Logits:
    """Losses, hits, divergence and agreement of logits; one cluster an example.

    `kind` is the data's and `answer` the head's; `blank` is what a CTC model says where it says nothing.
    """

    kind: str
    answer: Answer = "classes"
    blank: int | None = None
    dense: list[Tensor] = field(default_factory=list)  # sums over each example [B]
    compressed: list[Tensor] = field(default_factory=list)
    counts: list[Tensor] = field(default_factory=list)  # terms in each sum
    agreed: list[Tensor] = field(default_factory=list)  # positions of each example at which both say the same
    said: list[Tensor] = field(default_factory=list)  # of so many; those where both say nothing do not count
    divergence: float = 0.0
    difference: float = 0.0  # of a single output, which is no distribution
    single: bool = False
    same: int = 0
    positions: int = 0

    def add(self, dense: Any, compressed: Any, batch: EvalBatch) -> None:
        """Take a batch's logits of both models; padding does not count."""
        outputs = [run(model, batch.inputs) for model in (compressed, dense)]
        if self.answer == "span":
            ours, theirs = (self._span(dense, batch, output) for output in outputs)
        else:
            ours, theirs = (output.logits for output in outputs)
        targets = None if batch.targets is None else batch.targets.to(ours.device)
        if self.kind in ("text", "written"):
            assert targets is not None
            keep = targets != IGNORED  # [B, T]
        elif ours.dim() == 3:
            stream = answer_stream(dense)
            real = real_tokens(dense, batch.inputs, stream, ours.shape[1]) if self.answer == "tokens" else None
            keep = torch.ones(ours.shape[:2], dtype=torch.bool) if real is None else real
            keep = keep.to(ours.device)
        else:
            keep = torch.ones(len(ours), dtype=torch.bool, device=ours.device)
        wanted = None if targets is None or self.kind == "written" else targets[keep]
        self._add(theirs, ours, keep, wanted, keep.nonzero()[:, 0], len(keep))

    def _span(self, dense: Any, batch: EvalBatch, output: Any) -> Tensor:
        """Logits of start and end, [B, 2, T], padding ruled out."""
        logits = torch.stack([output.start_logits, output.end_logits], dim=1).float()
        real = real_tokens(dense, batch.inputs, "main", logits.shape[2])
        return logits if real is None else logits.masked_fill(~real[:, None].to(logits.device), _NOWHERE)

    def _add(
        self, theirs: Tensor, ours: Tensor, keep: Tensor, targets: Tensor | None, example: Tensor, examples: int
    ) -> None:
        """Sum up over the positions that `keep` marks; `targets` and `example` are theirs, [N]."""
        index = keep.flatten().nonzero()[:, 0]  # [N]
        flat = [logits.reshape(-1, logits.shape[-1]) for logits in (theirs, ours)]
        sums = torch.zeros(2, examples, dtype=torch.float64, device=ours.device)
        agreed, said = torch.zeros_like(sums)
        chunk = max(1, _ROWS // ours.shape[-1])
        for start in range(0, len(index), chunk):
            part = slice(start, start + chunk)
            rows = (logits[index[part]].float() for logits in flat)  # [n, C]
            wanted, answered = (functional.log_softmax(row, dim=-1) for row in rows)
            self.divergence += float((wanted.exp() * (wanted - answered)).sum(dtype=torch.float64))
            best = torch.stack([wanted.argmax(-1), answered.argmax(-1)])  # [2, n]
            same = best[0] == best[1]
            self.same += int(same.sum())
            speaks = torch.ones_like(same) if self.blank is None else (best != self.blank).any(0)
            agreed.index_add_(0, example[part], (same & speaks).double())
            said.index_add_(0, example[part], speaks.double())
            if targets is not None:
                for total, log_probabilities in zip(sums, (wanted, answered), strict=True):
                    total.index_add_(0, example[part], self._score(log_probabilities, targets[part]))
        self.positions += len(index)
        self.agreed.append(agreed.cpu())
        self.said.append(said.cpu())
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
        """The task's metrics, as `Report.quality` has them."""
        found: dict[str, dict[str, Any]] = {}
        counts = torch.cat(self.counts).numpy() if self.counts else np.zeros(0)
        used = counts > 0  # a short passage may have no masked token
        if used.any():
            dense, compressed = (torch.cat(part).numpy()[used] for part in (self.dense, self.compressed))
            unit, tokens = _UNITS.get(task, "recordings"), {"tokens": int(counts.sum())}
            if self.kind == "labelled":
                found["accuracy"] = compare_means(dense, compressed, counts[used], unit="examples").to_dict()
            elif task == "masked":
                found["masked_loss"] = compare_means(dense, compressed, counts[used], unit=unit).to_dict() | tokens
            else:
                compared = compare_means(dense, compressed, counts[used], unit=unit, transform=np.exp)
                found["perplexity"] = compared.to_dict() | tokens
        if self.answer == "span" or (self.answer == "tokens" and task not in ("causal", "masked")):
            found |= self._agreement(task)
        return found

    def _agreement(self, task: str) -> dict[str, dict[str, Any]]:
        """Share of tokens (or of ends of spans) that are as the dense model's, whose own share is 1."""
        said = torch.cat(self.said).numpy()
        used = said > 0
        if not used.any():
            return {}
        agreed, unit = torch.cat(self.agreed).numpy()[used], _UNITS.get(task, "recordings")
        found = compare_means(said[used], agreed, said[used], unit=unit)
        name = "span_agreement" if self.answer == "span" else "token_agreement"
        return {name: found.to_dict() | {"tokens": int(said.sum())}}

    def agreement(self) -> dict[str, Any]:
        """How far the outputs agree, as `Report.agreement` has it."""
        seen = max(1, self.positions)
        if self.single:
            return {"kl": None, "top1": None, "positions": self.positions, "difference": self.difference / seen}
        return {"kl": max(0.0, self.divergence / seen), "top1": self.same / seen, "positions": self.positions}
