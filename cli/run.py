"""`compress run`: let a model, dense or compressed, do what it does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compress.errors import DataError

from .options import Threads, TrustRemoteCode

if TYPE_CHECKING:
    from torch import Tensor

    from compress.evaluate.answers import Guess
    from compress.models import Pretrained

_VALUES, _NAME = 6, 40  # how much is shown of an embedding and of its text


def run(
    model: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Folder or hub id, compressed or dense.")],
    content: Annotated[
        str, typer.Argument(metavar="TEXT|FILE", help="Text, or a file with text, an image or a recording.")
    ],
    max_new_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Generate at most so many tokens.")] = 128,
    temperature: Annotated[
        float, typer.Option(min=0.0, metavar="T", help="Sample at this temperature; at 0 the likeliest token is taken.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the sampling.")] = 0,
    threads: Threads = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Generate, transcribe, fill in masks, answer, embed or classify, as the model does.

    A model that answers questions gets the question in the first line and the text behind it.
    """
    import torch

    from compress.data.inputs import modality
    from compress.evaluate import answers
    from compress.models import load_pretrained

    if threads is not None:
        torch.set_num_threads(threads)
    pretrained = load_pretrained(model, trust_remote_code=trust_remote_code)
    kind = modality(pretrained)
    if kind == "images":
        names = [content]
        inputs = answers.image_inputs(pretrained, _media_file(content, "images"))
    elif kind == "audio":
        names = [content]
        inputs = answers.audio_inputs(pretrained, _media_file(content, "recordings"))
    else:
        text = _text(content)
        if pretrained.task == "causal":
            _stream(pretrained, text, max_new_tokens, temperature, seed)
            return
        if pretrained.task == "question-answering":
            question, _, passage = text.strip().partition("\n")
            _print_guesses(answers.answer(pretrained, question, passage))
            return
        if pretrained.task == "masked":
            _print_masks(pretrained.processor.mask_token, answers.fill_masks(pretrained, text))
            return
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        names = lines if pretrained.task == "embedding" else [text]
        inputs = answers.text_inputs(pretrained, names)
    if pretrained.task == "embedding":
        _print_embeddings(names, answers.embeddings(pretrained, inputs))
    elif pretrained.task in ("seq2seq", "speech-seq2seq", "image-seq2seq", "ctc"):
        for written in answers.transcribe(pretrained, inputs, max_new_tokens):
            typer.echo(written)
    elif pretrained.task == "token-classification":
        for token, guess in answers.classify_tokens(pretrained, inputs):
            typer.echo(f"{100 * guess.probability:7.2f} %  {guess.name:<12} {token}")
    elif pretrained.task == "other":
        for name, shape in answers.shapes(pretrained, inputs):
            typer.echo(f"{name} {shape}")
    else:
        _print_guesses(answers.classify(pretrained, inputs))


def _file(content: str) -> Path | None:
    path = Path(content).expanduser()
    try:
        return path if path.is_file() else None
    except (OSError, ValueError):  # too long, or otherwise no file name: it is text
        return None


def _media_file(content: str, kind: str) -> Path:
    path = _file(content)
    if path is None:
        raise DataError(
            f"the model reads {kind}, and there is no such file", where=content, remedy="give the path of one"
        )
    return path


def _text(content: str) -> str:
    path = _file(content)
    try:
        text = content if path is None else path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DataError("the model reads text, and this file is none", where=content, remedy="give text") from None
    if not text.strip():
        raise DataError("there is no text", where=content or None, remedy="give some, or a file with some")
    return text


def _stream(pretrained: Pretrained, text: str, max_new_tokens: int, temperature: float, seed: int) -> None:
    from transformers import TextStreamer

    from compress.evaluate.answers import generate

    streamer = TextStreamer(pretrained.processor, skip_special_tokens=True)  # type: ignore[no-untyped-call]
    made = generate(pretrained, text, max_new_tokens, temperature=temperature, seed=seed, streamer=streamer)
    if made.limit is not None:
        typer.echo(f"stopped at the model's longest sequence, {made.limit} tokens", err=True)


def _print_masks(mask: str, masks: list[list[Guess]]) -> None:
    for number, guesses in enumerate(masks, 1):
        typer.echo(f"{mask} {number}" if len(masks) > 1 else mask)
        _print_guesses(guesses)


def _print_guesses(guesses: list[Guess]) -> None:
    for name, probability in guesses:
        typer.echo(f"{100 * probability:7.2f} %  {name}")


def _print_embeddings(names: list[str], vectors: Tensor) -> None:
    """One line an embedding [B, d]; with several, the matrix of their cosines."""
    from compress.evaluate.wording import counted

    count, width = vectors.shape
    typer.echo(f"{counted(count, 'embedding')} of {width} dimensions")
    for number, (name, vector) in enumerate(zip(names, vectors.tolist(), strict=True), 1):
        values = " ".join(f"{value: .4f}" for value in vector[:_VALUES])
        typer.echo(f"{number:>3} {values} ...  {name if len(name) <= _NAME else name[: _NAME - 3] + '...'}")
    if count > 1:
        unit = vectors / vectors.norm(dim=-1, keepdim=True)
        typer.echo("cosine")
        typer.echo("    " + " ".join(f"{number:>7}" for number in range(1, count + 1)))
        for number, row in enumerate((unit @ unit.T).tolist(), 1):
            typer.echo(f"{number:>3} " + " ".join(f"{value:7.4f}" for value in row))
