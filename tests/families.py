"""Pico models of many architectures, with what is known of their feed-forward networks from reading their code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pico
import torch
import transformers
from transformers import PreTrainedModel

_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_TEXT = {
    **_SMALL, "vocab_size": 64, "intermediate_size": 88, "max_position_embeddings": 64, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_DECODER = {**_TEXT, "num_key_value_heads": 2, "head_dim": 8}
_VISION = {**_SMALL, "intermediate_size": 64, "image_size": 32, "patch_size": 8}
_BART = {
    "vocab_size": 64, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "pad_token_id": 1,
    "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
_GPT = {
    "vocab_size": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_T5 = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
_AUDIO = {
    **_SMALL, "intermediate_size": 64, "vocab_size": 32, "conv_dim": (16, 16), "conv_stride": (5, 4),
    "conv_kernel": (10, 8), "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}  # fmt: skip


def build(model: str, config: str, **settings: Any) -> PreTrainedModel:
    """A model of a transformers class with weights large enough that activations bend."""
    torch.manual_seed(0)
    built = getattr(transformers, model)(getattr(transformers, config)(**settings)).eval()
    return louder(built)


def louder(model: PreTrainedModel) -> PreTrainedModel:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@dataclass(frozen=True)
class Family:
    """A model and its expected sites; `first` and `last` are names, `*` in `entry` and so on stands for the layer."""

    make: Callable[[], PreTrainedModel]
    sites: int
    first: str
    activation: str
    entry: str  # of the first site, relative to the base model
    identities: tuple[str, ...]
    norms: tuple[str | None, str | None]  # of the first and the last site, relative to the base model
    gated: bool = False
    layout: str = "separate"


def _bert(make: Callable[[], PreTrainedModel], activation: str = "gelu") -> Family:
    layer = "encoder.layer.0"
    return Family(
        make, 2, f"{layer}.output.dense", activation, f"{layer}.intermediate", (f"{layer}.output.dense",),
        (f"{layer}.output.LayerNorm", "encoder.layer.1.output.LayerNorm"),
    )  # fmt: skip


def _llama(make: Callable[[], PreTrainedModel], activation: str = "silu", **changes: Any) -> Family:
    norms = changes.pop("norms", ("layers.1.input_layernorm", "norm"))
    return Family(
        make, 2, "layers.0.mlp.down_proj", activation, "layers.0.mlp", (), norms, **{"gated": True, **changes}
    )


def _fc(
    make: Callable[[], PreTrainedModel], sites: int, prefix: str, activation: str, norms: tuple[str, str]
) -> Family:
    """Two linears directly in the layer, with the activation module called between them."""
    layer = f"{prefix}layers.0"
    return Family(
        make, sites, f"{layer}.fc2", activation, f"{layer}.fc1", (f"{layer}.activation_fn", f"{layer}.fc2"), norms
    )


def _vit(make: Callable[[], PreTrainedModel]) -> Family:
    norms = ("layers.1.layernorm_before", "layernorm")
    return Family(make, 2, "layers.0.mlp.fc2", "gelu", "layers.0.mlp", (), norms)


_SANDWICH = ("layers.0.post_feedforward_layernorm", "layers.1.post_feedforward_layernorm")
_DENSE = "encoder.block.0.layer.1.DenseReluDense"
_T5_NORMS = ("encoder.block.1.layer.0.layer_norm", "decoder.final_layer_norm")
_ALBERT = "encoder.albert_layer_groups.0.albert_layers.0"

FAMILIES: dict[str, Family] = {
    "llama": _llama(lambda: louder(pico.llama())),
    "mistral": _llama(lambda: build("MistralForCausalLM", "MistralConfig", **_DECODER)),
    "qwen2": _llama(lambda: build("Qwen2ForCausalLM", "Qwen2Config", **{**_TEXT, "num_key_value_heads": 2})),
    "qwen3": _llama(lambda: build("Qwen3ForCausalLM", "Qwen3Config", **_DECODER)),
    "gemma": _llama(lambda: build("GemmaForCausalLM", "GemmaConfig", **_DECODER), "gelu_tanh"),
    "gemma2": _llama(lambda: build("Gemma2ForCausalLM", "Gemma2Config", **_DECODER), "gelu_tanh", norms=_SANDWICH),
    "olmo2": _llama(lambda: build("Olmo2ForCausalLM", "Olmo2Config", **_TEXT), norms=_SANDWICH),
    "phi3": _llama(
        lambda: build("Phi3ForCausalLM", "Phi3Config", **{**_TEXT, "num_key_value_heads": 2}), layout="gate_up"
    ),
    "nemotron": _llama(
        lambda: build("NemotronForCausalLM", "NemotronConfig", **{**_TEXT, "num_key_value_heads": 2}), "relu2",
        gated=False,
    ),
    "gpt2": Family(
        lambda: louder(pico.gpt2()), 2, "h.0.mlp.c_proj", "gelu_tanh", "h.0.mlp", (), ("h.1.ln_1", "ln_f")
    ),
    "gptj": Family(
        lambda: build("GPTJForCausalLM", "GPTJConfig", **{**_GPT, "rotary_dim": 4}), 2, "h.0.mlp.fc_out", "gelu_tanh",
        "h.0.mlp", (), ("h.1.ln_1", "ln_f"),
    ),
    "gpt_neox": Family(
        lambda: build("GPTNeoXForCausalLM", "GPTNeoXConfig", **_TEXT), 2, "layers.0.mlp.dense_4h_to_h", "gelu",
        "layers.0.mlp", (), ("layers.1.input_layernorm", "final_layer_norm"),
    ),
    "bloom": Family(
        lambda: build("BloomForCausalLM", "BloomConfig", vocab_size=64, hidden_size=32, n_layer=2, n_head=4), 2,
        "h.0.mlp.dense_4h_to_h", "gelu_tanh", "h.0.mlp.dense_h_to_4h", ("h.0.mlp.gelu_impl", "h.0.mlp.dense_4h_to_h"),
        ("h.1.input_layernorm", "ln_f"),
    ),
    "opt": _fc(
        lambda: build("OPTForCausalLM", "OPTConfig", **{**_TEXT, "ffn_dim": 64, "word_embed_proj_dim": 32}), 2,
        "decoder.", "relu", ("decoder.layers.1.self_attn_layer_norm", "decoder.final_layer_norm"),
    ),
    "bart": _fc(
        lambda: build("BartForConditionalGeneration", "BartConfig", **_BART, max_position_embeddings=64), 4,
        "encoder.", "gelu", ("encoder.layers.0.final_layer_norm", "decoder.layers.1.final_layer_norm"),
    ),
    "bart_classifier": _fc(
        lambda: build("BartForSequenceClassification", "BartConfig", **_BART, max_position_embeddings=64), 4,
        "encoder.", "gelu", ("encoder.layers.0.final_layer_norm", "decoder.layers.1.final_layer_norm"),
    ),
    "whisper": _fc(
        lambda: build(
            "WhisperForConditionalGeneration", "WhisperConfig", **_BART, num_mel_bins=16, max_source_positions=20,
            max_target_positions=32, decoder_start_token_id=0,
        ), 4, "encoder.", "gelu", ("encoder.layers.1.self_attn_layer_norm", "decoder.layer_norm"),
    ),
    "whisper_encoder": _fc(
        lambda: build(
            "WhisperForAudioClassification", "WhisperConfig", **_BART, num_mel_bins=16, max_source_positions=20,
            decoder_start_token_id=0,
        ), 2, "encoder.", "gelu", ("encoder.layers.1.self_attn_layer_norm", "encoder.layer_norm"),
    ),
    "t5": Family(
        lambda: build("T5ForConditionalGeneration", "T5Config", **_T5), 4, f"{_DENSE}.wo", "relu", _DENSE, (), _T5_NORMS
    ),
    "t5_gated": Family(
        lambda: build("T5ForConditionalGeneration", "T5Config", feed_forward_proj="gated-gelu", **_T5), 4,
        f"{_DENSE}.wo", "gelu_tanh", _DENSE, (), _T5_NORMS, gated=True,
    ),
    "bert": _bert(lambda: louder(pico.bert())),
    "bert_masked": _bert(lambda: louder(pico.bert_masked())),
    "bert_classifier": _bert(lambda: build("BertForSequenceClassification", "BertConfig", **_TEXT)),
    "bert_chunked": _bert(lambda: build("BertModel", "BertConfig", **_TEXT, chunk_size_feed_forward=4)),
    "roberta": _bert(lambda: build("RobertaForMaskedLM", "RobertaConfig", **_TEXT)),
    "deberta": _bert(lambda: build("DebertaForMaskedLM", "DebertaConfig", **_TEXT)),
    "deberta_v2": _bert(
        lambda: build(
            "DebertaV2Model", "DebertaV2Config", **_TEXT, relative_attention=True, pos_att_type=["p2c", "c2p"]
        )
    ),
    "modernbert": Family(
        lambda: build("ModernBertForMaskedLM", "ModernBertConfig", **_TEXT, cls_token_id=1, sep_token_id=2), 2,
        "layers.0.mlp.Wo", "gelu", "layers.0.mlp", (), ("layers.1.attn_norm", "final_norm"), gated=True,
        layout="gate_up",
    ),
    "distilbert": Family(
        lambda: build(
            "DistilBertForSequenceClassification", "DistilBertConfig", vocab_size=64, dim=32, hidden_dim=64, n_layers=2,
            n_heads=4,
        ), 2, "transformer.layer.0.ffn.lin2", "gelu", "transformer.layer.0.ffn", (),
        ("transformer.layer.0.output_layer_norm", "transformer.layer.1.output_layer_norm"),
    ),
    "albert": Family(
        lambda: build("AlbertForMaskedLM", "AlbertConfig", **_TEXT, embedding_size=16), 1, f"{_ALBERT}.ffn_output",
        "gelu_tanh", f"{_ALBERT}.ffn", (f"{_ALBERT}.activation", f"{_ALBERT}.ffn_output"),
        (f"{_ALBERT}.full_layer_layer_norm", f"{_ALBERT}.full_layer_layer_norm"),
    ),
    "vit": _vit(lambda: louder(pico.vit())),
    "deit": _vit(lambda: build("DeiTForImageClassification", "DeiTConfig", **_VISION)),
    "dinov2_swiglu": Family(
        lambda: build(
            "Dinov2Model", "Dinov2Config", **_SMALL, image_size=32, patch_size=8, mlp_ratio=2, use_swiglu_ffn=True
        ), 2, "encoder.layer.0.mlp.down_proj", "silu", "encoder.layer.0.mlp", (),
        ("encoder.layer.1.norm1", "layernorm"), gated=True,
    ),
    "clip": Family(
        lambda: build(
            "CLIPModel", "CLIPConfig", text_config={**_TEXT, "intermediate_size": 64}, vision_config=_VISION,
            projection_dim=16,
        ), 4, "vision_model.encoder.layers.0.mlp.fc2", "quick_gelu", "vision_model.encoder.layers.0.mlp", (),
        ("vision_model.encoder.layers.1.layer_norm1", "text_model.final_layer_norm"),
    ),
    "wav2vec2": Family(
        lambda: build("Wav2Vec2ForCTC", "Wav2Vec2Config", **_AUDIO), 2, "encoder.layers.0.feed_forward.output_dense",
        "gelu", "encoder.layers.0.feed_forward", (),
        ("encoder.layers.0.final_layer_norm", "encoder.layers.1.final_layer_norm"),
    ),
}  # fmt: skip

EXPERTS: dict[str, Callable[[], PreTrainedModel]] = {  # in both layers
    "mixtral": lambda: build("MixtralForCausalLM", "MixtralConfig", **_DECODER, num_local_experts=4),
    "qwen2_moe": lambda: build(
        "Qwen2MoeForCausalLM", "Qwen2MoeConfig", **{**_TEXT, "num_key_value_heads": 2}, num_experts=4,
        moe_intermediate_size=16, shared_expert_intermediate_size=48,
    ),
}  # fmt: skip

MIXED: dict[str, tuple[Callable[[], PreTrainedModel], list[str], list[str]]] = {  # sites; layers with experts
    "deepseek": (
        lambda: build(
            "DeepseekV3ForCausalLM", "DeepseekV3Config", **{**_TEXT, "num_hidden_layers": 3}, first_k_dense_replace=2,
            n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, moe_intermediate_size=48,
            num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8,
            v_head_dim=8, head_dim=8,
        ), ["layers.0.mlp.down_proj", "layers.1.mlp.down_proj"], ["layers.2.mlp"],
    ),
    "qwen2_moe": (
        lambda: build(
            "Qwen2MoeForCausalLM", "Qwen2MoeConfig", **{**_TEXT, "num_key_value_heads": 2}, num_experts=4,
            moe_intermediate_size=16, shared_expert_intermediate_size=48, mlp_only_layers=[1],
        ), ["layers.1.mlp.down_proj"], ["layers.0.mlp"],
    ),
    "llama4": (
        lambda: build(
            "Llama4ForCausalLM", "Llama4TextConfig", **_DECODER, intermediate_size_mlp=64, num_local_experts=4,
            interleave_moe_layer_step=2,
        ), ["model.layers.0.feed_forward.down_proj"],
        ["model.layers.1.feed_forward"],
    ),
    "switch": (
        lambda: build(
            "SwitchTransformersModel", "SwitchTransformersConfig", **_T5, num_decoder_layers=2, num_experts=4,
            num_sparse_encoder_layers=1, num_sparse_decoder_layers=1,
        ),
        ["encoder.block.0.layer.1.mlp.wo", "decoder.block.0.layer.2.mlp.wo"],
        ["encoder.block.1.layer.1.mlp", "decoder.block.1.layer.2.mlp"],
    ),
}  # fmt: skip


def mamba() -> PreTrainedModel:
    """A language model without feed-forward networks: its only elementwise paths run through a state space."""
    return build("MambaModel", "MambaConfig", vocab_size=64, hidden_size=32, num_hidden_layers=2)
