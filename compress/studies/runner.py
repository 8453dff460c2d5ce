"""Run the cells of a study, each in a folder of its own: a killed study goes on, several processes share the work."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..distill.stopped import Stopped
from ..durable import replace_text, seal, unseal
from ..errors import DiskFullError, JobError
from ..evaluate.wording import counted
from ..lock import if_free, in_turn, shared
from .pictures import Picture, draw_points
from .results import Cell, Point, Result, points_of
from .tables import Column, to_csv, to_markdown

FORMAT = 1
MARK, CELLS = "study.json", "cells"
_LOCKS = ".locks"
_BEGUN, _RESULT = "cell.json", "result.json"

Stop = Callable[[], bool]


class Grid(Protocol):
    """What a kind of study gives to be run."""

    @property
    def title(self) -> str:
        """A line above the table."""

    @property
    def cells(self) -> Sequence[Cell]:
        """In the order in which they run."""

    @property
    def columns(self) -> Sequence[Column]:
        """Of the Markdown table."""

    @property
    def pictures(self) -> Sequence[Picture]:
        """That are drawn."""

    def run(self, cell: Cell, folder: Path, stop: Stop) -> dict[str, Any]:
        """Make one cell's values (numbers, texts or None); `folder` is its own, and may hold what a killed run left.

        Raises Stopped where `stop` says so, and anything else where the cell fails.
        """

    def notes(self, points: Sequence[Point]) -> list[str]:
        """Paragraphs below the table."""


@dataclass(frozen=True)
class Outcome:
    """Everything that a study has so far."""

    results: tuple[Result, ...]
    points: tuple[Point, ...]
    markdown: str

    @property
    def failed(self) -> list[Result]:
        """Cells that did not give a result."""
        return [result for result in self.results if result.error is not None]


def run_grid(
    grid: Grid, out: Path, *, tell: Callable[[str], None] = lambda line: None, stop: Stop = lambda: False
) -> Outcome:
    """Run the cells that `out` does not hold yet; write `table.csv`, `table.md` and the pictures.

    A cell that fails is recorded with its reason and tried again by the next call. Where the study changed, its changed
    cells are done again. Processes that run the same study into one folder share its cells. tell: told of each cell
    before it runs.
    Raises JobError where `out` holds something else, or a study none of whose cells is one of these, or where other
    processes work on the study as it was before it changed; DiskFullError; and Stopped where `stop` said so, tables
    and pictures made of what there is.
    """
    _claim(grid, out)
    with shared(out / _LOCKS / "study", lambda alone: _forget_changed(grid, out, tell, alone)):
        # Those that fail from now on do so in another process.
        failed = {result.cell.name for result in results_of(grid, out) if result.error is not None}
        elsewhere = 0
        try:
            for number, cell in enumerate(grid.cells, 1):
                with if_free(out / _LOCKS / f"cell-{cell.name}") as free:
                    elsewhere += not free
                    if not free or not _to_do(cell, out, failed):
                        continue
                    tell(f"cell {number} of {len(grid.cells)}: {cell.name}{_time_left(grid, out)}")
                    _run_cell(grid, cell, out, stop)
                _write_tables(grid, out)
        except Stopped:
            _write_all(grid, out, tell)
            raise
        if elsewhere:
            tell(f"left to other processes, which run them now: {counted(elsewhere, 'cell')}")
        return _write_all(grid, out, tell)


def _claim(grid: Grid, out: Path) -> None:
    """Make the folder a study's, or see that it is."""
    if not (out / MARK).is_file() and not _free(out):
        raise JobError(
            "the output folder holds something else", where=str(out),
            remedy="choose another folder with -o, or empty this one",
        )  # fmt: skip
    (out / _LOCKS).mkdir(parents=True, exist_ok=True)
    with in_turn(out / _LOCKS / "mark"):
        if not (out / MARK).is_file():
            replace_text(out / MARK, seal({"format": FORMAT, "title": grid.title}))
    try:
        version = unseal((out / MARK).read_text(encoding="utf-8"))["format"]
    except (ValueError, KeyError) as error:
        raise JobError(f"damaged: {error}", where=str(out / MARK), remedy="choose another folder") from None
    if version > FORMAT:
        raise JobError("the study is of a newer version", where=str(out), remedy="upgrade compress-lookup")


def _free(out: Path) -> bool:
    """Whether nothing is there but what another process that begins the same study has just made."""
    return not out.exists() or (out.is_dir() and all(path.name == _LOCKS for path in out.iterdir()))


def _folder(cell: Cell, out: Path) -> Path:
    return out / CELLS / cell.name


