"""`compress push` against a stand-in for the hub: what arrives, what does not, how it goes on, what stays secret."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import converted
import huggingface_hub
import pytest
import torch
import yaml
from compress.cli import app
from hub_stand_in import Hub, serving, sha256
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner, Result

import compress
from compress.checkpoint import Problem, verify_files
from compress.checkpoint.manifest import write_manifest
from compress.distill.job import Job
from compress.errors import HubError

TOKEN = "hf_MarkerThatMustNotBeSeen0123456789"
REPO = "acme/pico-lookup"
LARGE = ("model.safetensors", "probe.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("push")
    return converted.save(converted.dense_folder(root / "llama", "llama"), root / "out")


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    """A finished conversion with its job, and files that are not of the checkpoint."""
    folder = Path(shutil.copytree(whole, tmp_path / "out"))
    (folder / ".job").mkdir()
    (folder / ".job" / "journal.json").write_text('{"version": 1, "state": "finished"}')
    (folder / "notes.txt").write_text("mine")
    (folder / "comparison").mkdir()
    (folder / "comparison" / "notes.json").write_text("{}")
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in, known to huggingface_hub as the hub, with a token that may write to acme; nothing is waited for."""
    with serving(Hub(writers={TOKEN: ("acme",), "hf_reader": ("nobody",)})) as served:
        constants = huggingface_hub.constants
        for name, value in {
            "ENDPOINT": served.address, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True,
            "HUGGINGFACE_CO_URL_TEMPLATE": served.address + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_TOKEN_PATH": str(tmp_path / "no-token"),
        }.items():  # fmt: skip
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield served


