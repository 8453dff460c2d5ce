"""A causal model that remembers: its keys and values are state of the OpenVINO model, and stay inside between calls."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy
import torch
from torch import Tensor, nn

from ..sites import usable_token_ids

if TYPE_CHECKING:
    from openvino import Model
    from transformers import PreTrainedModel

BEAM = "beam_idx"  # the name under which OpenVINO's own clients say whose state each sequence goes on from
_PAST, _NEW = 4, 4  # tokens of the example that is traced; other numbers go through it as well


class Remembered(NamedTuple):
    """Sizes of what a layer keeps of each token."""

    heads: int
    key: int
    value: int


def remembered(model: PreTrainedModel) -> list[Remembered] | None:
    """What each layer of a causal model keeps of a token; None where it is not keys and values of all before it."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    ids = torch.tensor([(usable_token_ids(model.config) * 2)[:2]])
    with torch.no_grad():
        cache = getattr(model(input_ids=ids, use_cache=True), _argument(model), None)
    if type(cache) is not DynamicCache or not all(isinstance(layer, DynamicLayer) for layer in cache.layers):
        return None
    layers: list[Any] = cache.layers
    kept = [(layer.keys, layer.values) for layer in layers]
    if not all(isinstance(part, Tensor) and part.shape[::2] == (1, 2) for pair in kept for part in pair):
        return None
    return [Remembered(key.shape[1], key.shape[3], value.shape[3]) for key, value in kept]


class Stepwise(nn.Module):
    """A causal model whose cache comes as arguments and goes as answers, as tracing needs it.

    Arguments: those of `names`, then keys [B, heads, P, d] and values of each layer. Answers: logits, then keys and
    values [B, heads, P + T, d].
    """

    def __init__(self, model: PreTrainedModel, layers: Sequence[Remembered]) -> None:
        super().__init__()
        self.model, self.layers = model, layers
        accepted = inspect.signature(model.forward).parameters
        self.names = [name for name in ("input_ids", "attention_mask", "position_ids") if name in accepted]

    def example(self) -> tuple[Tensor, ...]:
        """Arguments to trace with: two sequences, one of them padded on the left."""
        ids = torch.tensor((usable_token_ids(self.model.config) * 2 * _NEW)[: 2 * _NEW]).reshape(2, _NEW)
        mask = torch.ones(2, _PAST + _NEW, dtype=torch.long)
        mask[1, :2] = 0
        values = {"input_ids": ids, "attention_mask": mask, "position_ids": positions(mask, _NEW)}
        past = [
            torch.randn(2, layer.heads, _PAST, width) for layer in self.layers for width in (layer.key, layer.value)
        ]
        return (*(values[name] for name in self.names), *past)

    def forward(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        """Read some tokens behind those in the cache."""
        from transformers.cache_utils import DynamicCache, DynamicLayer

        own, past = arguments[: len(self.names)], arguments[len(self.names) :]
        # Every layer keeps all that came before, also where it looks at a window: what it does not see is masked.
        cache, layers = DynamicCache(), list[Any]()
        for key, value in zip(past[::2], past[1::2], strict=True):
            layer = DynamicLayer()
            layer.lazy_initialization(key, value)
            layer.keys, layer.values = key, value
            layers.append(layer)
        cache.layers.extend(layers)
        given = dict(zip(self.names, own, strict=True))
        logits = self.model(**given, use_cache=True, **{_argument(self.model): cache}).logits
        return (logits, *(part for layer in layers for part in (layer.keys, layer.values)))


def make_stateful(model: Model, step: Stepwise) -> None:
    """Turn the cache of a converted `Stepwise` into state, with an input `beam_idx` [B] that chooses whose.

    State of a new sequence is empty; `request.reset_state()` begins one.
    """
    import openvino
    from openvino._offline_transformations import apply_make_stateful_transformation
    from openvino.opset13 import broadcast, concat, constant, gather, parameter, shape_of

    for port, name in zip(model.inputs, step.names, strict=False):
        port.get_tensor().set_names({name})
    model.outputs[0].get_tensor().set_names({"logits"})
    past, present = model.inputs[len(step.names) :], model.outputs[1:]
    kept = {f"past.{i}": f"present.{i}" for i in range(len(past))}
    for before, after, (old, new) in zip(past, present, kept.items(), strict=True):
        before.get_tensor().set_names({old})
        after.get_tensor().set_names({new})
    beam = parameter([-1], numpy.int32, name=BEAM)
    beam.output(0).get_tensor().set_names({BEAM})
    model.add_parameters([beam])
    for port in past:
        readers = port.get_target_inputs()
        chosen = gather(port.get_node(), beam, constant(0))
        for reader in readers:
            reader.replace_source_output(chosen.output(0))
    model.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(model, kept)
    batch = gather(shape_of(model.input("input_ids").get_node()), constant([0]), constant(0))
    widths = [(layer.heads, width) for layer in step.layers for width in (layer.key, layer.value)]
    shapes = {
        old: concat([batch, constant([heads, 0, width])], 0) for old, (heads, width) in zip(kept, widths, strict=True)
    }
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            old = next(name for name in shapes if node.get_variable_id().startswith(f"{name}present"))
            node.set_arguments([broadcast(constant(0.0, dtype=openvino.Type.f32), shapes[old])])
    model.validate_nodes_and_infer_types()


def step_error(model: nn.Module, ids: Tensor) -> float:
    """Difference between the logits of the last tokens of ids [B, T] read one by one and in one pass, over their norm.

    model: a compiled one with state.
    """
    whole = model(input_ids=ids)["logits"]
    answer = model(input_ids=ids[:, :-2])
    for token in ids[:, -2:].split(1, dim=1):
        answer = model(input_ids=token, cache=answer.cache)
    last = whole[:, -1:]
    return float((answer["logits"] - last).norm() / last.norm())


def positions(mask: Tensor, tokens: int) -> Tensor:
    """Positions [B, T] of the last tokens of a mask [B, P + T], as transformers' generation counts: without padding."""
    return (mask.cumsum(1) - 1).clamp_min(0)[:, mask.shape[1] - tokens :]


def _argument(model: nn.Module) -> str:
    """The name of the cache among a model's arguments, and in its answer: transformers 5.24 gave it a new one."""
    accepted = inspect.signature(model.forward).parameters
    return "cache" if "cache" in accepted else "past_key_values"
