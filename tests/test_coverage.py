"""The script that goes through every architecture: each in processes of its own, with its reason where it fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import checkpoints
from compress.recipes.coverage.architectures import Architecture, architectures
from compress.recipes.coverage.check import STEPS, Outcome
from compress.recipes.coverage.page import write_page

FAILING = """
import os, time
from compress.recipes.coverage.processes import run_all
tasks = [lambda: None, lambda: os.abort(), lambda: time.sleep(60), lambda: os._exit(3)]
for position, failure in sorted(run_all(tasks, workers=2, seconds=2.0)):
    print(position, failure)
"""


def test_a_crash_or_a_hang_stops_no_other() -> None:
    assert checkpoints.python(FAILING).splitlines() == [
        "0 None", "1 the process died of SIGABRT", "2 stopped after 2 s", "3 the process ended with code 3",
    ]  # fmt: skip


def test_architectures_go_as_far_as_they_come() -> None:
    command = [
        sys.executable,
        "-m",
        "compress.recipes.coverage",
        "--only",
        "llama",
        "mixtral",
        "resnet",
        "segformer",
        "zamba",
    ]
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    run = subprocess.run([*command, "LlamaForCausalLM"], capture_output=True, text=True, env=environment, check=True)
    said = run.stdout
    assert "LlamaForCausalLM: 2 sites, reloaded equal" in said
    assert "MixtralForCausalLM: 0 sites, built the model is a mixture of experts in layers.0.mlp, layers.1.mlp" in said
    assert "ResNetForImageClassification: 0 sites, built no feed-forward network was found" in said
    assert "a depth-wise convolution stands between its linear layers" in said
    # Layers that share an FFN's weights, behind a projection: each gets a student of its own.
    assert "ZambaForCausalLM: 2 sites, reloaded equal" in said
    assert "2 of 5 architectures pass" in said


def test_every_mapping_is_there_and_every_class_once() -> None:
    found = architectures()
    assert len({architecture.name for architecture in found}) == len(found) > 300
    assert len({architecture.auto for architecture in found}) == 7


def test_the_page_says_how_far_each_came_and_why_no_further(tmp_path: Path) -> None:
    chosen = [Architecture(name, name.lower(), "AutoModelForCausalLM") for name in ("Whole", "Stuck")]
    outcomes = {
        "Whole": Outcome(list(STEPS), 2, 2, ["gelu"]),
        "Stuck": Outcome(list(STEPS[:2]), 3, 0, ["unknown"], note="a | b"),
    }
    write_page(tmp_path / "docs" / "page.md", chosen, outcomes, 12.0, 2)
    text = (tmp_path / "docs" / "page.md").read_text()
    assert "**1 of 2 architectures** pass everything (1 model types)" in text
    assert "| Whole | ForCausalLM | 2 | gelu | yes | yes | yes |  |" in text
    assert "| Stuck | ForCausalLM | 3 (0) | unknown | no | no | no | a \\| b |" in text
