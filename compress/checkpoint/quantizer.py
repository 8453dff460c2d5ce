"""The checkpoint format as transformers sees it: a quantization config and the quantizer that places the students.

Importing this module imports transformers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import __version__
from transformers.quantizers.auto import (
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..errors import CheckpointError, SiteError
from ..int8_linear import Int8Linear
from ..sites import Site, base_model, base_model_path, place, to_base
from ..sites.linears import is_linear, widths
from ..students import PackedStudent, Student, build_packed, pack
from .format import METHOD, CheckpointConfig, Placement, public_name
from .rest import stored_tensors
from .weights import check_dtypes, check_files, check_sizes

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LookupQuantizationConfig(QuantizationConfigMixin):
    """`quantization_config` of a compressed checkpoint; its attributes are the keys, unknown ones included."""

    def __init__(self, **values: Any) -> None:
        self.quant_method: Any = METHOD
        self.__dict__.update(values)
        self.checkpoint()  # a newer format, or a damaged one, is refused before anything is loaded

    def checkpoint(self) -> CheckpointConfig:
        """Parse the keys."""
        return CheckpointConfig.from_dict(self.to_dict())


class LookupQuantizer(HfQuantizer):
    """Puts students in their places before the weights are loaded, and tombstones into what is saved."""

    def __init__(self, quantization_config: LookupQuantizationConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.checkpoint = quantization_config.checkpoint()
        self.opened = False  # whether the students are float32 and trainable
        if not self.pre_quantized:
            raise CheckpointError(
                "a model becomes a LookupFFN model by distillation, not while it is loaded",
                where="from_pretrained(quantization_config=...)", remedy="run `compress convert MODEL RECIPE`",
            )  # fmt: skip

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        base = base_model(model)
        files = [str(file) for file in kwargs.get("checkpoint_files") or ()]
        check_files(Path(getattr(model.config, "name_or_path", None) or ""), files)
        for placement in self.checkpoint.sites:
            if problem := _obstacle(base, placement):
                raise self._misplaced(placement, problem)
        for placement in self.checkpoint.sites:
            with torch.device("meta"):
                student = build_packed(placement.geometry, placement.table_dtype, placement.hash_dtype)
            try:
                place(base, placement.entry, placement.identities, student)
            except SiteError as error:
                raise self._misplaced(placement, error.message) from None
        self.checkpoint.int8.place(model)
        _untie_replaced(model)
        if files:
            check_dtypes(model, self.checkpoint, files)
            check_sizes(model, self.checkpoint, files)
        patterns = {rf"(^|\.){re.escape(placement.tombstone)}$" for placement in self.checkpoint.sites}
        model._keys_to_ignore_on_load_unexpected = {*(model._keys_to_ignore_on_load_unexpected or ()), *patterns}
        return model

    def _misplaced(self, placement: Placement, problem: str) -> CheckpointError:
        return CheckpointError(
            f"{placement.name} has no place in this model: {problem}",
            where="config.json, quantization_config.sites",
            remedy="load the checkpoint as the architecture that it was made from, with transformers "
            f"{self.checkpoint.transformers or 'of the version that it was made with'}",
        )

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        base = base_model(model)
        stored = [(each.entry, base.get_submodule(each.entry), each.layout()) for each in self.checkpoint.sites]
        for path in self.checkpoint.int8.paths(model):
            layer = model.get_submodule(path)
            assert isinstance(layer, Int8Linear)
            stored.append((path, layer, layer.layout()))
        missing = []
        for path, module, layout in stored:
            for name, (shape, dtype) in layout.items():
                parameter = module.get_parameter(name)
                parameter.requires_grad_(False)
                _declared_dtype(f"{path}.{name}", parameter, dtype)
                if not getattr(parameter, "_is_hf_initialized", False):  # how transformers marks what it has read
                    missing.append(f"{path}.{name} {list(shape)}")
        if missing:
            raise CheckpointError(
                f"tensors are missing from the checkpoint or have another shape: {', '.join(missing)}",
                where=getattr(model.config, "name_or_path", None) or "the checkpoint's safetensors files",
                remedy="fetch the checkpoint again; `compress verify` names the damaged files",
            )
        return model

    def get_state_dict_and_metadata(self, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Every tensor of the model as it is stored: students packed, tombstones beside them."""
        state = dict(model.state_dict())
        prefix = f"{path}." if (path := base_model_path(model)) else ""
        int8 = self.checkpoint.int8.paths(model)
        own = [*(f"{prefix}{placement.entry}" for placement in self.checkpoint.sites), *int8]
        entries = tuple(f"{path}." for path in own)
        state = _narrowed(
            {name: tensor for name, tensor in state.items() if not name.startswith(entries)}, self.checkpoint.rest_dtype
        )
        for path in int8:
            state |= stored_tensors(model.get_submodule(path), path)
        for placement in self.checkpoint.sites:
            packed = _packed(model.get_submodule(f"{prefix}{placement.entry}"), placement).state_dict()
            for name, (_, dtype) in placement.layout().items():
                state[f"{prefix}{placement.entry}.{name}"] = packed[name].to(dtype)
            # A slice, because empty storages have no address of their own: all would pass for one tied tensor.
            state[f"{prefix}{placement.tombstone}"] = torch.zeros(1)[:0]
        return state, {}

    def is_serializable(self) -> bool:
        """Students are saved in their storage dtypes, whether packed or open."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Gradients flow through packed students, to adapters for instance, though not into them."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Whether the students themselves can be trained."""
        return self.opened

    @property
    def is_compileable(self) -> bool:
        """The student's kernel is a custom op with a fake implementation."""
        return True


