"""The command line: what commands print, how they end, and that it starts at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import converted
import numpy as np
import pytest
import torch
from compress.cli import app
from compress.cli.convert import default_output
from typer.testing import CliRunner, Result

import compress.conversion
import compress.evaluate.evaluation
from compress.distill.job import Job
from compress.errors import CompressError
from compress.evaluate import Report, latency
from compress.recipe import bundled_recipes

COMMANDS = ("convert", "resume", "status", "inspect", "eval", "bench", "run", "recipes", "verify", "push")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def fresh(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *(["-c", code] if code else []), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Dense and compressed pico models of every task, and a text."""
    from PIL import Image

    root = tmp_path_factory.mktemp("models")
    made = {family: converted.dense_folder(root / family, family) for family in ("llama", "bert", "bert_masked", "vit")}
    made |= {f"{family}-lookup": converted.save(folder, root / f"{family}-lookup") for family, folder in made.items()}
    made["text"] = root / "text.txt"
    made["text"].write_text(converted.TEXT * 10)
    made["image"] = root / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(made["image"])
    return made


# Starting and ending


def test_help_is_instant_and_lean() -> None:
    code = (
        "import sys, time; sys.argv = ['compress', '--help']\n"
        "from compress.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "print('heavy', sorted(heavy)); print('seconds', time.process_time())"
    )
    run = fresh(code)
    assert run.returncode == 0, run.stderr
    assert all(command in run.stdout for command in COMMANDS)
    assert "heavy []" in run.stdout
    assert float(run.stdout.split("seconds")[1]) < 0.5


def test_every_command_module_is_lean() -> None:
    modules = [f"compress.cli.{path.stem}" for path in Path(compress.cli.__file__).parent.glob("*.py")]
    assert len(modules) > len(COMMANDS)
    run = fresh(
        f"import importlib, sys\nfor name in {modules}: importlib.import_module(name)\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    assert run.returncode == 0, run.stderr


def test_it_runs_as_a_module_too() -> None:
    run = fresh("", "-m", "compress", "--version")
    assert run.stdout.startswith("compress 0.")
    assert run.stdout == invoke("--version").output
    missing = fresh("", "-m", "compress", "status", "nowhere")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "Traceback" not in missing.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_explain_themselves(command: str) -> None:
    result = invoke(command, "-h")
    assert result.exit_code == 0
    assert "Usage" in result.output


@pytest.mark.parametrize("arguments", [("nonsense",), ("eval",), ("run", "a", "b", "--max-new-tokens", "0")])
def test_wrong_usage_ends_with_2(arguments: tuple[str, ...]) -> None:
    assert invoke(*arguments).exit_code == 2


def test_a_mistake_is_one_message(tmp_path: Path) -> None:
    result = invoke("status", tmp_path)
    assert result.exit_code == 2
    assert result.stdout == ""
    message, where, remedy = result.stderr.splitlines()
    assert message == "error: no conversion in this folder"
    assert where.strip() == f"where: {tmp_path}"
    assert remedy.strip().startswith("remedy: start one")


def raising(error: BaseException, before: Any = lambda *args: None) -> Any:
    def run(*args: Any, **kwargs: Any) -> None:
        before(*args)
        raise error

    return run


def test_other_failures_end_with_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compress.conversion, "convert", raising(RuntimeError("broken")))
    result = invoke("convert", "model", "recipe.yaml", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert isinstance(result.exception, RuntimeError)  # its traceback is for whoever mends the program


def test_an_interrupted_conversion_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def begin(model: str, recipe: str, out: Path) -> None:
        Job.create(out, {})

    monkeypatch.setattr(compress.conversion, "convert", raising(KeyboardInterrupt(), begin))
    out = tmp_path / "an out"
    result = invoke("convert", "model", "recipe.yaml", "-o", out)
    assert result.exit_code == 130
    assert f"compress resume '{out}'" in result.stderr
    monkeypatch.setattr(compress.conversion, "resume", raising(KeyboardInterrupt()))
    result = invoke("resume", out)
    assert (result.exit_code, result.stderr) == (130, f"interrupted; continue with: compress resume '{out}'\n")


def test_an_interruption_before_there_is_a_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compress.conversion, "convert", raising(KeyboardInterrupt()))
    result = invoke("convert", "model", "recipe.yaml", "-o", tmp_path / "out")
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")
    monkeypatch.setattr(compress.evaluate.evaluation, "evaluate", raising(KeyboardInterrupt()))
    result = invoke("eval", tmp_path)
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


