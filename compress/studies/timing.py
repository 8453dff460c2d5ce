"""CPU time of a model's FFNs and of the whole model, beside the dense reference in the same process."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..baselines.vanilla import VanillaFFN
from ..dense import DenseWeights
from ..evaluate import variants
from ..evaluate.contestants import Contestant, FFNs, WholeModel
from ..evaluate.inputs import RowPool
from ..evaluate.latency import interleave
from ..lookup import LookupFFN, pack
from .settings import TimingSettings

OWN, REFERENCE, INT8 = "", "reference_", "int8_"
_RECORDED = 16  # blocks


def measure_times(
    model: nn.Module, names: Sequence[str], reference: nn.Module, blocks: Tensor, settings: TimingSettings
) -> dict[str, float]:
    """Microseconds a token, keys `[reference_|int8_]{ffn,model}_us_{batch}`, and `..._relative_{batch}`.

    Both models are on the CPU and have their FFNs at `names`; blocks [n, L] are real inputs. Medians of interleaved
    passes in float32. A LookupFFN runs as it is used: packed, by the kernel, in float32 and (int8_) with int8 tables
    and hash. int8_reference_: the reference's FFNs in torch's dynamic int8.
    `relative` is the time over the reference's in the same width.
    """
    models = {OWN: model.eval(), REFERENCE: reference.eval()}
    inputs = {key: recorded_inputs(one, names, blocks) for key, one in models.items()}
    ffns = {key: [one.get_submodule(name) for name in names] for key, one in models.items()}
    ffns[INT8 + REFERENCE] = [variants.int8(_plain(module)) for module in ffns[REFERENCE]]
    if any(isinstance(module, LookupFFN) for module in ffns[OWN]):
        for key, dtype in ((OWN, "float32"), (INT8, "int8")):
            models[key] = packed(model, names, dtype)
            ffns[key] = [models[key].get_submodule(name) for name in names]
    pool = RowPool("input_ids", blocks)
    values: dict[str, float] = {}
    for batch in settings.batches:
        tokens = batch * blocks.shape[1]
        scopes: dict[str, Mapping[str, Contestant]] = {
            "ffn": {
                key: FFNs(own, inputs[REFERENCE if REFERENCE in key else OWN], [tokens] * len(names), torch.float32)
                for key, own in ffns.items()
            },
            "model": {key: WholeModel(one, pool, batch, torch.float32) for key, one in models.items()},
        }
        for scope, contestants in scopes.items():
            seconds, _ = interleave(contestants, settings.seconds)
            for key, taken in seconds.items():
                values[f"{key}{scope}_us_{batch}"] = taken / tokens * 1e6
            values[f"{scope}_relative_{batch}"] = seconds[OWN] / seconds[REFERENCE]
            if INT8 in seconds and INT8 + REFERENCE in seconds:
                values[f"int8_{scope}_relative_{batch}"] = seconds[INT8] / seconds[INT8 + REFERENCE]
    return values


def packed(model: nn.Module, names: Sequence[str], dtype: Any) -> nn.Module:
    """A copy with its LookupFFNs packed."""
    made = copy.deepcopy(model)
    for name in names:
        ffn = made.get_submodule(name)
        assert isinstance(ffn, LookupFFN)
        made.set_submodule(name, pack(ffn, dtype, dtype))
    return made


def _plain(module: nn.Module) -> nn.Module:
    assert isinstance(module, VanillaFFN)
    weights = DenseWeights(
        module.gate.weight, module.gate.bias, None, None, module.down.t().contiguous(), module.bias
    )  # fmt: skip
    return variants.DenseFFN(weights, module.activation)


@torch.no_grad()
def recorded_inputs(model: nn.Module, names: Sequence[str], blocks: Tensor) -> list[Tensor]:
    """What reaches each FFN: [N, d_in] each."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            found[name] = arguments[0].detach().reshape(-1, arguments[0].shape[-1])

        return hook

    handles = [model.get_submodule(name).register_forward_pre_hook(keep(name)) for name in names]
    try:
        model.base_model(input_ids=blocks[:_RECORDED])  # type: ignore[operator]
    finally:
        for handle in handles:
            handle.remove()
    return [found[name] for name in names]
