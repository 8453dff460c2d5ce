"""A model rewritten for llama.cpp answers as it does in PyTorch, all at once and token by token."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from compress.bench import llamacpp
from compress.errors import CompressError

GPT2 = {"vocab_size": 70, "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4}
LLAMA = {
    "vocab_size": 70, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
MODELS = {
    "gpt2": lambda **more: GPT2LMHeadModel(GPT2Config(**GPT2 | more)),
    "llama": lambda **more: LlamaForCausalLM(LlamaConfig(**LLAMA | more)),
    "biases": lambda **more: LlamaForCausalLM(LlamaConfig(**LLAMA | {"attention_bias": True, "mlp_bias": True} | more)),
    "tied": lambda **more: LlamaForCausalLM(LlamaConfig(**LLAMA | {"tie_word_embeddings": True} | more)),
}


@pytest.fixture
def engine():
    pytest.importorskip("gguf")
    pytest.importorskip("llama_cpp")


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    made = MODELS[request.param]().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # norms and biases too say something
    return made


def test_answers_as_in_pytorch(engine, model):
    made = llamacpp.llamacpp_models(model, {"float32": 0, **llamacpp.KINDS}, 40, 2, threads=2)
    ids = torch.randint(0, 70, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    scale = expected.std()
    for kind, allowed in {"float32": 0.01, "Q8_0": 0.05, "Q4_0": 0.6}.items():
        answer = made[kind](input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        assert answer.shape == expected.shape
        assert (answer - expected).std() < allowed * scale, kind
    # llama.cpp rounds keys and values to float16
    whole = made["float32"](input_ids=ids[:1]).logits.clone()
    answer = made["float32"](input_ids=ids[:1, :5], use_cache=True)
    assert answer.cache == 5
    for place in range(5, 9):
        answer = made["float32"](input_ids=ids[:1, place : place + 1], use_cache=True, cache=answer.cache)
        assert answer.cache == place + 1
        assert (answer.logits[0, 0] - whole[0, place]).abs().max() < 0.01 * scale


def test_too_many_tokens_are_refused(engine):
    made = llamacpp.llamacpp_models(MODELS["gpt2"]().eval(), llamacpp.KINDS, 8, 1, threads=1)
    with pytest.raises(CompressError, match="1 x 60 tokens behind 0, and room for 8"):
        made["Q8_0"](input_ids=torch.zeros(1, 60, dtype=torch.long))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: MODELS["gpt2"](activation_function="relu"), "relu"),
        (lambda: MODELS["llama"](hidden_act="gelu"), "activation"),
        (
            lambda: MODELS["llama"](rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}),
            "positions",
        ),
        (lambda: MODELS["gpt2"](add_cross_attention=True), "no transformer.h.0.crossattention"),
        (
            lambda: BertModel(
                BertConfig(
                    vocab_size=70, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
                )
            ),
            "BertModel",
        ),
    ],
)
def test_what_llamacpp_cannot_compute_is_refused(tmp_path, make, said):
    pytest.importorskip("gguf")
    with pytest.raises(CompressError, match=said):
        llamacpp.write_gguf(make(), tmp_path / "model.gguf")
