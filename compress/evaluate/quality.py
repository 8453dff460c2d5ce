"""Quality of two models on identical inputs: the task's metric for each, and how far their outputs agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from tqdm import tqdm

from ..data import EvalBatch, EvalData
from ..data.paired import Paired
from ..tasks import HEADS
from .embeddings import Embeddings
from .logits import Logits
from .outputs import Outputs
from .pooling import pooling_of
from .transcripts import WordErrors, blank_of, read_sequences, transcribe

if TYPE_CHECKING:
    from ..models import Pretrained

Agreement = dict[str, Any]
_LOGITS = 1 << 25  # numbers of one model's logits held at once
_BATCH_TOKENS = 4096


def compare(dense: Pretrained, compressed: Pretrained, data: EvalData) -> tuple[dict[str, dict[str, Any]], Agreement]:
    """Measure a report's `quality` and `agreement`.

    Text: perplexity of causal models and of given targets, standard error clustered by window or pair; mean loss at
    masked tokens of masked ones, by passage. Labelled inputs: accuracy. Sentence pairs: Spearman correlation of the
    embeddings' cosines with the scores, pooled as the dense model's folder says. What a decoder, CTC or a label for
    each token says: token agreement. Recordings with transcripts: word error rate. Others have agreement alone.
    """
    measure, words = _measure(dense, data), WordErrors()
    with (
        torch.no_grad(),
        tqdm(total=data.tokens, desc="quality", unit=" tokens", unit_scale=True, disable=None, delay=2) as bar,
    ):
        for batch in data.batches(batch_tokens(dense)):
            measure.add(dense.model, compressed.model, batch)
            if batch.references is not None:
                words.add(batch.references, *_transcripts(dense, compressed, data, batch))
            bar.update(int(data.lengths_of(batch.rows).sum()))
    return words.quality() | measure.quality(dense.task), measure.agreement()


def _measure(dense: Pretrained, data: EvalData) -> _Measure:
    answer = HEADS[dense.task].answer
    if answer == "embedding":
        return Embeddings(pooling_of(dense.folder))
    if answer == "any":
        return Outputs()
    blank = blank_of(dense) if dense.task == "ctc" else None
    return Logits(data.kind, answer, blank)


def _transcripts(
    dense: Pretrained, compressed: Pretrained, data: EvalData, batch: EvalBatch
) -> tuple[list[str], list[str]]:
    """What each of the two models hears; what the dense one wrote for the decoder is not written again."""
    if isinstance(data.examples, Paired):
        theirs = read_sequences(dense, [data.examples.sequence(int(row)).tolist() for row in batch.rows])
        return theirs, transcribe(compressed, batch.inputs, data.examples.written)
    first, second = (transcribe(model, batch.inputs, 0) for model in (dense, compressed))
    return first, second


def batch_tokens(pretrained: Pretrained) -> int:
    """Tokens of a batch whose logits still fit: a large vocabulary makes them small."""
    if HEADS[pretrained.task].answer != "tokens":
        return _BATCH_TOKENS
    vocabulary = max(1, int(getattr(pretrained.model.config.get_text_config(), "vocab_size", 1)))
    return max(256, min(_BATCH_TOKENS, _LOGITS // vocabulary))


class _Measure(Protocol):
    """What is summed up over batches."""

    def add(self, dense: Any, compressed: Any, batch: EvalBatch) -> None: ...
    def quality(self, task: str) -> dict[str, dict[str, Any]]: ...
    def agreement(self) -> Agreement: ...
