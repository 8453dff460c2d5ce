"""What may change between a job's beginning and its going on, and what is refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_job import begin, copied, in_stage, interrupted
from trials import result_bytes

from compress.conversion import resume
from compress.distill.job import Job
from compress.distill.stopped import Stopped
from compress.durable import seal, unseal
from compress.errors import JobError


def test_what_changed_is_refused_by_name(work: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(work / "model", mine / "model")
    for name in ("text.txt", "recipe.yaml"):
        shutil.copy(work / name, mine)
    (mine / "eval.txt").write_text((mine / "text.txt").read_text())
    out = mine / "out"
    with pytest.raises(Stopped):
        begin(mine, out, f"eval.data={mine / 'eval.txt'}", stop=in_stage(out, "finetune", 1))

    def replaced(path: Path, old: str, new: str) -> None:
        path.write_text(path.read_text().replace(old, new))

    model = mine / "model"
    journal = out / ".job" / "journal.json"
    for path, change, said in (
        (model / "model.safetensors", flip_weight, r"model \(model.safetensors\)"),
        (model / "config.json", lambda p: replaced(p, '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'), "config.json"),
        (model / "tokenizer.json", lambda p: replaced(p, '"a": 5', '"a": 6'), r"tokenizer \(tokenizer.json\)"),
        (model / "tokenizer_config.json", lambda p: replaced(p, "{", "{ ", ), r"tokenizer_config.json"),
        (mine / "text.txt", lambda p: replaced(p, "cat", "dog"), "data"),
        (mine / "eval.txt", lambda p: replaced(p, "cat", "dog"), "evaluation data"),
        (journal, other_format, r"library format"),
    ):  # fmt: skip
        before = path.read_bytes()
        change(path)
        assert path.read_bytes() != before
        with pytest.raises(JobError, match=rf"changed since the job began: .*{said}"):
            resume(out)
        path.write_bytes(before)
    with pytest.raises(JobError, match="distill"):
        resume(out, overrides=["distill.steps=9"])
    with pytest.raises(JobError, match="distill"):
        resume(out, overrides=["seed=9"])
    with pytest.raises(JobError, match="data"):
        resume(out, overrides=["data.tokens=900"])
    resume(out)
    assert result_bytes(out) == result_bytes(work / "whole")


def flip_weight(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


def other_format(path: Path) -> None:
    journal = unseal(path.read_text())
    journal["fingerprints"]["library format"]["checkpoint"] = 0
    path.write_text(seal(journal))


@pytest.mark.parametrize(
    ("override", "again"),
    [
        ("finetune.steps=30", ["0"]),
        *(
            pytest.param(override, None, marks=pytest.mark.slow)
            for override in ("pack.table_dtype=bfloat16", "eval.data=TEXT")
        ),
    ],
)
def test_later_stages_may_change_and_are_done_again(
    work: Path, stopped: Path, tmp_path: Path, done: list[str], override: str, again: list[str] | None
) -> None:
    override = override.replace("TEXT", str(work / "text.txt"))
    out, fresh = copied(stopped, tmp_path / "out"), tmp_path / "fresh"
    step = str(Job.open(out).journal["progress"]["finetune"]["state"]["values"]["step"])
    resume(out, overrides=[override])
    assert done[0] == (again or [step])[0]
    begin(work, fresh, override)
    assert result_bytes(out) == result_bytes(fresh)
    with pytest.raises(JobError, match="finished"):
        resume(out, overrides=[override])


def test_a_finished_stage_may_change_too(
    work: Path, stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = copied(stopped, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("compress.conversion.evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            resume(out, overrides=["finetune.steps=30"])
    assert (out / "config.json").exists()
    resume(out, overrides=["finetune.steps=60"])
    assert result_bytes(out) == result_bytes(work / "whole")
