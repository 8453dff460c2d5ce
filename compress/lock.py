"""Files that processes hold, alone or together; a process that ends, however it does, lets go."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from .errors import JobError

_SECONDS = 0.5  # one who only asks whether the lock is held holds it for a moment


@contextmanager
def held(path: Path, where: Path, what: str, remedy: str) -> Iterator[None]:
    """Hold a lock file; JobError where another process works on `what`."""
    with open(path, "a+") as file:
        deadline = time.monotonic() + _SECONDS
        while not try_lock(file, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                file.seek(0)
                holder = file.read().strip()
                raise JobError(
                    f"another process works on {what}" + (f": {holder}" if holder else ""), where=str(where),
                    remedy=remedy,
                )  # fmt: skip
            time.sleep(0.05)
        file.truncate(0)
        file.write(f"process {os.getpid()}\n")
        file.flush()
        yield


@contextmanager
def shared(path: Path, tidy: Callable[[bool], None]) -> Iterator[None]:
    """Hold a lock file together with others.

    tidy: called first, with whether nobody else holds it; whoever comes meanwhile waits until it is through.
    """
    with open(path, "a+") as file:
        alone = try_lock(file, fcntl.LOCK_EX)
        if not alone:
            fcntl.flock(file, fcntl.LOCK_SH)
        tidy(alone)
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


@contextmanager
def if_free(path: Path) -> Iterator[bool]:
    """Hold a lock file alone unless another process has it; gives whether it is held now."""
    with open(path, "a+") as file:
        yield try_lock(file, fcntl.LOCK_EX)


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Hold a lock file alone, once whoever has it lets go: for what takes a moment."""
    with open(path, "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def try_lock(file: IO[str], kind: int) -> bool:
    """Take a lock of a kind of fcntl's if it is free."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
