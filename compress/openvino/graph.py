"""A PyTorch model as an OpenVINO one, every student in it an operation of the extension; the rest perhaps in int8."""

from __future__ import annotations

import inspect
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor, nn

from .. import kernels
from ..errors import KernelError, ModelError
from ..lookup import PackedLookupFFN
from ..models import Pretrained
from ..quiet import silent_transformers
from .cached import BEAM, Remembered, Stepwise, make_stateful, positions, remembered
from .library import openvino

if TYPE_CHECKING:
    from openvino import Model

# Full precision for what is not quantised, keys and values included, so that answers are those of PyTorch.
_SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "PERFORMANCE_HINT": "LATENCY"}
LAYOUT_VERSION = 3  # of the kernel's buffers; kernels/openvino.cpp reads this one
_UNFOLDED = "lookup_ffn_unfolded"  # marks operations whose buffers must stay constants; kernels/openvino.cpp reads it
_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "pixel_values")


def to_openvino(pretrained: Pretrained, library: Path) -> Model:
    """Trace a model, dense or compressed, its students becoming operations of the extension; its outputs keep names.

    Causal models keep keys and values as state (`make_stateful`), where theirs can be kept so. Raises ModelError where
    the model's kind of input is not known or a student is not met.
    """
    from openvino.frontend.pytorch import ConversionExtension, ModuleExtension
    from openvino.opset13 import constant
    from openvino.utils.node_factory import NodeFactory

    model = pretrained.model
    students = [module for module in model.modules() if isinstance(module, PackedLookupFFN)]
    factory = NodeFactory()
    factory.add_extension(str(library))

    met: set[int] = set()

    def traced(module: nn.Module, operation: Any, x: Tensor) -> Any:
        number = next(i for i, student in enumerate(students) if student is module)
        met.add(number)
        return operation(x, torch.tensor(number))

    def shape_only(module: PackedLookupFFN, x: Tensor, number: Tensor) -> Tensor:
        return torch.zeros(*x.shape[:-1], module.geometry.d_out)

    def operation(context: Any) -> Any:
        student = students[int(context.get_values_from_const_input(1))]
        buffers, settings = kernels.prepare(student, student.geometry, student.input_bits)
        constants = [constant(buffer.numpy(), dtype=numpy.uint8).output(0) for buffer in buffers]
        attributes = {"settings": list(settings), "layout_version": LAYOUT_VERSION}
        node = factory.create("LookupFFN", [context.get_input(0), *constants], attributes)
        node.get_rt_info()[_UNFOLDED] = True
        return node.outputs()

    extensions = [
        ModuleExtension(PackedLookupFFN, "LookupFFN", convert=traced, evaluate=shape_only),
        ConversionExtension("LookupFFN", operation),
    ]
    with quiet(), _uncached(model), _as_they_were(students):
        layers = kept_state(pretrained)
        if layers is None:
            made = openvino().convert_model(model, example_input=trace_arguments(pretrained), extension=extensions)
        else:
            step = Stepwise(model, layers)
            made = openvino().convert_model(step, example_input=step.example(), extension=extensions)
            make_stateful(made, step)
    if len(met) != len(students):
        raise ModelError(
            f"tracing met {len(met)} of {len(students)} students", where=type(model).__name__,
            remedy="run the checkpoint with PyTorch: compress run, compress.load",
        )  # fmt: skip
    return made


def kept_state(pretrained: Pretrained) -> list[Remembered] | None:
    """What each layer keeps of a token in the exported model's state; None where it has none."""
    return remembered(pretrained.model) if pretrained.task == "causal" else None


@contextmanager
def _uncached(model: Any) -> Iterator[None]:
    before = getattr(model.config, "use_cache", None)
    model.config.use_cache = False
    try:
        yield
    finally:
        model.config.use_cache = before


