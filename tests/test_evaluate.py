"""Evaluation: every number against one worked out another way, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import converted
import families
import numpy as np
import pico
import pico_tokenizer
import pytest
import torch
from assets import asset
from transformers import BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

import compress
from compress.data import load_examples
from compress.errors import CheckpointError, DataError, ModelError
from compress.evaluate import answers, latency, quality
from compress.evaluate.inputs import make_pool
from compress.evaluate.site_errors import site_errors
from compress.evaluate.statistics import spearman
from compress.models import Pretrained, load_pretrained
from compress.sites import find_norms, find_sites

TASK_FAMILIES = ("gpt2", "llama", "bert", "bert_masked", "vit")


@pytest.fixture(autouse=True)
def small_measurements(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pico models gain nothing from threads, nor their timings from many rounds."""
    monkeypatch.setattr(latency, "MIN_ROUNDS", 3)
    monkeypatch.setattr(latency, "_RECORDED_TOKENS", 256)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Dense pico models on disk, with FFNs that matter."""
    root = tmp_path_factory.mktemp("dense")
    return {family: converted.dense_folder(root / family, family) for family in TASK_FAMILIES}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A data set for each task."""
    from PIL import Image

    root = tmp_path_factory.mktemp("data")
    (root / "text.txt").write_text(converted.TEXT * 12)
    words = ["cat", "dog", "hill", "the man", "a hat on the mat", "who", "there", "sat and ran"]
    rows = [(a, b, len(set(a) & set(b))) for a in words for b in words if a < b]
    lines = ["sentence1\tsentence2\tscore", *(f"{a}\t{b}\t{score}" for a, b, score in rows)]
    (root / "pairs.tsv").write_text("\n".join(lines) + "\n")
    (root / "labelled.tsv").write_text("text\tlabel\n" + "".join(f"{a} {b}\t{score % 3}\n" for a, b, score in rows))
    images = root / "images"
    images.mkdir()
    generator = np.random.default_rng(0)
    labels = []
    for index in range(12):
        Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(images / f"{index:02}.png")
        labels.append(f"{index:02}.png,{index % 5}")
    (images / "labels.csv").write_text("file_name,label\n" + "\n".join(labels) + "\n")
    text, pairs = str(root / "text.txt"), str(root / "pairs.tsv")
    return {
        "gpt2": text, "llama": text, "bert_masked": text, "bert": pairs, "vit": str(images),
        "labelled": str(root / "labelled.tsv"),
    }  # fmt: skip


# Quality


@torch.no_grad()
def test_perplexity_and_agreement_by_hand(folders: dict[str, Path], data: dict[str, str]) -> None:
    dense, ours = converted.pair(folders["gpt2"], noise=0.5)
    examples = load_examples(data["gpt2"], dense, sequence_length=24)
    found, agreement = quality.compare(dense, ours, examples)
    losses, divergence, same, count = [[], []], 0.0, 0, 0
    ids = torch.tensor(np.array(examples.examples.ids), dtype=torch.long)  # [windows, 24]
    both = [p.model(input_ids=ids).logits[:, :-1].double().log_softmax(-1) for p in (dense, ours)]
    for number, window in enumerate(ids):
        first = 0 if number == 0 else 11  # windows overlap by half: a token is predicted once
        logs = [log[number, first:] for log in both]
        for side, log in enumerate(logs):
            losses[side].append(-sum(float(row[token]) for row, token in zip(log, window[first + 1 :], strict=True)))
        divergence += float((logs[0].exp() * (logs[0] - logs[1])).sum())
        same += int((logs[0].argmax(-1) == logs[1].argmax(-1)).sum())
        count += 23 - first
    row = found["perplexity"]
    assert (row["tokens"], agreement["positions"], row["samples"]) == (count, count, len(examples))
    assert row["dense"] == pytest.approx(math.exp(sum(losses[0]) / count), rel=1e-5)
    assert row["compressed"] == pytest.approx(math.exp(sum(losses[1]) / count), rel=1e-5)
    assert agreement["kl"] == pytest.approx(divergence / count, rel=1e-3)
    assert agreement["top1"] == same / count
    assert agreement["top1"] < 1
    assert row["interval"][0] <= row["compressed"] - row["dense"] <= row["interval"][1]


