"""Where a model comes from: a local folder, or a snapshot of a hub repository."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from .errors import ModelError

_OTHER_FORMATS = [
    *("*.onnx", "*.onnx_data", "onnx/*", "openvino/*", "coreml/*", "*.mlmodel", "*.tflite"),
    *("*.h5", "*.msgpack", "*.ot", "*.gguf", "*.pt", "*.pth", "original/*", "consolidated.*"),
]


def local_folder(source: str) -> tuple[Path, str | None]:
    """Local folder of a model and, for a hub id, the commit it is: downloaded once, then found in the hub's cache.

    `source` is a folder, or a hub id `name`, `owner/name` or `owner/name@revision`. The config is fetched before any
    weights, and weights in one format alone. Raises ModelError that says which part is missing.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"the folder {source} has no config.json",
                where=str(path),
                remedy="give the folder that `save_pretrained` wrote, which holds config.json and *.safetensors",
            )
        return path, None
    name, _, revision = source.partition("@")
    if path.exists() or not _is_hub_id(name):
        raise ModelError(
            f"{source} is {'a file, not a folder' if path.exists() else 'neither a folder nor a hub id'}",
            where=source,
            remedy="give the folder of a model, or a hub id like owner/name or owner/name@revision",
        )
    return _snapshot(name, revision or None)


def _is_hub_id(name: str) -> bool:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not name.startswith((".", "~"))


def _snapshot(name: str, revision: str | None) -> tuple[Path, str]:
    import huggingface_hub

    ignored = list(_OTHER_FORMATS)
    with quiet_unless_watched():
        try:
            huggingface_hub.hf_hub_download(name, "config.json", revision=revision)
            with suppress(OSError):  # without a connection the cache decides what there is
                own = [file for file in _files(name, revision) if "/" not in file]  # folders hold a pipeline's modules
                if any(file.endswith(".safetensors") for file in own):
                    ignored += [file for file in own if file.endswith(".bin")]
            folder = Path(huggingface_hub.snapshot_download(name, revision=revision, ignore_patterns=ignored))
        except Exception as error:
            _explain(name, revision, error)
    return folder, folder.name


def _files(name: str, revision: str | None) -> list[str]:
    import huggingface_hub

    return list(huggingface_hub.HfApi().list_repo_files(name, revision=revision))


def _explain(name: str, revision: str | None, error: Exception) -> NoReturn:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        what, remedy = "is gated", "accept its terms on its page, then run `hf auth login`"
    elif isinstance(error, errors.RevisionNotFoundError):
        what, remedy = f"has no revision {revision}", "name a branch, a tag or a commit that its page lists"
    elif isinstance(error, errors.RepositoryNotFoundError):
        what = "is neither a folder here nor a model on the hub"
        remedy = "check the spelling; for a private model run `hf auth login`"
    elif isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
        what = "is not a folder here, not in the hub's cache, and the hub cannot be reached"
        remedy = "check the connection (and HF_HUB_OFFLINE), or give a local folder"
    elif isinstance(error, errors.EntryNotFoundError):
        what, remedy = "has no config.json", "choose a model in the format of transformers"
    elif isinstance(error, OSError):
        what, remedy = f"could not be downloaded: {error}", "try again: files that arrived are kept"
    else:
        raise error
    raise ModelError(f"the model {name} {what}", where=name, remedy=remedy) from error


@contextmanager
def quiet_unless_watched() -> Iterator[None]:
    """Show progress of the hub's transfers on a terminal only."""
    from huggingface_hub import utils

    if sys.stderr.isatty() or utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()
