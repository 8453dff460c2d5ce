"""Sentence embeddings: how hidden states become one vector, as the model's folder says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ModelError
from ..untrusted import read_json

Pooling = Callable[[Tensor, Tensor], Tensor]  # hidden [B, T, d], mask of real tokens [B, T] -> [B, d]


def mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Average over real tokens."""
    weights = mask[..., None].to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp_min(1)


def first(hidden: Tensor, mask: Tensor) -> Tensor:
    """Take the first real token, [CLS]."""
    return hidden[torch.arange(hidden.shape[0]), mask.int().argmax(1)]


def last(hidden: Tensor, mask: Tensor) -> Tensor:
    """Take the last real token."""
    positions = torch.arange(mask.shape[1], device=mask.device) * mask
    return hidden[torch.arange(hidden.shape[0]), positions.argmax(1)]


def maximum(hidden: Tensor, mask: Tensor) -> Tensor:
    """Take the largest value of each channel over real tokens."""
    return hidden.masked_fill(~mask[..., None].bool(), -torch.inf).amax(1)


def root_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Sum over real tokens, divided by the square root of their count."""
    weights = mask[..., None].to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp_min(1).sqrt()


def weighted_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Average over real tokens weighted by their position, from 1."""
    weights = (mask.cumsum(1) * mask)[..., None].to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp_min(1)


# The modes of sentence-transformers.
_MODES: dict[str, Pooling] = {
    "mean": mean, "cls": first, "lasttoken": last, "max": maximum, "mean_sqrt_len_tokens": root_mean,
    "weightedmean": weighted_mean,
}  # fmt: skip
_SWITCHES = {
    "pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max", "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}  # fmt: skip


def pooling_of(folder: Path | None) -> Pooling:
    """Find the pooling that a folder's `1_Pooling/config.json` (sentence-transformers) asks for; the mean without one.

    Several modes are concatenated in the order of sentence-transformers. Raises ModelError for an unknown mode.
    """
    path = folder / "1_Pooling" / "config.json" if folder is not None else None
    if path is None or not path.is_file():
        return mean
    try:
        config = read_json(path)
        if not isinstance(config, dict):
            raise ValueError("it holds no JSON object")
    except (OSError, ValueError) as error:
        raise ModelError(f"the pooling is damaged: {error}", where=str(path), remedy="fetch the model again") from None
    modes = config.get("pooling_mode")
    if modes is None:
        order = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
        on = {mode for switch, mode in _SWITCHES.items() if config.get(switch)}
        modes = [mode for mode in order if mode in on]
    names = modes if isinstance(modes, list) else [modes]
    unknown = [name for name in names if not isinstance(name, str) or name not in _MODES]
    if unknown or not names:
        raise ModelError(
            f"unknown pooling {', '.join(map(str, unknown))}" if unknown else "the pooling names no mode",
            where=str(path),
            remedy=f"use one of {', '.join(_MODES)}",
        )
    return lambda hidden, mask: torch.cat([_MODES[name](hidden, mask) for name in names], dim=-1)
