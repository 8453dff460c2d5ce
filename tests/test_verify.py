"""`compress verify`: whatever is broken in a checkpoint is found and named, and nothing where it is whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import converted
import pytest
import torch
from compress.cli import app
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from compress.checkpoint import Problem, verification, verify, verify_files
from compress.checkpoint.manifest import write_manifest
from compress.distill.job import Job

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("verify")
    return converted.save(converted.dense_folder(root / "llama", "llama"), root / "out")


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(whole, tmp_path / "out"))


def run(folder: Path) -> Result:
    return CliRunner().invoke(app, ["verify", str(folder)])


def reload(folder: Path, capsys: pytest.CaptureFixture[str]) -> Problem:
    """The one problem that the other process would find, found in this one, which has torch loaded."""
    verification.answer(str(folder))
    (found,) = json.loads(capsys.readouterr().out)
    return Problem(**found)


def edit_tensors(file: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


# Files


def test_a_whole_checkpoint(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.checkpoint.loading.load", lambda *args, **kwargs: pytest.fail("loaded here"))
    (out / "notes.txt").write_text("mine")
    result = run(out)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "notes.txt: not of the checkpoint, not checked\nfiles as recorded; outputs as recorded\n"


def test_every_file_is_held_against_its_checksum(whole: Path, out: Path) -> None:
    """One byte of each file flipped, then its last one cut off, then the file gone: always that file, and first."""
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert {WEIGHTS, "config.json", "probe.safetensors", "recipe.yaml", "report.json", "manifest.json"} <= set(files)
    for name in files:
        content = (out / name).read_bytes()
        assert content, name
        middle = len(content) // 2
        for broken in (content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :], content[:-1], None):
            (out / name).unlink() if broken is None else (out / name).write_bytes(broken)
            found = verify_files(out)
            assert [problem.file for problem in found] == [name]
            (out / name).write_bytes(content)
    assert verify_files(out) == []


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_byte_of_the_manifest(whole: Path, tmp_path: Path, data: st.DataObject) -> None:
    """The manifest guards itself: another byte anywhere in it is its own fault and no other file's."""
    folder = tmp_path / "flipped"
    if not folder.exists():
        shutil.copytree(whole, folder)
    content = bytearray((whole / "manifest.json").read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    (folder / "manifest.json").write_bytes(content)
    assert [problem.file for problem in verify_files(folder)] == ["manifest.json"]


def test_the_first_difference_is_named_and_ends_with_1(out: Path) -> None:
    weights = bytearray((out / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (out / WEIGHTS).write_bytes(weights)
    (out / "tokenizer.json").unlink()
    result = run(out)
    assert (result.exit_code, result.stdout) == (1, "")
    first, second, last = result.stderr.splitlines()
    assert first == f"{WEIGHTS}: altered: its SHA-256 is not the recorded one"
    assert second == "tokenizer.json: missing"
    assert "not as it was made" in last


def test_weights_that_nobody_recorded(out: Path) -> None:
    shutil.copy(out / WEIGHTS, out / "adapter_model.safetensors")
    assert verify_files(out) == [Problem("adapter_model.safetensors", "not recorded in the manifest")]


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", ".job/journal.json", "", "."])
def test_a_manifest_cannot_leave_its_folder(out: Path, name: str) -> None:
    (out / "manifest.json").write_text(json.dumps({"version": 1, "files": {name: {"bytes": 1, "sha256": ""}}}))
    assert verify_files(out) == [Problem("manifest.json", f"damaged: {name!r} is no file of a checkpoint")]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{}", "damaged: no 'version'"), ("[]", "damaged: it holds no JSON object"),
        ('{"version": "1"}', "damaged: no 'files'"), ('{"version": 3, "files": {}}', "has version 3"),
        ('{"version": 1, "files": []}', "damaged"), ('{"version": 1, "files": {"a": 3}}', "damaged"),
        ('{"version": 1, "files": {"a": {"bytes": "1", "sha256": ""}}}', "the entry of a"),
    ],
)  # fmt: skip
def test_a_manifest_that_is_none(out: Path, text: str, what: str) -> None:
    (out / "manifest.json").write_text(text)
    (problem,) = verify_files(out)
    assert problem.file == "manifest.json"
    assert what in problem.what


def test_a_manifest_of_the_first_version_is_read(out: Path) -> None:
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({"version": 1, "files": manifest["files"]}))
    assert verify_files(out) == []