# Convert and resume: what they pass on


def test_options_of_a_conversion_arrive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(compress.conversion, "convert", lambda *args, **kwargs: calls.append((args, kwargs)))
    monkeypatch.setattr(compress.conversion, "resume", lambda *args, **kwargs: calls.append((args, kwargs)))
    result = invoke(
        "convert", "owner/name@main", "fast", "-o", tmp_path, "--data", "hub:text", "--set", "seed=1", "--set", "a.b=c",
        "--rest", "int8", "--device", "cpu", "--threads", 2, "--dry-run", "--trust-remote-code",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    args, kwargs = calls.pop()
    assert args == ("owner/name@main", "fast", tmp_path)
    assert callable(kwargs.pop("announce"))
    assert kwargs.pop("stop")() is False
    assert kwargs == {
        "data": "hub:text", "overrides": ["seed=1", "a.b=c", "pack.rest=int8"], "device": "cpu", "threads": 2,
        "dry_run": True, "trust_remote_code": True,
    }  # fmt: skip
    result = invoke("resume", tmp_path, "--threads", 1)
    assert "is finished" in result.output
    args, kwargs = calls.pop()
    assert args == (tmp_path,)
    assert callable(kwargs.pop("announce"))
    assert kwargs.pop("stop")() is False
    assert kwargs == {"overrides": [], "device": None, "threads": 1, "trust_remote_code": False}


def test_the_output_is_named_after_the_model(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert default_output(str(tmp_path / "model")) == tmp_path / "model-lookup"
    assert default_output("owner/name@v1") == Path("name-lookup")


# Recipes


def test_recipes_are_listed_and_printed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text("# Quick, for a first look.\nversion: 1\n")
    (tmp_path / "other.yaml").write_text("version: 1\n")
    monkeypatch.setattr("compress.recipe.bundled_recipes", lambda: {p.stem: p for p in sorted(tmp_path.glob("*.yaml"))})
    assert invoke("recipes").output == "other\nsmall  Quick, for a first look.\n"
    assert invoke("recipes", "small").output == "# Quick, for a first look.\nversion: 1\n"
    result = invoke("recipes", "smal")
    assert result.exit_code == 2
    assert "did you mean small?" in result.stderr


def test_bundled_recipes_say_what_they_are_for() -> None:
    for line, name in zip(invoke("recipes").output.splitlines(), bundled_recipes(), strict=True):
        assert line.startswith(name)
        assert len(line) > len(name) + 2


# Status


def job(out: Path, units: dict[str, Any], state: str = "running") -> Job:
    geometry = {"tables": 4}
    return Job.create(
        out,
        {
            "source": "acme/model", "recipe": {"name": "fast", "text": "version: 1\n", "values": {"version": 1}},
            "options": {"device": "cpu", "threads": 2, "trust_remote_code": False}, "fingerprints": {},
            "plan": {"sites": {"h.0": geometry, "h.1": None, "h.2": geometry}}, "units": units, "state": state,
        },
    )  # fmt: skip


def test_status_of_a_job(tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = job(out, {"distill/h.0": {"fitted": 0.5, "distilled": 0.25, "scale": 1.0}})
    values = json.loads(invoke("status", out, "--json").output)
    assert values["state"] == "interrupted"
    assert values["resume"] == f"compress resume {out}"
    assert [(stage["name"], stage["done"], stage["total"]) for stage in values["stages"]] == [
        ("distill", 1, 2), ("finetune", 0, 1), ("pack", 0, 1), ("evaluate", 0, 1),
    ]  # fmt: skip
    text = invoke("status", out).output
    assert "h.0: error fitted 0.5000, distilled 0.2500" in text
    assert f"go on with: compress resume {out}" in text
    with made.lock():
        values = json.loads(invoke("status", out, "--json").output)
    assert (values["state"], values["resume"]) == ("running", None)


def test_status_of_a_finished_job(tmp_path: Path) -> None:
    site = {"fitted": 0.5, "distilled": 0.25, "scale": 1.0}
    units = {
        "distill/h.0": site,
        "distill/h.2": site,
        "finetune": {"before": 2.0, "after": 1.5, "kept": False},
        "pack": {},
    }
    job(tmp_path / "out", units, "finished")
    values = json.loads(invoke("status", tmp_path / "out", "--json").output)
    assert (values["state"], values["resume"]) == ("finished", None)
    assert all(stage["done"] == stage["total"] for stage in values["stages"])
    assert "model: error before 2.0000, after 1.5000, not kept" in invoke("status", tmp_path / "out").output


# Inspect


def test_inspect_counts_a_dense_model(folders: dict[str, Path]) -> None:
    values = json.loads(invoke("inspect", folders["llama"], "--json").output)
    assert (values["model"], values["task"], values["architecture"]) == ("llama", "causal", "LlamaForCausalLM")
    site = values["sites"][0]
    assert site["name"] == "layers.0.mlp.down_proj"
    assert [site[key] for key in ("d_in", "d_hidden", "d_out", "gated", "activation")] == [32, 88, 32, True, "silu"]
    assert site["dense"]["parameters"] == 3 * 32 * 88
    assert site["compressed"] is None
    dense = values["total"]["dense"]
    # By hand, a token: queries and outputs 32 x 32, keys and values 32 x 16, attention over 64 positions, the head.
    rest = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 2 * 64 * 32) + 32 * 64
    assert values["sequence_length"] == 64
    assert dense["multiply_adds"] == pytest.approx(2 * site["dense"]["multiply_adds"] + rest)
    assert dense["ffn_share"] == pytest.approx(2 * site["dense"]["multiply_adds"] / dense["multiply_adds"])
    assert values["total"]["compressed"] is None
    text = invoke("inspect", folders["llama"]).output
    assert "32-88-32" in text
    assert "silu, gated" in text


@pytest.mark.parametrize("family", ["llama", "bert", "vit"])
def test_inspect_shows_both_sides_of_a_checkpoint(family: str, folders: dict[str, Path]) -> None:
    before = json.loads(invoke("inspect", folders[family], "--json").output)
    after = json.loads(invoke("inspect", folders[f"{family}-lookup"], "--json").output)
    assert after["total"]["dense"] == before["total"]["dense"]
    assert [{**site, "compressed": None} for site in after["sites"]] == before["sites"]
    student, total = after["sites"][0]["compressed"], after["total"]["compressed"]
    assert (student["tables"], student["bits"], student["projection"]) == (3, 3, "lowrank")
    assert (student["table_dtype"], student["hash_dtype"]) == ("int4", "float32")
    assert total["ffn_bytes"] == sum(site["compressed"]["bytes"] for site in after["sites"])
    files = [file for file in folders[f"{family}-lookup"].glob("*.safetensors") if file.name != "probe.safetensors"]
    assert total["bytes"] == pytest.approx(sum(file.stat().st_size for file in files), rel=0.1)
    text = invoke("inspect", folders[f"{family}-lookup"]).output
    assert "3 x 3, rank 4" in text


# Run


def test_run_continues_a_text(folders: dict[str, Path]) -> None:
    dense, ours = (invoke("run", folders[name], "the cat", "--max-new-tokens", 5) for name in ("llama", "llama-lookup"))
    assert dense.exit_code == 0, dense.output
    assert dense.stdout.startswith("the cat")
    assert len(dense.stdout.strip()) > len("the cat")
    assert ours.stdout == dense.stdout
    assert dense.stderr == ""
    assert "longest sequence, 64 tokens" in invoke("run", folders["llama"], "the cat").stderr
    sampled = [invoke("run", folders["llama"], "the cat", "--temperature", 3, "--seed", s).stdout for s in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]


def test_run_fills_masks(folders: dict[str, Path]) -> None:
    result = invoke("run", folders["bert_masked-lookup"], "the [MASK] and the [MASK]")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [lines[0], lines[6]] == ["[MASK] 1", "[MASK] 2"]
    assert len(lines) == 12
    shares = [float(line.split("%")[0]) for line in lines[1:6]]
    assert shares == sorted(shares, reverse=True)
    result = invoke("run", folders["bert_masked"], "no mask here")
    assert result.exit_code == 2
    assert "write [MASK]" in result.stderr


def test_run_embeds(folders: dict[str, Path], tmp_path: Path) -> None:
    result = invoke("run", folders["bert-lookup"], "the cat")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("1 embedding of 32 dimensions\n")
    assert "cosine" not in result.stdout
    (tmp_path / "lines.txt").write_text("the cat\n\nthe dog\nthe cat\n")
    lines = invoke("run", folders["bert"], tmp_path / "lines.txt").stdout.splitlines()
    assert lines[0] == "3 embeddings of 32 dimensions"
    matrix = [[float(value) for value in line.split()[1:]] for line in lines[-3:]]
    assert [matrix[0][0], matrix[0][2]] == [1, 1]
    assert matrix[0][1] == matrix[1][0] < 1


def test_run_classifies_an_image(folders: dict[str, Path]) -> None:
    result = invoke("run", folders["vit-lookup"], folders["image"])
    assert result.exit_code == 0, result.output
    shares = [float(line.split("%")[0]) for line in result.stdout.splitlines()]
    assert len(shares) == 5
    assert sum(shares) == pytest.approx(100, abs=0.1)


@pytest.mark.parametrize(
    ("family", "content", "message"),
    [
        ("vit", "no/such/file.png", "no such file"),
        ("llama", "image", "this file is none"),
        ("bert", " ", "there is no text"),
        ("nowhere", "text", "neither a folder"),
    ],
)
def test_run_refuses_what_does_not_fit(family: str, content: str, message: str, folders: dict[str, Path]) -> None:
    result = invoke("run", folders.get(family, "./nowhere"), folders.get(content, content))
    assert result.exit_code == 2
    assert message in result.stderr


# Eval


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "MIN_ROUNDS", 1)
    monkeypatch.setattr(latency, "MAX_ROUNDS", 1)
    monkeypatch.setattr(latency, "_RECORDED_TOKENS", 64)


@pytest.mark.usefixtures("quick")
def test_eval_prints_tables_and_writes_json(folders: dict[str, Path], tmp_path: Path) -> None:
    result = invoke(
        "eval", folders["llama-lookup"], "--against", folders["llama"], "--data", folders["text"], "--limit", 200,
        "--threads", 1, "--json", tmp_path / "report.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    for expected in ("perplexity", "same top-1", "dense int8", "whole model", "layers.1.mlp.down_proj"):
        assert expected in result.stdout
    report = Report.from_json((tmp_path / "report.json").read_text())
    assert set(report.quality["perplexity"]) >= {"dense", "compressed", "stderr", "interval", "tokens"}
    assert {row["scope"] for row in report.latency} == {"ffn", "model"}
    for sentence in report.sentences():
        assert " ".join(sentence.split()) in " ".join(result.stdout.split())


def test_eval_to_standard_output_is_json_alone(folders: dict[str, Path]) -> None:
    result = invoke(
        "eval", folders["llama-lookup"], "--against", folders["llama"], "--data", folders["text"], "--limit", 200,
        "--no-latency", "--json", "-",
    )  # fmt: skip
    values = json.loads(result.stdout)
    assert (values["format"], values["latency"]) == (1, [])


def test_eval_says_what_it_needs(folders: dict[str, Path], tmp_path: Path) -> None:
    result = invoke("eval", folders["llama-lookup"], "--against", folders["llama"])
    assert result.exit_code == 2
    assert "--data" in result.stderr
    result = invoke("eval", folders["llama-lookup"], "--json", tmp_path / "no" / "report.json")
    assert result.exit_code == 2
    assert "no such folder" in result.stderr


def test_errors_reach_python_callers_whole() -> None:
    with pytest.raises(CompressError, match="remedy"):
        compress.evaluate("nowhere/at/all")
