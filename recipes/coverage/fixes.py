"""What the rules of `pico` cannot know: sizes that a config wants consistent with one another, by model type."""

from __future__ import annotations

from typing import Any

_STAGES = {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}

_MLA = {"num_key_value_heads": 4}  # latent attention has as many as it has heads

FIXES: dict[str, dict[str, Any]] = {
    "axk1": _MLA,
    "axk2": _MLA,
    "bamba": {"attn_layer_indices": [1]},
    "bit": {"hidden_sizes": [32, 32, 64, 64], "embedding_size": 32},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "codegen": {"rotary_dim": 4},
    "cvt": {"embed_dim": [16, 32, 48], "depth": [1, 2, 3], "num_heads": [1, 2, 4]},
    "deepseek_v2": {**_MLA, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "deepseek_v3": _MLA,
    "deepseek_v32": _MLA,
    "dbrx": {"ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2}},
    "donut-swin": _STAGES,
    "dots1": {"n_shared_experts": 1, "n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "dots3_note_text": {"num_key_value_heads": 4},
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.25},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0}},
    "gptj": {"rotary_dim": 4},
    "glm4_moe_lite": _MLA,
    "glm_moe_dsa": _MLA,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granite_speech5_ctc": {"encoder_config": {"context_size": 16}},
    "hgnet_v2": {
        "stage_in_channels": [16, 16, 32, 32], "stage_mid_channels": [8, 8, 16, 16],
        "stage_out_channels": [16, 32, 32, 32], "stem_channels": [3, 8, 16],
    },
    "hiera": {
        "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4], "image_size": [32, 32],
        "patch_stride": [4, 4],
    },
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "num_experts": 4, "moe_topk": 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kyutai_speech_to_text": {"codec_config": {"hidden_size": 64, "num_filters": 16, "upsample_groups": 64}},
    "bailing_hybrid": _MLA,
    "kimi_linear": _MLA,
    "levit": {
        "image_size": 64, "patch_size": 16, "hidden_sizes": [16, 32, 48], "key_dim": [8, 8, 8], "depths": [1, 1, 1],
        "num_attention_heads": [2, 4, 4],
    },
    "led": {"attention_window": [8, 8]},
    "nemotron_h": {"n_groups": 2},
    "lfm2_moe": {"num_dense_layers": 1, "layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"zero_expert_num": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 2},
    "minicpm3": _MLA,
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "neomme": {"head_dim": 16},
    "pvt": {"num_attention_heads": [1, 2, 2, 4], "hidden_sizes": [16, 32, 32, 64]},
    "pvt_v2": {"num_attention_heads": [1, 2, 2, 4], "hidden_sizes": [16, 32, 32, 64]},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        "is_decoder": True, "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 8], "attn_layers": ["local", "lsh"],
    },
    "swin": _STAGES,
    "swinv2": _STAGES,
    "focalnet": {"embed_dim": 16, "depths": [1, 1, 1, 1]},
    "wav2vec2-bert": {"vocab_size": 32},
    "wav2vec2-conformer": {"vocab_size": 32},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128, "num_heads": 4},
    "xmod": {"default_language": "en_XX"},
    "youtu": _MLA,
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2},
}  # fmt: skip
