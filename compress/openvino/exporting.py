"""Export: a compressed checkpoint as an OpenVINO model in which every student is one operation `LookupFFN`."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
from torch import Tensor

from ..checkpoint import open_rest, read_config, verify_outputs
from ..checkpoint.side_files import SOURCE_README_FILE, copy_side_files
from ..data import EvalData
from ..errors import CheckpointError, CompressError
from ..evaluate.evaluation import checkpoint_data
from ..hub import local_folder
from ..models import load_pretrained
from .cached import step_error
from .graph import Compiled, import_nncf, kept_state, quantised, to_openvino, trace_arguments, weights_quantised
from .library import extension, openvino

if TYPE_CHECKING:
    from openvino import Model

RESTS = ("float32", "int8")
MODEL_FILE = "openvino_model.xml"
CALIBRATION_EXAMPLES = 300
_TOLERANCE = 1e-3  # of the norm, between answers token by token and in one pass


def export(
    checkpoint: Path | str, out: Path | str, *, rest: str = "float32", data: str | None = None,
    trust_remote_code: bool = False, tell: Callable[[str], None] = lambda line: None,
) -> None:  # fmt: skip
    """Write a checkpoint as an OpenVINO folder: `openvino_model.xml`, its weights, tokenizer, config and a card.

    checkpoint: a folder or a hub id.
    rest: what everything but the students is computed in; "int8" quantises it with nncf, ranges taken from `data`, a
    path or `hub:NAME`, by default what the recipe evaluates on.
    Causal models keep keys and values as state; `tell` is told of one that cannot. Of one that can, "int8" rounds the
    matrices alone, without data. OUT appears whole or not at all.
    Raises KernelError where OpenVINO, nncf or a compiler is missing, CheckpointError where the folder is no checkpoint
    or the exported model does not answer as it does, CompressError for an unknown `rest` and where `out` exists.
    """
    if rest not in RESTS:
        raise CompressError(f"unknown dtype {rest!r}", where="rest", remedy=f"choose one of {', '.join(RESTS)}")
    folder, target = local_folder(str(checkpoint))[0], Path(out)
    read_config(folder)
    if target.exists():
        raise CompressError("the output folder exists", where=str(target), remedy="choose another folder with -o")
    target.parent.mkdir(parents=True, exist_ok=True)  # now: what follows takes minutes
    library = extension()
    if rest == "int8":
        import_nncf()
    pretrained = load_pretrained(str(folder), trust_remote_code=trust_remote_code)
    open_rest(pretrained.model)  # nncf rounds by what passes through
    generates = kept_state(pretrained) is not None
    ranges = rest == "int8" and not generates
    if data is not None and not ranges:
        tell("no ranges are taken from data here: it is not read")
    examples = checkpoint_data(folder, data, pretrained) if ranges else None
    core = openvino().Core()
    core.add_extension(str(library))
    model = to_openvino(pretrained, library)
    compiled = Compiled(core, model)
    problems = [each.what for each in verify_outputs(folder, compiled, like=pretrained.model)]
    if generates and (error := step_error(compiled, trace_arguments(pretrained)["input_ids"])) > _TOLERANCE:
        problems.append(f"token by token its answers differ by {error:.2g} from those of one pass")
    if problems:
        raise CheckpointError(
            "the exported model does not answer as the checkpoint does: " + "; ".join(problems),
            where=str(folder), remedy="report this with the versions of transformers and openvino",
        )  # fmt: skip
    if pretrained.task == "causal" and not generates:
        tell("keys and values of this model cannot be kept: each call reads its whole sequence")
    if rest == "int8":
        model = weights_quantised(model) if examples is None else quantised(model, _calibration(examples))
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as made:
        _write(Path(made) / "out", folder, model, rest, generates)
        os.replace(Path(made) / "out", target)


def _calibration(data: EvalData) -> list[dict[str, Tensor]]:
    """Examples of the data, evenly spread, one a batch."""
    count = min(CALIBRATION_EXAMPLES, len(data))
    chosen = data.rows[numpy.arange(count) * len(data) // count]
    return [data.examples.collate(numpy.asarray([row]), None) for row in chosen]


def _write(folder: Path, checkpoint: Path, model: Model, rest: str, stateful: bool) -> None:
    folder.mkdir()
    copy_side_files(checkpoint, folder)
    if (licence := checkpoint / SOURCE_README_FILE).is_file():
        shutil.copyfile(licence, folder / SOURCE_README_FILE)
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    config.pop("quantization_config")  # transformers' own loaders find no weights here
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    openvino().save_model(model, folder / MODEL_FILE, compress_to_fp16=False)
    (folder / "README.md").write_text(_card(checkpoint, rest, stateful), encoding="utf-8")


def _card(checkpoint: Path, rest: str, stateful: bool) -> str:
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
{_GENERATION if stateful else ""}"""


_GENERATION = """
The model keeps keys and values of what it has read as state. Token by token, for one sequence:

```python
import numpy
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
new = tokenizer("Once upon a time")["input_ids"]
request, ids = model.create_infer_request(), list(new)
request.reset_state()  # a new sequence
for _ in range(20):
    values = {
        "input_ids": numpy.array([new]), "attention_mask": numpy.ones((1, len(ids)), dtype=numpy.int64),
        "position_ids": numpy.arange(len(ids) - len(new), len(ids))[None], "beam_idx": numpy.zeros(1, numpy.int32),
    }
    names = {port.any_name for port in request.model_inputs}
    answer = request.infer({name: value for name, value in values.items() if name in names})
    new = [int(answer["logits"][0, -1].argmax())]
    ids += new
print(tokenizer.decode(ids))
```
"""