def fingerprint(cell: Cell) -> str:
    """SHA-256 (hex) of all that decides a cell's result."""
    return hashlib.sha256(json.dumps(cell.identity, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> dict[str, Any] | None:
    """A sealed file's values; None where it is missing or damaged."""
    try:
        return unseal(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _to_do(cell: Cell, out: Path, again: Container[str]) -> bool:
    """Whether a cell has no result, or failed and is to be tried `again`."""
    values = _read(_folder(cell, out) / _RESULT)
    return values is None or (values["error"] is not None and cell.name in again)


def _forget_changed(grid: Grid, out: Path, tell: Callable[[str], None], alone: bool) -> None:
    """Remove what cells left that are otherwise now, and say which; refuse where nothing would stay.

    alone: whether no other process works on the study; where one does, nothing is removed.
    """
    begun = {cell.name: _read(_folder(cell, out) / _BEGUN) for cell in grid.cells if _folder(cell, out).is_dir()}
    changed = {
        cell.name: [] if (was := begun[cell.name]) is None else _differences(was["identity"], cell.identity)
        for cell in grid.cells
        if cell.name in begun and (begun[cell.name] or {}).get("fingerprint") != fingerprint(cell)
        if alone or begun[cell.name] is not None  # what another process begins just now
    }
    damaged = [name for name in changed if begun[name] is None]
    keys = sorted({key for found in changed.values() for key in found})
    others = {path.name for path in (out / CELLS).glob("*")} - {cell.name for cell in grid.cells}
    if (changed or others) and len(changed) == len(begun) and len(damaged) < max(1, len(begun)):
        raise JobError(
            "the folder holds another study" + (f": changed since it began: {', '.join(keys)}" if keys else ""),
            where=str(out), remedy="put it back as it was, choose another folder with -o, or remove this one",
        )  # fmt: skip
    if changed and not alone:
        raise JobError(
            f"another process works on this study as it was; changed since: {', '.join(keys)}", where=str(out),
            remedy="wait for it, or end it",
        )  # fmt: skip
    if changed:
        why = f" ({', '.join(keys)})" if keys else ""
        tell(f"changed or damaged since they were made{why}, and done again: {', '.join(changed)}")
    if others:
        tell(f"no longer cells of the study, and left out: {', '.join(sorted(others))}")
    for name in changed:
        shutil.rmtree(out / CELLS / name)


def _differences(before: Any, now: Any, path: str = "") -> list[str]:
    """Keys of plain values that differ."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = sorted({*before, *now})
        return [
            found for key in keys for found in _differences(before.get(key), now.get(key), f"{path}.{key}".lstrip("."))
        ]
    return [] if before == now else [path]


def _run_cell(grid: Grid, cell: Cell, out: Path, stop: Stop) -> None:
    folder = _folder(cell, out)
    folder.mkdir(parents=True, exist_ok=True)
    if _read(folder / _BEGUN) is None:
        # As plain values, which is how it is compared later.
        identity = json.loads(json.dumps(cell.identity))
        replace_text(folder / _BEGUN, seal({"fingerprint": fingerprint(cell), "identity": identity}))
    begin, error, values = time.monotonic(), None, {}
    try:
        if stop():
            raise Stopped
        values = grid.run(cell, folder, stop)
    except (DiskFullError, Stopped):
        raise
    except Exception as failure:
        error = " ".join(f"{type(failure).__name__}: {failure}".split())
    record = {"error": error, "values": values, "seconds": time.monotonic() - begin}
    replace_text(folder / _RESULT, seal(record))


def results_of(grid: Grid, out: Path) -> list[Result]:
    """What the cells have given so far."""
    found = []
    for cell in grid.cells:
        record = _read(_folder(cell, out) / _RESULT)
        if record is not None:
            found.append(Result(cell, record["values"], record["error"], record["seconds"]))
    return found


def _time_left(grid: Grid, out: Path) -> str:
    """Expected from the cells that are done: those of the same point, else of the system, else of all."""
    done = results_of(grid, out)
    if not done:
        return ""
    left, names = 0.0, {cell.name for cell in grid.cells}
    for cell in grid.cells:
        if _to_do(cell, out, names):
            near = [r.seconds for r in done if r.cell.point == cell.point]
            near = near or [r.seconds for r in done if r.cell.system == cell.system] or [r.seconds for r in done]
            left += sum(near) / len(near)
    return f"; about {left / 60:.0f} min left" if left >= 90 else f"; about {left:.0f} s left"


def _write_tables(grid: Grid, out: Path) -> Outcome:
    results = results_of(grid, out)
    points = points_of(results)
    paragraphs = [grid.title, to_markdown(points, grid.columns).rstrip("\n"), *grid.notes(points)]
    if missing := len(grid.cells) - len(results):
        paragraphs.append(f"{missing} of {len(grid.cells)} cells are still to do.")
    paragraphs += [f"Failed: {error}" for point in points for error in point.errors]
    markdown = "\n\n".join(paragraphs) + "\n"
    with in_turn(out / _LOCKS / "tables"):
        replace_text(out / "table.csv", to_csv(points))
        replace_text(out / "table.md", markdown)
    return Outcome(tuple(results), tuple(points), markdown)


def _write_all(grid: Grid, out: Path, tell: Callable[[str], None]) -> Outcome:
    """The tables and the pictures."""
    outcome = _write_tables(grid, out)
    with in_turn(out / _LOCKS / "tables"):
        drawn = [draw_points(outcome.points, picture, out) for picture in grid.pictures]
    if drawn and not any(drawn) and any(result.error is None for result in outcome.results):
        tell("no pictures were drawn: pip install 'compress-lookup[plot]' brings matplotlib")
    return outcome
