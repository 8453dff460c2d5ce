"""Put a verified checkpoint on the hub: what its manifest lists and nothing else, as one commit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NoReturn

from .checkpoint import verify
from .checkpoint.card import PLACEHOLDER
from .checkpoint.format import CONFIG_FILE
from .checkpoint.manifest import MANIFEST_FILE, manifest_text, parse_manifest, recorded_files
from .checkpoint.side_files import README_FILE, is_model_file
from .distill.job import Job
from .errors import CheckpointError, CompressError, HubError
from .quiet import hub_bars_watched

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

MAIN = "main"
_LOGIN = "run `hf auth login`, or put a token into HF_TOKEN"
_AGAIN = "run the same command again: what has arrived is not sent again"

Content = Path | bytes


@dataclass(frozen=True)
class Transfer:
    """What an upload does to a repository: files `sent` (name -> bytes), `kept` as they are there, and `removed`."""

    repo: str
    revision: str
    public: bool
    sent: Mapping[str, int]
    kept: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


Announce = Callable[[Transfer], None]


def push(
    folder: Path | str, repo: str, *, public: bool = False, revision: str | None = None, dry_run: bool = False,
    trust_remote_code: bool = False, announce: Announce = lambda transfer: None,
) -> str | None:  # fmt: skip
    """Upload a checkpoint to `repo` (owner/name) on the hub; gives the address of the commit.

    The checkpoint is verified first. A repository that is not there is made, private unless `public`. What it holds
    already is not sent again, and files of an earlier upload that the checkpoint no longer has are removed; all in one
    commit, so that no one sees half of it. Sent files stay on the hub where the upload breaks off: the next call goes
    on from there.
    revision: a branch, made where it is missing.  announce: told what is to be done before it is done.  With `dry_run`
    the hub is not asked: everything counts as sent, and None comes back.
    Raises JobError where the conversion is not finished, CheckpointError where the checkpoint is not as it was made,
    HubError where the hub refuses or cannot be reached.
    """
    folder = Path(folder)
    _check_repo(repo)
    Job.check_finished(folder)
    token = None if dry_run else _token()
    problems = verify(folder, trust_remote_code=trust_remote_code)
    if problems:
        raise CheckpointError(
            f"the checkpoint is not as it was made: {problems[0].file}: {problems[0].what}", where=str(folder),
            remedy="convert the model again, or fetch the checkpoint again; `compress verify` tells all that differs",
        )  # fmt: skip
    files = _contents(folder, repo)
    branch = revision or MAIN
    if dry_run:
        announce(Transfer(repo, branch, public, {name: _size(content) for name, content in files.items()}))
        return None
    from huggingface_hub import HfApi

    with hub_bars_watched(), _explained(repo, branch):
        return _upload(HfApi(token=token), repo, branch, public, files, announce)


def _check_repo(repo: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
        problem = None if repo.count("/") == 1 else "it names no owner"
    except HFValidationError as error:
        problem = str(error).splitlines()[0]
    if problem:
        raise HubError(f"{repo!r} is no repository of the hub: {problem}", remedy="write OWNER/NAME")


def _token() -> str:
    import huggingface_hub

    token = huggingface_hub.get_token()
    if token is None:
        raise HubError("there is no token to write to the hub with", remedy=_LOGIN)
    return token


def _contents(folder: Path, repo: str) -> dict[str, Content]:
    """Files of the checkpoint by name; its card says how it is loaded from the repository, and the manifest follows."""
    recorded = recorded_files(folder)
    files: dict[str, Content] = {name: folder / name for name in sorted(recorded)}
    if README_FILE in files:
        card = (folder / README_FILE).read_bytes().replace(PLACEHOLDER.encode(), repo.encode())
        recorded[README_FILE] = {"bytes": len(card), "sha256": hashlib.sha256(card).hexdigest()}
        files[README_FILE] = card
    return {**files, MANIFEST_FILE: manifest_text(recorded).encode()}


def _upload(
    api: HfApi, repo: str, branch: str, public: bool, files: Mapping[str, Content], announce: Announce
) -> str:  # fmt: skip
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    api.create_repo(repo, private=not public, exist_ok=True)
    if not (private := api.model_info(repo).private) and not public:
        raise HubError(
            f"the repository {repo} is public, and --public was not given", where=repo,
            remedy="pass --public (public=True) if everyone may have the model, or choose another repository",
        )  # fmt: skip
    if branch != MAIN:
        api.create_branch(repo, branch=branch, exist_ok=True)
    head = api.model_info(repo, revision=branch).sha
    there = _listing(api, repo, branch)
    removed = _removed(api, repo, head, there, files)
    sent = [name for name, content in files.items() if not _same(there.get(name), content)]
    sizes = {name: _size(files[name]) for name in sent}
    announce(Transfer(repo, branch, not private, sizes, tuple(sorted(files.keys() - sizes.keys())), tuple(removed)))
    if not sent and not removed:
        return f"{api.endpoint}/{repo}/commit/{head}"
    made = api.create_commit(
        repo,
        [
            *(CommitOperationAdd(name, files[name]) for name in sent),
            *(CommitOperationDelete(name, is_folder=False) for name in removed),
        ],
        commit_message=f"Upload a LookupFFN model, {len(files)} files",
        revision=branch,
        parent_commit=head,
    )
    arrived = _listing(api, repo, branch)
    lost = [name for name, content in files.items() if not _same(arrived.get(name), content)]
    if lost:
        raise HubError(
            f"the hub did not take {', '.join(lost)}", where=repo,
            remedy="see whether a .gitignore in the repository leaves files out, or somebody else writes to it",
        )  # fmt: skip
    return str(made.commit_url)


def _listing(api: HfApi, repo: str, branch: str) -> dict[str, RepoFile]:
    from huggingface_hub.hf_api import RepoFile

    entries = api.list_repo_tree(repo, recursive=True, revision=branch)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def _removed(
    api: HfApi, repo: str, head: str | None, there: Mapping[str, RepoFile], files: Mapping[str, Content]
) -> list[str]:
    """Files of an earlier checkpoint in the repository that are not of this one. HubError where it holds another model.

    A loader would prefer a stale weight file, or read a stale side file, without a word.
    """
    earlier: frozenset[str] = frozenset()
    if MANIFEST_FILE in there:
        try:
            path = api.hf_hub_download(repo, MANIFEST_FILE, revision=head)
            earlier = frozenset(parse_manifest(Path(path)))
        except CheckpointError:
            pass  # somebody else's file
    foreign = [
        name
        for name in there
        if name not in earlier and (name == CONFIG_FILE or is_model_file(PurePosixPath(name)))
    ]  # fmt: skip
    if foreign:
        raise HubError(
            f"the repository {repo} holds another model: {', '.join(sorted(foreign))}", where=repo,
            remedy="choose another repository, or delete these files there",
        )  # fmt: skip
    return sorted(name for name in earlier if name in there and name not in files)


def _same(there: RepoFile | None, content: Content) -> bool:
    """Whether a file of the repository has these bytes; large files are known by SHA-256, others by git's SHA-1."""
    if there is None or there.size != _size(content):
        return False
    if there.lfs is not None:
        return bool(there.lfs.sha256 == _digest(content, "sha256"))
    return bool(there.blob_id == _digest(content, "sha1", f"blob {_size(content)}\0".encode()))


