"""Durable states inside a unit of work, so that a kill costs no more than the time between two of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from ..durable import file_problem, file_record, replace_file
from .job import Job
from .stopped import Stopped

_HEADER = 4096  # bytes of a file beside its tensors, about


class Progress:
    """What is kept of one unit of work that is not finished: tensors and plain values, in named slots.

    A slot's file has a new name each time; the journal names the one that counts, with its SHA-256, so a kill leaves
    the old state or the new one.
    """

    def __init__(self, job: Job, unit: str) -> None:
        self.job, self.unit = job, unit

    def _slots(self) -> dict[str, Any]:
        slots: dict[str, Any] = self.job.journal.get("progress", {}).get(self.unit, {})
        return slots

    def due(self) -> bool:
        """Whether what is not durable yet should be kept now."""
        return self.job.clock.due() or self.job.stopping()

    def keep(self, slot: str, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Make a slot's new content durable. Raises Stopped, behind that, where the job was asked to stop."""
        with self.job.clock.saving():
            before = self._slots().get(slot)
            number = 0 if before is None else before["number"] + 1
            path = self.job.unit_file(self.unit, f".{slot}.{number}.safetensors")
            save_tensors(path, tensors)
            entry = {"file": path.name, "number": number, "values": dict(values), **file_record(path)}
            self.job.journal.setdefault("progress", {}).setdefault(self.unit, {})[slot] = entry
            self.job.write()
            if before is not None:
                (self.job.folder / before["file"]).unlink(missing_ok=True)
        if self.job.stopping():
            raise Stopped

    def get(self, slot: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """A slot's tensors and values; None where nothing was kept, or it is damaged, which is said."""
        entry = self._slots().get(slot)
        if entry is None:
            return None
        path = self.job.folder / entry["file"]
        if problem := file_problem(path, entry):
            tqdm.write(f"{path.name}: {problem}; this part of {self.unit} is done again")
            del self._slots()[slot]
            return None
        return load_file(path), entry["values"]

    def drop(self, beginning: str) -> None:
        """Forget all slots whose names begin so."""
        slots = self._slots()
        dropped = [slots.pop(name) for name in list(slots) if name.startswith(beginning)]
        if dropped:
            self.job.write()
            for entry in dropped:
                (self.job.folder / entry["file"]).unlink(missing_ok=True)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors durably."""
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    needs = _HEADER + sum(value.nbytes for value in plain.values())
    replace_file(path, lambda temporary: save_file(plain, temporary), needs=needs)
