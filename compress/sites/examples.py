"""Forward arguments made from a model's config, just enough to run it once."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SiteError

TOKENS = 8
SAMPLES = 4_000  # a quarter of a second of a waveform at the usual rate


def example_inputs(model: nn.Module) -> dict[str, Tensor]:
    """Forward arguments of the model's own kind: token ids [2, 8], pixels [1, C, H, W], features, a waveform.

    On the model's device, the same each time. Vision-language models that splice image features into the text get
    text alone. Raises SiteError where the config does not say enough.
    """
    config = getattr(model, "config", None)
    accepted = inspect.signature(model.forward).parameters
    parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    example: dict[str, Tensor] = {}
    if config is not None:
        if "input_ids" in accepted and _vocabulary(config):
            example["input_ids"] = _token_ids(config, rows=2)
        if "pixel_values" in accepted and not _splices_images(config):
            example["pixel_values"] = _noise(2 if example else 1, *_image_shape(config))
        if "input_features" in accepted and _main_input(model) == "input_features":
            example["input_features"] = _noise(1, *_feature_shape(config))
        if "input_values" in accepted:
            example["input_values"] = _noise(1, SAMPLES)
        if "decoder_input_ids" in accepted and getattr(config, "is_encoder_decoder", False):
            batch = next(iter(example.values())).shape[0] if example else 1
            example["decoder_input_ids"] = _token_ids(config, rows=batch)
    if not set(example) - {"decoder_input_ids"}:
        raise SiteError(
            f"no example inputs can be made for {type(model).__name__} from its config",
            remedy="give forward arguments to trace with: find_sites(model, example={...})",
        )
    return {
        key: value.to(parameter.device, parameter.dtype if value.is_floating_point() else value.dtype)
        for key, value in example.items()
    }


def _main_input(model: nn.Module) -> str:
    return str(getattr(model, "main_input_name", ""))


def _vocabulary(config: Any) -> int:
    return int(getattr(config.get_text_config(), "vocab_size", 0) or 0)


def _token_ids(config: Any, rows: int) -> Tensor:
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None) or TOKENS
    length = min(TOKENS, positions) if positions > 0 else TOKENS  # XLNet says -1 for as many as you like
    special = {getattr(text, f"{kind}_token_id", None) for kind in ("pad", "bos", "eos")}
    usable = [token for token in range(min(_vocabulary(config), 256)) if token not in special] or [0]
    return torch.tensor([[usable[(7 * i + 3 * row) % len(usable)] for i in range(length)] for row in range(rows)])


def _splices_images(config: Any) -> bool:
    return any(getattr(config, key, None) is not None for key in ("image_token_id", "image_token_index"))


def _image_shape(config: Any) -> tuple[int, int, int]:
    vision = getattr(config, "vision_config", None) or config
    size = getattr(vision, "image_size", None) or 224
    if isinstance(size, dict):
        size = (size["height"], size["width"])
    height, width = (size, size) if isinstance(size, int) else size
    return getattr(vision, "num_channels", None) or 3, height, width


def _feature_shape(config: Any) -> tuple[int, int]:
    """[mel bins, frames]: an encoder with learned positions takes exactly two frames a position."""
    audio = getattr(config, "audio_config", None) or config
    positions = getattr(audio, "max_source_positions", None) or 100
    return getattr(audio, "num_mel_bins", None) or 80, 2 * positions


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
