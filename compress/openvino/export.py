"""Export: a compressed checkpoint as an OpenVINO model in which every student is one operation `LookupFFN`."""

from __future__ import annotations

import inspect
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy
import torch
from torch import Tensor, nn

from .. import kernels
from ..checkpoint import read_config, verify_outputs
from ..checkpoint.side_files import SOURCE_README_FILE, copy_side_files
from ..data import EvalData
from ..errors import CheckpointError, CompressError, KernelError, ModelError
from ..evaluate.evaluation import checkpoint_data
from ..lookup import PackedLookupFFN
from ..models import Pretrained, load_pretrained
from .library import extension, openvino

if TYPE_CHECKING:
    from openvino import Model

Rest = Literal["float32", "int8"]

MODEL_FILE = "openvino_model.xml"
LAYOUT_VERSION = 1  # of the kernel's buffers; kernels/openvino.cpp reads this one
CALIBRATION_EXAMPLES = 300
_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "pixel_values")


def export(
    checkpoint: Path | str, out: Path | str, *, rest: Rest = "float32", data: str | None = None,
    trust_remote_code: bool = False,
) -> None:  # fmt: skip
    """Write a checkpoint as an OpenVINO folder: `openvino_model.xml`, its weights, tokenizer, config and a card.

    rest: what everything but the students is computed in; "int8" quantises it with nncf, ranges taken from `data`, a
    path or `hub:NAME`, by default what the recipe evaluates on.
    Causal models come without a cache of keys and values. OUT appears whole or not at all. Raises KernelError where
    OpenVINO, nncf or a compiler is missing, CheckpointError where the folder is no checkpoint or the exported model
    does not answer as it does, CompressError where `out` exists.
    """
    folder, target = Path(checkpoint), Path(out)
    read_config(folder)
    if target.exists():
        raise CompressError("the output folder exists", where=str(target), remedy="choose another folder with -o")
    library = extension()
    nncf = _nncf() if rest == "int8" else None
    pretrained = load_pretrained(str(folder), trust_remote_code=trust_remote_code)
    examples = checkpoint_data(folder, data, pretrained) if nncf is not None else None
    core = openvino().Core()
    core.add_extension(str(library))
    with _quiet():
        model = _converted(pretrained, library)
    problems = verify_outputs(folder, Compiled(core, model))
    if problems:
        raise CheckpointError(
            "the exported model does not answer as the checkpoint does: " + "; ".join(each.what for each in problems),
            where=str(folder), remedy="report this with the versions of transformers and openvino",
        )  # fmt: skip
    if examples is not None:
        model = _quantised(nncf, model, examples)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as made:
        _write(Path(made) / "out", folder, model, rest)
        os.replace(Path(made) / "out", target)


class Compiled(nn.Module):
    """A model compiled for the CPU, called as its PyTorch original is: keyword tensors -> named tensors."""

    def __init__(self, core: Any, model: Model | str, **settings: Any) -> None:
        super().__init__()
        self.where = nn.Parameter(torch.empty(0), requires_grad=False)
        settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", **settings}
        self.request = core.compile_model(model, "CPU", settings).create_infer_request()
        self.names = [port.any_name for port in self.request.model_inputs]

    def forward(self, return_dict: bool = True, **batch: Tensor) -> dict[str, Tensor]:
        """Answer a batch; a mask or token types that it leaves out are ones or zeros."""
        given: dict[str, Any] = {}
        for name in self.names:
            value = batch.get(name)
            if value is None:
                value = (torch.ones_like if name == "attention_mask" else torch.zeros_like)(batch["input_ids"])
            given[name] = value.numpy()
        answers = self.request.infer(given)
        return {name: torch.from_numpy(value) for port, value in answers.items() for name in port.names}


def _nncf() -> Any:
    try:
        import nncf
    except ImportError:
        raise KernelError(
            "nncf, which quantises OpenVINO models, is not installed", where="--rest int8",
            remedy="pip install 'compress-lookup[openvino]'",
        ) from None  # fmt: skip
    nncf.set_log_level(logging.ERROR)
    return nncf


