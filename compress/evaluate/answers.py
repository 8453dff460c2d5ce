"""What a model, dense or compressed, answers to one input: text, words for masks, classes, embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.audio import make_recordings
from ..data.images import open_picture
from ..data.inputs import longest_sequence
from ..distill.objectives import float_outputs
from ..errors import DataError
from ..streams import accepted
from .embeddings import embed
from .pooling import pooling_of
from .transcripts import transcribe as transcribe

if TYPE_CHECKING:
    from ..models import Pretrained

TOP = 5
_SECONDS = 30.0  # of a recording that is heard at once
_ANSWER = 30  # tokens of an answer to a question


class Guess(NamedTuple):
    """A token or a class and its probability."""

    name: str
    probability: float


class Continuation(NamedTuple):
    """New text, and the model's longest sequence (tokens) where that ended it."""

    text: str
    limit: int | None


def text_inputs(pretrained: Pretrained, texts: Sequence[str]) -> dict[str, Tensor]:
    """Token ids and mask [B, T] as the model's tokenizer gives them, cut off at its longest sequence."""
    tokenizer = pretrained.processor
    padding = {"padding": True, "truncation": True, "max_length": longest_sequence(pretrained)}
    if len(texts) == 1:
        padding["padding"] = False
    elif tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    encoded = tokenizer(list(texts), return_tensors="pt", **padding)
    return {key: encoded[key] for key in ("input_ids", "attention_mask")}


def image_inputs(pretrained: Pretrained, path: Path) -> dict[str, Tensor]:
    """Pixels [1, C, H, W] as the model's image processor gives them. Raises DataError where the file is no image."""
    encoded = pretrained.processor(images=[open_picture(path)], return_tensors="pt")
    return {"pixel_values": encoded["pixel_values"]}


def audio_inputs(pretrained: Pretrained, path: Path) -> dict[str, Tensor]:
    """Features of a recording, in the model's longest pieces, [B, ...]. Raises DataError where the file is none."""
    recordings = make_recordings([path], pretrained, _SECONDS, [])
    return recordings.collate(np.arange(len(recordings.lengths)), None)


@torch.no_grad()
def generate(
    pretrained: Pretrained, text: str, max_new_tokens: int, *, temperature: float = 0.0, seed: int = 0,
    streamer: Any = None,
) -> Continuation:  # fmt: skip
    """Let a causal model go on with a text. At temperature 0 each token is the most likely one.

    What the model's folder says about sampling has no part in it. `streamer`: one of transformers, told each token.
    Raises DataError where the text alone is as long as the model's longest sequence.
    """
    from transformers import GenerationConfig

    tokenizer = pretrained.processor
    model: Any = pretrained.model
    inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    prompt, longest = inputs["input_ids"].shape[1], longest_sequence(pretrained)
    if longest is not None and prompt >= longest:
        raise DataError(
            f"the text has {prompt} tokens, and the model's longest sequence {longest}", remedy="give a shorter text"
        )
    room = max_new_tokens if longest is None else min(max_new_tokens, longest - prompt)
    own = model.generation_config
    eos = getattr(own, "eos_token_id", None)
    eos = tokenizer.eos_token_id if eos is None else eos
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = eos[0] if isinstance(eos, list) else eos
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature > 0 else {"do_sample": False}
    model.generation_config = GenerationConfig()  # transformers fills what is not given from here
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = GenerationConfig(max_new_tokens=room, eos_token_id=eos, pad_token_id=pad, **sampling)
            output = model.generate(**inputs, generation_config=config, streamer=streamer)
    finally:
        model.generation_config = own
    new = output[0, prompt:]
    cut = room < max_new_tokens and len(new) == room
    return Continuation(tokenizer.decode(new, skip_special_tokens=True), longest if cut else None)


