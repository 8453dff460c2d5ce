"""The source's other files: tokenizer, processor, templates, code, licence, copied byte for byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path, PurePosixPath

from ..errors import ModelError
from ..untrusted import links_outside

README_FILE = "README.md"
SOURCE_README_FILE = "README.source.md"

# Written by the checkpoint itself.
_OWN = frozenset(
    {
        "config.json",
        "manifest.json",
        "recipe.resolved.yaml",
        "recipe.yaml",
        "report.json",
        SOURCE_README_FILE,
    }
)
_WEIGHT_SUFFIXES = frozenset(
    {
        *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".ggml", ".ot", ".pdparams"),
        *(".pkl", ".distcp", ".onnx", ".onnx_data", ".pb", ".tflite", ".mlmodel", ".engine", ".plan"),
    }
)
_EXPORT_FOLDERS = frozenset({"onnx", "openvino", "coreml", "tflite", "tensorrt", "saved_model"})
_EXPORT_FOLDER_SUFFIXES = (".mlpackage", ".mlmodelc")


def check_side_files(source: Path) -> None:
    """Raise ModelError where a file that would be copied is a link to somewhere else: it might be anybody's."""
    links = [name for name in links_outside(source) if not is_model_file(PurePosixPath(name))]
    if links := [name for name in links if not any(part.startswith(".") for part in PurePosixPath(name).parts)]:
        raise ModelError(
            f"{', '.join(links)} of the model's folder leads out of it, and would be copied into the result",
            where=str(source), remedy="put the file itself in the link's place, or remove the link",
        )  # fmt: skip


def copy_side_files(source: Path, folder: Path) -> list[str]:
    """Copy everything but weights in any format, graph exports, `config.json` and hidden files; README.md is renamed.

    Returns the names of the files left out, sorted.
    """
    kept_whole = _pipeline_folders(source)
    left_out = []
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        name = PurePosixPath(path.relative_to(source).as_posix())
        if any(part.startswith(".") for part in name.parts) or str(name) == "config.json":
            continue
        if str(name) in _OWN or (name.parts[0] not in kept_whole and is_model_file(name)):
            left_out.append(str(name))
            continue
        target = folder / (SOURCE_README_FILE if str(name) == README_FILE else name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return left_out


def is_model_file(name: PurePosixPath) -> bool:
    """Whether a file holds weights, an index of weights, training state or an exported graph."""
    if any(part in _EXPORT_FOLDERS or part.endswith(_EXPORT_FOLDER_SUFFIXES) for part in name.parts[:-1]):
        return True
    if name.name.startswith("openvino_") or name.name.endswith(".index.json"):
        return True
    return name.suffix in _WEIGHT_SUFFIXES


def weight_bytes(folder: Path) -> int | None:
    """Size of a model folder's weights, in the first format found; None where there are none."""
    for pattern in ("model.safetensors", "model-*.safetensors", "pytorch_model.bin", "pytorch_model-*.bin"):
        sizes = [path.stat().st_size for path in folder.glob(pattern)]
        if sizes:
            return sum(sizes)
    return None


def _pipeline_folders(source: Path) -> set[str]:
    """Folders of sentence-transformers' modules after the transformer; their weights belong to the pipeline."""
    try:
        modules = json.loads((source / "modules.json").read_text(encoding="utf-8"))
        paths = [PurePosixPath(module["path"]) for module in modules if "Transformer" not in module["type"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()
    return {path.parts[0] for path in paths if path.parts}