@contextmanager
def _as_they_were(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Take back what tracing leaves in modules that an extension stands for: another forward."""
    before = [dict(vars(module)) for module in modules]
    try:
        yield
    finally:
        for module, attributes in zip(modules, before, strict=True):
            vars(module).clear()
            vars(module).update(attributes)


def trace_arguments(pretrained: Pretrained) -> dict[str, Tensor]:
    """Arguments to trace with: what the processor gives and the model takes, some of it padding."""
    model, processor = pretrained.model, pretrained.processor
    accepted = inspect.signature(model.forward).parameters
    if model.main_input_name == "pixel_values":
        from ..sites import example_inputs

        return example_inputs(model)
    given = getattr(processor, "model_input_names", None) or ("input_ids", "attention_mask")
    names = [name for name in _INPUTS if name in given and name in accepted]
    if "input_ids" not in names:
        raise ModelError(
            f"models that read {model.main_input_name} cannot be exported yet", where=type(model).__name__,
            remedy="run the checkpoint with PyTorch: compress run, compress.load",
        )  # fmt: skip
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3])
    values = {"input_ids": 5 + 2 * mask.cumsum(1), "attention_mask": mask, "token_type_ids": torch.zeros_like(mask)}
    return {name: values[name] for name in names}


def quantised(model: Model, batches: Sequence[dict[str, Tensor]]) -> Model:
    """Quantise all but the students with nncf, attention too, ranges taken from batches of the model's arguments.

    Raises KernelError where nncf is missing.
    """
    nncf = import_nncf()
    names = [port.any_name for port in model.inputs]
    data = nncf.Dataset(list(batches), lambda batch: arguments(batch, names))
    with quiet():
        return nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(batches))


def weights_quantised(model: Model) -> Model:
    """Round the matrices of all but the students to 8 bits with nncf, a scale an output.

    OpenVINO rounds what they are applied to while it runs, where that pays, and attention stays as it is, fused with
    the keys and values in the model's state. Raises KernelError where nncf is missing.
    """
    nncf = import_nncf()
    with quiet():
        return nncf.compress_weights(model.clone(), mode=nncf.CompressWeightsMode.INT8_SYM)


def arguments(batch: Mapping[str, Tensor], names: Sequence[str], past: int = 0) -> dict[str, Any]:
    """The inputs of a model by name, as arrays; what a batch leaves out is that of sequences without padding.

    past: tokens whose keys and values are in the model's state.
    """
    values = dict(batch)
    if (ids := values.get("input_ids")) is not None:
        if "attention_mask" not in values:
            values["attention_mask"] = torch.ones(ids.shape[0], past + ids.shape[1], dtype=torch.long)
        missing = set(names) - values.keys()
        if "token_type_ids" in missing:
            values["token_type_ids"] = torch.zeros_like(ids)
        if "position_ids" in missing:
            values["position_ids"] = positions(values["attention_mask"], ids.shape[1])
        if BEAM in missing:
            values[BEAM] = torch.arange(ids.shape[0], dtype=torch.int32)
    return {name: values[name].numpy() for name in names}


def import_nncf() -> Any:
    """The package nncf, which quantises OpenVINO models. Raises KernelError where it is not installed."""
    try:
        import nncf
    except ImportError:
        raise KernelError(
            "nncf, which quantises OpenVINO models, is not installed", where="--rest int8",
            remedy="pip install 'compress-lookup[openvino]'",
        ) from None  # fmt: skip
    nncf.set_log_level(logging.ERROR)
    return nncf


class Answer(dict[str, Tensor]):
    """Named tensors, and how many tokens the model's state holds now."""

    cache: int | None = None


class Compiled(nn.Module):
    """A model compiled for the CPU, called as its PyTorch original is: keyword tensors -> named tensors.

    One that keeps keys and values goes on where it was when it is given the `cache` of its last answer.
    """

    def __init__(self, core: Any, model: Model | str, **settings: Any) -> None:
        super().__init__()
        self.where = nn.Parameter(torch.empty(0), requires_grad=False)
        if not isinstance(model, str):
            model = model.clone()
            for node in model.get_ops():
                if _UNFOLDED in node.get_rt_info():
                    del node.get_rt_info()[_UNFOLDED]
        settings = {**_SETTINGS, **settings}
        self.request = core.compile_model(model, "CPU", settings).create_infer_request()
        self.names = [port.any_name for port in self.request.model_inputs]
        self.stateful = BEAM in self.names

    def forward(
        self, return_dict: bool = True, use_cache: bool = False, cache: int | None = None, **batch: Tensor
    ) -> Answer:
        """Answer a batch; what it leaves out is that of sequences without padding. cache: tokens in the state."""
        if self.stateful and cache is None:
            self.request.reset_state()
        answers = self.request.infer(arguments(batch, self.names, cache or 0), share_inputs=True)
        made = Answer({name: torch.from_numpy(value) for port, value in answers.items() for name in port.names})
        if self.stateful:
            made.cache = (cache or 0) + batch["input_ids"].shape[1]
        return made


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what tracing says of code that looks at shapes, and keep progress bars out of standard output."""
    with warnings.catch_warnings(), silent_transformers(), redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        yield