@torch.no_grad()
def fill_masks(pretrained: Pretrained, text: str, top: int = TOP) -> list[list[Guess]]:
    """Guess the token behind each mask of a text, best first. Raises DataError where there is no mask."""
    tokenizer = pretrained.processor
    inputs = text_inputs(pretrained, [text])
    masks = inputs["input_ids"][0] == tokenizer.mask_token_id  # [T]
    if not masks.any():
        raise DataError(
            f"the text has no {tokenizer.mask_token}, which the model would fill in", where=text,
            remedy=f"write {tokenizer.mask_token} in the place of a word",
        )  # fmt: skip
    logits = pretrained.model(**inputs).logits[0, masks]  # [masks, vocabulary]
    return [_best(row.softmax(-1), lambda token: tokenizer.decode([token]).strip(), top) for row in logits.float()]


@torch.no_grad()
def classify(pretrained: Pretrained, inputs: dict[str, Tensor], top: int = TOP) -> list[Guess]:
    """Guess the class of one input, best first; where several may be right at once, each probability is its own."""
    config: Any = pretrained.model.config
    logits = pretrained.model(**accepted(pretrained.model, inputs)).logits[0].float()  # [C]
    independent = getattr(config, "problem_type", None) == "multi_label_classification"
    return _best(logits.sigmoid() if independent else logits.softmax(-1), lambda label: config.id2label[label], top)


@torch.no_grad()
def classify_tokens(pretrained: Pretrained, inputs: dict[str, Tensor]) -> list[tuple[str, Guess]]:
    """Guess the class of every token of one text, special ones left out."""
    model: Any = pretrained.model
    tokenizer = pretrained.processor
    found = []
    for token, row in zip(inputs["input_ids"][0].tolist(), model(**inputs).logits[0].float(), strict=True):
        if token not in tokenizer.all_special_ids:
            guess = _best(row.softmax(-1), lambda label: model.config.id2label[label], 1)[0]
            found.append((tokenizer.decode([token]).strip(), guess))
    return found


@torch.no_grad()
def answer(pretrained: Pretrained, question: str, passage: str, top: int = TOP) -> list[Guess]:
    """Find the stretches of a passage that answer a question, best first. Raises DataError without a passage."""
    if not passage.strip():
        raise DataError(
            "there is no text to look for the answer in", where=question,
            remedy="give the question in the first line and the text in those behind it",
        )  # fmt: skip
    tokenizer = pretrained.processor
    encoded = tokenizer(
        question, passage, return_tensors="pt", truncation="only_second", max_length=longest_sequence(pretrained)
    )
    output = pretrained.model(**encoded)
    inside = torch.tensor([part == 1 for part in encoded.sequence_ids(0)])
    start, end = (
        logits[0].float().masked_fill(~inside, -torch.inf).softmax(-1)
        for logits in (output.start_logits, output.end_logits)
    )
    spans = torch.triu(start[:, None] * end[None], diagonal=0).tril(_ANSWER)  # [T, T]: from, to
    ids, width = encoded["input_ids"][0], len(start)
    return _best(spans.flatten(), lambda index: tokenizer.decode(ids[index // width : index % width + 1]).strip(), top)


@torch.no_grad()
def shapes(pretrained: Pretrained, inputs: dict[str, Tensor]) -> list[tuple[str, list[int]]]:
    """Say what a head of an unknown kind gives: the names and shapes of its outputs."""
    output = pretrained.model(**accepted(pretrained.model, inputs), return_dict=True)
    return [(name, list(value.shape)) for name, value in float_outputs(output).items()]


@torch.no_grad()
def embeddings(pretrained: Pretrained, inputs: dict[str, Tensor]) -> Tensor:
    """Embed inputs, pooled as the model's folder says: [B, d], not normalised."""
    return embed(pretrained.model, inputs, pooling_of(pretrained.folder))


def _best(probabilities: Tensor, name: Any, top: int) -> list[Guess]:
    values, indices = probabilities.topk(min(top, probabilities.shape[0]))
    return [Guess(name(index), value) for value, index in zip(values.tolist(), indices.tolist(), strict=True)]
