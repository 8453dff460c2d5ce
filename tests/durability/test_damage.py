"""Damaged files are named, and only what was in them is made again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from small_job import FIRST, SECOND, copied, flip, interrupted, truncate
from trials import result_bytes

from compress.checkpoint import load, verify_files
from compress.conversion import resume
from compress.distill.job import Job
from compress.durable import seal, unseal
from compress.errors import CheckpointError, JobError

FILES = (
    "journal.json", "journal.copy.json", f"distill-{FIRST}.safetensors", f"distill-{SECOND}.safetensors", "finetune",
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, flip) for name in FILES[::2]),
        *(pytest.param(name, flip, marks=pytest.mark.slow) for name in FILES[1::2]),
        *(pytest.param(name, damage, marks=pytest.mark.slow) for name in FILES for damage in (truncate, Path.unlink)),
    ],
)
def test_a_damaged_file_is_named_and_only_its_unit_made_again(
    work: Path, stopped: Path, tmp_path: Path, name: str, damage: Callable[[Path], None], done: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = copied(stopped, tmp_path / "out")
    state = Job.open(out).journal["progress"]["finetune"]["state"]
    file = state["file"] if name == "finetune" else name
    assert {path.name for path in (out / ".job").iterdir()} == {*FILES[:-1], state["file"], "lock"}
    damage(out / ".job" / file)
    resume(out)
    assert file in capsys.readouterr().out or name == "journal.copy.json"
    first = {FILES[2]: [FIRST, str(state["values"]["step"])], FILES[3]: [SECOND, str(state["values"]["step"])]}
    wanted = first.get(name, ["0" if name == "finetune" else str(state["values"]["step"])])
    assert done[: len(wanted)] == wanted
    assert result_bytes(out) == result_bytes(work / "whole")


def test_both_journals_damaged_are_an_error(stopped: Path, tmp_path: Path) -> None:
    out = copied(stopped, tmp_path / "out")
    for name in FILES[:2]:
        flip(out / ".job" / name)
    with pytest.raises(JobError, match="journal is lost"):
        resume(out)
    with pytest.raises(JobError, match="already holds"):
        Job.check_free(out)


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_damaged_checkpoint_of_a_job_is_packed_again(
    work: Path, stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    done: list[str], every: bool,
) -> None:  # fmt: skip
    out = copied(stopped, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("compress.conversion.evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            resume(out)
    (out / "mine.txt").write_text("a file of the user's")
    files = sorted(path for path in out.iterdir() if path.is_file() and path.name != "mine.txt")
    assert len(files) > 8
    for path in files[:: 1 if every else 4]:
        again = copied(out, tmp_path / path.name)
        flip(again / path.name)
        done.clear()
        resume(again)
        assert path.name in capsys.readouterr().out
        assert not done
        assert result_bytes(again) == result_bytes(work / "whole")
        assert verify_files(again) == []
        assert (again / "mine.txt").exists()
    done.clear()
    flip(out / ".job" / FILES[2])  # nothing depends on it any more
    resume(out)
    assert verify_files(out) == []


def test_every_byte_of_a_checkpoint_is_under_a_checksum(work: Path, tmp_path: Path) -> None:
    whole = work / "whole"
    files = sorted(path.name for path in whole.iterdir() if path.is_file())
    assert len(files) > 8
    for name in files:
        for damage in (flip, truncate):
            out = copied(whole, tmp_path / f"{name}-{damage.__name__}")
            damage(out / name)
            assert [problem.file for problem in verify_files(out)] == [name]
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(tmp_path / "model.safetensors-truncate")


def test_a_seal_covers_every_byte() -> None:
    text = seal({"a": [1, 2.5, None], "b": {"ü": "x\n"}})
    assert unseal(text) == {"a": [1, 2.5, None], "b": {"ü": "x\n"}}
    for position in range(len(text)):
        for bit in range(7):
            changed = text[:position] + chr(ord(text[position]) ^ 1 << bit) + text[position + 1 :]
            with pytest.raises(ValueError):  # noqa: PT011  # JSON's own or the seal's
                unseal(changed)
