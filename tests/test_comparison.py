"""A checkpoint beside the same budget spent on neurons alone."""

import json
import shutil
from pathlib import Path

import pytest
from compress.cli import app
from pico_tokenizer import save_pico
from typer.testing import CliRunner

from compress.baselines import BASELINES
from compress.comparison import LOOKUP, Candidate, _recipe, against_baselines, draw
from compress.conversion import convert
from compress.distill.job import Job
from compress.errors import CheckpointError, JobError
from compress.evaluate.report import Report
from compress.recipe import match_sites

RECIPE = """\
version: 1
lookup: {budget: 0.5, memory: 40, bits: 4, rank: 16}
data: {sequence_length: 32, tokens: 2000}
fit: {tokens: 1000}
distill: {steps: 2, batch_tokens: 256}
finetune: {steps: 2, batch_tokens: 256}
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    model = save_pico(folder / "model", "llama")
    (folder / "text.txt").write_text("the old cat sat on a red hat and ran to the big dog.\n" * 300)
    (folder / "recipe.yaml").write_text(RECIPE)
    convert(str(model), folder / "recipe.yaml", folder / "out", data=str(folder / "text.txt"), threads=1)
    return folder / "out"


def test_baselines_have_no_table_and_the_same_cost(checkpoint: Path) -> None:
    out = checkpoint.with_name("baselines")
    result = CliRunner().invoke(app, ["eval", str(checkpoint), "--against-baselines", "-o", str(out)])
    assert result.exit_code == 0, result.output
    rows = json.loads((out / "comparison.json").read_text())
    assert [row["name"] for row in rows] == [LOOKUP, *BASELINES]
    assert "low-rank factors" in BASELINES
    assert all(name in result.output for name in ("LookupFFN", "pruned neurons"))
    own = rows[0]["report"]
    for row in rows[1:]:
        assert own["cost"] - 16 / 88 < row["report"]["cost"] <= own["cost"]  # neurons come in sixteens, of 88
        assert row["report"]["quality"]["perplexity"]["dense"] == own["quality"]["perplexity"]["dense"]
    folders = [folder for folder in out.iterdir() if folder.is_dir()]
    assert len(folders) == len(BASELINES)
    for folder in folders:
        config = json.loads((folder / "config.json").read_text())
        assert not any(site["geometry"].get("tables") for site in config["quantization_config"]["sites"])
    written = {file: file.stat().st_mtime_ns for file in out.rglob("model.safetensors")}
    found = against_baselines(checkpoint, out)  # all of it is done
    assert written == {file: file.stat().st_mtime_ns for file in out.rglob("model.safetensors")}
    assert [c.report.to_dict() for c in found] == [row["report"] for row in rows]
    job = Job.open(folders[0])
    job.journal["recipe"]["values"]["lookup"]["tables"] = 1
    job.write()
    with pytest.raises(JobError, match="another recipe"):
        against_baselines(checkpoint, out)


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


def test_a_picture_of_quality_over_cost(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    quality = {"perplexity": {"dense": 4.0, "compressed": 4.5, "stderr": 0.1}}
    reports = [Report(quality, {}, [], {}, [], cost=cost) for cost in (0.25, 0.125)]
    draw([Candidate(name, r.cost or 0, r) for name in ("a", "b") for r in reports], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


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
