"""A job: one conversion in one output folder, with a journal that survives a kill at any moment."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import JobError

JOURNAL_VERSION = 1
FOLDER = ".job"


def write_durable(path: Path, write: Callable[[Path], None]) -> None:
    """Replace `path` atomically: `write` fills a temporary file beside it, which is synced and renamed."""
    temporary = path.with_name(f".{path.name}.partial")
    write(temporary)
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Job:
    """The journal of one conversion and the durable files of its finished units of work.

    `journal` holds: version, source, recipe text and overrides, options (device, threads, data), fingerprints, plan,
    units (name -> result) and state ("running" or "finished").
    """

    def __init__(self, out: Path, journal: dict[str, Any]) -> None:
        self.out, self.journal = out, journal

    @property
    def folder(self) -> Path:
        """Where the journal and the units' files are."""
        return self.out / FOLDER

    @classmethod
    def create(cls, out: Path, journal: dict[str, Any]) -> Job:
        """Make the output folder, by one rename, with a valid journal in it.

        Raises JobError where the folder holds a job or anything else.
        """
        cls.check_free(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = out.parent / f".{out.name}.creating"
        shutil.rmtree(staging, ignore_errors=True)
        (staging / FOLDER).mkdir(parents=True)
        job = cls(staging, {"version": JOURNAL_VERSION, "state": "running", "units": {}, **journal})
        job.write()
        if out.exists():
            out.rmdir()  # empty, or check_free would have refused
        os.rename(staging, out)
        sync_folder(out.parent)
        job.out = out
        return job

    @staticmethod
    def check_free(out: Path) -> None:
        """Raise JobError where a new job may not be put."""
        if (out / FOLDER / "journal.json").exists():
            raise JobError(
                "the output folder already holds a conversion", where=str(out),
                remedy=f"continue it with `compress resume {out}`, or choose another folder with -o",
            )  # fmt: skip
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise JobError(
                "the output folder holds something else", where=str(out),
                remedy="choose another folder with -o, or empty this one",
            )  # fmt: skip

    @classmethod
    def open(cls, out: Path) -> Job:
        """Read a job's journal; JobError where there is none or it is newer than this version."""
        path = out / FOLDER / "journal.json"
        try:
            journal = json.loads(path.read_text())
        except FileNotFoundError:
            raise JobError(
                "no conversion in this folder", where=str(out), remedy="start one with `compress convert MODEL RECIPE`"
            ) from None
        except json.JSONDecodeError as error:
            raise JobError(f"the journal is damaged: {error}", where=str(path), remedy="start the job anew") from None
        if journal.get("version", 0) > JOURNAL_VERSION:
            raise JobError(
                f"the journal has version {journal['version']}, this program reads up to {JOURNAL_VERSION}",
                where=str(path), remedy="upgrade compress-lookup",
            )  # fmt: skip
        return cls(out, journal)

    @classmethod
    def check_finished(cls, out: Path) -> None:
        """Raise JobError where a folder holds a job that is not finished; one without a job is none of its business."""
        if (out / FOLDER).is_dir() and cls.open(out).journal["state"] != "finished":
            raise JobError(
                "the conversion in this folder is not finished", where=str(out),
                remedy=f"go on with it: compress resume {shlex.quote(str(out))}",
            )  # fmt: skip

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the job alone; JobError where another process works on it."""
        with open(self.folder / "lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise JobError(
                    "another process works on this job", where=str(self.out),
                    remedy="wait for it, or end it; `compress status` shows its progress",
                ) from None  # fmt: skip
            yield

    def running(self) -> bool:
        """Whether a process holds the job now."""
        with open(self.folder / "lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return True
            return False

    def write(self) -> None:
        """Replace the journal."""
        text = json.dumps(self.journal, indent=1) + "\n"
        write_durable(self.folder / "journal.json", lambda path: _write_text(path, text))

    def unit(self, name: str) -> dict[str, Any] | None:
        """The result of a finished unit of work, None where it is still to do."""
        return self.journal["units"].get(name)

    def finish_unit(self, name: str, result: dict[str, Any]) -> None:
        """Note a unit as finished; its files must be durable by now."""
        self.journal["units"][name] = result
        self.write()

    def unit_file(self, name: str, suffix: str) -> Path:
        """The file that belongs to a unit."""
        return self.folder / f"{name.replace('/', '-')}{suffix}"

    def check_fingerprints(self, current: dict[str, str], ignore: set[str]) -> None:
        """Raise JobError naming what changed since the job began, other than `ignore`."""
        recorded = self.journal["fingerprints"]
        changed = [key for key, value in current.items() if recorded.get(key) != value and key not in ignore]
        if changed:
            raise JobError(
                f"changed since the job began: {', '.join(changed)}", where=str(self.out),
                remedy="put it back as it was, or start a new job in another folder",
            )  # fmt: skip

    def stages_begun(self) -> set[str]:
        """Stages with work in them, finished or not."""
        begun = {name.partition("/")[0] for name in self.journal["units"]}
        return begun | ({"finetune"} if any(self.folder.glob("finetune*")) else set())

    def publish(self, staging: Path) -> None:
        """Move a complete folder's files into the output folder; done again after a kill, it ends the same."""
        for path in sorted(staging.iterdir()):
            target = self.out / path.name
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(path, target)
        sync_folder(self.out)

    def finish(self) -> None:
        """Mark the job as finished and drop the units' files, which the checkpoint replaces."""
        self.journal["state"] = "finished"
        self.write()
        for path in self.folder.iterdir():
            if path.name not in ("journal.json", "lock"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
