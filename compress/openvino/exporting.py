"""Export: a compressed checkpoint as an OpenVINO model in which every student is one operation `LookupFFN`."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
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
from .graph import Compiled, import_nncf, quantised, to_openvino
from .library import extension, openvino

if TYPE_CHECKING:
    from openvino import Model

RESTS = ("float32", "int8")
MODEL_FILE = "openvino_model.xml"
CALIBRATION_EXAMPLES = 300


def export(
    checkpoint: Path | str, out: Path | str, *, rest: str = "float32", data: str | None = None,
    trust_remote_code: bool = False,
) -> None:  # fmt: skip
    """Write a checkpoint as an OpenVINO folder: `openvino_model.xml`, its weights, tokenizer, config and a card.

    checkpoint: a folder or a hub id.
    rest: what everything but the students is computed in; "int8" quantises it with nncf, ranges taken from `data`, a
    path or `hub:NAME`, by default what the recipe evaluates on.
    Causal models come without a cache of keys and values. OUT appears whole or not at all. Raises KernelError where
    OpenVINO, nncf or a compiler is missing, CheckpointError where the folder is no checkpoint or the exported model
    does not answer as it does, CompressError for an unknown `rest` and where `out` exists.
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
    examples = checkpoint_data(folder, data, pretrained) if rest == "int8" else None
    core = openvino().Core()
    core.add_extension(str(library))
    model = to_openvino(pretrained, library)
    problems = verify_outputs(folder, Compiled(core, model))
    if problems:
        raise CheckpointError(
            "the exported model does not answer as the checkpoint does: " + "; ".join(each.what for each in problems),
            where=str(folder), remedy="report this with the versions of transformers and openvino",
        )  # fmt: skip
    if examples is not None:
        model = quantised(model, _calibration(examples))
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as made:
        _write(Path(made) / "out", folder, model, rest)
        os.replace(Path(made) / "out", target)


def _calibration(data: EvalData) -> list[dict[str, Tensor]]:
    """Examples of the data, evenly spread, one a batch."""
    count = min(CALIBRATION_EXAMPLES, len(data))
    chosen = data.rows[numpy.arange(count) * len(data) // count]
    return [data.examples.collate(numpy.asarray([row]), None) for row in chosen]


def _write(folder: Path, checkpoint: Path, model: Model, rest: str) -> None:
    folder.mkdir()
    copy_side_files(checkpoint, folder)
    if (licence := checkpoint / SOURCE_README_FILE).is_file():
        shutil.copyfile(licence, folder / SOURCE_README_FILE)
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    config.pop("quantization_config")  # transformers' own loaders find no weights here
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    openvino().save_model(model, folder / MODEL_FILE, compress_to_fp16=False)
    (folder / "README.md").write_text(_card(checkpoint, rest), encoding="utf-8")


def _card(checkpoint: Path, rest: str) -> str:
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
