"""A checkpoint beside the same budget spent otherwise, and the study of such frontiers: one code path."""

import csv
import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from compress.cli import app
from compress.recipes.embedded import corpus
from pico_tokenizer import save_pico
from typer.testing import CliRunner

from compress.baselines import BASELINES
from compress.checkpoint import read_config
from compress.comparison import LOOKUP, _recipe, against_baselines
from compress.conversion import convert
from compress.distill.job import Job
from compress.errors import CheckpointError, JobError
from compress.evaluate import latency
from compress.evaluate.references import evaluate_dense
from compress.preparation import prepare
from compress.recipe import load_recipe, match_sites
from compress.recipe.settings import DataSettings
from compress.studies import conversions, load_study

RECIPE = """\
version: 1
lookup: {budget: 0.5, memory: 40, bits: 4, rank: 16}
data: {sequence_length: 32, tokens: 2000}
fit: {tokens: 1000}
distill: {steps: 2, batch_tokens: 256}
finetune: {steps: 2, batch_tokens: 256}
"""


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "MAX_ROUNDS", 3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    model = save_pico(folder / "model", "llama")
    (folder / "text.txt").write_text("the old cat sat on a red hat and ran to the big dog.\n" * 300)
    (folder / "recipe.yaml").write_text(RECIPE)
    convert(str(model), folder / "recipe.yaml", folder / "out", data=str(folder / "text.txt"), threads=1)
    return folder / "out"


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "table.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_baselines_have_no_table_and_the_same_cost(checkpoint: Path) -> None:
    out = checkpoint.with_name("baselines")
    result = CliRunner().invoke(app, ["eval", str(checkpoint), "--against-baselines", "-o", str(out)])
    assert result.exit_code == 0, result.output
    dense, int8, own, *baselines = rows_of(out)
    assert [row["system"] for row in (dense, int8, own)] == ["dense float32", "dense int8", LOOKUP]
    assert [row["system"] for row in baselines] == list(BASELINES)
    assert all(f"| {name}" in result.output for name in ("dense int8", LOOKUP, *BASELINES))
    report = json.loads((checkpoint / "report.json").read_text())
    assert float(own["cost"]) == report["cost"]
    assert float(own["compressed"]) == report["quality"]["perplexity"]["compressed"]
    for row in baselines:
        assert float(own["cost"]) - 16 / 88 < float(row["cost"]) <= float(own["cost"])  # in sixteens of 88 neurons
        assert row["dense"] == own["dense"]
    assert (float(dense["loss"]), dense["cost"], int8["cost"]) == (0, "1.0", "1.0")
    assert dense["compressed"] == own["dense"]
    assert 0 < abs(float(int8["loss"])) < 0.1
    assert float(dense["bytes_per_token"]) == 4 * float(int8["bytes_per_token"]) == 4 * 2 * 3 * 32 * 88
    folders = [folder / "model" for folder in (out / "cells").iterdir() if (folder / "model").is_dir()]
    assert len(folders) == len(BASELINES)
    assert not any(site.geometry.to_dict().get("tables") for folder in folders for site in read_config(folder).sites)
    written = {file: file.stat().st_mtime_ns for file in out.rglob("model.safetensors")}
    outcome = against_baselines(checkpoint, out)  # all of it is done
    assert written == {file: file.stat().st_mtime_ns for file in out.rglob("model.safetensors")}
    assert outcome.markdown == (out / "table.md").read_text()
    text = checkpoint.with_name("text.txt")
    before = text.read_text()
    text.write_text(before.replace("cat", "hen"))
    with pytest.raises(JobError, match="no longer what the checkpoint was made from"):
        against_baselines(checkpoint, out)
    text.write_text(before)


def test_the_frontier_is_the_same_comparison(checkpoint: Path) -> None:
    study = load_study("frontier")
    open_sizes = dict.fromkeys(("tables", "bits", "rank", "neurons"), "auto")
    assert [system.set for system in study.systems[1:]] == [
        {f"lookup.{key}": value for key, value in {**open_sizes, **settings}.items()} for settings in BASELINES.values()
    ]
    folder, out = checkpoint.parent, checkpoint.with_name("frontier")
    arguments = [
        "study", "frontier", "-o", str(out), "--data", str(folder / "text.txt"), "--threads", "1",
        "--set", f"model={folder / 'model'}", "--set", f"recipe={folder / 'recipe.yaml'}",
        "--set", "axes={lookup.budget: [0.5]}",
    ]  # fmt: skip
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    rows = rows_of(out)
    assert [row["system"] for row in rows[:2]] == ["dense float32", "dense int8"]
    assert len(rows) == 2 + 1 + len(BASELINES)
    for row in rows[2:]:
        assert 0.5 - 16 / 88 < float(row["cost"]) <= 0.5
        assert float(row["ffn_seconds_batch_1"]) > 0
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0
    assert "cell " not in again.output


