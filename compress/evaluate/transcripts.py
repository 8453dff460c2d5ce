"""What is said in recordings, as text, and how many of its words are wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..data.inputs import tokenizer_of
from ..distill.writing import greedy
from ..streams import accepted, real_tokens
from .statistics import compare_means

if TYPE_CHECKING:
    from ..models import Pretrained


@torch.no_grad()
def transcribe(pretrained: Pretrained, inputs: dict[str, Tensor], most: int) -> list[str]:
    """Write down a batch of recordings: greedily, `most` tokens each, or the likeliest token of every frame (CTC)."""
    if pretrained.task != "ctc":
        return read_sequences(pretrained, greedy(pretrained, inputs, most))
    model: Any = pretrained.model
    logits = model(**{key: value.to(model.device) for key, value in accepted(model, inputs).items()}).logits
    return read_frames(pretrained, logits, real_tokens(model, inputs, "main", logits.shape[1]))


def read_sequences(pretrained: Pretrained, sequences: Sequence[Sequence[int]]) -> list[str]:
    """Text of a decoder's sequences."""
    tokenizer = tokenizer_of(pretrained)
    return [tokenizer.decode(sequence, skip_special_tokens=True).strip() for sequence in sequences]


def read_frames(pretrained: Pretrained, logits: Tensor, real: Tensor | None) -> list[str]:
    """Text of the likeliest token of every frame, logits [B, T, C]: repeats and blanks fall away."""
    tokenizer, blank = tokenizer_of(pretrained), blank_of(pretrained)
    # A tokenizer made for CTC would join what is repeated once more.
    options = {"group_tokens": False} if hasattr(tokenizer, "word_delimiter_token") else {}
    texts = []
    for row, best in enumerate(logits.argmax(-1)):
        frames = best if real is None else best[real[row].to(best.device)]
        kept = [token for token, _ in groupby(frames.tolist()) if token != blank]
        texts.append(tokenizer.decode(kept, skip_special_tokens=True, **options).strip())
    return texts


def blank_of(pretrained: Pretrained) -> int:
    """Find the token that stands for nothing in a CTC model's answer."""
    blank = getattr(pretrained.model.config, "blank_token_id", None)
    return int(pretrained.model.config.pad_token_id or 0 if blank is None else blank)


@dataclass
class WordErrors:
    """Words wrong, left out and put in, of the dense and of the compressed model; one cluster a recording."""

    dense: list[int] = field(default_factory=list)
    compressed: list[int] = field(default_factory=list)
    words: list[int] = field(default_factory=list)

    def add(self, references: Sequence[str], dense: Sequence[str], compressed: Sequence[str]) -> None:
        """Count a batch's; case, punctuation and accents of symbols do not matter."""
        from transformers.models.whisper.english_normalizer import BasicTextNormalizer

        plain = BasicTextNormalizer()
        for reference, theirs, ours in zip(references, dense, compressed, strict=True):
            wanted = plain(reference).split()
            self.words.append(len(wanted))
            self.dense.append(edits(wanted, plain(theirs).split()))
            self.compressed.append(edits(wanted, plain(ours).split()))

    def quality(self) -> dict[str, dict[str, Any]]:
        """Word error rate, with standard errors and the paired interval over recordings; nothing without words."""
        if not sum(self.words):
            return {}
        found = compare_means(self.dense, self.compressed, self.words, unit="recordings")
        return {"wer": {**found.to_dict(), "words": sum(self.words)}}


def edits(wanted: Sequence[str], given: Sequence[str]) -> int:
    """Fewest substitutions, deletions and insertions that turn one list of words into the other (Levenshtein)."""
    names = {word: index for index, word in enumerate({*wanted, *given})}
    target = np.asarray([names[word] for word in wanted], np.int64)
    steps = np.arange(len(target) + 1)
    row = steps.copy()
    for word in given:
        best = np.minimum(row[1:] + 1, row[:-1] + (target != names[word]))
        row = np.minimum.accumulate(np.concatenate([row[:1] + 1, best]) - steps) + steps
    return int(row[-1])
