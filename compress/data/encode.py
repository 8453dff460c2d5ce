"""Texts -> examples in the form that the model's task wants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from ..errors import DataError
from .inputs import SpecialTokens, longest_target, special_tokens
from .paired import Paired, decoder_start, paired
from .sequences import BlankWindows, Masking, Passages, Windows
from .text import Source
from .tokens import Tokens, tokenize

if TYPE_CHECKING:
    from ..models import Pretrained


def windows(sources: Sequence[Source], pretrained: Pretrained, length: int, *, wanted: int | None = None,
            evaluation: bool = False) -> tuple[Windows, bool]:  # fmt: skip
    """Cut documents, joined by the tokenizer's end-of-text token, into windows of `length` tokens; the rest is left.

    Where the tokenizer begins a text with special tokens (Llama's BOS), so does every window. Gives the windows and
    whether all was read. Raises DataError where there is not one window.

    For `evaluation` windows overlap by half: a token is predicted once, from half a window or more, as a model in use
    would; and a text shorter than a window makes a short one.
    """
    tokenizer = pretrained.processor
    prefix = special_tokens(tokenizer).prefix
    ids, _, exhausted = tokenize(sources, tokenizer, wanted, end=tokenizer.eos_token_id, whole=False)
    body = length - len(prefix)
    if evaluation and 2 <= len(ids) < body:
        body = len(ids)
    if len(ids) < body:
        raise DataError(
            f"the text is shorter than one sequence: {len(ids)} tokens of {body}",
            remedy="give more text, or lower data.sequence_length",
        )
    step = -(-body // 2) if evaluation else body
    return Windows(sliding_window_view(ids, body)[::step], prefix, step if evaluation else None), exhausted


def blank_windows(pretrained: Pretrained, length: int, written: int, wanted: int, seed: int) -> BlankWindows:
    """Leave about `wanted` tokens to a causal model, in windows of `length` that begin as `windows` do.

    It writes texts of `written` tokens, or as many as whole windows take of them.
    Raises DataError for other models, and where nothing is known to begin a text with.
    """
    tokenizer = pretrained.processor
    if pretrained.task != "causal":
        raise DataError(
            f"the dense model is to write the text, and it is no causal model but of the kind {pretrained.task}",
            where="data.source",
            remedy="give text: a file, a folder or a data set of the hub",
        )
    starts = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    start = next((token for token in starts if token is not None), None)
    prefix = special_tokens(tokenizer).prefix
    if start is None:
        raise DataError(
            "the tokenizer has no token that a text begins with",
            where=pretrained.source,
            remedy="set bos_token or eos_token in tokenizer_config.json, or give text",
        )
    body = length - len(prefix)
    together = max(1, (written - len(prefix)) // body)
    texts = max(2, -(-wanted // (together * length)))
    return BlankWindows(texts * together, length, together, prefix, start, seed)


def passages(sources: Sequence[Source], pretrained: Pretrained, length: int, *, wanted: int | None = None,
             seed: int = 0) -> tuple[Passages, bool]:  # fmt: skip
    """Make every text an example with special tokens; longer ones become several, of near-equal length.

    For masked language models tokens are masked, keyed by `seed`. Gives the passages and whether all was read. Raises
    DataError where there is no text.
    """
    special = special_tokens(pretrained.processor)
    tokens = tokenize(sources, pretrained.processor, wanted, overhead=special.count)
    if not len(tokens.lengths):
        raise DataError("there is no text in the data", remedy="give files with text in them")
    sizes = _pieces(tokens.lengths, length - special.count)
    return Passages(tokens.ids, _offsets(sizes), special, _masking(pretrained, seed)), tokens.exhausted


def whole_texts(texts: Sequence[str], pretrained: Pretrained, length: int, notes: list[str]) -> Passages:
    """Make every text exactly one example, cut off at `length` tokens; how many were is said in `notes`."""
    special = special_tokens(pretrained.processor)
    source = Source(1, lambda: ((text, True) for text in texts))
    tokens = tokenize([source], pretrained.processor, keep_empty=True)
    body = length - special.count
    cut = int((tokens.lengths > body).sum())
    if cut:
        notes.append(f"{cut} of {len(texts)} texts cut off at {length} tokens")
    return _cut_off(tokens, body, special)


def pairs(
    sources: Sequence[str], targets: Sequence[str], pretrained: Pretrained, length: int, notes: list[str]
) -> Paired:
    """Make every text an encoder's example and its target the decoder's, each cut off at `length` tokens."""
    examples = whole_texts(sources, pretrained, length, notes)
    most = min(length, longest_target(pretrained) or length)
    ids = pretrained.processor(text_target=list(targets), verbose=False)["input_ids"]
    cut = sum(len(sequence) > most for sequence in ids)
    if cut:
        notes.append(f"{cut} of {len(ids)} targets cut off at {most} tokens")
    start = decoder_start(pretrained)
    begun = [sequence[:most] if sequence[:1] == [start] else [start, *sequence[:most]] for sequence in ids]
    return paired(examples, [sequence if len(sequence) > 1 else [start, start] for sequence in begun], pretrained)


def _pieces(lengths: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Divide each length into as few near-equal parts of at most `most` as it takes."""
    parts = -(-lengths // most)
    which = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
    return np.repeat(lengths // parts, parts) + (which < np.repeat(lengths % parts, parts))


def _cut_off(tokens: Tokens, most: int, special: SpecialTokens) -> Passages:
    starts = np.cumsum(tokens.lengths) - tokens.lengths
    kept = np.arange(len(tokens.ids)) - np.repeat(starts, tokens.lengths) < most
    return Passages(tokens.ids[kept], _offsets(np.minimum(tokens.lengths, most)), special)


def _offsets(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])


def _masking(pretrained: Pretrained, seed: int) -> Masking | None:
    if pretrained.task != "masked":
        return None
    tokenizer = pretrained.processor
    if tokenizer.mask_token_id is None:
        raise DataError(
            "the model predicts masked tokens, and its tokenizer has no mask token",
            where=pretrained.source,
            remedy="set mask_token in tokenizer_config.json",
        )
    return Masking(tokenizer.mask_token_id, tuple(sorted(tokenizer.all_special_ids)), seed)
