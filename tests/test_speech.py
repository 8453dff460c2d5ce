"""Speech and text pairs, from recordings and tables to checkpoints that transcribe: the whole job on pico models."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pico_speech
import pytest
import soundfile
import torch
from compress.cli import app
from typer.testing import CliRunner

from compress.checkpoint import verify_files, verify_outputs
from compress.conversion import convert
from compress.data import load_corpus, load_examples
from compress.data.audio import wave_of
from compress.data.paired import Paired, Unwritten
from compress.errors import DataError
from compress.evaluate import evaluate, latency
from compress.evaluate.inspection import inspect_model
from compress.models import load_pretrained
from compress.recipe import DataSettings
from compress.sites import find_sites
from compress.streams import real_tokens

RECIPE = """\
version: 1
lookup: {{budget: 0.6, memory: 40, bits: 4, rank: 8}}
data: {{source: {source}, sequence_length: 16, tokens: 3000}}
fit: {{tokens: 1000}}
distill: {{steps: 8, batch_tokens: 256}}
finetune: {{steps: 4, batch_tokens: 256}}
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speech")
    for family in ("whisper", "wav2vec2", "t5"):
        pico_speech.save(folder / family, family)
    pico_speech.write_recordings(folder / "recordings", 24, transcripts=True)
    rows = [{"source": f"the cat {i}", "target": f"a dog {7 * i}"} for i in range(120)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def data_of(work: Path, family: str) -> Path:
    return work / ("pairs.jsonl" if family == "t5" else "recordings")


@pytest.fixture(scope="module", params=["whisper", "wav2vec2", "t5"])
def converted(work: Path, request: pytest.FixtureRequest) -> SimpleNamespace:
    """A checkpoint that the real job made, and its report."""
    family, out = request.param, work / f"{request.param}-out"
    recipe = work / f"{family}.yaml"
    recipe.write_text(RECIPE.format(source="pairs" if family == "t5" else "audio"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "MAX_ROUNDS", 3)
        report = convert(str(work / family), recipe, out, data=str(data_of(work, family)), threads=1)
    return SimpleNamespace(family=family, out=out, report=report)


def settings(path: Path, **values: Any) -> DataSettings:
    return DataSettings(path=str(path), **{"source": "audio", "sequence_length": 16, "tokens": 100_000, **values})


def test_it_converts_and_loads_elsewhere(converted: SimpleNamespace, work: Path) -> None:
    dense = load_pretrained(str(work / converted.family))
    names = [site.name for site in find_sites(dense.model)]
    assert [site["name"] for site in converted.report.sites] == names
    assert all(site["error"] is not None for site in converted.report.sites)
    assert any(name.startswith("decoder.") for name in names) == (converted.family != "wav2vec2")
    assert verify_files(converted.out) == []
    assert verify_outputs(converted.out, load_pretrained(str(converted.out)).model) == []
    scopes = {(row["scope"], row["batch"], row["tokens"] == 1) for row in converted.report.latency}
    assert (("model", 1, True) in scopes) == (converted.family != "wav2vec2")  # a decoding step


def test_token_agreement_is_reported_beside_the_dense_model(converted: SimpleNamespace) -> None:
    row = converted.report.quality["token_agreement"]
    assert row["dense"] == 1
    assert 0 < row["compressed"] <= 1
    assert row["interval"][0] <= row["compressed"] - 1 <= row["interval"][1] <= 0
    assert 0 <= row["stderr"] < math.inf
    assert "wer" not in converted.report.quality
    assert ("perplexity" in converted.report.quality) == (converted.family == "t5")


def test_eval_reports_word_errors_where_there_are_transcripts(converted: SimpleNamespace, work: Path) -> None:
    report = evaluate(converted.out, str(work / converted.family), data_of(work, converted.family), latency=False)
    if converted.family == "t5":
        assert {"perplexity", "token_agreement"} == set(report.quality)
        assert report.quality["perplexity"]["unit"] == "pairs"
        return
    assert list(report.quality) == ["wer", "token_agreement"]
    row = report.quality["wer"]
    assert (row["samples"], row["words"], row["unit"]) == (24, 72, "recordings")
    assert row["interval"][0] <= row["compressed"] - row["dense"] <= row["interval"][1]
    bare = evaluate(
        converted.out, str(work / converted.family), work / "recordings" / "*.wav", latency=False, limit_tokens=100
    )
    assert list(bare.quality) == ["token_agreement"]


def test_a_model_against_itself_agrees(work: Path) -> None:
    from compress.distill.writing import write_examples
    from compress.evaluate.quality import compare

    for family in ("whisper", "wav2vec2"):
        dense = load_pretrained(str(work / family))
        data = write_examples(dense, load_examples(str(work / "recordings"), dense, sequence_length=16))
        quality, agreement = compare(dense, dense, data)
        assert quality["token_agreement"]["compressed"] == 1
        assert quality["wer"]["compressed"] == quality["wer"]["dense"]
        assert agreement["kl"] < 1e-9


def test_run_writes(converted: SimpleNamespace, work: Path) -> None:
    content = "the cat 3" if converted.family == "t5" else str(work / "recordings" / "000.wav")
    result = CliRunner().invoke(app, ["run", str(converted.out), content, "--max-new-tokens", "5"])
    assert result.exit_code == 0, result.output
    assert CliRunner().invoke(app, ["inspect", str(converted.out)]).exit_code == 0
    if converted.family != "t5":
        missing = CliRunner().invoke(app, ["run", str(converted.out), "no such file"])
        assert missing.exit_code == 2
        assert "the model reads recordings, and there is no such file" in missing.stderr


def test_inspect_counts_a_decoder_by_its_own_tokens(work: Path) -> None:
    described = inspect_model(load_pretrained(str(work / "whisper")))
    total = described["total"]["dense"]
    each = described["sites"][0]["dense"]["multiply_adds"]
    assert total["ffn_multiply_adds"] == pytest.approx(2 * each * (1 + 32 / 50))  # 50 frames, 32 tokens
    assert 0 < total["ffn_share"] < 1


def test_recordings_are_averaged_resampled_and_padded_with_a_mask(work: Path) -> None:
    whisper = load_pretrained(str(work / "whisper"))
    corpus = load_corpus(settings(work / "recordings"), whisper, 0)
    split = corpus.train
    assert isinstance(split.examples, Unwritten)
    batch = split.batch(0, 256, 0)
    assert batch["input_features"].shape[1:] == (16, 100)
    real = real_tokens(whisper.model, batch, "main", 50)
    assert not real.all()
    everything = split.examples.collate(np.arange(24), None)
    counted = real_tokens(whisper.model, everything, "main", 50).sum(1)
    assert counted.tolist() == split.examples.lengths_in("main").tolist()
    stereo = wave_of(work / "recordings" / "004.wav", 16_000)
    frames = soundfile.info(work / "recordings" / "004.wav")
    assert stereo.ndim == 1
    assert abs(len(stereo) - frames.frames * 16_000 / frames.samplerate) <= 1


def test_recordings_of_the_hub_are_read_undecoded(work: Path, tmp_path: Path) -> None:
    import datasets

    rows = [json.loads(line) for line in (work / "recordings" / "metadata.jsonl").read_text().splitlines()]
    sounds = [{"bytes": (work / "recordings" / row["file_name"]).read_bytes(), "path": None} for row in rows]
    made = datasets.Dataset.from_dict({"audio": sounds, "text": [row["text"] for row in rows]})
    made.cast_column("audio", datasets.Audio(decode=False)).to_parquet(tmp_path / "train.parquet")
    whisper = load_pretrained(str(work / "whisper"))
    hub = DataSettings(source="hub", name=str(tmp_path), sequence_length=16, tokens=200)
    split = load_corpus(hub, whisper, 0).train
    assert split.tokens <= 200
    assert split.batch(0, 256, 0)["input_features"].shape[1:] == (16, 100)
    found = load_examples(f"hub:{tmp_path}", whisper, sequence_length=16)
    assert found.references == [row["text"] for row in rows]
    here = load_examples(str(work / "recordings"), whisper, sequence_length=16)
    assert here.references == found.references
    batches = [next(iter(data.batches(10_000))).inputs["input_features"] for data in (found, here)]
    assert torch.equal(*batches)


def test_wav2vec2_masks_have_the_length_of_its_frames(work: Path) -> None:
    model = load_pretrained(str(work / "wav2vec2"))
    split = load_corpus(settings(work / "recordings"), model, 0).train
    batch = split.examples.collate(np.arange(24), None)
    made = model.model(**batch).logits.shape[1]
    counted = real_tokens(model.model, batch, "main", made).sum(1).tolist()
    assert counted == split.examples.lengths.tolist()
    assert len(set(counted)) > 1


def test_long_recordings_are_cut_and_the_plan_says_so(work: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.flac", pico_speech.tone(3.4, 0), 16_000)
    whisper = load_pretrained(str(work / "whisper"))
    corpus = load_corpus(settings(tmp_path), whisper, 0)
    assert "the model's longest" in corpus.description
    assert sorted(corpus.train.examples.lengths_in("main")) == [43, 43, 43, 43]
    shorter = load_corpus(settings(tmp_path, seconds=0.5), whisper, 0)
    assert len(shorter.train.examples.lengths) == 7


def test_pairs_come_by_column_and_by_field(work: Path, tmp_path: Path) -> None:
    t5 = load_pretrained(str(work / "t5"))
    (tmp_path / "a.tsv").write_text("source\ttarget\nthe cat\ta dog\nthe man\ta hat\n")
    (tmp_path / "b.jsonl").write_text('{"en": "the cat", "de": "a dog"}\n{"en": "the man", "de": "a hat"}\n')
    (tmp_path / "c.csv").write_text("the cat,a dog\nthe man,a hat\n")
    made = [
        load_corpus(settings(tmp_path / name, source="pairs", field=field, target_field=target), t5, 0).train.examples
        for name, field, target in (("a.tsv", "text", "target"), ("b.jsonl", "en", "de"), ("c.csv", "text", "target"))
    ]
    assert all(isinstance(examples, Paired) for examples in made)
    assert all(np.array_equal(made[0].ids, other.ids) for other in made)
    sequence = made[0].sequence(0).tolist()
    assert sequence[0] == t5.model.config.decoder_start_token_id
    assert t5.processor.decode(sequence, skip_special_tokens=True) == "a dog"
    text = tmp_path / "t.txt"
    text.write_text("the cat sat\nthe dog ran\nthe man saw\n")
    assert isinstance(load_corpus(settings(text, source="text"), t5, 0).train.examples, Unwritten)
    with pytest.raises(DataError, match=r"source and target, or set data.field and data.target_field"):
        load_corpus(settings(work / "pairs.jsonl", source="pairs", field="x"), t5, 0) and load_corpus(
            settings(_written(tmp_path, '{"en": "a", "de": "b"}\n'), source="pairs"), t5, 0
        )


def _written(folder: Path, text: str) -> Path:
    path = folder / "other.jsonl"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("broken.wav", b"RIFF not a recording", "not a readable recording"),
        ("short.wav", None, "too short"),
        ("metadata.csv", b"file_name,text\ngone.wav,hello\n", "there is no .*gone.wav"),
        ("metadata.jsonl", b'{"name": "a.wav"}\n', "file_name"),
    ],
)
def test_what_is_wrong_with_recordings_is_said(work: Path, tmp_path: Path, name: str, content: Any, said: str) -> None:
    path = tmp_path / name
    if content is None:
        soundfile.write(path, np.zeros(3, np.float32), 16_000)
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        load_corpus(settings(path), load_pretrained(str(work / "wav2vec2")), 0)
    assert caught.value.where
    assert caught.value.remedy


def test_transcripts_are_asked_for_by_name(work: Path, tmp_path: Path) -> None:
    whisper = load_pretrained(str(work / "whisper"))
    soundfile.write(tmp_path / "a.wav", pico_speech.tone(0.5, 0), 16_000)
    (tmp_path / "list.csv").write_text("file_name,words\na.wav,hello\n")
    with pytest.raises(DataError, match="no column of transcripts") as caught:
        load_examples(str(tmp_path / "list.csv"), whisper)
    assert "file_name and text" in caught.value.remedy
    soundfile.write(tmp_path / "b.wav", pico_speech.tone(1.5, 0), 16_000)
    (tmp_path / "list.csv").write_text("file_name,text\na.wav,hello\nb.wav,good day\n")
    with pytest.raises(DataError, match=r"lasts 1.5 s, and the model takes 1 s") as caught:
        load_examples(str(tmp_path / "list.csv"), whisper)
    assert "list.csv:3" in caught.value.where


def test_a_missing_library_names_the_extra(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from compress.data import check_data

    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(DataError, match="soundfile, which is not installed") as caught:
        check_data(settings(work / "recordings"))
    assert "compress-lookup[audio]" in caught.value.remedy


def test_data_of_another_kind_is_refused(work: Path) -> None:
    with pytest.raises(DataError, match="reads audio, the data is text"):
        load_corpus(settings(work / "pairs.jsonl", source="text"), load_pretrained(str(work / "whisper")), 0)