def _converted(pretrained: Pretrained, library: Path) -> Model:
    """Trace the model, its students becoming operations of the extension, and name its outputs."""
    from openvino.frontend.pytorch import ConversionExtension, ModuleExtension
    from openvino.opset13 import constant
    from openvino.utils.node_factory import NodeFactory

    model = pretrained.model
    students = [module for module in model.modules() if isinstance(module, PackedLookupFFN)]
    factory = NodeFactory()
    factory.add_extension(str(library))

    def traced(module: nn.Module, operation: Any, x: Tensor) -> Any:
        number = next(i for i, student in enumerate(students) if student is module)
        return operation(x, torch.tensor(number))

    def shape_only(module: PackedLookupFFN, x: Tensor, number: Tensor) -> Tensor:
        return torch.zeros(*x.shape[:-1], module.geometry.d_out)

    def operation(context: Any) -> Any:
        student = students[int(context.get_values_from_const_input(1))]
        buffers, settings = kernels.prepare(student, student.geometry)
        constants = [constant(buffer.numpy(), dtype=numpy.uint8).output(0) for buffer in buffers]
        attributes = {"settings": list(settings), "layout_version": LAYOUT_VERSION}
        return factory.create("LookupFFN", [context.get_input(0), *constants], attributes).outputs()

    model.config.use_cache = False
    made = openvino().convert_model(
        model, example_input=_example(pretrained),
        extension=[
            ModuleExtension(PackedLookupFFN, "LookupFFN", convert=traced, evaluate=shape_only),
            ConversionExtension("LookupFFN", operation),
        ],
    )  # fmt: skip
    found = sum(node.get_type_name() == "LookupFFN" for node in made.get_ops())
    if found != len(students):
        raise ModelError(
            f"tracing met {found} of {len(students)} students", where=type(model).__name__,
            remedy="run the checkpoint with PyTorch: compress run, compress.load",
        )  # fmt: skip
    return made


def _example(pretrained: Pretrained) -> dict[str, Tensor]:
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


def _quantised(nncf: Any, model: Model, data: EvalData) -> Model:
    """Quantise all but the students on examples of the data, one after another."""
    names = [port.any_name for port in model.inputs]
    count = min(CALIBRATION_EXAMPLES, len(data))
    chosen = data.rows[numpy.arange(count) * len(data) // count]

    def arguments(row: int) -> dict[str, Any]:
        batch: Mapping[str, Tensor] = data.examples.collate(numpy.asarray([row]), None)
        fill = {"attention_mask": torch.ones_like, "token_type_ids": torch.zeros_like}
        return {name: (batch[name] if name in batch else fill[name](batch["input_ids"])).numpy() for name in names}

    with _quiet():
        return nncf.quantize(
            model, nncf.Dataset(list(chosen), arguments), model_type=nncf.ModelType.TRANSFORMER, subset_size=count
        )


def _write(folder: Path, checkpoint: Path, model: Model, rest: Rest) -> None:
    folder.mkdir()
    copy_side_files(checkpoint, folder)
    if (licence := checkpoint / SOURCE_README_FILE).is_file():
        shutil.copyfile(licence, folder / SOURCE_README_FILE)
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    config.pop("quantization_config")  # transformers' own loaders find no weights here
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    openvino().save_model(model, folder / MODEL_FILE, compress_to_fp16=False)
    (folder / "README.md").write_text(_card(checkpoint, rest), encoding="utf-8")


def _card(checkpoint: Path, rest: Rest) -> str:
    source = read_config(checkpoint).source
    return f"""# {source} with LookupFFN, for OpenVINO

Made by `compress export` from a compressed checkpoint of {source}; its feed-forward networks are table look-ups, one
operation `LookupFFN` each, and the rest computes in {rest}. Needs `pip install 'compress-lookup[openvino]'` and a C++
compiler, with which the operation is built once for the OpenVINO that is installed.

```python
import compress.openvino, openvino
core = openvino.Core()
core.add_extension(str(compress.openvino.extension()))
model = core.compile_model("{MODEL_FILE}", "CPU")
```
"""


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what tracing says of code that looks at shapes; what was traced is compared with the checkpoint."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
