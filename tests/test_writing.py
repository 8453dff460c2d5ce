"""What the dense model writes to distil on: once for the job, the same from wherever it goes on."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pico_speech
import pytest
from compress.cli import app
from pico_tokenizer import save_pico
from typer.testing import CliRunner

from compress.conversion import convert, resume
from compress.data import load_corpus
from compress.distill import clock, writing
from compress.distill.job import Job
from compress.distill.writing import greedy, pack_state, unpack_state, write, write_corpus
from compress.errors import DataError
from compress.evaluate import evaluation
from compress.models import load_pretrained
from compress.recipe import DataSettings, parse_recipe, restore_recipe

RECIPE = """\
version: 1
lookup: {{budget: 0.6, memory: 40, bits: 4, rank: 8}}
data: {{source: {source}, sequence_length: 16, tokens: 1000}}
fit: {{tokens: 500}}
distill: {{steps: 0}}
finetune: {{steps: 2, batch_tokens: 256}}
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("writing")
    pico_speech.save(folder / "whisper", "whisper")
    save_pico(folder / "llama", "llama")
    save_pico(folder / "bert", "bert")
    pico_speech.write_recordings(folder / "recordings", 16)
    for family, source in (("whisper", "audio"), ("llama", "teacher")):
        (folder / f"{family}.yaml").write_text(RECIPE.format(source=source))
    return folder


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (*out.glob("*.safetensors"), out / "config.json")}


@pytest.mark.parametrize(("family", "batch_tokens"), [("whisper", 64), ("llama", 1024)])
def test_a_job_stopped_while_writing_goes_on_with_what_it_has(
    work: Path, tmp_path: Path, family: str, batch_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "measure_latency", lambda *arguments, **options: [])
    monkeypatch.setattr(writing, "BATCH_TOKENS", batch_tokens)
    monkeypatch.setattr(clock, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(clock, "MOST_SAVING", 1e9)
    data = str(work / "recordings") if family == "whisper" else None
    made: list[int] = []
    name = "greedy" if family == "whisper" else "sample"
    original = getattr(writing, name)

    def counted(*arguments: Any, **options: Any) -> Any:
        made.append(1)
        if len(made) == stop_at:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(writing, name, counted)
    stop_at = 0
    convert(str(work / family), work / f"{family}.yaml", tmp_path / "whole", data=data, threads=1)
    batches = len(made)
    assert batches > 3
    made.clear()
    stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        convert(str(work / family), work / f"{family}.yaml", tmp_path / "stopped", data=data, threads=1)
    assert "write" not in Job.open(tmp_path / "stopped").journal["units"]
    shown = CliRunner().invoke(app, ["status", str(tmp_path / "stopped")])
    assert "write     0/1" in shown.output
    stop_at = 0
    resume(tmp_path / "stopped", threads=1)
    assert len(made) == batches + 1  # the one that was stopped is done again
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")


def test_the_teacher_writes_the_same_from_wherever_it_goes_on(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "BATCH_TOKENS", 128)
    whisper = load_pretrained(str(work / "whisper"))
    settings = DataSettings(source="audio", path=str(work / "recordings"), sequence_length=16)
    split = load_corpus(settings, whisper, 0).train
    states: list[Any] = []
    whole, last = write(whisper, split.examples, split.rows, keep=lambda state: states.append(pack_state(state)))
    again, _ = write(whisper, split.examples, split.rows, unpack_state(states[0]))
    assert np.array_equal(whole.ids, again.ids)
    assert np.array_equal(whole.offsets, again.offsets)
    assert last == unpack_state(states[-1])
    row = int(split.rows[0])
    alone = greedy(whisper, split.examples.collate(np.asarray([row]), None), split.examples.most)[0]
    assert whole.sequence(row).tolist() == alone
    batch = whole.collate(split.rows, None)
    targets = whole.targets(split.rows, batch)
    assert batch["decoder_input_ids"].shape == targets.shape
    assert ((targets == -100) | (batch["decoder_attention_mask"] == 1)).all()
    predicted = targets[0][targets[0] != -100].tolist()
    assert whole.sequence(int(split.rows[0])).tolist()[1 + int(whole.given[split.rows[0]]) :] == predicted


def test_a_causal_model_writes_windows_that_begin_as_texts_do(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = load_pretrained(str(work / "llama"))
    settings = DataSettings(source="teacher", sequence_length=16, tokens=600)
    corpus = load_corpus(settings, llama, 0)
    assert "windows that the dense model writes" in corpus.description
    written, _ = write_corpus(llama, corpus)
    ids = written.train.batch(0, 256, 0)["input_ids"]
    assert ids.shape[1] == 16
    assert (ids[:, 0] == 1).all()  # <s>
    assert len({tuple(row.tolist()) for row in ids}) == len(ids)
    again, _ = write_corpus(llama, corpus)
    other, _ = write_corpus(llama, load_corpus(settings, llama, 1))
    assert (again.train.batch(0, 256, 0)["input_ids"] == ids).all()
    assert (other.train.batch(0, 256, 0)["input_ids"] != ids).any()
    assert load_corpus(settings, llama, 1).fingerprint != corpus.fingerprint
    longer = load_corpus(settings.model_copy(update={"written_length": 50}), llama, 0)
    assert longer.fingerprint != corpus.fingerprint
    asked: list[tuple[int, int]] = []  # texts, and tokens of each
    original = writing.sample
    monkeypatch.setattr(writing, "sample", lambda *given: asked.append(given[1:3]) or original(*given))
    long, _ = write_corpus(llama, longer)
    assert {tokens for _, tokens in asked} == {45}  # three windows of 15 tokens and <s> in 50 tokens
    windows = long.train.examples.ids
    assert windows.shape == (3 * sum(texts for texts, _ in asked), 15)
    first = original(llama, *asked[0], (1,), zlib.crc32(b"0/0"))
    assert windows.reshape(-1, 45)[: len(first)].tolist() == first  # a text's windows follow one another
    recipe = parse_recipe("version: 1\ndata: {source: teacher, sequence_length: 16, written_length: 50}", "r.yaml")
    given = recipe.with_data("stories.txt")
    assert restore_recipe(given.stored(), given.text, "r.yaml").data.written_length == "auto"
    with pytest.raises(DataError, match="of the kind embedding"):
        load_corpus(settings, load_pretrained(str(work / "bert")), 0)