@torch.no_grad()
def test_masked_loss_by_hand(folders: dict[str, Path], data: dict[str, str]) -> None:
    dense, ours = converted.pair(folders["bert_masked"], noise=0.5)
    examples = load_examples(data["bert_masked"], dense)
    found, agreement = quality.compare(dense, ours, examples)
    losses, divergence, count = [0.0, 0.0], 0.0, 0
    for row in examples.rows:
        batch = examples.examples.collate(np.array([row]), None)
        targets = examples.examples.targets(np.array([row]), batch)
        keep = targets[0] != -100
        assert (batch["input_ids"][0, keep] == dense.processor.mask_token_id).all()
        logs = [p.model(**batch).logits[0, keep].double().log_softmax(-1) for p in (dense, ours)]
        for side, log in enumerate(logs):
            losses[side] -= float(log.gather(1, targets[0, keep][:, None]).sum())
        divergence += float((logs[0].exp() * (logs[0] - logs[1])).sum())
        count += int(keep.sum())
    assert count > 20
    assert found["masked_loss"]["tokens"] == count
    assert found["masked_loss"]["dense"] == pytest.approx(losses[0] / count, rel=1e-5)
    assert found["masked_loss"]["compressed"] == pytest.approx(losses[1] / count, rel=1e-5)
    assert agreement["kl"] == pytest.approx(divergence / count, rel=1e-3)


@torch.no_grad()
def test_accuracy_by_hand_on_images(folders: dict[str, Path], data: dict[str, str]) -> None:
    dense, ours = converted.pair(folders["vit"], noise=2.0)
    examples = load_examples(data["vit"], dense)
    found, agreement = quality.compare(dense, ours, examples)
    pixels = examples.examples.collate(examples.rows, None)
    logits = [p.model(**pixels).logits for p in (dense, ours)]
    hits = [float((part.argmax(-1).numpy() == examples.values).mean()) for part in logits]
    assert [found["accuracy"]["dense"], found["accuracy"]["compressed"]] == pytest.approx(hits)
    assert agreement["positions"] == 12
    assert agreement["top1"] == pytest.approx(float((logits[0].argmax(-1) == logits[1].argmax(-1)).double().mean()))
    wanted, got = (part.double().log_softmax(-1) for part in logits)
    assert agreement["kl"] == pytest.approx(float((wanted.exp() * (wanted - got)).sum(-1).mean()), rel=1e-3)


def test_accuracy_of_text_classifiers(tmp_path: Path, data: dict[str, str]) -> None:
    config = pico.bert().config
    config.num_labels = 3
    torch.manual_seed(1)
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    pico_tokenizer.bert_like().save_pretrained(tmp_path)
    dense, ours = converted.pair(tmp_path)
    found, agreement = quality.compare(dense, ours, load_examples(data["labelled"], dense))
    assert found["accuracy"]["dense"] == found["accuracy"]["compressed"]
    assert found["accuracy"]["samples"] == agreement["positions"] == 28
    assert agreement["top1"] == 1


@torch.no_grad()
def test_spearman_by_hand(folders: dict[str, Path], data: dict[str, str]) -> None:
    dense, ours = converted.pair(folders["bert"], noise=1.0)
    examples = load_examples(data["bert"], dense)
    found, agreement = quality.compare(dense, ours, examples)
    rows = [line.split("\t") for line in Path(data["bert"]).read_text().splitlines()[1:]]

    def vectors(p: Pretrained) -> dict[str, torch.Tensor]:
        texts = {text for row in rows for text in row[:2]}
        return {t: p.model(**p.processor(t, return_tensors="pt")).last_hidden_state[0].mean(0) for t in texts}

    gold, (theirs, own) = [float(row[2]) for row in rows], (vectors(p) for p in (dense, ours))
    for side, embedded in (("dense", theirs), ("compressed", own)):
        cosines = [float(torch.cosine_similarity(embedded[a], embedded[b], dim=0)) for a, b, _ in rows]
        assert found["spearman"][side] == pytest.approx(spearman(gold, cosines), abs=1e-3)
    texts = [text for row in rows for text in row[:2]]
    distance = np.mean([1 - float(torch.cosine_similarity(theirs[t], own[t], dim=0)) for t in texts])
    assert agreement["cosine_distance"] == pytest.approx(distance, rel=1e-2)
    assert (agreement["kl"], agreement["top1"], agreement["positions"]) == (None, None, 56)


