"""Tasks of lm-evaluation-harness, on local data: scores against those worked out by hand, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import converted
import pytest
import torch
import yaml
from compress.cli import app
from typer.testing import CliRunner, Result

import compress
from compress.data import load_examples
from compress.errors import CompressError, DataError, ModelError
from compress.evaluate import Report, harness, latency
from compress.models import Pretrained, load_pretrained

QUESTIONS = [
    {"question": f"the {animal} sat on the", "choices": ["mat", "hill", "dog"], "answer": number % 3}
    for number, animal in enumerate(["cat", "dog", "man", "hat", "mat", "hill", "sat", "ran"])
]
TEXTS = [{"text": "the cat sat on the mat"}, {"text": "and the dog ran to the hill."}, {"text": "who is there?"}]


@pytest.fixture(autouse=True)
def small_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "MIN_ROUNDS", 1)
    monkeypatch.setattr(latency, "MAX_ROUNDS", 1)
    monkeypatch.setattr(latency, "_RECORDED_TOKENS", 64)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tasks")
    made = {family: converted.dense_folder(root / family, family) for family in ("gpt2", "bert_masked")}
    made["out"] = converted.save(made["gpt2"], root / "out", noise=0.8)
    made["text"] = root / "text.txt"
    made["text"].write_text(converted.TEXT * 10)
    return made


@pytest.fixture
def task(tmp_path: Path) -> dict[str, str]:
    """Two tasks in files of their own, with their data beside them."""
    files = {
        "choose": {
            "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}",
            "doc_to_target": "answer", "metric_list": [{"metric": "acc", "aggregation": "mean"}],
        },
        "read": {
            "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "word_perplexity", "aggregation": "weighted_perplexity"}],
        },
    }  # fmt: skip
    for (name, settings), rows in zip(files.items(), (QUESTIONS, TEXTS), strict=True):
        data = tmp_path / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        content = {
            "task": f"pico_{name}", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test", **settings,
        }  # fmt: skip
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return {name: str(tmp_path / f"{name}.yaml") for name in files}


def evaluate(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["eval", *(str(argument) for argument in arguments)])


def log_likelihood(pretrained: Pretrained, context: str, text: str) -> float:
    """Of a text behind a context, or behind the token that begins texts."""
    ids = pretrained.processor(context + text, return_tensors="pt")["input_ids"]
    if not context:
        ids = torch.cat([torch.tensor([[pretrained.processor.bos_token_id]]), ids], dim=1)
    with torch.no_grad():
        logs = pretrained.model(ids).logits[0, :-1].log_softmax(-1)
    return logs.gather(1, ids[0, 1:, None])[-len(text) :].sum().item()


def test_scores_by_hand(folders: dict[str, Path], task: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("lm_eval.models.huggingface")
    file = tmp_path / "report.json"
    result = evaluate(
        folders["out"], "--against", folders["gpt2"], "--task", task["choose"], "--task", task["read"], "--json", file
    )
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    report = Report.from_json(file.read_text())
    assert (report.quality, report.latency, report.setting["data"]) == ({}, [], None)
    models = {"dense": load_pretrained(str(folders["gpt2"])), "compressed": load_pretrained(str(folders["out"]))}
    row, perplexity = report.tasks["pico_choose"]["acc"], report.tasks["pico_read"]["word_perplexity"]
    for side, pretrained in models.items():
        right = []
        for question in QUESTIONS:
            scores = [log_likelihood(pretrained, question["question"], f" {choice}") for choice in question["choices"]]
            right.append(max(range(3), key=scores.__getitem__) == question["answer"])
        assert row[side] == pytest.approx(sum(right) / len(right))
        total = sum(log_likelihood(pretrained, "", document["text"]) for document in TEXTS)
        words = sum(len(document["text"].split()) for document in TEXTS)
        assert perplexity[side] == pytest.approx(math.exp(-total / words), rel=1e-3)
    assert (row["samples"], row["unit"]) == (len(QUESTIONS), "documents")
    assert row["interval"][0] <= row["compressed"] - row["dense"] <= row["interval"][1]
    assert row["stderr"] > 0
    assert set(perplexity) == {"dense", "compressed"}  # no mean over documents, so no spread
    assert perplexity["dense"] != pytest.approx(perplexity["compressed"], rel=1e-3)
    assert report.setting["tasks"]["tasks"]["pico_choose"]["shots"] == 0
    line = next(line for line in result.stdout.splitlines() if "pico_choose, acc" in line)
    assert f"{row['dense']:.4g}" in line
    assert "8 documents" in line
    assert "pico_read, word_perplexity" in result.stdout


def test_beside_data_and_limited(folders: dict[str, Path], task: dict[str, str]) -> None:
    pytest.importorskip("lm_eval.models.huggingface")
    result = evaluate(
        folders["out"], "--against", folders["gpt2"], "--data", folders["text"], "--limit", 200, "--task",
        task["choose"], "--task-limit", 3, "--no-latency", "--json", "-",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert set(values["quality"]) == {"perplexity"}
    assert values["tasks"]["pico_choose"]["acc"]["samples"] == 3
    assert values["setting"]["tasks"]["limit"] == 3
    assert Report.from_json(result.stdout).tables()[1].title == "Tasks"


def test_a_conversion_scores_the_recipe_s_tasks(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are looked up before any work, and scored at its end."""
    asked: list[Any] = []
    scores = {"arc": {"acc": {"dense": 0.5, "compressed": 0.25}}}
    monkeypatch.setattr("compress.preparation.load_tasks", lambda names, pretrained: asked.append(names))
    monkeypatch.setattr("compress.evaluate.evaluation.load_tasks", lambda names, pretrained: asked.append(names) or 1)
    monkeypatch.setattr("compress.evaluate.evaluation.score", lambda *given: scores)
    monkeypatch.setattr("compress.evaluate.evaluation.described", lambda *given: {})
    changes = [
        "eval.tasks=[arc]", "distill.steps=0", "finetune.steps=0", "fit.tokens=200", "data.sequence_length=16",
        "lookup.budget=2", "lookup.memory=9",
    ]  # fmt: skip
    report = compress.convert(
        str(folders["gpt2"]), "gpt2", tmp_path / "out", data=str(folders["text"]), overrides=changes
    )
    assert asked == [("arc",), ("arc",)]
    assert report is not None
    assert report.tasks == scores
    assert "arc, acc" in (tmp_path / "out" / "README.md").read_text()