def _size(content: Content) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _digest(content: Content, algorithm: str, prefix: bytes = b"") -> str:
    digest = hashlib.new(algorithm, prefix, usedforsecurity=False)
    if isinstance(content, bytes):
        digest.update(content)
        return digest.hexdigest()
    with open(content, "rb") as file:
        hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


@contextmanager
def _explained(repo: str, branch: str) -> Iterator[None]:
    """Tell what went wrong on the hub, in words of this program; addresses, which may be signed, are left out."""
    from huggingface_hub import errors

    try:
        yield
    except CompressError:
        raise
    except Exception as error:
        cause: BaseException = error  # uploads in threads wrap what happened
        while not isinstance(cause, errors.HfHubHTTPError) and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, errors.HfHubHTTPError):
            _refused(repo, branch, cause)
        if isinstance(error, errors.OfflineModeIsEnabled):
            what, remedy = "HF_HUB_OFFLINE is set", "unset it to upload"
        elif isinstance(error, ValueError):  # the hub's check of the card, an answer that is none
            what, remedy = str(error), "see the message; the model card is README.md"
        elif isinstance(error, (OSError, RuntimeError, errors.HTTPError)):
            what, remedy = f"the connection to the hub failed: {cause or type(cause).__name__}", _AGAIN
        else:
            raise
        raise HubError(what, where=repo, remedy=remedy) from error


def _refused(repo: str, branch: str, error: Exception) -> NoReturn:
    response, said = error.response, getattr(error, "server_message", None)  # type: ignore[attr-defined]
    code = response.status_code
    if code == 401:
        what, remedy = "the hub does not accept the token", _LOGIN
    elif code == 403:
        what = f"the token may not write to {repo}"
        remedy = f"use a token with the right to write to {repo.partition('/')[0]}: {_LOGIN}"
    elif code == 404:
        what, remedy = f"the hub finds no {repo}, or no branch {branch} of it", "check the spelling and the token"
    elif code in (409, 412):
        what, remedy = f"the repository {repo} changed while the upload ran", _AGAIN
    elif code >= 500 or code in (408, 429):
        what, remedy = f"the hub is not at work (HTTP {code})", _AGAIN
    else:
        what, remedy = f"the hub refuses the upload (HTTP {code})", "see the hub's message, if there is one"
    raise HubError(f"{what}: {said}" if said else what, where=repo, remedy=remedy) from error
