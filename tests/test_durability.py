"""Nothing is lost: kills, full disks, damaged files, changes, divergence, and what a conversion says that it needs."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pico_tokenizer import WORDS, save_pico
from trials import RECIPE, result_bytes

import compress.evaluate.evaluation
from compress.checkpoint import load, read_config, verify_files
from compress.conversion import convert, resume
from compress.distill import clock as clocks
from compress.distill.clock import Clock
from compress.distill.endtoend import EndToEnd
from compress.distill.job import Job
from compress.distill.layerwise import BETTER_WITHOUT, SiteDistiller
from compress.distill.objectives import BehindNorm
from compress.distill.stopped import Stopped
from compress.durable import seal, unseal
from compress.errors import CheckpointError, CompressError, JobError, SiteError
from compress.lookup import LookupFFN, PackedLookupFFN
from compress.models import load_pretrained
from compress.recipe import load_recipe

FIRST, SECOND = "layers.0.mlp.down_proj", "layers.1.mlp.down_proj"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No speed is measured here."""
    monkeypatch.setattr(compress.evaluate.evaluation, "measure_latency", lambda *args, **kwargs: [])


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a text, a recipe, and the folder of a job that was never interrupted."""
    folder = tmp_path_factory.mktemp("durability")
    draw = random.Random(0)
    lines = [" ".join(draw.choices(WORDS, k=draw.randint(4, 12))) + "." for _ in range(400)]
    (folder / "text.txt").write_text("\n".join(lines) + "\n")
    (folder / "recipe.yaml").write_text(RECIPE)
    save_pico(folder / "model", "llama")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compress.evaluate.evaluation, "measure_latency", lambda *args, **kwargs: [])
        begin(folder, folder / "whole")
    return folder


@pytest.fixture(scope="module")
def stopped(work: Path) -> Path:
    """The folder of a job that was stopped in its end-to-end stage."""
    out = work / "stopped"

    with pytest.raises(Stopped):
        begin(work, out, stop=in_stage(out, "finetune"))
    return out


def begin(work: Path, out: Path, *overrides: str, stop: Callable[[], bool] = lambda: False) -> Any:
    return convert(
        str(work / "model"), work / "recipe.yaml", out, data=str(work / "text.txt"), threads=1, overrides=overrides,
        stop=stop,
    )  # fmt: skip


def in_stage(out: Path, stage: str, calls: int = 10) -> Callable[[], bool]:
    """Say stop at the so-manieth time that a stage asks."""
    seen = 0

    def stop() -> bool:
        nonlocal seen
        if not (out / ".job" / "journal.json").exists():
            return False
        done = Job.open(out).journal["units"]
        seen += len(done) == (2 if stage == "finetune" else 0)
        return seen > calls

    return stop


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names what a conversion does again."""
    found: list[str] = []
    run, step = SiteDistiller.run, EndToEnd.train_step

    def noted_run(self: SiteDistiller, *args: Any) -> Any:
        found.append(self.tap.site.name)
        return run(self, *args)

    def noted_step(self: EndToEnd, batch: Any) -> float:
        found.append(str(self.step))
        return step(self, batch)

    monkeypatch.setattr(SiteDistiller, "run", noted_run)
    monkeypatch.setattr(EndToEnd, "train_step", noted_step)
    return found