def refused(folders: dict[str, Path], *names: str, source: str = "gpt2") -> CompressError:
    with pytest.raises(CompressError) as caught:
        harness.load_tasks(names, load_pretrained(str(folders[source])))
    return caught.value


def test_other_models_are_refused(folders: dict[str, Path]) -> None:
    error = refused(folders, "arc_easy", source="bert_masked")
    assert isinstance(error, ModelError)
    assert "causal language models" in error.message


def test_without_the_extra(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)
    error = refused(folders, "arc_easy")
    assert "not installed" in error.message
    assert error.remedy == "pip install 'compress-lookup[eval]'"


def test_unknown_tasks_and_missing_data(folders: dict[str, Path], task: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("lm_eval.models.huggingface")
    error = refused(folders, "hellaswagg")
    assert "no task hellaswagg" in error.message
    assert error.remedy == "did you mean hellaswag?"
    assert "no such task file" in refused(folders, str(tmp_path / "absent.yaml")).message
    (tmp_path / "choose.jsonl").unlink()
    error = refused(folders, task["choose"])
    assert isinstance(error, DataError)
    assert "cannot be loaded" in error.message
    result = evaluate(folders["out"], "--against", folders["gpt2"], "--task", "hellaswagg")
    assert result.exit_code == 2
    assert "did you mean hellaswag?" in result.stderr


def test_no_code_that_a_model_writes_is_run(folders: dict[str, Path], task: dict[str, str]) -> None:
    pytest.importorskip("lm_eval.models.huggingface")
    content = yaml.safe_load(Path(task["choose"]).read_text())
    Path(task["choose"]).write_text(yaml.safe_dump({**content, "unsafe_code": True}))
    assert "runs code that the model writes" in refused(folders, task["choose"]).message


def test_tasks_do_not_go_with_baselines(folders: dict[str, Path]) -> None:
    result = evaluate(folders["out"], "--against-baselines", "--task", "arc_easy")
    assert result.exit_code == 2
    assert "--against-baselines" in result.stderr


def test_without_tasks_data_is_needed_still(folders: dict[str, Path]) -> None:
    with pytest.raises(DataError, match="--data"):
        compress.evaluate(folders["out"], folders["gpt2"])
    assert load_examples(str(folders["text"]), load_pretrained(str(folders["gpt2"])))