@torch.no_grad()
def test_a_single_output_is_no_distribution(tmp_path: Path) -> None:
    config = pico.bert().config
    config.num_labels = 1
    torch.manual_seed(1)
    families.louder(BertForSequenceClassification(config)).save_pretrained(tmp_path)
    pico_tokenizer.bert_like().save_pretrained(tmp_path)
    dense, ours = converted.pair(tmp_path, noise=0.5)
    texts = ["the cat", "a dog sat on the hill", "who"]
    (tmp_path / "texts.tsv").write_text("\n".join(["text", *texts]) + "\n")
    found, agreement = quality.compare(dense, ours, load_examples(str(tmp_path / "texts.tsv"), dense))
    scores = [
        [float(p.model(**p.processor(text, return_tensors="pt")).logits) for text in texts] for p in (dense, ours)
    ]
    assert found == {}
    assert agreement["difference"] == pytest.approx(np.abs(np.subtract(*scores)).mean(), rel=1e-3)
    assert agreement["difference"] > 0.01
    assert agreement["kl"] is None


def test_large_vocabularies_get_small_batches(folders: dict[str, Path]) -> None:
    dense = load_pretrained(str(folders["gpt2"]))
    assert quality.batch_tokens(dense) == 4096
    dense.model.config.vocab_size = 50_000
    assert 256 <= quality.batch_tokens(dense) <= (1 << 25) // 50_000


# Errors per site


@pytest.mark.parametrize("packed", [False, True])
@torch.no_grad()
def test_site_errors_by_hand(packed: bool, folders: dict[str, Path]) -> None:
    dense, ours = converted.pair(folders["llama"], noise=0.5, packed=packed)
    sites = find_sites(dense.model)
    batch = {"input_ids": torch.randint(3, 64, (4, 16), generator=torch.Generator().manual_seed(0))}
    names = [site.name for site in sites]
    found = site_errors(dense.model, ours.model, sites, find_norms(dense.model, sites), names, [batch])
    answers_ = []
    handles = [
        ours.model.get_submodule(site.entry).register_forward_hook(lambda m, a, y: answers_.append(y)) for site in sites
    ]
    goals = dense.model.model(**batch, output_hidden_states=True)
    got = ours.model.model(**batch, output_hidden_states=True)
    for handle in handles:
        handle.remove()
    # The first site is seen by the second layer's norm; behind the last one is the model's own, applied already.
    norm = dense.model.model.layers[1].input_layernorm
    goal, reached, y = goals.hidden_states[1], got.hidden_states[1], answers_[0]
    mean = (goal - (reached - y)).flatten(0, 1).mean(0)
    wanted = ((norm(reached) - norm(goal)) ** 2).mean() / ((norm(reached - y + mean) - norm(goal)) ** 2).mean()
    assert [row["name"] for row in found] == names
    assert found[0]["error"] == pytest.approx(float(wanted), rel=1e-4)
    assert 0 < found[0]["error"] < 1
    assert found[1]["error"] > 0


def test_a_site_that_stayed_dense_has_no_error(folders: dict[str, Path]) -> None:
    dense, ours = converted.pair(folders["bert"], noise=0.5, keep=(0,))
    sites = find_sites(dense.model)
    batch = {"input_ids": torch.arange(5, 25).view(2, 10), "attention_mask": torch.ones(2, 10, dtype=torch.long)}
    batch["attention_mask"][1, 4:] = 0
    found = site_errors(dense.model, ours.model, sites, find_norms(dense.model, sites), [sites[1].name], [batch])
    assert found[0] == {"name": "encoder.layer.0.output.dense", "error": None}
    assert found[1]["error"] > 0
    batch["input_ids"][1, 4:] = 7  # what stands in the padding does not matter
    again = site_errors(dense.model, ours.model, sites, find_norms(dense.model, sites), [sites[1].name], [batch])
    assert again[1]["error"] == pytest.approx(found[1]["error"], rel=1e-5)