def trial(name: str, folder: Path, *arguments: object) -> dict[str, Any]:
    """What trials.py found."""
    command = [sys.executable, str(Path(__file__).with_name("trials.py")), name, folder, *arguments]
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": str(Path(__file__).parent)}
    found = subprocess.run(
        [str(part) for part in command], env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    values: dict[str, Any] = json.loads(found.stdout)
    return values


# Kills


@pytest.mark.parametrize("count", [4, pytest.param(100, marks=pytest.mark.long)])
def test_killed_at_random_moments_it_gives_the_same_bytes(tmp_path: Path, count: int) -> None:
    found = trial("kills", tmp_path, count, count)
    assert found["kills"] == count
    assert (found["differing"], found["failed"], found["left"]) == (0, 0, []), found


def test_stopped_it_keeps_the_step_and_goes_on_behind_it(
    work: Path, stopped: Path, tmp_path: Path, done: list[str]
) -> None:
    out = copied(stopped, tmp_path / "out")
    state = Job.open(out).journal["progress"]["finetune"]["state"]["values"]
    assert state["step"] > 0
    resume(out)
    assert done[0] == str(state["step"])
    assert result_bytes(out) == result_bytes(work / "whole")
    assert {path.name for path in (out / ".job").iterdir()} == {"journal.json", "journal.copy.json", "lock"}


@pytest.mark.parametrize(
    ("calls", "slots"),
    [
        pytest.param(2, {"held0"}, marks=pytest.mark.slow),
        (12, {"train-0-0"}),
        pytest.param(60, {"state"}, marks=pytest.mark.slow),
    ],
)
def test_a_site_keeps_recordings_and_training(work: Path, tmp_path: Path, calls: int, slots: set[str]) -> None:
    out = tmp_path / "out"
    with pytest.raises(Stopped):
        begin(work, out, stop=in_stage(out, "distill", calls))
    assert set(Job.open(out).journal["progress"][f"distill/{FIRST}"]) == slots
    resume(out)
    assert result_bytes(out) == result_bytes(work / "whole")


@pytest.mark.parametrize(("stage", "calls"), [("distill", 60), ("finetune", 1)])
def test_students_that_were_chosen_without_tables_stay_so(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, calls: int
) -> None:
    error, decided = SiteDistiller.held_out_error, set[str]()

    def worse_with_tables(self: SiteDistiller, student: LookupFFN) -> float:
        penalty = 0.0 if self.tap.site.name in decided or not student.geometry.tables else 2.0
        return error(self, student) + penalty

    monkeypatch.setattr(SiteDistiller, "held_out_error", worse_with_tables)
    begin(work, tmp_path / "whole")
    with pytest.raises(Stopped):
        begin(work, tmp_path / "out", stop=in_stage(tmp_path / "out", stage, calls))
    decided |= {FIRST} if stage == "distill" else {FIRST, SECOND}
    resume(tmp_path / "out")
    assert result_bytes(tmp_path / "out") == result_bytes(tmp_path / "whole")
    journal = Job.open(tmp_path / "out").journal
    assert [site["tables"] for site in journal["plan"]["sites"].values()] == [0, 0]
    assert [student.geometry.tables for student in students(tmp_path / "out")] == [0, 0]
    assert [student.geometry.tables > 0 for student in students(work / "whole")] == [True, True]
    (note,) = json.loads((tmp_path / "out" / "report.json").read_text())["notes"]
    assert note.startswith("No tables at layers.0.mlp.down_proj, layers.1.mlp.down_proj")


@pytest.mark.parametrize(("without", "tables"), [(BETTER_WITHOUT + 0.01, True), (BETTER_WITHOUT - 0.01, False)])
def test_tables_stay_where_the_closed_form_is_hardly_better_without(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: float, tables: bool
) -> None:
    monkeypatch.setattr(SiteDistiller, "held_out_error", lambda _, student: 1.0 if student.geometry.tables else without)
    begin(work, tmp_path / "out", "distill.steps=0", "finetune.steps=0")
    assert [student.geometry.tables > 0 for student in students(tmp_path / "out")] == [tables] * 2


def students(folder: Path) -> list[PackedLookupFFN]:
    return [module for module in load_pretrained(str(folder)).model.modules() if isinstance(module, PackedLookupFFN)]


def test_saving_takes_less_than_a_twentieth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(clocks.time, "monotonic", lambda: now)
    clock = Clock()
    for cost, interval in ((0.2, 20.0), (0.9, 20.0), (5.0, 20.0), (1.0, 100.0), (0.1, 20.0)):
        begun = now
        while not clock.due():
            now += 0.01
        assert now - begun == pytest.approx(interval, abs=0.02)
        with clock.saving():
            now += cost
        assert clock.cost == pytest.approx(cost)


# Full disks


def test_a_limit_on_files_is_told_and_the_job_goes_on(tmp_path: Path) -> None:
    found = trial("limits", tmp_path, 1000, 6000, 60_000, 120_000)
    assert found["statuses"] == {"3": 4}
    assert (found["differing"], found["halves"], found["failed"]) == (0, 0, 0)
    for file, message in found["messages"].items():
        assert "needs" in message, file
        assert "resume" in message or "journal" in file


@pytest.mark.long
@pytest.mark.parametrize(
    ("step", "most", "seconds", "written"),
    [
        (8192, 400_000, 20, ("journal", f"distill-{FIRST}", f"distill-{SECOND}", "finetune", "checkpoint")),
        (131_072, 4_000_000, 0, ("held", "train-0-", "state.1")),
    ],
)
def test_a_disk_that_is_full_at_any_write(
    tmp_path: Path, step: int, most: int, seconds: int, written: tuple[str, ...]
) -> None:
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path], check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    subprocess.run(["umount", tmp_path], check=True)
    found = trial("rooms", tmp_path, step, most, seconds)
    assert set(found["statuses"]) == {"0", "3"}
    files = " ".join(found["messages"])
    assert all(part in files for part in written), files
    assert (found["differing"], found["halves"], found["failed"]) == (0, 0, 0)