def attach(model: nn.Module, checkpoint: CheckpointConfig) -> None:
    """Make a model with packed students what a loaded checkpoint is, so that `save_pretrained` writes the format."""
    config = LookupQuantizationConfig(**checkpoint.to_dict())
    model.hf_quantizer = LookupQuantizer(config, pre_quantized=True)  # type: ignore[assignment]
    model.config.quantization_config = config  # type: ignore[union-attr]
    model.is_quantized, model.quantization_method = True, METHOD  # type: ignore[assignment]


def attach_students(model: PreTrainedModel, sites: Sequence[Site]) -> None:
    """Do the same for a model with trainable float32 students at `sites`, which are stored as they are."""
    placements = []
    for site in sites:
        student = model.get_submodule(site.entry)
        assert isinstance(student, Student)
        site = to_base(model, site)
        placements.append(
            Placement(site.name, site.entry, site.identities, student.geometry, "float32", "float32")
        )  # fmt: skip
    source = getattr(model.config, "name_or_path", None) or type(model).__name__
    attach(model, CheckpointConfig(public_name(source), None, tuple(placements), transformers=__version__))
    model.hf_quantizer.opened = True  # type: ignore[union-attr]


def register() -> None:
    """Tell transformers about the format; a second call does nothing."""
    if AUTO_QUANTIZER_MAPPING.get(METHOD) is not LookupQuantizer:
        register_quantization_config(METHOD)(LookupQuantizationConfig)
        register_quantizer(METHOD)(LookupQuantizer)


def _untie_replaced(model: PreTrainedModel) -> None:
    """Forget which weights of FFNs are those of another layer (Zamba), where either has given way to a student."""
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", {})
    for target, source in list(tied.items()):
        if any(_replaced(model, name) for name in (target, source)):
            del tied[target]


def _replaced(model: nn.Module, name: str) -> bool:
    """Whether the module whose parameter has a name is no longer there, as a student has taken its place."""
    module = model
    for part in name.split(".")[:-1]:
        if isinstance(module, PackedStudent) or not hasattr(module, part):
            return True
        module = getattr(module, part)
    return False


def _obstacle(base: nn.Module, placement: Placement) -> str | None:
    """What speaks against a placement in the dense model: the output linear must be of its width and be replaced."""
    modules = dict(base.named_modules(remove_duplicate=False))
    for path in (placement.name, placement.entry, *placement.identities):
        if path not in modules:
            return f"{type(base).__name__} has no module {path}"
    output = modules[placement.name]
    if not is_linear(output) or widths(output)[1] != placement.geometry.d_out:
        return f"it is no linear layer with {placement.geometry.d_out} outputs"
    if placement.name not in placement.identities and not f"{placement.name}.".startswith(f"{placement.entry}."):
        return f"{placement.entry} does not replace it"
    if whole := [path for path in placement.identities if next(modules[path].children(), None) is not None]:
        return f"{whole[0]} is more than a layer"
    return None


def _declared_dtype(name: str, parameter: nn.Parameter, dtype: torch.dtype) -> None:
    """Undo a harmless widening by transformers (models that keep some modules in float32); refuse anything else."""
    if parameter.dtype == dtype:
        return
    if dtype.is_floating_point and torch.promote_types(parameter.dtype, dtype) == parameter.dtype:
        parameter.data = parameter.data.to(dtype)
        return
    raise CheckpointError(
        f"{name} is {parameter.dtype}, not {dtype} as config.json says", remedy="fetch the checkpoint again"
    )


def _packed(student: nn.Module, placement: Placement) -> PackedStudent:
    if isinstance(student, Student) and student.geometry == placement.geometry:
        return pack(student, placement.table_dtype, placement.hash_dtype)
    if isinstance(student, PackedStudent) and placement.fits(student):
        return student
    raise CheckpointError(
        f"{placement.entry} is not the student that the model's quantization_config describes",
        where=placement.name, remedy="leave the students of a loaded checkpoint in their places, sizes and dtypes",
    )  # fmt: skip


def _narrowed(state: dict[str, Tensor], dtype_name: str | None) -> dict[str, Tensor]:
    """Float32 tensors in a narrower dtype where it holds them exactly; tied tensors stay tied."""
    if dtype_name not in ("bfloat16", "float16"):
        return state
    dtype = getattr(torch, dtype_name)
    done: dict[tuple[Any, ...], Tensor] = {}
    for name, tensor in state.items():
        if tensor.dtype == torch.float32:
            place_in_memory = (tensor.data_ptr(), tensor.shape, tensor.stride())
            if place_in_memory not in done:
                narrow = tensor.to(dtype)
                done[place_in_memory] = narrow if torch.equal(narrow.to(torch.float32), tensor) else tensor
            state[name] = done[place_in_memory]
    return state
