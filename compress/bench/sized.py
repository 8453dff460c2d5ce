"""Models of well-known sizes with random weights, dense and compressed: speed needs no download."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import CompressError
from ..models import Pretrained
from ..plan import dense_geometry
from ..quiet import silent_transformers
from ..sites import find_sites, swap
from ..tasks import task_named
from .layers import random_students
from .stacks import student_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Architecture, and what differs from the defaults of its config.
_SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", {}),
    "llama-1b": (
        "LlamaForCausalLM",
        {
            "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 4096,
            "tie_word_embeddings": True,
        },
    ),
    "bert-base": ("BertModel", {}),
    "minilm": (
        "BertModel",
        {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 12},
    ),
}  # fmt: skip
SIZES = tuple(_SIZES)


def sized_pair(name: str, budget: float) -> tuple[Pretrained, Pretrained]:
    """A dense model of the sizes of `name`, and one with int4 students of cost `budget` that shares its other weights.

    Raises CompressError for a name that is not one of SIZES, and where no student fits the budget.
    """
    if name not in _SIZES:
        raise CompressError(
            f"no sizes are known of {name}", where="--config", remedy=f"choose one of {', '.join(SIZES)}"
        )
    dense = _dense(name)
    compressed = sharing_copy(dense)
    sites = find_sites(compressed)
    geometry = student_of(dense_geometry(sites[0]), budget)  # the layers of all these are alike
    for site, student in zip(sites, random_students(geometry, len(sites), "int4", "w8a8"), strict=True):
        swap(compressed, site, student)
    return _pretrained(name, dense), _pretrained(name, compressed)


def sharing_copy(model: nn.Module) -> Any:
    """A copy whose parameters and buffers are the model's own."""
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def _dense(name: str) -> PreTrainedModel:
    import transformers

    architecture, sizes = _SIZES[name]
    kind = getattr(transformers, architecture)
    with silent_transformers(), torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        model: PreTrainedModel = kind(kind.config_class(**sizes, architectures=[architecture])).eval()
    return model


def _pretrained(name: str, model: PreTrainedModel) -> Pretrained:
    task = task_named(_SIZES[name][0], model.config)
    assert task is not None
    return Pretrained(model, None, task, name, None, Path())
