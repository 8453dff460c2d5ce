"""Measure the embedded model on held-out modules, beside a byte 5-gram model, gzip and xz.

`python -m compress.recipes.embedded.baseline` prints the table and writes it into the model's card. Every figure is the
cost of the held-out modules' text, each with one end mark, in bits per byte of that text. The 5-gram model has counted
the very text that the embedded model was trained on; xz is given once alone and once behind that text.
"""

from __future__ import annotations

import argparse
import gzip
import lzma
import math
import platform
from pathlib import Path

import numpy as np
import torch
from compress.recipes.embedded.corpus import Module, collect
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

# Resolved: an editable installation may hold links to the files of the source tree, where the card belongs.
MODEL = Path(__file__).resolve().parent / "model"
SEQUENCE_LENGTH = 256
END_MARK = b"\0"

CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [python, code, demo]
---
# A small language model of Python's standard library

A Llama ({parameters:,} parameters, {megabytes:.1f} MB in bfloat16: hidden {hidden}, {layers} layers, gated FFN of
{intermediate}, {heads} heads, tied embeddings, byte-level BPE of {vocabulary}, trained on windows of {sequence} tokens)
for demonstrations and tests without a network: its training text comes with every Python. It knows no other text, and
what it writes is Python in form more than in sense, and soon repeats itself.

## Data
The source of CPython {python}'s standard library, split by top-level module or package with a hash of its name
(`corpus.py`): {train_modules} files ({train_bytes:,} bytes) for training, {held_modules} files ({held_bytes:,} bytes)
held out, of {held_units}.
Tests, generated tables and near-copies are left out.

## Commands
    python -m compress.recipes.embedded.train --out DIR     train it again
    python -m compress.recipes.embedded.baseline            measure it again

## Held-out modules
{table}

Perplexity a token on disjoint windows: {perplexity:.2f}. The 5-gram model (Witten-Bell interpolation) and the primed xz
have read the same text as the model.

## License
The training text is CPython's, under the Python Software Foundation License version 2, which holds for whatever the
model repeats of it. The weights come under this project's license.
"""


def pack_text(modules: list[Module]) -> bytes:
    """Join modules' text, each closed by an end mark."""
    return b"".join(module.text.encode() + END_MARK for module in modules)


def ngram_bits(train: bytes, text: bytes, order: int = 5) -> float:
    """Return the bits that an interpolated byte n-gram model of `train` spends on `text`.

    Witten-Bell smoothing: P(b | h) = (c(hb) + t(h) P(b | h')) / (c(h) + t(h)), with t(h) the number of distinct bytes
    seen after h and h' one byte shorter than h, down to the uniform distribution (Witten and Bell, 1991).
    """
    seen, asked = (np.frombuffer(END_MARK * (order - 1) + part, np.uint8).astype(np.uint64) for part in (train, text))
    probability = np.full(len(text), 1 / 256)
    for length in range(1, order + 1):
        seen_grams, asked_grams = (_grams(part, length, order) for part in (seen, asked))
        grams, counts = np.unique(seen_grams, return_counts=True)
        contexts, first = np.unique(grams >> np.uint64(8), return_index=True)
        totals = np.add.reduceat(counts, first)
        kinds = np.diff(np.append(first, len(grams)))
        count = _find(grams, counts, asked_grams)
        total = _find(contexts, totals, asked_grams >> np.uint64(8))
        kind = _find(contexts, kinds, asked_grams >> np.uint64(8))
        known = total > 0
        mixed = (count + kind * probability)[known] / (total + kind)[known]
        probability[known] = mixed
    return float(-np.log2(probability).sum())


def _grams(data: np.ndarray, length: int, order: int) -> np.ndarray:
    """Return the `length` bytes that end at each position from `order - 1` on, as one integer each."""
    positions = len(data) - order + 1
    grams = np.zeros(positions, np.uint64)
    for back in range(length):
        start = order - 1 - back
        grams |= data[start : start + positions] << np.uint64(8 * back)
    return grams


def _find(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Look up integers in sorted keys; 0 where absent."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)


@torch.no_grad()
def model_bits(model: PreTrainedModel, tokens: list[int], context: int = 0) -> float:
    """Return the bits that a causal model spends on a stream of tokens that follows an end of text.

    The stream is cut into windows of SEQUENCE_LENGTH predictions, of which each but the first window's are made with
    at least `context` tokens before them.
    """
    stream = torch.tensor([model.config.eos_token_id, *tokens])
    stride = SEQUENCE_LENGTH - context
    bits = 0.0
    for start in range(0, len(tokens), stride):
        if start and start + context >= len(tokens):
            break
        window = stream[start : start + SEQUENCE_LENGTH + 1]
        scores = model(input_ids=window[None, :-1], use_cache=False).logits[0].log_softmax(-1)
        losses = -scores.gather(1, window[1:, None])[context if start else 0 :]
        bits += losses.double().sum().item() / math.log(2)
    return bits


def xz_bits(text: bytes, before: bytes = b"") -> float:
    """Return the bits that xz spends on a text, behind text that it has seen where some is given."""
    alone = len(lzma.compress(before, preset=9)) if before else 0
    return 8.0 * (len(lzma.compress(before + text, preset=9)) - alone)


def measure(folder: Path) -> str:
    """Measure all and return the model's card."""
    corpus = collect()
    text, read = pack_text(corpus.held_out), pack_text(corpus.train)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = [
        token
        for module in corpus.held_out
        for token in [*tokenizer(module.text, verbose=False)["input_ids"], tokenizer.eos_token_id]
    ]
    disjoint = model_bits(model, tokens)
    rows = {
        "this model, disjoint windows of 256 tokens": disjoint,
        "this model, at least 128 tokens of context": model_bits(model, tokens, context=128),
        "byte 5-gram": ngram_bits(read, text),
        "xz -9, behind the training text": xz_bits(text, read),
        "xz -9": xz_bits(text),
        "gzip -9": 8.0 * len(gzip.compress(text, 9, mtime=0)),
    }
    table = [
        "| | bits per byte |",
        "|---|---:|",
        *(f"| {name} | {bits / len(text):.3f} |" for name, bits in rows.items()),
    ]
    return CARD.format(
        parameters=model.num_parameters(),
        megabytes=(folder / "model.safetensors").stat().st_size / 1e6,
        hidden=model.config.hidden_size,
        layers=model.config.num_hidden_layers,
        intermediate=model.config.intermediate_size,
        heads=model.config.num_attention_heads,
        vocabulary=model.config.vocab_size,
        sequence=SEQUENCE_LENGTH,
        python=platform.python_version(),
        train_modules=len(corpus.train),
        train_bytes=len(read),
        held_modules=len(corpus.held_out),
        held_bytes=len(text),
        held_units=", ".join(f"`{unit}`" for unit in sorted({module.unit for module in corpus.held_out})),
        table="\n".join(table),
        perplexity=2 ** (disjoint / len(tokens)),
    )


def main() -> None:
    """Measure, print and write the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL, help="the model's folder")
    folder = parser.parse_args().model
    card = measure(folder)
    print(card)
    (folder / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