# Latency


def test_latency_rows(folders: dict[str, Path], data: dict[str, str]) -> None:
    torch.set_num_threads(2)
    dense, ours = converted.pair(folders["gpt2"], packed=True, keep=(1,))
    pool = make_pool((batch.inputs for batch in load_examples(data["gpt2"], dense).batches(512)), 16)
    rows = latency.measure_latency(
        "causal", dense.model, ours.model, find_sites(dense.model), pool, batches=(1, 3), threads=1, seconds=0.0
    )
    assert [(row["scope"], row["batch"], row["tokens"]) for row in rows] == [
        ("ffn", 1, 1), ("model", 1, 1), ("ffn", 1, 16), ("model", 1, 16), ("ffn", 3, 48), ("model", 3, 48),
    ]  # fmt: skip
    for row in rows:
        assert set(row["seconds"]) == {"dense_float32", "dense_bfloat16", "dense_int8", "compressed"}
        assert all(seconds > 0 for seconds in row["seconds"].values())
        assert row["threads"] == 1
    assert torch.get_num_threads() == 2


def test_images_have_no_decoding_step(folders: dict[str, Path], data: dict[str, str]) -> None:
    dense, ours = converted.pair(folders["vit"])
    pool = make_pool((batch.inputs for batch in load_examples(data["vit"], dense).batches(512)), 16)
    rows = latency.measure_latency(
        "image-classification", dense.model, ours.model, find_sites(dense.model), pool, batches=(2,), threads=1,
        seconds=0.0,
    )  # fmt: skip
    assert [(row["scope"], row["batch"], row["tokens"]) for row in rows] == [("ffn", 2, 34), ("model", 2, 34)]


# Everything together


@pytest.mark.parametrize("family", TASK_FAMILIES)
def test_an_exact_student_changes_nothing(family: str, folders: dict[str, Path], data: dict[str, str]) -> None:
    report = compress.evaluate(converted.pair(folders[family]), data=data[family], latency=False)
    (row,) = report.quality.values()
    assert row["compressed"] == pytest.approx(row["dense"], rel=1e-4)
    assert max(map(abs, row["interval"])) < 1e-3
    assert all(site["error"] < 1e-6 for site in report.sites)
    if family == "bert":
        assert report.agreement["cosine_distance"] < 1e-5
    else:
        assert report.agreement["kl"] < 1e-6
        assert report.agreement["top1"] == 1
    assert report.latency == []
    assert report.cost > 1  # all neurons, and tables beside them


