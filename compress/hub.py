"""Where a model comes from: a local folder, or a snapshot of a hub repository."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from .errors import ModelError
from .quiet import hub_bars_watched
from .untrusted import read_json

_OTHER_FORMATS = [
    *("*.onnx", "*.onnx_data", "onnx/*", "openvino/*", "coreml/*", "*.mlmodel", "*.tflite"),
    *("*.h5", "*.msgpack", "*.ot", "*.gguf", "*.pt", "*.pth", "original/*", "consolidated.*"),
]
_WHOLE = ("model.safetensors", "pytorch_model.bin")  # in the order in which transformers looks for them
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


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
        _check_shards(source, path, "fetch the model again, complete")
        return path, None
    name, _, revision = source.partition("@")
    if path.exists() or not is_hub_id(name):
        raise ModelError(
            f"{source} is {'a file, not a folder' if path.exists() else 'neither a folder nor a hub id'}",
            where=source,
            remedy="give the folder of a model, or a hub id like owner/name or owner/name@revision",
        )
    return _snapshot(name, revision or None)


def is_hub_id(name: str) -> bool:
    """Whether a name can be that of a model on the hub, and is no path."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not name.startswith((".", "~"))


def _snapshot(name: str, revision: str | None) -> tuple[Path, str]:
    import huggingface_hub

    ignored = list(_OTHER_FORMATS)
    with hub_bars_watched():
        try:
            huggingface_hub.hf_hub_download(name, "config.json", revision=revision)
            with suppress(OSError):  # without a connection the cache decides what there is
                own = [file for file in _files(name, revision) if "/" not in file]  # folders hold a pipeline's modules
                if any(file.endswith(".safetensors") for file in own):
                    ignored += [file for file in own if file.endswith(".bin")]
            folder = Path(huggingface_hub.snapshot_download(name, revision=revision, ignore_patterns=ignored))
        except Exception as error:
            _explain(name, revision, error)
    fetch = f"fetch it with a connection, without HF_HUB_OFFLINE: hf download {name}"
    fetch += f" --revision {revision}" if revision else ""
    if not any(next(folder.glob(pattern), None) for pattern in ("*.safetensors", "*.bin", *_INDEXES)):
        raise ModelError(f"the hub's cache lacks the weights of {name}", where=str(folder), remedy=fetch)
    _check_shards(name, folder, fetch)
    return folder, folder.name


def _check_shards(source: str, folder: Path, fetch: str) -> None:
    """Raise ModelError where the index that is read names weight files that are not there, or not in this folder."""
    for whole, index in ((folder / whole, folder / name) for whole, name in zip(_WHOLE, _INDEXES, strict=True)):
        if whole.is_file():  # read instead of the index, and before any other format
            return
        if not index.is_file():
            continue
        try:
            shards = sorted({str(shard) for shard in read_json(index)["weight_map"].values()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{index.name} of {source} is damaged: {error}", where=str(index), remedy=fetch) from None
        if outside := [shard for shard in shards if Path(shard).name != shard]:
            raise ModelError(
                f"{index.name} of {source} names {outside[0]}, which is no file beside it", where=str(index),
                remedy="choose a model whose weights lie in its own folder",
            )  # fmt: skip
        if absent := [shard for shard in shards if not (folder / shard).is_file()]:
            raise ModelError(
                f"{source} lacks {', '.join(absent[:3])}"
                + (f" and {len(absent) - 3} more" if len(absent) > 3 else "")
                + f", which {index.name} names",
                where=str(folder), remedy=fetch,
            )  # fmt: skip
        return


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
        what = f"is not a folder here, {_not_cached(name, revision)}, and the hub cannot be reached"
        remedy = "check the connection (and HF_HUB_OFFLINE), or give a local folder"
    elif isinstance(error, errors.EntryNotFoundError):
        what, remedy = "has no config.json", "choose a model in the format of transformers"
    elif isinstance(error, OSError):
        what, remedy = f"could not be downloaded: {error}", "try again: files that arrived are kept"
    else:
        raise error
    raise ModelError(f"the model {name} {what}", where=name, remedy=remedy) from error


def _not_cached(name: str, revision: str | None) -> str:
    """Say what the hub's cache lacks."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    repository = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
    known = {path.name for part in ("refs", "snapshots") for path in repository.glob(f"{part}/*")}
    if (revision or "main") in known:
        return "its config.json is not in the hub's cache"
    return f"in the hub's cache only as {', '.join(sorted(known))}" if known else "not in the hub's cache"
