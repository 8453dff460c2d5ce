"""Causal language models in llama.cpp, where llama-cpp-python is installed: the dense model in Q8_0 and Q4_0."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import CompressError

KINDS = {"Q8_0": 7, "Q4_0": 2}  # llama.cpp's numbers of these file types
_FLOAT32 = 0  # likewise


def llamacpp_models(
    model: Any, kinds: Mapping[str, int], context: int, sequences: int, threads: int
) -> dict[str, LlamaCpp]:
    """Rewrite a dense GPT-2 or Llama in each kind of numbers, for at most `context` tokens of so many sequences.

    Raises CompressError for another architecture, or a setting that llama.cpp's has no place for.
    """
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "float32.gguf"
        write_gguf(model, plain)
        return {
            name: LlamaCpp(_quantised(plain, kind, threads), context, sequences, threads)
            for name, kind in kinds.items()
        }


class LlamaCpp(nn.Module):
    """A model in llama.cpp, called as its PyTorch original is: input_ids [B, T] -> logits [B, T, vocabulary].

    Keys and values of one sequence are kept: it goes on where it was when it is given the `cache` of its last answer.
    The logits are a view, valid until the next call.
    """

    def __init__(self, path: Path, context: int, sequences: int, threads: int) -> None:
        super().__init__()
        self.library, self.limit = _library(), context
        library = self.library
        settings = library.llama_model_default_params()
        settings.use_mmap = False  # the file goes away
        self.model = library.llama_model_load_from_file(str(path).encode(), settings)
        if not self.model:
            raise CompressError(
                f"llama.cpp does not load {path.name}", where="llama.cpp", remedy="leave it out: --only"
            )
        context_settings = library.llama_context_default_params()
        context_settings.n_ctx = context_settings.n_batch = context_settings.n_ubatch = context
        context_settings.n_seq_max, context_settings.kv_unified = sequences, True
        context_settings.n_threads = context_settings.n_threads_batch = threads
        self.context = library.llama_init_from_model(self.model, context_settings)
        if not self.context:
            raise CompressError(
                f"llama.cpp has no memory for {context} tokens", where="llama.cpp", remedy="leave it out: --only"
            )
        self.vocabulary = library.llama_vocab_n_tokens(library.llama_model_get_vocab(self.model))

    def __del__(self) -> None:
        if getattr(self, "context", None):
            self.library.llama_free(self.context)
        if getattr(self, "model", None):
            self.library.llama_model_free(self.model)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, use_cache: bool = False, cache: int | None = None
    ) -> Answer:
        """Answer sequences without padding, all positions of them. cache: tokens of the one sequence read before."""
        library = self.library
        sequences, tokens = input_ids.shape
        if sequences * tokens + (cache or 0) > self.limit:  # llama.cpp would end the process
            raise CompressError(
                f"{sequences} x {tokens} tokens behind {cache or 0}, and room for {self.limit}", where="llama.cpp",
                remedy="make it with a larger context",
            )  # fmt: skip
        if cache is None:
            library.llama_memory_clear(library.llama_get_memory(self.context), False)
        batch = library.llama_batch_init(sequences * tokens, 0, 1)
        try:
            batch.n_tokens = sequences * tokens
            for i, token in enumerate(input_ids.flatten().tolist()):
                batch.token[i], batch.pos[i] = token, (cache or 0) + i % tokens
                batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, i // tokens, 1
            if status := library.llama_decode(self.context, batch):
                raise CompressError(
                    f"llama.cpp failed with {status} on {sequences} x {tokens} tokens", where="llama.cpp",
                    remedy="leave it out: --only",
                )  # fmt: skip
        finally:
            library.llama_batch_free(batch)
        logits = np.ctypeslib.as_array(
            library.llama_get_logits(self.context), shape=(sequences, tokens, self.vocabulary)
        )
        return Answer(torch.from_numpy(logits), (cache or 0) + tokens)


class Answer:
    """Logits, and how many tokens of the sequence have been read."""

    def __init__(self, logits: Tensor, cache: int) -> None:
        self.logits, self.cache = logits, cache


def write_gguf(model: Any, path: Path) -> None:
    """Write a GPT-2 or Llama in float32 for llama.cpp, without its vocabulary.

    Raises CompressError for another architecture, or a setting that llama.cpp's has no place for.
    """
    import gguf

    name = type(model).__name__
    if name not in _WRITERS:
        raise CompressError(f"{name} is not written for llama.cpp here", where="llama.cpp", remedy="use GPT-2 or Llama")
    architecture, describe, turned = _WRITERS[name]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_file_type(_FLOAT32)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(model.config.vocab_size)
    describe(writer, model.config)
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    for key, parameter in model.named_parameters():  # a head that is tied is not among them, nor need it be
        target = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise CompressError(f"llama.cpp's {architecture} has no {key}", where="llama.cpp", remedy="leave it out")
        writer.add_tensor(target, turned(key, parameter.detach().float(), model.config).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gpt2(writer: Any, config: Any) -> None:
    if config.activation_function != "gelu_new":
        raise CompressError(
            f"llama.cpp's GPT-2 has no {config.activation_function}", where="llama.cpp", remedy="leave it out"
        )
    writer.add_block_count(config.n_layer)
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


def _gpt2_tensor(key: str, value: Tensor, config: Any) -> Tensor:
    return value.T if ".c_" in key and key.endswith(".weight") else value  # Conv1D


def _llama(writer: Any, config: Any) -> None:
    rope = config.rope_parameters
    if rope.get("rope_type", "default") != "default" or config.hidden_act != "silu":
        raise CompressError(
            "positions or activation that are not written for llama.cpp here", where="llama.cpp", remedy="leave it out"
        )
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _llama_tensor(key: str, value: Tensor, config: Any) -> Tensor:
    """Queries and keys: the halves that are rotated together stand side by side in llama.cpp."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(key.split(".")[-2])
    if heads is None:
        return value
    return value.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


# By class: llama.cpp's name of the architecture, its settings, and what becomes of a parameter.
_WRITERS: dict[str, tuple[str, Callable[[Any, Any], None], Callable[[str, Tensor, Any], Tensor]]] = {
    "GPT2LMHeadModel": ("gpt2", _gpt2, _gpt2_tensor),
    "LlamaForCausalLM": ("llama", _llama, _llama_tensor),
}


def _quantised(path: Path, kind: int, threads: int) -> Path:
    library = _library()
    settings = library.llama_model_quantize_default_params()
    settings.ftype, settings.nthread = kind, threads
    target = path.with_name(f"{kind}.gguf")
    if library.llama_model_quantize(str(path).encode(), str(target).encode(), ctypes.byref(settings)):
        raise CompressError("llama.cpp cannot quantise this model", where="llama.cpp", remedy="leave it out")
    return target


def _library() -> Any:
    from llama_cpp import llama_cpp

    llama_cpp.llama_backend_init()
    llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))
    return llama_cpp


_SILENT = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda level, text, data: None)