def test_what_more_training_is_worth_is_drawn_over_tokens(checkpoint: Path) -> None:
    folder, out = checkpoint.parent, checkpoint.with_name("tokens")
    result = CliRunner().invoke(app, [
        "study", "tokens", "-o", str(out), "--data", str(folder / "text.txt"), "--threads", "1",
        "--set", f"model={folder / 'model'}", "--set", f"recipe={folder / 'recipe.yaml'}",
        "--set", "axes={finetune.steps: [0, 2]}", "--set", "systems=[{name: LookupFFN}]",
    ])  # fmt: skip
    assert result.exit_code == 0, result.output
    recipe = load_recipe(folder / "recipe.yaml")
    layerwise = recipe.distill.steps * recipe.distill.batch_tokens
    tokens = [float(row["training_tokens"]) for row in rows_of(out)]
    assert tokens == [layerwise, layerwise + 2 * recipe.finetune.batch_tokens]
    assert "tokens trained on" in (out / "table.md").read_text()
    if find_spec("matplotlib"):
        assert (out / "loss-over-tokens.png").is_file()


def test_the_frontier_needs_nothing_but_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def load(data: DataSettings, *_: object) -> SimpleNamespace:  # to read all of it takes half a minute
        read.append(Path(str(data.path)).read_text())
        tokens = SimpleNamespace(tokens=3_000_000, tokens_in=lambda stream: 3_000_000)
        return SimpleNamespace(fingerprint="text", description="text", train=tokens)

    monkeypatch.setattr(conversions, "load_corpus", load)
    monkeypatch.setattr(corpus, "collect", lambda: corpus.Corpus([corpus.Module("a.py", "a", "import b\n")], []))
    result = CliRunner().invoke(app, ["study", "frontier", "-o", str(tmp_path / "out"), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert len(result.output.split()) == 2 + 3 * (1 + len(BASELINES))
    assert not (tmp_path / "out").exists()
    assert "import" in read[0]


@pytest.mark.parametrize("width", ["float32", "bfloat16", "int8"])
def test_the_dense_model_is_a_point_itself(checkpoint: Path, width: str) -> None:
    folder = checkpoint.parent
    recipe = load_recipe(folder / "recipe.yaml").with_data(str(folder / "text.txt"))
    prepared = prepare(str(folder / "model"), recipe, {"device": "cpu", "trust_remote_code": False})
    report = evaluate_dense(prepared.pretrained, width, prepared.examples, threads=1, batches=(1,), seconds=0.0)
    row = report.quality["perplexity"]
    assert (row["dense"] == row["compressed"]) == (width == "float32")
    assert row["compressed"] == pytest.approx(row["dense"], rel=0.1)
    assert report.size["compressed_bytes_per_token"] == report.size["dense_bytes_per_token"] * {"int8": 1}.get(
        width, 4 if width == "float32" else 2
    )
    assert all(row["seconds"]["compressed"] == row["seconds"][f"dense_{width}"] for row in report.latency)
    assert report.cost == 1


def test_code_of_the_model_is_trusted_again(checkpoint: Path) -> None:
    folder = checkpoint.with_name("stranger")
    shutil.copytree(checkpoint, folder)
    job = Job.open(folder)
    job.journal["options"]["trust_remote_code"] = True
    job.write()
    with pytest.raises(JobError, match="is not trusted"):
        against_baselines(folder, checkpoint.with_name("baselines"))


def test_every_site_costs_what_it_did(checkpoint: Path) -> None:
    journal = json.loads((checkpoint / ".job" / "journal.json").read_text())
    journal["recipe"]["values"]["overrides"] = [{"layers": [0], "keep_dense": True}, {"layers": [1], "budget": 0.3}]
    journal["plan"]["costs"] = {"layers.1.mlp.down_proj": 0.29}
    recipe = _recipe(journal, None, {"tables": 0})
    assert match_sites(recipe, ["layers.0.mlp.down_proj", "layers.1.mlp.down_proj"]) == {
        "layers.0.mlp.down_proj": None,
        "layers.1.mlp.down_proj": recipe.lookup.model_copy(update={"budget": 0.29, "tables": 0}),
    }
    assert recipe.lookup.bits == "auto"
    assert [o.changes for o in _recipe(journal, 0.2, {"tables": 0}).overrides] == [{}]
    assert _recipe(journal, 0.2, None).overrides[1].budget == 0.3


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not know the data"):
        against_baselines(tmp_path, tmp_path / "out")
    (tmp_path / "begun" / ".job").mkdir(parents=True)
    (tmp_path / "begun" / ".job" / "journal.json").write_text('{"version": 1, "state": "running"}')
    with pytest.raises(CheckpointError, match="not finished"):
        against_baselines(tmp_path / "begun", tmp_path / "out")
    for arguments in (
        ["--against-baselines", "--data", "x"],
        ["--against-baselines", "--budgets", "a"],
        ["--against-baselines", "--no-latency"],
        ["--budgets", "0.25"],
    ):
        assert CliRunner().invoke(app, ["eval", str(tmp_path), *arguments]).exit_code == 2
