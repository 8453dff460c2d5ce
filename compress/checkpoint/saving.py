"""Write a checkpoint: weights, config, the source's side files, recipe, report, model card, probe and manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..durable import replace_text
from ..errors import CheckpointError
from ..lookup import PackedLookupFFN
from ..quiet import transformers_bars_watched
from ..sites import base_model
from .card import model_card
from .files import RECIPE_FILE, REPORT_FILE, RESOLVED_RECIPE_FILE
from .format import CONFIG_FILE, CheckpointConfig, Placement, public_name, read_config_file
from .manifest import write_manifest
from .probe import write_probe
from .rest import Int8Rest
from .side_files import README_FILE, copy_side_files, weight_bytes

if TYPE_CHECKING:
    from ..models import Pretrained

MAX_SHARD_SIZE = "5GB"
_GENERATION_FILE = "generation_config.json"


def save_checkpoint(
    folder: Path,
    *,
    model: nn.Module,
    source: Pretrained,
    placements: Sequence[Placement],
    recipe_text: str,
    resolved_recipe: str,
    report: Mapping[str, Any] | None,
    probe_batch: Mapping[str, Tensor],
    int8: Int8Rest | None = None,
) -> None:
    """Write a complete checkpoint into an existing, empty folder.

    `model` holds the packed students, and the layers that `int8` names, in their places and is from then on what a
    loaded checkpoint is: its own `save_pretrained` writes the format too. `source` gives the side files, the source's
    id and revision. `report` is what `Report.to_dict` gives, with whatever else is to be kept. `probe_batch`: the
    model's keyword arguments.
    The same arguments give the same bytes in every `*.safetensors` and in `config.json`.
    Raises CheckpointError where students and placements do not agree.
    """
    from transformers import __version__ as transformers_version

    from .quantizer import attach

    check_placements(model, placements)
    source_config = read_config_file(source.folder)
    checkpoint = CheckpointConfig(
        source=public_name(source.source),
        revision=source.revision,
        sites=tuple(placements),
        int8=int8 or Int8Rest(),
        rest_dtype=_dtype_name(source_config),
        transformers=transformers_version,
    )
    attach(model, checkpoint)
    _save_weights(folder, model)
    left_out = copy_side_files(source.folder, folder)
    config = {**source_config, "architectures": [type(model).__name__], "dtype": _model_dtype(model)}
    config.pop("torch_dtype", None)  # the older name of `dtype`
    config["quantization_config"] = checkpoint.to_dict()
    replace_text(folder / CONFIG_FILE, json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    replace_text(folder / RECIPE_FILE, recipe_text)
    replace_text(folder / RESOLVED_RECIPE_FILE, resolved_recipe)
    write_probe(folder, model, probe_batch)
    facts = {
        "weight_bytes": weight_bytes(folder),
        "source_weight_bytes": weight_bytes(source.folder),
        "left_out": left_out,
    }
    _write_report(folder, {**(report or {}), "checkpoint": facts})
    for path in folder.glob("*.safetensors"):  # safetensors makes them for their owner alone
        shutil.copymode(folder / CONFIG_FILE, path)
    write_manifest(folder)


@torch.no_grad()
def round_rest(model: nn.Module, source: Pretrained) -> None:
    """Round matrices outside the students to the dtype that the source declares, in which a checkpoint holds them.

    Only where they were trained: they lose what their file loses, before anything is measured. Vectors (norms, biases)
    stay float32: they are small, and a small change of a gain near 1 would be rounded away.
    """
    name = _dtype_name(read_config_file(source.folder))
    if name not in ("bfloat16", "float16"):
        return
    before = dict(source.model.named_parameters())  # of a student's names only a vector's may be one
    for path, parameter in model.named_parameters():
        if parameter.dim() > 1 and path in before and not torch.equal(parameter, before[path]):
            parameter.copy_(parameter.to(getattr(torch, name)))


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Put a new report into a checkpoint: `report.json`, the model card and their entries in the manifest.

    What `save_checkpoint` noted under "checkpoint" (sizes, source files left out) stays.
    """
    path = folder / REPORT_FILE
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))["checkpoint"]
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(
            "the checkpoint's report is missing or damaged", where=str(path),
            remedy="give the folder that `compress convert` wrote, or fetch it again",
        ) from None  # fmt: skip
    _write_report(folder, {**report, "checkpoint": facts})
    write_manifest(folder, changed=[REPORT_FILE, README_FILE])


def check_placements(model: nn.Module, placements: Sequence[Placement]) -> None:
    """Raise CheckpointError unless the packed students of `model` are those that `placements` describe."""
    base = base_model(model)
    if not placements:
        raise CheckpointError("the model has no student", remedy="let the recipe convert at least one site")
    described: set[nn.Module] = set()
    for placement in placements:
        try:
            student = base.get_submodule(placement.entry)
        except AttributeError:
            student = None
        if student is None or not placement.fits(student):
            raise CheckpointError(
                f"there is no packed student of the described geometry at {placement.entry}", where=placement.name,
                remedy="put the packed students in their places before the checkpoint is saved",
            )  # fmt: skip
        described.update(student.modules())
    for name, module in model.named_modules():
        if isinstance(module, PackedLookupFFN) and module not in described:
            raise CheckpointError(
                f"the student at {name} is not described: it could not be loaded again", where=name,
                remedy="give every student a placement; paths are relative to the base model",
            )  # fmt: skip


def _save_weights(folder: Path, model: Any) -> None:
    from transformers import GenerationConfig

    # The source's own file is copied later. An invalid one, which the hub has many of, would stop save_pretrained; and
    # a file made here would override what the source says in config.json.
    generation = getattr(model, "generation_config", None)
    try:
        if generation is not None:
            model.generation_config = GenerationConfig()
        with transformers_bars_watched():
            model.save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)
    finally:
        if generation is not None:
            model.generation_config = generation
    (folder / _GENERATION_FILE).unlink(missing_ok=True)


def _write_report(folder: Path, report: Mapping[str, Any]) -> None:
    replace_text(folder / REPORT_FILE, json.dumps(report, indent=2, allow_nan=False) + "\n")
    replace_text(folder / README_FILE, model_card(folder, report))


def _dtype_name(config: Mapping[str, Any]) -> str | None:
    """Find the dtype that a config declares for its weights; composite ones may do so in their text part only."""
    for part in (config, config.get("text_config") or {}):
        dtype = part.get("dtype") or part.get("torch_dtype")
        if isinstance(dtype, str):
            return dtype
    return None


def _model_dtype(model: Any) -> str:
    return str(model.dtype).removeprefix("torch.")