@pytest.fixture(autouse=True)
def files_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reload in a fresh process is left out, which test_verify.py is about."""
    monkeypatch.setattr("compress.checkpoint.verification._reload", lambda folder, trust: [])


def push(folder: Path, *options: str, repo: str = REPO) -> Result:
    result = CliRunner().invoke(app, ["push", str(folder), repo, *options])
    assert TOKEN not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def expected(folder: Path) -> set[str]:
    return {*json.loads((folder / "manifest.json").read_text())["files"], "manifest.json", ".gitattributes"}


def sent(hub: Hub) -> list[str]:
    """What was stored since the last call."""
    stored, hub.received = hub.received, []
    return stored


# What arrives


def test_a_checkpoint_arrives_whole(out: Path, hub: Hub, tmp_path: Path) -> None:
    result = push(out)
    assert result.exit_code == 0, result.output
    repo = hub.repos[REPO]
    assert repo.private
    files = repo.files()
    assert set(files) == expected(out)
    assert not any(name.startswith((".job", "notes", "comparison")) for name in files)
    different = {name for name in files if name != ".gitattributes" and files[name] != (out / name).read_bytes()}
    assert different == {"README.md", "manifest.json"}
    assert len(repo.commits) == 2  # the repository's first, and all files in one
    assert result.stdout.splitlines()[0] == f"{REPO}, main, private"
    assert result.stdout.splitlines()[-1] == f"published: {hub.address}/{REPO}/commit/{repo.branches['main']}"
    # It comes back from there as a checkpoint that is as it was made, and loads by its name.
    back = huggingface_hub.snapshot_download(REPO, local_dir=tmp_path / "back")
    assert verify_files(back) == []
    batch = {"input_ids": torch.arange(1, 9)[None]}
    with torch.no_grad():
        ours = AutoModelForCausalLM.from_pretrained(REPO)(**batch).logits
        assert torch.equal(ours, compress.load(out)(**batch).logits)


def test_the_card_says_how_to_load_it_from_there(out: Path, hub: Hub) -> None:
    push(out)
    card = hub.repos[REPO].files()["README.md"].decode()
    assert f'AutoModelForCausalLM.from_pretrained("{REPO}")' in card
    assert "PATH OR HUB ID" not in card
    assert "PATH OR HUB ID" in (out / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["library_name"], front["pipeline_tag"]) == ("transformers", "text-generation")
    assert verify_files(out) == []


def test_what_is_there_is_not_sent_again(out: Path, hub: Hub) -> None:
    first = push(out)
    assert sorted(sent(hub)) == sorted(sha256((out / name).read_bytes()) for name in LARGE)
    hub.requests.clear()
    second = push(out)
    assert second.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]
    assert "0 files to upload, 0 B; " in second.stdout
    assert sent(hub) == []
    assert not any("commit" in path or "preupload" in path for _, path in hub.requests)
    (out / "tokenizer_config.json").write_text("{}")
    write_manifest(out, changed=["tokenizer_config.json"])
    third = push(out)
    assert [line.split()[-1] for line in third.stdout.splitlines()[1:-2]] == ["tokenizer_config.json", "manifest.json"]
    assert sent(hub) == []
    assert hub.repos[REPO].files()["tokenizer_config.json"] == b"{}"


def test_files_of_an_earlier_upload_are_removed(out: Path, hub: Hub) -> None:
    push(out)
    hub.repos[REPO].files()["theirs.txt"] = b"added on the page"
    (out / "generation_config.json").write_text("{}")
    write_manifest(out, changed=["generation_config.json"])
    push(out)
    (out / "generation_config.json").unlink()
    (out / "notes.txt").unlink()
    shutil.rmtree(out / "comparison")
    write_manifest(out)
    result = push(out)
    assert "    remove  generation_config.json" in result.stdout
    assert set(hub.repos[REPO].files()) == {*expected(out), "theirs.txt"}


def test_a_branch_and_the_public(out: Path, hub: Hub) -> None:
    result = push(out, "--public", "--revision", "int8/small")
    assert result.exit_code == 0, result.output
    repo = hub.repos[REPO]
    assert not repo.private
    assert set(repo.files("main")) == {".gitattributes"}
    assert set(repo.files("int8/small")) == expected(out)
    assert result.stdout.startswith(f"{REPO}, int8/small, public\n")


def test_a_dry_run_asks_nobody(out: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    result = push(out, "--dry-run")
    assert result.exit_code == 0, result.output
    assert hub.requests == []
    first, *lines, last = result.stdout.splitlines()
    assert first == f"{REPO}, main, private"
    assert {line.split()[-1] for line in lines} == expected(out) - {".gitattributes"}
    size = (out / "model.safetensors").stat().st_size
    assert f"{size / 1000:.1f} kB  model.safetensors" in result.stdout
    assert last.startswith(f"{len(lines)} files to upload, ")


# Going on


@pytest.mark.parametrize("moment", ["storage", "verify", "commit"])
def test_after_a_lost_connection_the_same_command_goes_on(out: Path, hub: Hub, moment: str) -> None:
    model = sha256((out / "model.safetensors").read_bytes())
    hub.hang_up = lambda method, path: {
        "storage": path.endswith(model), "verify": path.startswith("/verify"), "commit": "/commit/" in path,
    }[moment]  # fmt: skip
    result = push(out)
    assert result.exit_code == 2
    assert "the connection to the hub failed" in result.stderr
    assert "run the same command again" in result.stderr
    assert set(hub.repos[REPO].files()) == {".gitattributes"}  # no one sees half a checkpoint
    before = set(sent(hub))
    hub.hang_up = lambda method, path: False
    assert push(out).exit_code == 0
    assert set(sent(hub)) == {sha256((out / name).read_bytes()) for name in LARGE} - before
    if moment != "verify":  # where not even the first one was acknowledged
        assert before
    assert set(hub.repos[REPO].files()) == expected(out)


# What is refused


@pytest.mark.parametrize(
    ("repo", "what"),
    [("pico", "names no owner"), ("a/b/c", "a/b/c"), ("acme/pico lookup", "acme/pico lookup"), ("acme/--x", "--")],
)
def test_no_repository(out: Path, hub: Hub, repo: str, what: str) -> None:
    result = push(out, repo=repo)
    assert result.exit_code == 2
    assert "is no repository of the hub" in result.stderr
    assert what in result.stderr
    assert "write OWNER/NAME" in result.stderr
    assert hub.requests == []


def test_no_token(out: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    result = push(out)
    assert (result.exit_code, hub.requests) == (2, [])
    assert "no token" in result.stderr
    assert "hf auth login" in result.stderr


@pytest.mark.parametrize(
    ("token", "exists", "what"),
    [
        ("hf_unknown", False, "does not accept the token"), ("hf_reader", False, "may not write to acme"),
        ("hf_reader", True, "may not write to acme/pico-lookup"),
    ],
)  # fmt: skip
def test_tokens_without_the_right(
    out: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, token: str, exists: bool, what: str
) -> None:
    if exists:
        hub.repo(REPO)
    monkeypatch.setenv("HF_TOKEN", token)
    result = push(out)
    assert result.exit_code == 2
    assert what in result.stderr
    assert "hf auth login" in result.stderr
    assert token not in result.output
    assert sent(hub) == []


def test_a_hub_out_of_reach(out: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    result = push(out)
    assert result.exit_code == 2
    assert "the connection to the hub failed" in result.stderr
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.utils._http.constants.HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    result = push(out)
    huggingface_hub.close_session()
    assert result.exit_code == 2
    assert "HF_HUB_OFFLINE is set" in result.stderr


def test_a_folder_that_is_not_as_it_was(out: Path, hub: Hub) -> None:
    (out / "config.json").write_text("{}")
    result = push(out)
    assert (result.exit_code, hub.requests) == (2, [])
    assert "config.json: 2 bytes" in result.stderr
    assert push(out, "--dry-run").exit_code == 2


def test_a_model_that_answers_otherwise(
    out: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    problem = Problem("probe.safetensors", "output logits differs by 0.1, allowed are 0.001")
    monkeypatch.setattr("compress.checkpoint.verification._reload", lambda folder, trust: [problem])
    result = push(out)
    assert (result.exit_code, hub.requests) == (2, [])
    assert "output logits differs" in result.stderr


def test_an_unfinished_conversion(hub: Hub, tmp_path: Path) -> None:
    job = Job.create(tmp_path / "running", {})
    result = push(job.out)
    assert (result.exit_code, hub.requests) == (2, [])
    assert "not finished" in result.stderr
    assert "compress resume" in result.stderr


def test_a_public_repository_needs_the_word(out: Path, hub: Hub) -> None:
    hub.repo(REPO, private=False)
    result = push(out)
    assert result.exit_code == 2
    assert "is public, and --public was not given" in result.stderr
    assert sent(hub) == []
    assert push(out, "--public").exit_code == 0
    hub.repo("acme/hidden", private=True)
    assert push(out, "--public", repo="acme/hidden").stdout.startswith("acme/hidden, main, private\n")


@pytest.mark.parametrize("manifest", [None, b"{}"])
def test_the_repository_of_another_model_is_left_alone(out: Path, hub: Hub, manifest: bytes | None) -> None:
    theirs = {"config.json": b"{}", "model.safetensors": b"dense", "README.md": b"# Theirs"}
    hub.repo(REPO, files={**theirs, **({"manifest.json": manifest} if manifest else {})})
    result = push(out)
    assert result.exit_code == 2
    assert "holds another model: config.json, model.safetensors" in result.stderr
    assert hub.repos[REPO].files()["model.safetensors"] == b"dense"


def test_what_the_hub_left_out_is_told(out: Path, hub: Hub) -> None:
    hub.ignored = ("tokenizer.json",)
    result = push(out)
    assert result.exit_code == 2
    assert "did not take tokenizer.json" in result.stderr


def test_somebody_else_was_faster(out: Path, hub: Hub) -> None:
    def commit(method: str, path: str) -> bool:
        if "/preupload/" in path:
            repo = hub.repos[REPO]
            repo.commit("main", {**repo.files(), "theirs.txt": b""})
        return False

    hub.hang_up = commit
    result = push(out)
    assert result.exit_code == 2
    assert "changed while the upload ran" in result.stderr
    hub.hang_up = lambda method, path: False
    assert push(out).exit_code == 0


def test_a_card_that_the_hub_refuses(out: Path, hub: Hub) -> None:
    card = (out / "README.md").read_text()
    (out / "README.md").write_text(card.replace("---\n", "---\nlicense: Not A Licence\n", 1))
    write_manifest(out, changed=["README.md"])
    result = push(out)
    assert result.exit_code == 2
    assert '"license" must be one of' in result.stderr


def test_a_hub_that_is_down(out: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from hub_stand_in import _Handler, _Refusal

    def down(*args: object) -> None:
        raise _Refusal(503, "Service Unavailable")

    monkeypatch.setattr(_Handler, "_repo", down)
    result = push(out)
    assert result.exit_code == 2
    assert "the hub is not at work (HTTP 503)" in result.stderr


# Secrets


def test_the_token_is_never_seen(
    out: Path, hub: Hub, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever is logged, at the finest level, and whether the upload ends well or breaks off."""
    caplog.set_level(logging.DEBUG)
    model = sha256((out / "model.safetensors").read_bytes())
    hub.hang_up = lambda method, path: path.endswith(model)
    with pytest.raises(HubError) as caught:
        compress.push(out, REPO)
    assert TOKEN not in str(caught.value)
    assert "secret" not in str(caught.value)  # nor the signature of an address
    hub.hang_up = lambda method, path: False
    compress.push(out, REPO)
    assert set(hub.repos[REPO].files()) == expected(out)
    seen = capfd.readouterr()
    assert "http" in caplog.text
    for text in (caplog.text, seen.out, seen.err):
        assert TOKEN not in text
    assert not any(TOKEN in path.read_text(errors="replace") for path in out.rglob("*") if path.is_file())


def test_the_command_as_a_user_runs_it(out: Path, hub: Hub, tmp_path: Path) -> None:
    """Endpoint and token from the environment, huggingface_hub told to print every request, the model reloaded."""
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")}, "HF_ENDPOINT": hub.address,
        "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "HF_DEBUG": "1",
        "PYTHONSAFEPATH": "1",
    }  # fmt: skip
    run = subprocess.run(
        [sys.executable, "-m", "compress", "push", str(out), REPO], capture_output=True, text=True, env=environment,
        check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert f"published: {hub.address}/{REPO}/commit/" in run.stdout
    assert set(hub.repos[REPO].files()) == expected(out)
    assert "curl" in run.stderr  # it did print them
    assert TOKEN not in run.stdout + run.stderr
