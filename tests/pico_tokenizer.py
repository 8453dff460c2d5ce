"""Tokenizers and image processors for the pico models, and whole pico model folders."""

from __future__ import annotations

from pathlib import Path

import pico
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, ViTImageProcessor

VOCABULARY = 64  # as the models of pico.py have it
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_CHARACTERS = "\n " + _LETTERS + "0123456789" + ".,;:!?'\"-()"

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "man",
    "hat",
    "sat",
    "ran",
    "saw",
    "old",
    "red",
    "big",
    "on",
    "in",
    "to",
    "and",
    "who",
]


def _filled(tokens: list[str]) -> dict[str, int]:
    tokens = tokens + [f"<extra_{index}>" for index in range(VOCABULARY - len(tokens))]
    assert len(tokens) == VOCABULARY
    return {token: index for index, token in enumerate(tokens)}


def _characters(specials: list[str], unknown: str) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(_filled([*specials, *_CHARACTERS]), unk_token=unknown))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def gpt_like() -> PreTrainedTokenizerFast:
    """One token a character; <|endoftext|> (0) ends a text and nothing begins one."""
    return PreTrainedTokenizerFast(
        tokenizer_object=_characters(["<|endoftext|>", "<unk>"], "<unk>"), bos_token="<|endoftext|>",
        eos_token="<|endoftext|>", unk_token="<unk>", model_max_length=64,
    )  # fmt: skip


def llama_like() -> PreTrainedTokenizerFast:
    """One token a character; <s> (1) is put before every text, </s> (2) ends one."""
    tokenizer = _characters(["<unk>", "<s>", "</s>"], "<unk>")
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def bert_like() -> PreTrainedTokenizerFast:
    """Word pieces of one letter; [CLS] and [SEP] around a text, [MASK], padding with [PAD] (0)."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = _filled([*specials, *_LETTERS, *(f"##{letter}" for letter in _LETTERS), "the", "and", ".", ","])
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=64,
    )  # fmt: skip


def image_processor() -> ViTImageProcessor:
    """Resizes to the 32 x 32 pixels of pico.vit."""
    return ViTImageProcessor(size={"height": 32, "width": 32}, do_resize=True, do_normalize=True)


PROCESSORS = {
    "llama": llama_like, "gpt2": gpt_like, "bert": bert_like, "bert_masked": bert_like, "vit": image_processor,
}  # fmt: skip


def save_pico(folder: str | Path, family: str) -> Path:
    """Save a pico model with its tokenizer or image processor, as a folder that transformers loads."""
    pico.FAMILIES[family]().save_pretrained(folder)
    PROCESSORS[family]().save_pretrained(folder)
    return Path(folder)
