"""Every kind of head: its task, the whole job on it at pico size, and what its report says."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import data_samples
import families
import numpy as np
import pico_speech
import pico_tokenizer
import pytest
import torch
import transformers
from compress.cli import app
from pico_tokenizer import WORDS
from tokenizers import processors
from typer.testing import CliRunner

from compress.checkpoint import verify_outputs
from compress.checkpoint.card import auto_class
from compress.conversion import convert
from compress.data import Split, load_corpus
from compress.data.encode import whole_texts
from compress.data.paired import paired
from compress.data.records import make_records
from compress.distill.activations import Tap
from compress.distill.job import Job
from compress.distill.layerwise import SiteDistiller
from compress.distill.objectives import check_outputs, output_error
from compress.distill.progress import Progress
from compress.errors import DataError, ModelError, SiteError
from compress.evaluate import evaluation
from compress.models import load_pretrained
from compress.padding import RealRows
from compress.plan import make_plan
from compress.recipe import DistillSettings, FitSettings, parse_recipe
from compress.sites import find_sites
from compress.streams import stream_of
from compress.tasks import HEADS, task_named

TEXT = families._TEXT
AUDIO = {**families._AUDIO, "conv_stride": (20, 16), "conv_kernel": (20, 16), "classifier_proj_size": 16}


def bart_like() -> Any:
    tokenizer = pico_tokenizer.llama_like()
    tokenizer.add_special_tokens({"eos_token": "</s>", "pad_token": "<unk>"})
    template = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 2)])
    tokenizer.backend_tokenizer.post_processor = template
    return tokenizer


def clip_processor() -> Any:
    kind = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    images = kind(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return transformers.CLIPProcessor(image_processor=images, tokenizer=pico_tokenizer.bert_like())


def extractor(**settings: Any) -> Any:
    return transformers.Wav2Vec2FeatureExtractor(**settings)


# model, its processor, the data's source and fields, the data, the task, the agreement or metric that it must report
HEADED: dict[str, tuple[Callable[[], Any], Callable[[], Any], str, str, str, str]] = {
    "tokens": (
        lambda: families.build("BertForTokenClassification", "BertConfig", **TEXT, num_labels=4),
        pico_tokenizer.bert_like, "text", "text.txt", "token-classification", "token_agreement",
    ),
    "spans": (
        lambda: families.build("BertForQuestionAnswering", "BertConfig", **TEXT), pico_tokenizer.bert_like,
        "jsonl, fields: {text: question, text_pair: context}", "questions.jsonl", "question-answering",
        "span_agreement",
    ),
    "pairs": (
        lambda: families.build("BertForNextSentencePrediction", "BertConfig", **TEXT), pico_tokenizer.bert_like,
        "jsonl, fields: {text: question, text_pair: context}", "questions.jsonl", "other", "output_error",
    ),
    "clip": (
        lambda: families.build(
            "CLIPModel", "CLIPConfig", text_config={**TEXT, "intermediate_size": 64, "eos_token_id": 3},
            vision_config=families._VISION, projection_dim=16,
        ), clip_processor, "jsonl, fields: {text: caption, images: file}", "captions.jsonl", "other", "output_error",
    ),
    "text with a decoder": (
        lambda: families.build(
            "BartForSequenceClassification", "BartConfig", **families._BART, max_position_embeddings=64, num_labels=3
        ), bart_like, "text", "text.txt", "text-classification", "kl",
    ),
    "written": (
        lambda: families.build(
            "BartForConditionalGeneration", "BartConfig", **families._BART, max_position_embeddings=64,
            decoder_start_token_id=2,
        ), bart_like, "text", "text.txt", "seq2seq", "token_agreement",
    ),
    "audio": (
        lambda: families.build("Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", **AUDIO, num_labels=3),
        extractor, "audio", "recordings", "audio-classification", "kl",
    ),
    "audio embedding": (
        lambda: families.build("Wav2Vec2Model", "Wav2Vec2Config", **AUDIO), extractor, "audio", "recordings",
        "embedding", "cosine_distance",
    ),
    "ctc without a mask": (
        lambda: pico_speech.wav2vec2(norm="group"), extractor, "audio", "recordings", "ctc", "token_agreement",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    draw = random.Random(0)
    phrase = lambda: " ".join(draw.choices(WORDS, k=draw.randint(4, 10)))  # noqa: E731
    (folder / "text.txt").write_text("".join(f"{phrase()}.\n" for _ in range(120)))
    questions = [{"question": "who sat", "context": phrase()} for _ in range(100)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    data_samples.write_images(folder / "images", 10)
    captions = [{"caption": phrase(), "file": f"images/{i % 10:03}.png"} for i in range(40)]
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in captions))
    pico_speech.write_recordings(folder / "recordings", 18)
    return folder


@pytest.mark.parametrize("name", HEADED)
def test_every_head_converts(work: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, processor, source, data, task, told = HEADED[name]
    make().save_pretrained(tmp_path / "model")
    processor().save_pretrained(tmp_path / "model")
    (tmp_path / "recipe.yaml").write_text(
        "version: 1\nlookup: {budget: 0.7, memory: 60, bits: 4, rank: 8}\n"
        f"data: {{sequence_length: 32, tokens: 2000, source: {source}}}\nfit: {{tokens: 800}}\n"
        "distill: {steps: 4, batch_tokens: 256}\nfinetune: {steps: 2, batch_tokens: 256}\n"
    )
    monkeypatch.setattr(evaluation, "measure_latency", lambda *arguments, **options: [])
    out = tmp_path / "out"
    report = convert(str(tmp_path / "model"), tmp_path / "recipe.yaml", out, data=str(work / data), threads=1)
    assert report.setting["task"] == task
    measured = {**report.agreement, **report.quality}
    assert measured[told] is not None
    assert all(0 <= site["error"] < 0.5 for site in report.sites)
    assert verify_outputs(out, load_pretrained(str(out)).model) == []


def test_the_error_of_an_output_leaves_padding_out() -> None:
    """What a head says of padding may be anything."""
    model = families.build("BertForQuestionAnswering", "BertConfig", **TEXT)
    batch = {"input_ids": torch.zeros(2, 5), "attention_mask": torch.tensor([[1] * 5, [1] * 2 + [0] * 3])}
    padding = ~batch["attention_mask"].bool()
    draw = lambda *shape: torch.randn(*shape, generator=torch.Generator().manual_seed(0))  # noqa: E731
    for task, names, shape in (
        ("question-answering", ("start_logits", "end_logits"), (2, 5)),
        ("token-classification", ("logits",), (2, 5, 3)), ("other", ("states",), (2, 5, 3)),
        ("embedding", ("last_hidden_state",), (2, 5, 3)),
    ):  # fmt: skip
        teacher = transformers.utils.ModelOutput({name: draw(*shape) for name in names})
        student = transformers.utils.ModelOutput(
            {name: value + 0.1 * draw(*shape) ** 2 for name, value in teacher.items()}
        )
        other = transformers.utils.ModelOutput({name: value.clone() for name, value in student.items()})
        for value in other.values():
            value[padding] += 7
        errors = [output_error(task, RealRows(model, batch), ours, teacher, 1.0) for ours in (student, other)]
        assert errors[0] > 0
        torch.testing.assert_close(*errors)
        torch.testing.assert_close(output_error(task, RealRows(model, batch), teacher, teacher, 1.0), torch.tensor(0.0))


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("LlamaForCausalLM", "causal"), ("GPT2LMHeadModel", "causal"), ("BertForMaskedLM", "masked"),
        ("T5ForConditionalGeneration", "seq2seq"), ("WhisperForConditionalGeneration", "speech-seq2seq"),
        ("VisionEncoderDecoderModel", "image-seq2seq"), ("HubertForCTC", "ctc"), ("BertModel", "embedding"),
        ("WavLMForSequenceClassification", "audio-classification"), (None, "embedding"),
        ("ASTForAudioClassification", "audio-classification"), ("BertForSequenceClassification", "text-classification"),
        ("ViTForImageClassification", "image-classification"), ("BertForQuestionAnswering", "question-answering"),
        ("RobertaForTokenClassification", "token-classification"), ("BertForPreTraining", "other"),
        ("DetrForObjectDetection", "other"), ("BertForCooking", None),
    ],
)  # fmt: skip
def test_a_head_has_its_task_and_its_class(architecture: str | None, task: str | None) -> None:
    assert task_named(architecture) == task
    if architecture is not None and task is not None:
        loads = architecture if task == "other" else HEADS[task].auto_class
        assert auto_class({"architectures": [architecture]}) == loads
        assert hasattr(transformers, loads)


def test_run_answers_a_question_and_names_tokens(tmp_path: Path) -> None:
    for name, content, said in (
        ("spans", "who sat\nthe old cat sat on the mat", "%"), ("tokens", "the old cat", "LABEL_"),
    ):  # fmt: skip
        folder = tmp_path / name
        HEADED[name][0]().save_pretrained(folder)
        HEADED[name][1]().save_pretrained(folder)
        result = CliRunner().invoke(app, ["run", str(folder), content])
        assert result.exit_code == 0, result.output
        assert said in result.output


def test_what_is_wrong_with_records_is_said(work: Path, tmp_path: Path) -> None:

    HEADED["spans"][0]().save_pretrained(tmp_path)
    HEADED["spans"][1]().save_pretrained(tmp_path)
    model = load_pretrained(str(tmp_path))
    path = work / "questions.jsonl"
    for fields, said, where in (
        ({"text": "asked"}, "no text in `asked`", "questions.jsonl:1"),
        ({"taxt": "question"}, "does not take taxt", "data.fields"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=said) as caught:
            make_records([path], fields, model, 32)
        assert where in caught.value.where
    made = make_records([path], {"text": "question", "text_pair": "context"}, model, 16)
    assert made.lengths.max() == 16
    batch = made.collate(torch.arange(3).numpy(), None)
    assert {"input_ids", "attention_mask"} == set(batch)


def test_a_base_model_with_a_decoder_asks_for_targets(work: Path, tmp_path: Path) -> None:

    families.build("T5Model", "T5Config", **families._T5).save_pretrained(tmp_path)
    bart_like().save_pretrained(tmp_path)
    with pytest.raises(DataError, match="without a head the model writes none"):
        load_corpus(data_samples.settings(work / "text.txt"), load_pretrained(str(tmp_path)), 0)


def test_a_head_that_the_data_does_not_feed_is_refused_at_once(work: Path, tmp_path: Path) -> None:
    families.build("BertForMultipleChoice", "BertConfig", **TEXT).save_pretrained(tmp_path / "choice")
    HEADED["clip"][0]().save_pretrained(tmp_path / "clip")
    for name in ("choice", "clip"):
        pico_tokenizer.bert_like().save_pretrained(tmp_path / name)
    recipe = parse_recipe("version: 1\ndata: {tokens: 2000, sequence_length: 32}\n", "r.yaml")
    with pytest.raises(ModelError, match=r"CLIPModel does not run on input_ids, attention_mask alone"):
        convert(str(tmp_path / "clip"), recipe, tmp_path / "out", data=str(work / "text.txt"), dry_run=True)
    model = load_pretrained(str(tmp_path / "choice"))
    with pytest.raises(ModelError, match="does not run on input_ids"):
        check_outputs(model, {"input_ids": torch.zeros(3, dtype=torch.long)})
    silent = transformers.utils.ModelOutput(loss=torch.zeros(()))
    model.model.forward = lambda input_ids=None, return_dict=True: silent
    with pytest.raises(ModelError, match="gives no numbers"):
        check_outputs(model, {"input_ids": torch.zeros(3, dtype=torch.long)})


def test_a_tower_that_the_data_does_not_reach_is_named(work: Path) -> None:

    model = HEADED["clip"][0]()
    corpus = data_samples.corpus(work / "text.txt", "bert")
    sites = find_sites(model)
    streams = {site.name: stream_of(model, site.output) for site in sites}
    with pytest.raises(SiteError, match="sees images, of which the data has none"):
        make_plan(sites, parse_recipe("version: 1\n", "r.yaml"), corpus, streams)


def test_streams_share_the_steps_by_their_tokens(tmp_path: Path) -> None:
    """A decoder's sites see fewer tokens a batch, so more batches are recorded for them."""

    model = pico_speech.t5()
    tokenizer = bart_like()
    pretrained = SimpleNamespace(model=model, processor=tokenizer, task="seq2seq", source="pico")

    texts = [data_samples.sentence(8, seed) for seed in range(60)]
    source = whole_texts(texts, pretrained, 64, [])
    examples = paired(source, [[0, 5, 6, 7, 8, 9, 2]] * 60, pretrained)

    corpus = SimpleNamespace(train=Split(examples, np.arange(50)), holdout=Split(examples, np.arange(50, 60)))
    counts = {}
    for site, stream in ((find_sites(model)[0], "main"), (find_sites(model)[-1], "decoder")):
        settings = DistillSettings(steps=4, batch_tokens=128)
        job = Job.create(tmp_path / stream, {"options": {}})
        distiller = SiteDistiller(
            model, model, Tap(site, None, stream), corpus, settings, FitSettings(tokens=200), 0, Progress(job, "x")
        )
        counts[stream] = len(distiller._collect(range(distiller._steps(200))))
    assert all(90 < count < 320 for count in counts.values())
