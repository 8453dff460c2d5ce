"""Pico configs: any config of transformers shrunk by the names of its fields, parts included."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from .fixes import FIXES

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_WIDTH, _HIDDEN, _VOCABULARY, _POSITIONS = 32, 48, 128, 64
_SIZES: dict[int, tuple[str, ...]] = {
    _WIDTH: (
        *("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "emb_dim", "embedding_size", "embedding_dim"),
        *("encoder_hidden_size", "decoder_hidden_size", "backbone_hidden_size", "cross_hidden_size", "lru_width"),
        *("hidden_size_global", "output_hidden_size", "pooler_hidden_size", "true_hidden_size", "hidden_dim"),
        *("vision_output_dim", "out_hidden_size", "pooler_output_size", "projection_dim", "d_embed", "d_latents"),
        *("classifier_proj_size", "output_dim", "adapter_in_dim", "attention_hidden_size", "word_embed_proj_dim"),
        *("attention_head_dim", "audio_embed_dim", "input_embedding_size", "output_embedding_size"),
        *("image_size", "codebook_size", "hidden_size_per_layer_input", "audio_vocab_size"),
        *("intra_bottleneck_size", "bottleneck_size", "stem_channels", "ple_embed_dim", "codebook_dim"),
    ),
    _HIDDEN: (
        *("intermediate_size", "ffn_dim", "d_ff", "dff", "dim_ff", "encoder_ffn_dim", "decoder_ffn_dim", "d_inner"),
        *("ffn_hidden_size", "feed_forward_size", "moe_intermediate_size", "shared_expert_intermediate_size"),
        *("shared_intermediate_size", "intermediate_size_mlp", "mlp_dim", "dense_intermediate_size"),
        *("speech_encoder_intermediate_size", "expert_ffn_hidden_size", "moe_shared_expert_intermediate_size"),
        *("t2u_encoder_ffn_dim", "t2u_decoder_ffn_dim", "projector_hidden_size", "shared_experts_intermediate_size"),
    ),
    2: (
        *("num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers", "decoder_layers", "depth"),
        *("num_encoder_layers", "num_decoder_layers", "encoder_num_hidden_layers", "decoder_num_hidden_layers"),
        *("num_global_layers", "speech_encoder_layers", "t2u_encoder_layers", "t2u_decoder_layers", "num_blocks"),
        *("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads", "cross_num_key_value_heads", "kv_n_heads"),
        *("linear_num_key_heads", "linear_num_value_heads", "num_experts_per_tok", "num_experts_per_token"),
        *("moe_topk", "moe_top_k", "encoder_num_key_value_heads", "decoder_num_key_value_heads", "moe_k"),
        *("index_n_heads", "conf_num_hidden_layers", "linear_num_heads", "num_query_groups", "num_lstm_layers"),
        *("attention_layers", "num_conv_pos_embedding_groups", "num_self_attends_per_block"),
    ),
    4: (
        *("num_attention_heads", "n_head", "num_heads", "n_heads", "encoder_attention_heads", "attention_heads"),
        *("decoder_attention_heads", "encoder_num_attention_heads", "decoder_num_attention_heads"),
        *("swa_num_attention_heads", "cross_num_attention_heads", "num_encoder_attention_heads"),
        *("num_decoder_attention_heads", "speech_encoder_attention_heads", "t2u_encoder_attention_heads"),
        *("t2u_decoder_attention_heads", "num_self_attention_heads", "num_cross_attention_heads"),
        *("conf_num_attention_heads", "num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"),
        *("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"),
    ),
    8: (
        *("head_dim", "d_kv", "dim_head", "d_head", "v_head_dim", "qk_rope_head_dim", "qk_nope_head_dim"),
        *("swa_head_dim", "linear_key_head_dim", "linear_value_head_dim", "index_head_dim", "kv_channels"),
        *("linear_head_dim", "cross_head_dim", "patch_size", "num_codevectors_per_group", "mamba_d_state"),
        *("attention_head_size", "state_size", "num_latents", "time_step_rank", "ssm_state_size"),
        *("mamba_chunk_size", "chunk_size"),
    ),
    16: (
        *("qk_head_dim", "kv_lora_rank", "q_lora_rank", "num_mel_bins", "num_filters", "codevector_dim", "o_lora_rank"),
        *("proj_codevector_dim", "num_conv_pos_embeddings", "tdnn_dim", "xvector_output_dim", "mamba_d_head"),
        *("mamba_head_dim", "mamba_headdim", "sliding_window", "subsampling_conv_channels", "conv_channels"),
        *("feature_projection_input_dim", "input_feat_per_channel", "attention_window_size", "query_pre_attn_scalar"),
    ),
    _POSITIONS: (
        *("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length", "max_source_positions"),
        *("max_target_positions", "model_max_length", "max_speech_positions", "max_text_positions"),
        *("max_encoder_position_embeddings", "max_decoder_position_embeddings", "left_max_position_embeddings"),
        *("original_max_position_embeddings", "tpu_short_seq_length", "t2u_max_position_embeddings"),
    ),
    _VOCABULARY: (
        *("vocab_size", "src_vocab_size", "tgt_vocab_size", "decoder_vocab_size", "unpadded_vocab_size"),
        *("vocab_size_per_layer_input", "t2u_vocab_size", "char_vocab_size", "entity_vocab_size"),
        *("composer_vocab_size", "pronunciation_vocab_size", "shape_vocab_size", "codebook_vocab_size"),
    ),
}  # fmt: skip
_SIZE = {name: size for size, names in _SIZES.items() for name in names}
_PER_STAGE = ("depths", "hidden_sizes", "num_heads", "num_attention_heads", "embed_dims")


def pico_model(kind: type[PreTrainedModel]) -> PreTrainedModel:
    """Build a pico model of a class, with weights large enough that every activation bends."""
    torch.manual_seed(0)
    model = kind(pico_config(kind.config_class)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # others are computed, not saved: sinusoidal positions
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def pico_config(kind: type[PreTrainedConfig]) -> PreTrainedConfig:
    """Build a config with every size small; FIXES has the last word."""
    return _shrunk(kind, FIXES.get(kind.model_type, {}))


def _shrunk(kind: type[PreTrainedConfig], fixes: dict[str, Any]) -> PreTrainedConfig:
    values: dict[str, Any] = {}
    parts = getattr(kind, "sub_configs", {})
    default: Any = None
    fields = {field.name for field in dataclasses.fields(kind)}
    for field in dataclasses.fields(kind):
        if field.name in parts:
            continue
        before = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if (small := _small(field.name, before)) is not None:
            values[field.name] = small
    for name in parts:
        fixed = fixes.get(name, {})
        if fixed is None or isinstance(fixed, str):
            continue
        default = default or kind()
        chosen = getattr(default, name, None)
        if chosen is not None:
            values[name] = _shrunk(type(chosen), fixed)
    values |= {name: value for name, value in fixes.items() if name not in parts or value is None}
    config = kind(**values)
    kinds = getattr(config, "layer_types", None)
    if kinds and "layer_types" in fields and set(kinds) <= {"linear_attention", "conv"}:
        config = kind(**{**values, "layer_types": [*kinds[:-1], "full_attention"]})  # hybrids do not go without
    return config


def _small(name: str, before: Any) -> Any:
    """A smaller value of a config's field; None leaves it as it is."""
    if isinstance(before, bool) or before is None:
        return None
    if isinstance(before, int):
        if name.endswith(("_token_id", "_token_index", "_index", "_pad_token_id")):
            return before if 0 <= before < _VOCABULARY else _token(name)
        return min(before, _SIZE[name]) if name in _SIZE else None
    if isinstance(before, (list, tuple)) and before and all(type(item) is int for item in before):
        if name == "depths":
            return type(before)(1 for _ in before)
        if name in ("hidden_sizes", "embed_dims", "neck_hidden_sizes", "encoder_hidden_sizes"):
            return type(before)(16 * (index + 1) for index in range(len(before)))
        if name in ("conv_dim",):
            return type(before)(16 for _ in before)
    return None


def _token(name: str) -> int:
    """Some id of a special token, the same each time and another for another name."""
    return 100 + sum(name.encode()) % 25