def test_too_little_room_is_told_before_the_first_step(work: Path, tmp_path: Path, monkeypatch: Any) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(CompressError, match=r"needs up to .* of disk, 1 kB are free"):
        begin(work, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Damage


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


def interrupted(*args: Any, **kwargs: Any) -> None:
    raise KeyboardInterrupt


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


# Changes


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


# Locks


HOLD = """
import sys, time
from pathlib import Path
from compress.distill.job import Job
with Job.open(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_refused_and_a_dead_one_is_not_waited_for(stopped: Path, tmp_path: Path) -> None:
    out = copied(stopped, tmp_path / "out")
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(JobError, match=f"another process works on this job: process {process.pid}"):
        resume(out)
    assert Job.open(out).running()
    process.kill()
    process.wait()
    # The number in the file is a dead process's, and after a start of the machine may be anyone's: here it is ours.
    (out / ".job" / "lock").write_text(f"process {os.getpid()}\n")
    assert not Job.open(out).running()
    with Job.open(out).lock():
        pass


def test_what_a_process_killed_while_it_created_a_job_leaves_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".out.creating-1"
    (left / ".job").mkdir(parents=True)
    Job.create(tmp_path / "out", {"fingerprints": {}})
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# Divergence


def failing(monkeypatch: pytest.MonkeyPatch, calls: range, error: float = math.nan) -> None:
    """Let training of the second site, told by its scale, give such errors at some of its steps."""
    forward, count = BehindNorm.forward, {"steps": 0}

    def wrong(self: BehindNorm, answer: torch.Tensor, data: Any) -> torch.Tensor:
        loss = forward(self, answer, data)
        if answer.requires_grad and getattr(self, "second", False):
            count["steps"] += 1
            if count["steps"] in calls:
                return loss * error
        return loss

    run = SiteDistiller.run

    def marked(self: SiteDistiller, *args: Any) -> Any:
        self.objective.second = self.tap.site.name == SECOND
        return run(self, *args)

    monkeypatch.setattr(BehindNorm, "forward", wrong)
    monkeypatch.setattr(SiteDistiller, "run", marked)


SLOW = pytest.mark.slow


@pytest.mark.parametrize("error", [math.nan, *(pytest.param(e, marks=SLOW) for e in (math.inf, 1e9))])
def test_a_site_begins_again_with_smaller_steps(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: float
) -> None:
    out = tmp_path / "out"
    failing(monkeypatch, range(50, 51), error)
    report = begin(work, out)
    assert any(SECOND in note and "smaller steps" in note for note in report.notes)
    assert {site.name for site in read_config(out).sites} == {FIRST, SECOND}
    unit = Job.open(out).journal["units"][f"distill/{SECOND}"]
    assert unit["restarts"] == 1
    assert unit["distilled"] < unit["fitted"]


def test_a_site_that_keeps_diverging_stays_dense_and_everything_says_so(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compress.cli import app
    from typer.testing import CliRunner

    out = tmp_path / "out"
    failing(monkeypatch, range(50, 10_000))
    report = begin(work, out)
    assert [site.name for site in read_config(out).sites] == [FIRST]
    assert [site["error"] is None for site in report.sites] == [False, True]
    assert any(f"{SECOND} stayed dense" in sentence for sentence in report.sentences())
    assert json.loads((out / "report.json").read_text())["notes"] == report.notes
    assert f"{SECOND} stayed dense" in (out / "README.md").read_text()
    resolved = load_recipe(out / "recipe.resolved.yaml")
    assert resolved.overrides[-1].sites == (SECOND,)
    assert resolved.overrides[-1].keep_dense
    assert Job.open(out).journal["plan"]["sites"][SECOND] is None
    assert 0.4 < Job.open(out).journal["plan"]["cost"] == pytest.approx(report.cost)
    assert f"{SECOND}: stays dense" in CliRunner().invoke(app, ["status", str(out)]).output
    monkeypatch.undo()
    monkeypatch.setattr(compress.evaluate.evaluation, "measure_latency", lambda *args, **kwargs: [])
    # The resolved recipe makes the same model.
    convert(str(work / "model"), resolved.with_data(str(work / "text.txt")), tmp_path / "again", threads=1)
    assert result_bytes(tmp_path / "again") == result_bytes(out)


def test_a_diverging_job_gives_the_same_bytes_when_it_is_stopped(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Explosions that depend on the state alone: steps far too large."""
    overrides = ("distill.learning_rate=3.0", "finetune.learning_rate=1.0")
    whole, out = tmp_path / "whole", tmp_path / "out"
    monkeypatch.setattr("compress.distill.divergence._EXPLODED", 1.0)
    report = begin(work, whole, *overrides)
    assert any("diverged" in note for note in report.notes), report.notes
    seen = 0

    def stop() -> bool:
        nonlocal seen
        seen += 1
        return seen % 110 == 0

    with pytest.raises(Stopped):
        begin(work, out, *overrides, stop=stop)
    while Job.open(out).journal["state"] != "finished":
        try:
            again = resume(out, stop=stop)
        except Stopped:
            continue
    assert result_bytes(out) == result_bytes(whole)
    assert again.notes == report.notes


def test_where_all_sites_diverge_it_is_an_error(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BehindNorm, "forward", lambda self, answer, data: answer.sum() * math.nan)
    for attempt in (begin, lambda work, out: resume(out)):
        with pytest.raises(SiteError, match="every site"):
            attempt(work, tmp_path / "out")


@pytest.mark.parametrize("last", [pytest.param(41, marks=SLOW), 10_000])
def test_the_whole_model_falls_back_to_its_last_good_state(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    compute, count = EndToEnd.error, {"steps": 0}

    def wrong(self: EndToEnd, batch: Any, *dtype: str) -> torch.Tensor:
        error = compute(self, batch, *dtype)
        count["steps"] += torch.is_grad_enabled()
        return error * math.nan if torch.is_grad_enabled() and 40 <= count["steps"] < last else error

    monkeypatch.setattr(EndToEnd, "error", wrong)
    out = tmp_path / "out"
    report = begin(work, out)
    unit = Job.open(out).journal["units"]["finetune"]
    assert unit["restarts"] == (1 if last == 41 else 2)
    assert ("diverged" in unit) == (last > 41)
    assert any(note.startswith("End to end, training diverged") for note in report.notes)
    if last > 41:
        assert "ended at step 35" in unit["diverged"]
    assert verify_files(out) == []


# What is needed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("pico", ()),
        pytest.param("embedded", ("finetune.steps=12",), marks=pytest.mark.long),
        pytest.param(
            "embedded",
            ("fit.tokens=8000", "distill.steps=8", "finetune.steps=24", "lookup.budget=0.5"),
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_conversion_stays_within_what_it_says_it_needs(
    work: Path, tmp_path: Path, name: str, overrides: tuple[str, ...]
) -> None:
    """Memory within a factor of two; disk within two where states are kept, which here is at every step."""
    if name == "pico":
        arguments = [str(work / "model"), str(work / "recipe.yaml"), "--data", str(work / "text.txt")]
    else:
        from compress.recipes.embedded.corpus import write_split

        text, _ = write_split(tmp_path)
        model = Path(compress.recipes.embedded.corpus.__file__).resolve().parent / "model"
        arguments = [str(model), "demo", "--data", str(text), "--set", "data.tokens=400000"]
    for override in overrides:
        arguments += ["--set", override]
    found = measured(tmp_path / "out", arguments)
    said = json.loads((tmp_path / "out" / ".job" / "journal.json").read_text())["plan"]["needs"]
    assert 0.5 * said["memory"] < found["memory"] <= said["memory"], (found, said)
    assert 0.5 * said["disk"] < found["disk"] <= said["disk"] or name == "pico", (found, said)
    assert 0.5 * said["checkpoint"] < found["checkpoint"] <= said["checkpoint"] or name == "pico", (found, said)


MEASURED = """
import resource, sys
from compress.distill import clock
clock.SAVE_SECONDS = clock.MOST_SAVING = 0.0
clock.Clock.due = lambda self: True
from compress.cli import app
try:
    app(sys.argv[1:])
finally:
    print("memory", 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def measured(out: Path, arguments: list[str]) -> dict[str, int]:
    """Peak memory of a conversion's process, and of its folder."""
    command = [sys.executable, "-c", MEASURED, "convert", *arguments, "-o", str(out), "--threads", "1"]
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    disk = 0
    while process.poll() is None:
        disk = max(disk, size_of(out))
        time.sleep(0.005)
    assert process.returncode == 0
    assert process.stdout is not None
    told = process.stdout.read()
    assert "of memory and" in told
    return {"memory": int(told.split("memory ")[-1]), "disk": disk, "checkpoint": size_of(out)}


def size_of(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(root) / name).stat().st_size
    return total


# Signals


def test_signals_end_a_job_behind_a_durable_state(tmp_path: Path) -> None:
    found = trial("signals", tmp_path)
    for name, code in (("int", 130), ("term", 143), ("hanging", 130)):
        assert found[name]["code"] == code
        assert found[name]["last"].endswith(f"continue with: {found[name]['resume']}")
        assert found[name]["seconds"] < 10
    assert "state" in found["int"]["kept"]
    assert "state" in found["term"]["kept"]
    assert found["twice"]["code"] == -2
    assert found["twice"]["last"].endswith(found["twice"]["resume"])
    assert found["twice"]["seconds"] < 2
