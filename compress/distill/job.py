"""A job: one conversion in one output folder, with a journal that survives a kill at any moment."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..durable import file_problem, file_record, replace_text, seal, sync, sync_tree, unseal
from ..errors import JobError
from ..lock import held, try_lock
from .clock import Clock
from .stopped import Stopped

JOURNAL_VERSION = 3  # 1 had no checksums, 2 fitted one student a site
FOLDER = ".job"
STAGES = ("distill", "finetune", "pack", "evaluate")
_ORDER = ("write", *STAGES)  # of units of work, by the first part of their names
_JOURNAL, _COPY, _LOCK = "journal.json", "journal.copy.json", "lock"
_LAST = "config.json"  # published behind all others: without it a folder is no checkpoint


class Job:
    """The journal of one conversion and the durable files of its finished units of work.

    `journal` holds: version, source, recipe text and overrides, options (device, threads, data), fingerprints, plan,
    units (name -> result), progress (unit -> slot -> what was kept of it; see `Progress`), lost (results of units whose
    files were damaged, until these are made again), published (names of the checkpoint's files) and state ("running" or
    "finished"). A result's "files" are its
    unit's files, with size and SHA-256. `problems` says what of the journal was damaged when it was read.
    """

    def __init__(self, out: Path, journal: dict[str, Any], problems: Iterable[str] = ()) -> None:
        self.out, self.journal, self.problems = out, journal, list(problems)
        self.clock = Clock()
        self.stop: Callable[[], bool] = lambda: False
        self._stopping = False

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
        _remove_abandoned(out)
        staging = out.parent / f".{out.name}.creating-{os.getpid()}"
        (staging / FOLDER).mkdir(parents=True)
        job = cls(staging, {"version": JOURNAL_VERSION, "state": "running", "units": {}, **journal})
        try:
            with job.lock():
                job.write()
                try:
                    os.rename(staging, out)  # an empty folder in its place is replaced
                except OSError:
                    cls.check_free(out)  # where another process was faster
                    raise
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        sync(out.parent)
        job.out = out
        return job

    @staticmethod
    def check_free(out: Path) -> None:
        """Raise JobError where a new job may not be put."""
        if is_job(out):
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
        """Read a job's journal, or its copy where it is damaged.

        Raises JobError where there is none, both are damaged or it is newer than this version.
        """
        problems = []
        for name in (_JOURNAL, _COPY):
            path = out / FOLDER / name
            try:
                journal = _read_journal(path.read_text(encoding="utf-8"))
            except FileNotFoundError:
                problems.append(f"{name}: missing")
            except ValueError as error:
                problems.append(f"{name}: damaged: {error}")
            else:
                if journal["version"] > JOURNAL_VERSION:
                    raise JobError(
                        f"the journal has version {journal['version']}, this program reads up to {JOURNAL_VERSION}",
                        where=str(path), remedy="upgrade compress-lookup",
                    )  # fmt: skip
                return cls(out, journal, problems)
        if not is_job(out):
            raise JobError(
                "no conversion in this folder", where=str(out), remedy="start one with `compress convert MODEL RECIPE`"
            )
        raise JobError(
            f"the journal is lost ({'; '.join(problems)})", where=str(out / FOLDER),
            remedy="start the job anew, in another folder",
        )  # fmt: skip

    @classmethod
    def check_finished(cls, out: Path) -> None:
        """Raise JobError where a folder holds a job that is not finished; one without a job is none of its business."""
        if (out / FOLDER).is_dir() and cls.open(out).journal["state"] != "finished":
            raise JobError(
                "the conversion in this folder is not finished", where=str(out),
                remedy=f"go on with it: compress resume {shlex.quote(str(out))}",
            )  # fmt: skip

    def check_trusted(self, trust_remote_code: bool) -> None:
        """Raise JobError where the model's own code has to run and is not trusted: a journal may be a stranger's."""
        if self.journal["options"]["trust_remote_code"] and not trust_remote_code:
            raise JobError(
                "the model's own code has to run, and is not trusted", where=str(self.out),
                remedy="read that code; if you trust it, pass --trust-remote-code (trust_remote_code=True) again",
            )  # fmt: skip

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the job alone; JobError where another process works on it. A process that ends, however, lets go."""
        remedy = "wait for it, or end it; `compress status` shows its progress"
        with held(self.folder / _LOCK, self.out, "this job", remedy):
            yield

    def running(self) -> bool:
        """Whether a process holds the job now."""
        with open(self.folder / _LOCK, "a+") as file:
            return not try_lock(file, fcntl.LOCK_SH)

    def stopping(self) -> bool:
        """Whether the job was asked to stop; asked itself at every step."""
        self._stopping = self._stopping or self.stop()
        return self._stopping

    def write(self) -> None:
        """Replace the journal and its copy."""
        text = seal(self.journal)
        replace_text(self.folder / _COPY, text)
        replace_text(self.folder / _JOURNAL, text)

    # Units of work

    def unit(self, name: str) -> dict[str, Any] | None:
        """The result of a finished unit of work, None where it is still to do."""
        result: dict[str, Any] | None = self.journal["units"].get(name)
        return result

    def unit_file(self, name: str, suffix: str) -> Path:
        """The file that belongs to a unit."""
        return self.folder / f"{name.replace('/', '-')}{suffix}"

    def finish_unit(self, name: str, result: Mapping[str, Any], files: Iterable[Path] = ()) -> None:
        """Note a unit as finished, with its durable files; what was kept of its progress goes.

        Where its files were lost and have come out otherwise than they were, what was built on them is dropped.
        Raises Stopped where the job was asked to stop.
        """
        finished = {**result, "files": {path.name: file_record(path) for path in files}}
        lost = self.journal.get("lost", {}).pop(name, None)
        if lost is not None and lost["files"] != finished["files"]:
            for other in self._behind(name):
                self._drop(other)
        self.journal["units"][name] = finished
        kept = self.journal.get("progress", {}).pop(name, {})
        self.write()
        for entry in kept.values():
            (self.folder / entry["file"]).unlink(missing_ok=True)
        self.clock.restart()
        if self.stopping():
            raise Stopped

    def verify(self) -> list[str]:
        """Find damaged files of finished units, which are then to do again; says what each one was.

        Files that no unit knows, which a kill may leave, are removed.
        """
        from ..checkpoint import verify_files  # brings torch in, which `compress status` does without

        found = list(self.problems)
        for name, result in list(self.journal["units"].items()):
            problems = [
                f"{file}: {what}"
                for file, record in result.get("files", {}).items()
                if (what := file_problem(self.folder / file, record))
            ]
            if name == "pack":
                problems = [f"{problem.file}: {problem.what}" for problem in verify_files(self.out)]
            if problems:
                found += problems
                self.journal.setdefault("lost", {})[name] = self.journal["units"].pop(name)
        self._remove_unknown()
        if found:
            self.write()
        return found

    def _remove_unknown(self) -> None:
        known = {_JOURNAL, _COPY, _LOCK}
        for result in self.journal["units"].values():
            known |= result.get("files", {}).keys()
        for slots in self.journal.get("progress", {}).values():
            known |= {entry["file"] for entry in slots.values()}
        for path in self.folder.iterdir():
            if path.name not in known:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _behind(self, name: str) -> list[str]:
        """Finished units that were built on a unit: sites behind a site, stages behind a stage."""
        units = list(self.journal["units"])
        stage = _ORDER.index(name.partition("/")[0])
        order = [*self.journal["plan"]["sites"]]

        def behind(other: str) -> bool:
            other_stage, _, site = other.partition("/")
            if site and _ORDER[stage] == other_stage:
                return order.index(site) > order.index(name.partition("/")[2])
            return _ORDER.index(other_stage) > stage

        return [other for other in units if behind(other)]

    def _drop(self, name: str) -> None:
        for place in ("units", "lost", "progress"):
            self.journal.get(place, {}).pop(name, None)

    # Changes since the job began

    def check_fingerprints(self, current: Mapping[str, Any], ignore: set[str]) -> None:
        """Raise JobError naming what changed since the job began, other than `ignore`."""
        recorded = self.journal["fingerprints"]
        changed = [
            _named(key, recorded.get(key), value)
            for key, value in current.items()
            if recorded.get(key) != value and key not in ignore
        ]
        if changed:
            raise JobError(
                f"changed since the job began: {', '.join(changed)}", where=str(self.out),
                remedy="put it back as it was, or start a new job in another folder",
            )  # fmt: skip

    def begun(self, stage: str) -> bool:
        """Whether a stage has work in it, finished or not."""
        places = (self.journal["units"], self.journal.get("progress", {}), self.journal.get("lost", {}))
        return any(name.partition("/")[0] == stage for place in places for name in place)

    def restart_from(self, stage: str) -> None:
        """Forget a stage and those behind it; a checkpoint that was published already is taken back."""
        self._unpublish(self.journal.get("published", ()))
        for name in {*self.journal["units"], *self.journal.get("progress", {}), *self.journal.get("lost", {})}:
            if _ORDER.index(name.partition("/")[0]) >= _ORDER.index(stage):
                self._drop(name)
        self.write()
        self._remove_unknown()

    # The result

    def publish(self, staging: Path) -> None:
        """Move a complete folder's files into the output folder; done again after a kill, it ends the same."""
        sync_tree(staging)
        names = [path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file()]
        before = set(self.journal.get("published", ()))
        self.journal["published"] = sorted(before.union(names))
        self.write()
        self._unpublish(before.difference(names))
        for name in sorted(names, key=lambda name: (name == _LAST, name)):
            (self.out / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(staging / name, self.out / name)
        sync_tree(self.out)
        self.journal["published"] = sorted(names)

    def _unpublish(self, names: Iterable[str]) -> None:
        """Remove what an earlier, incomplete or damaged checkpoint left; files of others stay."""
        for name in sorted(names, key=lambda name: (name != _LAST, name)):
            (self.out / name).unlink(missing_ok=True)

    def finish(self) -> None:
        """Mark the job as finished and drop the units' files, which the checkpoint replaces."""
        self.journal["state"] = "finished"
        self.journal.pop("progress", None)
        self.write()
        self.tidy()

    def tidy(self) -> None:
        """Drop a finished job's files of units."""
        for path in self.folder.iterdir():
            if path.name not in (_JOURNAL, _COPY, _LOCK):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def is_job(out: Path) -> bool:
    """Whether a folder holds a conversion, finished or not."""
    return any((out / FOLDER / name).exists() for name in (_JOURNAL, _COPY))


def _read_journal(text: str) -> dict[str, Any]:
    values = json.loads(text)
    if isinstance(values, dict) and values.get("version") == 1 and "sha256" not in values:
        return values
    return unseal(text)


def _remove_abandoned(out: Path) -> None:
    """Remove folders that killed processes were about to make `out` of."""
    for staging in out.parent.glob(f".{out.name}.creating-*"):
        with suppress(OSError), open(staging / FOLDER / _LOCK, "a+") as file:
            if try_lock(file, fcntl.LOCK_EX):
                shutil.rmtree(staging, ignore_errors=True)


def _named(key: str, before: Any, now: Any) -> str:
    """Name what changed, with the files where it is made of files."""
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        return key
    files = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    return f"{key} ({', '.join(files)})"
