"""Passages -> their sentences: embedders meet both, and what is fitted to long texts alone does short ones worse."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from .text import Piece, Source

_OPENING, _CLOSING = "\"'(\\[\u00ab\u2018\u201c", "\"')\\]\u00bb\u2019\u201d"  # brackets and quotation marks
# Behind a mark that ends a sentence, and what closes around it: blanks, and then no lower-case letter. Chinese and
# Japanese leave no blanks.
_END = re.compile(
    rf"[.!?\u2026][{_CLOSING}]*(\s+)(?=[{_OPENING}]*[^\W_a-z\u00df-\u00f6\u00f8-\u00ff])|[\u3002\uff01\uff1f](?=.)",
    re.DOTALL,
)
_WORDS = 3  # a piece with fewer is an abbreviation or an exclamation, and goes with the next


def with_sentences(source: Source, share: float, key: tuple[int, ...]) -> Source:
    """Take a share of a source's passages apart into sentences, drawn by `key`; the others stay whole."""

    def pieces() -> Iterator[Piece]:
        generator = np.random.default_rng(key)
        for text, closes in source.pieces():
            if generator.random() < share:
                yield from ((sentence, closes) for sentence in sentences(text))
            else:
                yield text, closes

    return Source(source.weight, pieces)


def sentences(text: str) -> list[str]:
    """Divide a text where sentences seem to end; without a sign of that it stays whole."""
    found, start = [], 0
    for end in _END.finditer(text):
        sentence = text[start : end.start(1) if end[1] else end.end()]
        if end[1] and len(sentence.split()) < _WORDS:
            continue
        found.append(sentence)
        start = end.end()
    return [*found, text[start:]]
