"""Pico models of the families under test: hidden 32, two layers, built from configs."""

from __future__ import annotations

import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)


def llama(vocab: int = 64) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=32, intermediate_size=88, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def gpt2(vocab: int = 64) -> PreTrainedModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocab, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0
    )
    return GPT2LMHeadModel(config).eval()


def _bert_config(vocab: int) -> BertConfig:
    return BertConfig(
        vocab_size=vocab, hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64,
    )  # fmt: skip


def bert(vocab: int = 64) -> PreTrainedModel:
    torch.manual_seed(0)
    return BertModel(_bert_config(vocab)).eval()


def bert_masked(vocab: int = 64) -> PreTrainedModel:
    torch.manual_seed(0)
    return BertForMaskedLM(_bert_config(vocab)).eval()


def vit() -> PreTrainedModel:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, image_size=32,
        patch_size=8, num_labels=5,
    )  # fmt: skip
    return ViTForImageClassification(config).eval()


FAMILIES = {"llama": llama, "gpt2": gpt2, "bert": bert, "bert_masked": bert_masked, "vit": vit}