# Geometry, loading and outputs: the checksums are made to agree with what was broken


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda config: config["sites"][1]["geometry"].update(tables=4), "layers.1.mlp.tables [4, 8, 32]"),
        (lambda config: config["sites"][1].update(table_dtype="bfloat16"), "tables [3, 8, 32] is stored as U8"),
        (lambda config: config["sites"].pop(), "layers.1.mlp"),
        (lambda config: config.update(sites=[{}]), "quantization_config is damaged"),
        (lambda config: config.update(format_version=99), "format_version 99"),
    ],
)
def test_geometry_that_the_tensors_do_not_have(
    out: Path, capsys: pytest.CaptureFixture[str], change: Callable[[dict[str, Any]], None], what: str
) -> None:
    config = json.loads((out / "config.json").read_text())
    change(config["quantization_config"])
    (out / "config.json").write_text(json.dumps(config))
    problem = reload(out, capsys)
    assert problem.file == "reload"
    assert what in problem.what


def test_outputs_that_are_not_those_recorded(out: Path) -> None:
    def louder(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] *= 1.01

    edit_tensors(out / WEIGHTS, louder)
    write_manifest(out)
    result = run(out)
    assert result.exit_code == 1
    assert result.stderr.startswith("probe.safetensors: output logits differs by 0.01, allowed are 0.005\n")


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (("tolerance",), "damaged"), (("output.logits",), "records no output"),
        (("input.input_ids", "input.attention_mask"), "records no input"),
    ],
)  # fmt: skip
def test_a_probe_that_says_nothing(
    out: Path, capsys: pytest.CaptureFixture[str], names: tuple[str, ...], what: str
) -> None:
    edit_tensors(out / "probe.safetensors", lambda tensors: [tensors.pop(name, None) for name in names])
    problem = reload(out, capsys)
    assert problem.file == "probe.safetensors"
    assert what in problem.what


def test_a_probe_that_the_model_does_not_take(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_tensors(out / "probe.safetensors", lambda tensors: tensors.update({"input.input_ids": torch.zeros(2, 3)}))
    problem = reload(out, capsys)
    assert problem.file == "probe.safetensors"
    assert "cannot run on its inputs" in problem.what


def test_the_model_is_loaded_in_another_process(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process has loaded or registered does not help the checkpoint, and a crash there is told here."""
    for code, what in (
        ("import os; os.abort()", "ended by signal 6"),
        ("raise SystemExit('out of memory')", "ended with 1: out of memory"),
    ):
        monkeypatch.setattr("compress.checkpoint.verification._ENTRY", code)
        (problem,) = verify(out)
        assert problem.file == "reload"
        assert what in problem.what


# What is no checkpoint


def test_what_cannot_be_verified_is_a_mistake(whole: Path, out: Path, tmp_path: Path) -> None:
    for folder, message in (
        (tmp_path / "nowhere", "no config.json"), (whole.parent / "llama", "no compressed checkpoint"),
    ):  # fmt: skip
        result = run(folder)
        assert result.exit_code == 2
        assert message in result.stderr
    (out / "manifest.json").unlink()
    result = run(out)
    assert (result.exit_code, result.stderr.splitlines()[0]) == (1, "manifest.json: missing")


def test_an_unfinished_conversion_is_a_mistake(tmp_path: Path) -> None:
    job = Job.create(tmp_path / "an out", {})
    result = run(job.out)
    assert result.exit_code == 2
    assert "not finished" in result.stderr
    assert f"compress resume '{job.out}'" in result.stderr
