"""What the tests share: a small job that was never interrupted, one that was, and a note of what is done again."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from pico_tokenizer import WORDS, save_pico
from small_job import begin, in_stage
from trials import RECIPE

import compress.evaluate.evaluation
from compress.distill.endtoend import EndToEnd
from compress.distill.layerwise import SiteDistiller
from compress.distill.stopped import Stopped


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No speed is measured here."""
    monkeypatch.setattr(compress.evaluate.evaluation, "measure_latency", lambda *args, **kwargs: [])


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def stopped(work: Path) -> Path:
    """The folder of a job that was stopped in its end-to-end stage."""
    out = work / "stopped"

    with pytest.raises(Stopped):
        begin(work, out, stop=in_stage(out, "finetune"))
    return out


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
