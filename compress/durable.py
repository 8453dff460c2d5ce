"""Files that are whole or not there at all: replaced atomically and synced, checked by SHA-256, room for them said."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import DiskFullError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SEAL = "sha256"


def replace_file(path: Path, write: Callable[[Path], None], *, needs: int | None = None) -> None:
    """Replace `path` so that a reader, or a crash, sees the old file or the new one: `write` fills one beside it.

    needs: bytes of the new file, where they are known.  Raises DiskFullError, with the old file untouched.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with room_for(path, needs):
            write(temporary)
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def replace_text(path: Path, text: str) -> None:
    """Replace a text file, in UTF-8, as `replace_file` does."""
    content = text.encode()
    replace_file(path, lambda temporary: _write(temporary, content), needs=len(content))


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def sync(path: Path) -> None:
    """Make a file's bytes durable, or the renames inside a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Make everything below a folder durable."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


@contextmanager
def room_for(path: Path, needs: int | None = None) -> Iterator[None]:
    """Turn a full disk, a quota or a file-size limit met while `path` is written into a DiskFullError."""
    try:
        yield
    except Exception as error:
        if not _is_full(error):
            raise
        wanted = "" if needs is None else f"it needs {size_text(needs)}, "
        free = size_text(shutil.disk_usage(path.parent).free)
        raise DiskFullError(
            f"no room to write {path.name}: {wanted}{free} are free",
            where=str(path.parent), remedy="make room (or lift the quota or limit on file sizes), then start again",
        ) from error  # fmt: skip


def _is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        found = re.search(r"\(os error (\d+)\)", str(error))  # safetensors tells it in words alone
        if found and int(found[1]) in _FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


def size_text(count: int) -> str:
    """Write bytes in decimal units, rounded up, so that what is needed is not said too small."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{-(-count * 10 // unit) / 10:g} {name}"
    return f"{count} bytes"


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_record(path: Path) -> dict[str, Any]:
    """What `file_problem` checks a file against."""
    return {"bytes": path.stat().st_size, "sha256": hash_file(path)}


def file_problem(path: Path, record: Mapping[str, Any]) -> str | None:
    """How a file differs from what was recorded of it; None where it does not."""
    if not path.is_file():
        return "missing"
    if (size := path.stat().st_size) != record["bytes"]:
        return f"{size} bytes, not {record['bytes']} as recorded"
    return None if hash_file(path) == record["sha256"] else "altered: its SHA-256 is not the recorded one"


def seal(values: Mapping[str, Any], *, sort_keys: bool = False) -> str:
    """JSON text of plain values that carries its own SHA-256."""
    body = json.dumps(values, sort_keys=sort_keys)
    sealed = {**values, _SEAL: hashlib.sha256(body.encode()).hexdigest()}
    return json.dumps(sealed, indent=1, sort_keys=sort_keys) + "\n"


def unseal(text: str, *, sort_keys: bool = False) -> dict[str, Any]:
    """Read what `seal` gave. Raises ValueError where a single byte is not as it was written."""
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError("it holds no JSON object")
    values.pop(_SEAL, None)
    if seal(values, sort_keys=sort_keys) != text:
        raise ValueError("its SHA-256 is not the recorded one")
    return values
