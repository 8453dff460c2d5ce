"""What pretrained models are for: a head's name -> its task, how it is loaded, what it answers, what judges it."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

Task = Literal[
    "causal", "masked", "seq2seq", "speech-seq2seq", "image-seq2seq", "ctc", "embedding", "text-classification",
    "image-classification", "audio-classification", "token-classification", "question-answering", "other",
]  # fmt: skip
# tokens: logits [B, T, C] at every position, of the decoder where there is one. classes: logits [B, C]. span: logits
# [B, T] of its start and its end. embedding: hidden states, pooled. any: whatever tensors the head gives.
Answer = Literal["tokens", "classes", "span", "embedding", "any"]


class Head(NamedTuple):
    """One kind of head; `data` says what a model with it is evaluated on, `hub_task` what the hub calls its task."""

    auto_class: str
    answer: Answer
    data: str
    hub_task: str | None


HEADS: dict[Task, Head] = {
    "causal": Head("AutoModelForCausalLM", "tokens", "text", "text-generation"),
    "masked": Head("AutoModelForMaskedLM", "tokens", "text", "fill-mask"),
    "seq2seq": Head("AutoModelForSeq2SeqLM", "tokens", "source and target, or text", "text2text-generation"),
    "speech-seq2seq": Head(
        "AutoModelForSpeechSeq2Seq", "tokens", "recordings, or file_name and text", "automatic-speech-recognition"
    ),
    "image-seq2seq": Head("AutoModelForImageTextToText", "tokens", "images", "image-to-text"),
    "ctc": Head("AutoModelForCTC", "tokens", "recordings, or file_name and text", "automatic-speech-recognition"),
    "embedding": Head("AutoModel", "embedding", "sentence1, sentence2 and score, or text", "feature-extraction"),
    "text-classification": Head(
        "AutoModelForSequenceClassification", "classes", "text and label", "text-classification"
    ),
    "image-classification": Head(
        "AutoModelForImageClassification", "classes", "images, or file_name and label", "image-classification"
    ),
    "audio-classification": Head(
        "AutoModelForAudioClassification", "classes", "recordings, or file_name and label", "audio-classification"
    ),
    "token-classification": Head("AutoModelForTokenClassification", "tokens", "text", "token-classification"),
    "question-answering": Head(
        "AutoModelForQuestionAnswering", "span", "JSON lines with the fields of data.fields", "question-answering"
    ),
    "other": Head("AutoModel", "any", "data of the recipe's own form", None),
}
_ENDINGS: dict[str, Task] = {  # of the architecture's name; the first that fits
    "ForCausalLM": "causal",
    "LMHeadModel": "causal",
    "ForMaskedLM": "masked",
    "ForConditionalGeneration": "seq2seq",
    "ForSpeechSeq2Seq": "seq2seq",
    "ForSpeechToText": "seq2seq",
    "EncoderDecoderModel": "seq2seq",
    "ForCTC": "ctc",
    "ForSequenceClassification": "text-classification",
    "ForAudioClassification": "text-classification",
    "ForImageClassification": "image-classification",
    "ForImageClassificationWithTeacher": "image-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
}
AUDIO_INPUTS = ("input_features", "input_values")
_OF_AUDIO: dict[Task, Task] = {"seq2seq": "speech-seq2seq", "text-classification": "audio-classification"}
_OF_IMAGES: dict[Task, Task] = {"seq2seq": "image-seq2seq"}


def task_named(architecture: str | None, config: Any = None) -> Task | None:
    """Tell a model's task by its architecture; without one it is a base model, which embeds.

    A head that is none of the kinds is "other" where transformers knows its class, and None where it does not: loaded
    as something else it would be lost.
    """
    if architecture is None:
        return "embedding"
    main_input = _main_input(architecture)
    for ending, task in _ENDINGS.items():
        if architecture.endswith(ending):
            if task == "seq2seq" and not getattr(config, "is_encoder_decoder", True):
                return "causal"  # a language model that looks at images too
            if main_input in AUDIO_INPUTS:
                return _OF_AUDIO.get(task, task)
            return _OF_IMAGES.get(task, task) if main_input == "pixel_values" else task
    if architecture.endswith("Model") and not _has_several_parts(config):
        return "embedding"
    return None if main_input is None else "other"


def _main_input(architecture: str) -> str | None:
    """Name the input that a class of transformers is called with; None where there is no such class."""
    import transformers

    return getattr(getattr(transformers, architecture, None), "main_input_name", None)


def _has_several_parts(config: Any) -> bool:
    """Whether a base model's answer is no single sequence of hidden states."""
    towers = all(getattr(config, part, None) is not None for part in ("text_config", "vision_config"))
    return towers or bool(getattr(config, "is_encoder_decoder", False))
