"""Forward arguments made from a model's config, just enough to run it once."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SiteError

TOKENS = 8
_INPUTS = ("input_ids", "input_values", "input_features", "pixel_values")  # `inputs` are ids where none is taken
_DECODERS = ("decoder_input_ids", "decoder_input_values")  # what a decoder reads; values that are ids: SpeechT5
_SMALL = 256  # of a vocabulary, from which examples are
SAMPLES = 4_000  # a quarter of a second of a waveform at the usual rate


def example_inputs(model: nn.Module) -> dict[str, Tensor]:
    """Forward arguments of the model's own kind: token ids [2, 8], pixels [1, C, H, W], features, a waveform.

    On the model's device, the same each time. Vision-language models that splice image features into the text get
    text alone. Raises SiteError where the config does not say enough.
    """
    config = getattr(model, "config", None)
    accepted = _accepted(model)
    parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    example: dict[str, Tensor] = {}
    if config is not None:
        ids = "inputs" if set(accepted).isdisjoint(_INPUTS) else "input_ids"
        if ids in accepted and _vocabulary(config):
            example[ids] = _token_ids(config, rows=2)
        if "pixel_values" in accepted and "spatial_shapes" in accepted:
            example |= _patches(config, rows=2 if example else 1)
        elif "pixel_values" in accepted and not _splices_images(config):
            example["pixel_values"] = _noise(2 if example else 1, *_image_shape(config))
        if "input_features" in accepted and _main_input(model) == "input_features":
            frames_first, shape = _feature_shape(config)
            example["input_features"] = _noise(1, *shape)
            if "input_features_mask" in accepted:
                example["input_features_mask"] = torch.ones(1, shape[0 if frames_first else 1], dtype=torch.long)
        if "input_values" in accepted and not ("input_ids" in example and _splices_sounds(config)):
            example["input_values"] = _noise(1, *_sound_shape(config))
        decoder = next((name for name in _DECODERS if name in accepted), None)
        if decoder and getattr(config, "is_encoder_decoder", False):
            batch = next(iter(example.values())).shape[0] if example else 1
            example[decoder] = _token_ids(config, rows=batch)
    if not set(example) - set(_DECODERS):
        raise SiteError(
            f"no example inputs can be made for {type(model).__name__} from its config",
            remedy="give forward arguments to trace with: find_sites(model, example={...})",
        )
    return {
        key: value.to(parameter.device, parameter.dtype if value.is_floating_point() else value.dtype)
        for key, value in example.items()
    }


def _accepted(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    """Parameters of the forward method; a wrapper that passes everything on has those of the module inside."""
    parameters = inspect.signature(model.forward).parameters
    passes_on = all(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values())
    inside = [child for child in model.children() if hasattr(child, "config")]
    return _accepted(inside[0]) if passes_on and len(inside) == 1 else parameters


def _main_input(model: nn.Module) -> str:
    return str(getattr(model, "main_input_name", ""))


def _vocabulary(config: Any) -> int:
    return int(getattr(config.get_text_config(), "vocab_size", 0) or 0)


def usable_token_ids(config: Any) -> list[int]:
    """Ids of a model's vocabulary that stand for text, not for padding, ends, images or sounds; [0] where none do."""
    values = {**config.to_dict(), **config.get_text_config().to_dict()}
    special: set[Any] = set()
    for key, token in values.items():
        if key.endswith(("_token_id", "_token_index")):
            special |= set(token) if isinstance(token, (list, tuple)) else {token}
    return [token for token in range(_vocabulary(config)) if token not in special] or [0]


def _token_ids(config: Any, rows: int) -> Tensor:
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None) or TOKENS
    length = min(TOKENS, positions) if positions > 0 else TOKENS  # XLNet says -1 for as many as you like
    usable = [token for token in usable_token_ids(config) if token < _SMALL] or [0]
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


def _patches(config: Any, rows: int) -> dict[str, Tensor]:
    """An image cut into a square of patches beforehand: [rows, patches, C * P * P]."""
    vision = getattr(config, "vision_config", None) or config
    side = 4
    width = vision.num_channels * vision.patch_size**2
    return {
        "pixel_values": _noise(rows, side * side, width),
        "pixel_attention_mask": torch.ones(rows, side * side, dtype=torch.long),
        "spatial_shapes": torch.tensor([[side, side]] * rows),
    }


def _splices_sounds(config: Any) -> bool:
    return any(getattr(config, key, None) is not None for key in ("audio_token_id", "audio_token_index"))


def _sound_shape(config: Any) -> tuple[int, ...]:
    """[samples], with a channel where the config says how many there are; [frames, mel bins] of a spectrogram."""
    bins, frames = getattr(config, "num_mel_bins", None), getattr(config, "max_length", None)
    if bins and frames and getattr(config, "time_stride", None):
        return frames, bins
    return (config.audio_channels, SAMPLES) if getattr(config, "audio_channels", None) else (SAMPLES,)


_FRAMES = 100


def _feature_shape(config: Any) -> tuple[bool, tuple[int, int]]:
    """[mel bins, frames], as encoders that begin with convolutions over time take; others [frames, features]: True.

    An encoder with learned positions takes exactly two frames a position.
    """
    audio = next((part for key in ("audio_config", "encoder_config") if (part := getattr(config, key, None))), config)
    for key in ("feature_projection_input_dim", "input_feat_per_channel", "input_dim"):
        if getattr(audio, key, None):
            return True, (2 * _FRAMES, getattr(audio, key))
    bins = getattr(audio, "num_mel_bins", None) or 80
    if getattr(audio, "subsampling_conv_channels", None):
        return True, (2 * _FRAMES, bins)
    return False, (bins, 2 * (getattr(audio, "max_source_positions", None) or _FRAMES))


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
