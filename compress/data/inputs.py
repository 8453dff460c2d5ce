"""What a model takes: text, images or recordings, its special tokens, its longest sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..errors import DataError
from ..tasks import AUDIO_INPUTS

if TYPE_CHECKING:
    from ..models import Pretrained

_NO_LIMIT = 1_000_000  # tokenizers without a limit state an astronomic one


Modality = Literal["text", "images", "audio"]
_INPUTS: dict[str, Modality] = {"input_ids": "text", "pixel_values": "images", **dict.fromkeys(AUDIO_INPUTS, "audio")}
_NEEDED: dict[Modality, tuple[str, str, str]] = {  # what turns data into inputs, how it is known, its file
    "text": ("a tokenizer", "convert_tokens_to_ids", "tokenizer.json"),
    "images": ("an image processor", "preprocess", "preprocessor_config.json"),
    "audio": ("a feature extractor", "extractor", "preprocessor_config.json"),
}


def modality(pretrained: Pretrained) -> Modality:
    """Tell what the model reads. Raises DataError for other modalities and where the processor is missing."""
    kind = _INPUTS.get(pretrained.model.main_input_name)
    if kind is None:
        raise DataError(
            f"the model reads {pretrained.model.main_input_name}, which no data source gives yet",
            where=pretrained.source,
            remedy="convert a model of text, images or speech",
        )
    wanted, sign, file = _NEEDED[kind]
    if getattr(pretrained.processor, sign, None) is None:
        raise DataError(
            f"the model comes without {wanted}", where=pretrained.source, remedy=f"put {file} beside its weights"
        )
    return kind


def tokenizer_of(pretrained: Pretrained) -> Any:
    """Find the tokenizer of a model of text or speech. Raises DataError where there is none."""
    tokenizer = getattr(pretrained.processor, "tokenizer", pretrained.processor)
    if tokenizer is None or not hasattr(tokenizer, "convert_tokens_to_ids"):
        raise DataError(
            "the model comes without a tokenizer", where=pretrained.source,
            remedy="put tokenizer.json beside its weights",
        )  # fmt: skip
    return tokenizer


@dataclass(frozen=True)
class SpecialTokens:
    """Token ids that the tokenizer puts around one text, and how it fills a batch."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    pad: int
    left: bool  # whether padding comes first

    @property
    def count(self) -> int:
        """How many surround a text."""
        return len(self.prefix) + len(self.suffix)


def special_tokens(tokenizer: Any) -> SpecialTokens:
    """Ask a tokenizer for its special tokens. Raises DataError where they cannot be told from the text."""
    body = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    starts = [start for start in range(len(full) - len(body) + 1) if full[start : start + len(body)] == body]
    if not body or not starts:
        raise DataError(
            "the tokenizer's special tokens cannot be told from the text",
            where=type(tokenizer).__name__,
            remedy="use a tokenizer that surrounds the text with them",
        )
    # A missing padding token is no obstacle: padding is hidden by the attention mask.
    pad = next((token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0)
    end = starts[0] + len(body)
    return SpecialTokens(tuple(full[: starts[0]]), tuple(full[end:]), pad, tokenizer.padding_side == "left")


def longest_sequence(pretrained: Pretrained) -> int | None:
    """Find the most positions a sequence may have, special tokens included; None where nothing limits it."""
    limits = [
        getattr(pretrained.model.config, "max_position_embeddings", None),
        getattr(pretrained.processor, "model_max_length", None),
    ]
    for name, module in pretrained.model.named_modules():
        # RoBERTa and its kin count positions from behind the padding index.
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            limits.append(module.num_embeddings - module.padding_idx - 1)
    known = [int(limit) for limit in limits if isinstance(limit, int | float) and 0 < limit < _NO_LIMIT]
    return min(known, default=None)


def capped_length(pretrained: Pretrained, wanted: int, notes: list[str]) -> int:
    """Cap a sequence length to what the model takes, and say so in `notes`."""
    limit = longest_sequence(pretrained)
    if limit is None or wanted <= limit:
        return wanted
    notes.append(f"sequences of {limit} tokens, the model's longest, instead of {wanted}")
    return limit


def longest_target(pretrained: Pretrained) -> int | None:
    """Find the most tokens that a decoder's sequence may have; None where nothing limits it."""
    config: Any = pretrained.model.config
    decoder = getattr(config, "decoder", config)
    limits = [getattr(decoder, name, None) for name in ("max_target_positions", "max_position_embeddings")]
    known = [int(limit) for limit in limits if isinstance(limit, int | float) and 0 < limit < _NO_LIMIT]
    return min(known, default=None)
