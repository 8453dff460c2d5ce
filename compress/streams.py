"""Streams of tokens in a model: what the encoder reads, what the decoder reads, what an image tower reads.

Sites see the tokens of one of them, and each has padding of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

Stream = Literal["main", "decoder", "images"]


def stream_of(model: Any, path: str) -> Stream:
    """Tell which tokens reach a module (dotted path in `model`)."""
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False) and _inside(model, model.get_decoder(), path):
        return "decoder"
    if hasattr(model, "get_encoder") and getattr(model, "main_input_name", "") != "pixel_values":
        tower = model.get_encoder("image")
        if not isinstance(tower, type(model)) and _inside(model, tower, path):
            return "images"
    return "main"


def answer_stream(model: Any) -> Stream:
    """Tell whose positions the logits of a model have: the decoder's where there is one."""
    return "decoder" if getattr(getattr(model, "config", None), "is_encoder_decoder", False) else "main"


def _inside(model: nn.Module, part: nn.Module, path: str) -> bool:
    prefix = next((name for name, module in model.named_modules() if module is part), None)
    return bool(prefix) and f"{path}.".startswith(f"{prefix}.")


def real_tokens(model: Any, batch: Mapping[str, Tensor], stream: Stream, positions: int) -> Tensor | None:
    """Tell which of a stream's `positions` are no padding: bool [B, positions], or None where all are real.

    Where convolutions leave fewer positions than the mask has (speech), the model's own rule of lengths says which.
    """
    own_decoder = stream == "decoder" and "decoder_input_ids" in batch
    mask = None if stream == "images" else batch.get("decoder_attention_mask" if own_decoder else "attention_mask")
    if mask is None:
        return None
    if mask.shape[1] == positions:
        return mask.bool()
    lengths = shortened(model, mask.sum(-1), mask.shape[1], positions)
    return torch.arange(positions, device=mask.device) < lengths[:, None]


def shortened(model: Any, lengths: Tensor, whole: int, positions: int | None = None) -> Tensor:
    """Lengths [n] behind a speech model's convolutions, which make `positions` of `whole` inputs.

    Without `positions`, what the layers behind the convolutions see. A model without a rule of its own shortens all
    lengths alike.
    """
    rule = _rule(model)
    if rule is not None:
        adapters = [True, False] if "add_adapter" in inspect.signature(rule).parameters else [None]
        for adapter in reversed(adapters):
            options = {} if adapter is None else {"add_adapter": adapter}
            if positions is None or int(rule(torch.tensor(whole), **options)) == positions:
                return torch.as_tensor(rule(lengths, **options)).long()
    share = 1.0 if positions is None else positions / whole
    return torch.ceil(lengths * share).long()


def has_rule(model: Any) -> bool:
    """Whether a model says how long a recording is behind its convolutions."""
    return _rule(model) is not None


def _rule(model: Any) -> Any:
    parts = [model, getattr(model, "base_model", None)]
    if hasattr(model, "get_encoder"):
        parts.append(model.get_encoder())
    return next((rule for part in parts if (rule := getattr(part, "_get_feat_extract_output_lengths", None))), None)


def accepted(model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keep what the model's forward takes. A mask that it does not take still tells which tokens are real."""
    parameters = inspect.signature(model.forward).parameters
    # Speech models that normalise over time were trained on padding without a mask, and answer worse with one.
    unmasked = getattr(getattr(model, "config", None), "feat_extract_norm", None) == "group"
    if not unmasked and "attention_mask" in parameters:
        return dict(batch)
    return {key: value for key, value in batch.items() if key != "attention_mask"}
