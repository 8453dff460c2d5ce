"""What a model takes: text or images, its special tokens, its longest sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..errors import DataError

if TYPE_CHECKING:
    from ..models import Pretrained

_NO_LIMIT = 1_000_000  # tokenizers without a limit state an astronomic one


def modality(pretrained: Pretrained) -> Literal["text", "images"]:
    """Tell what the model reads. Raises DataError for other modalities and where the processor is missing."""
    kind = {"input_ids": "text", "pixel_values": "images"}.get(pretrained.model.main_input_name)
    if kind is None:
        raise DataError(
            f"the model reads {pretrained.model.main_input_name}, which no data source gives yet",
            where=pretrained.source,
            remedy="convert a model of text or images",
        )
    wanted = "a tokenizer" if kind == "text" else "an image processor"
    fits = callable(getattr(pretrained.processor, "convert_tokens_to_ids" if kind == "text" else "preprocess", None))
    if not fits:
        raise DataError(
            f"the model comes without {wanted}",
            where=pretrained.source,
            remedy="put "
            + ("tokenizer.json" if kind == "text" else "preprocessor_config.json")
            + " beside its weights",
        )
    return "text" if kind == "text" else "images"


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