@pytest.fixture(scope="module")
def checkpoint(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted.save(folders["gpt2"], tmp_path_factory.mktemp("compressed") / "out", noise=0.2)


def test_a_folder_against_its_source(checkpoint: Path, folders: dict[str, Path], data: dict[str, str]) -> None:
    report = compress.evaluate(
        checkpoint, folders["gpt2"], data["gpt2"], limit_tokens=300, threads=1, batches=(1,), seconds=0.0
    )
    values = json.loads(report.to_json())
    assert values["quality"]["perplexity"]["compressed"] != values["quality"]["perplexity"]["dense"]
    assert values["setting"]["data_tokens"] <= 300
    assert values["setting"]["threads"] == 1
    assert str(checkpoint.parent) not in report.to_json()  # no path of this machine
    assert [row["tokens"] for row in values["latency"]] == [1, 1, 64, 64]
    assert values["size"]["dense_bytes_per_token"] == 2 * 2 * 32 * 128
    stored = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors") if file.name != "probe.safetensors")
    assert values["size"]["compressed_bytes"] == pytest.approx(stored, rel=0.1)  # but for headers and padding


def test_the_recorded_source_and_data_are_used(
    folders: dict[str, Path], data: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = converted.save(folders["bert"], tmp_path / "out", recipe="version: 1\neval:\n  data: pairs.tsv\n")
    monkeypatch.chdir(Path(data["bert"]).parent)
    with pytest.raises(ModelError, match="--against"):
        compress.evaluate(out, latency=False)
    (Path.cwd() / "bert").symlink_to(folders["bert"])
    report = compress.evaluate(out, latency=False)
    assert report.setting["dense"] == "bert"
    assert report.quality["spearman"]["samples"] == 28


def test_text_is_read_in_windows_of_the_recipe(
    folders: dict[str, Path], data: dict[str, str], tmp_path: Path
) -> None:  # so that the numbers are those that the conversion reported
    recipe = "version: 1\ndata:\n  source: text\n  path: text.txt\n  sequence_length: 24\n"
    out = converted.save(folders["gpt2"], tmp_path / "out", recipe=recipe)
    report = compress.evaluate(out, folders["gpt2"], data["gpt2"], latency=False)
    same = compress.evaluate(
        out, folders["gpt2"],
        load_examples(data["gpt2"], load_pretrained(str(folders["gpt2"])), sequence_length=24), latency=False,
    )  # fmt: skip
    assert report.quality == same.quality


def test_what_cannot_be_evaluated(
    checkpoint: Path, folders: dict[str, Path], data: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="--data"):
        compress.evaluate(checkpoint, folders["gpt2"])
    with pytest.raises(CheckpointError, match="no compressed checkpoint"):
        compress.evaluate(folders["gpt2"], data=data["gpt2"])
    with pytest.raises(ModelError, match="GPT2LMHeadModel"):
        compress.evaluate(checkpoint, folders["llama"], data["gpt2"])
    dense = load_pretrained(str(folders["gpt2"]))
    with pytest.raises(CheckpointError, match="no LookupFFN"):
        compress.evaluate((dense, dense), data=data["gpt2"])
    with pytest.raises(ModelError, match="compressed itself"):
        compress.evaluate(checkpoint, checkpoint, data["gpt2"])
    (tmp_path / ".job").mkdir()
    with pytest.raises(CheckpointError, match="compress resume"):
        compress.evaluate(tmp_path, folders["gpt2"], data["gpt2"])


@pytest.mark.parametrize(("size", "named"), [({"n_embd": 48}, "wte.weight"), ({"n_layer": 3}, "h.2.mlp")])
def test_a_dense_model_of_another_size_is_no_pair(
    checkpoint: Path, folders: dict[str, Path], data: dict[str, str], tmp_path: Path, size: dict[str, int], named: str
) -> None:
    other = GPT2Config.from_pretrained(folders["gpt2"])
    other.update(size)
    GPT2LMHeadModel(other).save_pretrained(tmp_path)
    pico_tokenizer.gpt_like().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=named):
        compress.evaluate(checkpoint, tmp_path, data["gpt2"])


@pytest.mark.assets
def test_a_real_model_packed_exactly_keeps_its_perplexity(tmp_path: Path) -> None:
    source = asset("models/stories260K")
    out = converted.save(source, tmp_path / "out")
    report = compress.evaluate(
        out, source, asset("data/tinystories/valid.txt"), limit_tokens=12_000, threads=1, batches=(1,), seconds=0.0
    )
    row = report.quality["perplexity"]
    assert 3.5 < row["dense"] < 5.5  # 4.27 on stories alone
    assert row["compressed"] == pytest.approx(row["dense"], rel=1e-3)
    assert report.agreement["top1"] > 0.999
    assert max(site["error"] for site in report.sites) < 1e-4
    assert [row["tokens"] for row in report.latency] == [1, 1, 128, 128]


# Answers


@torch.no_grad()
def test_greedy_generation_takes_the_likeliest_token(folders: dict[str, Path]) -> None:
    dense = load_pretrained(str(folders["llama"]))
    ids = dense.processor("the cat", return_tensors="pt")["input_ids"]
    prompt = ids.shape[1]
    for _ in range(8):
        token = dense.model(input_ids=ids).logits[0, -1].argmax()
        ids = torch.cat([ids, token.view(1, 1)], dim=1)
        if int(token) == dense.model.generation_config.eos_token_id:
            break
    wanted = dense.processor.decode(ids[0, prompt:], skip_special_tokens=True)
    dense.model.generation_config.do_sample = True  # what the folder says about sampling has no part in it
    assert answers.generate(dense, "the cat", 8) == (wanted, None)
    sampled = [answers.generate(dense, "the cat", 8, temperature=5.0, seed=seed) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    with pytest.raises(DataError, match="longest sequence"):
        answers.generate(dense, "a" * 64, 8)
