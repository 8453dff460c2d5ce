"""A stand-in for the hub: the part of its HTTP interface that making, filling and reading a model repository takes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LFS_SUFFIXES = (".safetensors", ".bin")


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Repo:
    private: bool
    branches: dict[str, str] = field(default_factory=dict)  # name -> commit
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # commit -> files
    objects: dict[str, bytes] = field(default_factory=dict)  # large files by SHA-256, committed or not

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        oid = hashlib.sha1(f"{branch} {len(self.commits)}".encode()).hexdigest()
        self.commits[oid], self.branches[branch] = dict(files), oid
        return oid

    def find(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)

    def files(self, branch: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches[branch]]


@dataclass
class Hub:
    """Its state, and what it was asked: `requests` holds method and path."""

    address: str = ""
    writers: dict[str, tuple[str, ...]] = field(default_factory=dict)  # token -> owners it may write to
    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    received: list[str] = field(default_factory=list)  # SHA-256 of the large files that came, in order
    hang_up: Callable[[str, str], bool] = lambda method, path: False  # whether to break the connection off
    ignored: tuple[str, ...] = ()  # files that a .gitignore leaves out

    def repo(self, name: str, private: bool = True, files: dict[str, bytes] | None = None) -> Repo:
        self.repos[name] = made = Repo(private)
        made.commit("main", {".gitattributes": b"*.safetensors lfs\n", **(files or {})})
        return made


class _Refusal(Exception):
    def __init__(self, code: int, message: str, error_code: str = "", **body: Any) -> None:
        self.code, self.message, self.error_code, self.body = code, message, error_code, body


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        path = urlsplit(self.path).path  # a branch's slashes are quoted in it, those between the parts are not
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(self._chunks())
        self.hub.requests.append((self.command, path))
        if self.hub.hang_up(self.command, path):
            self.close_connection = True
            self.connection.close()
            return
        try:
            for method, pattern, answer in _ROUTES:
                found = re.fullmatch(pattern, path)
                if found and self.command in method:
                    parts = {key: part and unquote(part) for key, part in found.groupdict().items()}
                    content, headers = answer(self, body, **parts)
                    self._send(200, content, headers)
                    return
            raise _Refusal(404, f"no such address: {path}")
        except _Refusal as refusal:
            headers = {"X-Error-Message": refusal.message, "X-Error-Code": refusal.error_code}
            self._send(refusal.code, {"error": refusal.message, **refusal.body}, headers)

    do_GET = do_HEAD = do_POST = do_PUT = _answer

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _send(self, code: int, content: Any, headers: dict[str, str]) -> None:
        sent = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for key, value in {"Content-Length": str(len(sent)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(sent)

    def _token(self) -> str:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.hub.writers:
            raise _Refusal(401, "Invalid credentials in Authorization header")
        return token

    def _repo(self, name: str, write: bool = False) -> Repo:
        token = self._token()
        if name not in self.hub.repos:
            raise _Refusal(404, "Repository not found", "RepoNotFound")
        if write and name.partition("/")[0] not in self.hub.writers[token]:
            raise _Refusal(403, "Forbidden: you must have write access")
        return self.hub.repos[name]

    def _commit(self, name: str, revision: str, write: bool = False) -> tuple[Repo, str]:
        repo = self._repo(name, write)
        commit = repo.find(revision)
        if commit is None:
            raise _Refusal(404, "Revision not found", "RevisionNotFound")
        return repo, commit

    def create(self, body: bytes) -> Any:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] not in self.hub.writers[self._token()]:
            raise _Refusal(403, "You don't have the rights to create a model under this namespace")
        if name in self.hub.repos:
            raise _Refusal(409, "You already created this model repo", url=f"{self.hub.address}/{name}")
        private = asked["visibility"] == "private" if "visibility" in asked else asked.get("private", False)
        self.hub.repo(name, private)
        return {"url": f"{self.hub.address}/{name}", "name": name}, {}

    def branch(self, body: bytes, repo: str, branch: str) -> Any:
        found, commit = self._commit(repo, "main", write=True)
        if branch in found.branches:
            raise _Refusal(409, "Reference already exists")
        found.branches[branch] = commit
        return {}, {}

    def info(self, body: bytes, repo: str, revision: str | None = None) -> Any:
        found, commit = self._commit(repo, revision or "main")
        files = [{"rfilename": name} for name in found.commits[commit]]
        return {"id": repo, "sha": commit, "private": found.private, "siblings": files, "tags": []}, {}

    def tree(self, body: bytes, repo: str, revision: str, under: str | None) -> Any:
        found, commit = self._commit(repo, revision)
        if under is not None:
            raise _Refusal(404, "Entry not found", "EntryNotFound")  # no client here lists a folder that is there
        recursive = "true" in [value.lower() for value in parse_qs(urlsplit(self.path).query).get("recursive", [])]
        entries: dict[str, dict[str, Any]] = {}
        for name, content in found.commits[commit].items():
            for parent in list(PurePosixPath(name).parents)[:-1]:
                entries[str(parent)] = {"type": "directory", "path": str(parent), "oid": "0" * 40, "size": 0}
            entry: dict[str, Any] = {"type": "file", "path": name, "oid": git_sha1(content), "size": len(content)}
            if name.endswith(LFS_SUFFIXES):
                entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 130}
            entries[name] = entry
        return [entry for name, entry in entries.items() if recursive or "/" not in name], {}

    def validate(self, body: bytes) -> Any:
        front = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
        if not re.fullmatch(r"[a-z0-9.+-]+", str(front.get("license", "mit"))):
            raise _Refusal(400, "Bad Request", errors=[{"message": '"license" must be one of [apache-2.0, mit, ...]'}])
        return {"errors": [], "warnings": []}, {}

    def preupload(self, body: bytes, repo: str, revision: str) -> Any:
        found, commit = self._commit(repo, revision, write=True)
        files = []
        for asked in json.loads(body)["files"]:
            name, large = asked["path"], asked["path"].endswith(LFS_SUFFIXES)
            there = found.commits[commit].get(name)
            oid = None if there is None else (sha256 if large else git_sha1)(there)
            mode = "lfs" if large else "regular"
            files.append({"path": name, "uploadMode": mode, "shouldIgnore": name in self.hub.ignored, "oid": oid})
        return {"files": files}, {}

    def batch(self, body: bytes, repo: str) -> Any:
        found, asked = self._repo(repo, write=True), json.loads(body)
        assert asked["operation"] == "upload"
        objects = []
        for wanted in asked["objects"]:
            href = f"{self.hub.address}/storage/{repo}/{wanted['oid']}?signature=secret"
            actions = {"upload": {"href": href}, "verify": {"href": f"{self.hub.address}/verify/{repo}"}}
            objects.append({**wanted, **({} if wanted["oid"] in found.objects else {"actions": actions})})
        return {"transfer": "basic", "objects": objects}, {}

    def store(self, body: bytes, repo: str, oid: str) -> Any:
        if "Authorization" in self.headers:
            raise _Refusal(400, "Only one auth mechanism allowed")  # as the storage behind signed addresses has it
        if sha256(body) != oid:
            raise _Refusal(400, "checksum mismatch")
        self.hub.repos[repo].objects[oid] = body
        self.hub.received.append(oid)
        return {}, {}

    def verify(self, body: bytes, repo: str) -> Any:
        found, asked = self._repo(repo, write=True), json.loads(body)
        if len(found.objects.get(asked["oid"], b"")) != asked["size"]:
            raise _Refusal(404, "no such object")
        return {}, {}

    def commit(self, body: bytes, repo: str, revision: str) -> Any:
        found, parent = self._commit(repo, revision, write=True)
        files = dict(found.commits[parent])
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            match operation["key"]:
                case "header":
                    if value.get("parentCommit") not in (None, parent):
                        raise _Refusal(412, "A commit has happened since. Please refresh and try again.")
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    if value["oid"] not in found.objects:
                        raise _Refusal(400, "LFS pointer pointed to a file that does not exist")
                    files[value["path"]] = found.objects[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        oid = found.commit(revision, files)
        return {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.address}/{repo}/commit/{oid}"}, {}

    def resolve(self, body: bytes, repo: str, revision: str, name: str) -> Any:
        found, commit = self._commit(repo, revision)
        if name not in found.commits[commit]:
            raise _Refusal(404, "Entry not found", "EntryNotFound")
        content = found.commits[commit][name]
        return content, {"X-Repo-Commit": commit, "ETag": f'"{sha256(content)}"', "X-Linked-Size": str(len(content))}


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_MODEL, _REVISION = rf"/api/models/{_REPO}", r"(?P<revision>[^/]+)"
_ROUTES: list[tuple[tuple[str, ...], str, Callable[..., Any]]] = [
    (("POST",), "/api/repos/create", _Handler.create),
    (("POST",), "/api/validate-yaml", _Handler.validate),
    (("POST",), rf"{_MODEL}/branch/(?P<branch>[^/]+)", _Handler.branch),
    (("POST",), rf"{_MODEL}/preupload/{_REVISION}", _Handler.preupload),
    (("POST",), rf"{_MODEL}/commit/{_REVISION}", _Handler.commit),
    (("GET",), rf"{_MODEL}/tree/{_REVISION}(/(?P<under>.+))?", _Handler.tree),
    (("GET",), rf"{_MODEL}(/revision/{_REVISION})?", _Handler.info),
    (("POST",), rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    (("PUT",), rf"/storage/{_REPO}/(?P<oid>[0-9a-f]+)", _Handler.store),
    (("POST",), rf"/verify/{_REPO}", _Handler.verify),
    (("GET", "HEAD"), rf"/{_REPO}/resolve/{_REVISION}/(?P<name>.+)", _Handler.resolve),
]


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Answer for `hub` on a port of this machine; its `address` is the endpoint."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
