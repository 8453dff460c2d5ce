"""Train the embedded model, a small Llama on the Python standard library's source, and write it in bfloat16.

`python -m compress.recipes.embedded.train --out DIR` takes about three quarters of an hour on two cores. The defaults
made the shipped model. Interrupted, it goes on from the last checkpoint in DIR.

The matrices are trained by Muon (Jordan et al., 2024), the embedding and the norms by AdamW, under a
warmup-stable-decay schedule (Hu et al., arXiv 2404.06395).
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import torch
from compress.recipes.embedded.corpus import END_OF_TEXT, Module, collect
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SEQUENCE_LENGTH = 256
# A line break with the next line's indentation is one piece; so are a name, a digit and a run of punctuation.
PIECES = r"\n[\n ]*| ?_*[A-Za-z]+|[0-9]| ?[^\sA-Za-z0-9]+|\s+"


def train_tokenizer(modules: list[Module], vocabulary: int) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE from the modules' text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((module.text for module in modules), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        bos_token=END_OF_TEXT,
        model_max_length=SEQUENCE_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, modules: list[Module]) -> list[np.ndarray]:
    """Encode each module and close it with the end-of-text token."""
    encodings = tokenizer([module.text for module in modules], add_special_tokens=False, verbose=False)["input_ids"]
    return [np.array([*ids, tokenizer.eos_token_id], dtype=np.int64) for ids in encodings]


class Windows:
    """An endless stream of training windows [count, sequence + 1] over documents, the same for the same seed.

    In each epoch the documents are joined in a new order, so that a window's start falls elsewhere, and the windows are
    visited in random order.
    """

    def __init__(self, documents: list[np.ndarray], seed: int) -> None:
        self.documents = documents
        self.generator = np.random.default_rng(seed)
        self.pending: list[np.ndarray] = []

    def _epoch(self) -> list[np.ndarray]:
        order = self.generator.permutation(len(self.documents))
        stream = np.concatenate([self.documents[i] for i in order])
        stream = stream[self.generator.integers(SEQUENCE_LENGTH) :]
        starts = np.arange(0, len(stream) - SEQUENCE_LENGTH, SEQUENCE_LENGTH)
        return [stream[start : start + SEQUENCE_LENGTH + 1] for start in self.generator.permutation(starts)]

    def next(self, count: int) -> torch.Tensor:
        """Return the next windows' token ids, int64."""
        while len(self.pending) < count:
            self.pending += self._epoch()
        windows, self.pending = self.pending[:count], self.pending[count:]
        return torch.from_numpy(np.stack(windows))


def new_model(vocabulary: int, end_of_text: int, hidden: int) -> LlamaForCausalLM:
    """Build the untrained model of a width."""
    heads = max(1, hidden // 64)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            num_hidden_layers=4,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=SEQUENCE_LENGTH,
            tie_word_embeddings=True,
            bos_token_id=end_of_text,
            eos_token_id=end_of_text,
        )
    )


def optimizers_for(model: LlamaForCausalLM, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Give the layers' matrices to Muon and the rest to AdamW, at one learning rate."""
    matrices = [parameter for parameter in model.model.layers.parameters() if parameter.ndim == 2]
    chosen = set(matrices)
    rest = [parameter for parameter in model.parameters() if parameter not in chosen]
    return [
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def loss_function(model: LlamaForCausalLM, compiled: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the mean negative log likelihood (nats a token) of windows [batch, sequence + 1]."""

    def loss(windows: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=windows[:, :-1], use_cache=False).logits  # [batch, sequence, vocabulary]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())

    return cast(Callable[[torch.Tensor], torch.Tensor], torch.compile(loss)) if compiled else loss


@torch.no_grad()
def held_out_loss(
    loss: Callable[[torch.Tensor], torch.Tensor], documents: list[np.ndarray], batch: int, device: str
) -> float:
    """Measure the loss (nats a token) on windows spread evenly over the held-out documents."""
    stream = np.concatenate(documents)
    starts = np.linspace(0, len(stream) - SEQUENCE_LENGTH - 1, 4 * batch).astype(int)
    windows = torch.from_numpy(np.stack([stream[start : start + SEQUENCE_LENGTH + 1] for start in starts]))
    return float(np.mean([loss(part.to(device)).item() for part in windows.split(batch)]))


def schedule(step: int, steps: int, warmup: int, decay: int) -> float:
    """Return the factor of the learning rate: linear up, constant, linear down to zero."""
    return min(1.0, (step + 1) / warmup, (steps - step) / decay)


def train(arguments: argparse.Namespace) -> None:
    """Train the model and write it."""
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    corpus = collect()
    tokenizer = train_tokenizer(corpus.train, arguments.vocabulary)
    documents, held_out = encode(tokenizer, corpus.train), encode(tokenizer, corpus.held_out)
    print(f"tokens: training {sum(map(len, documents)):,}, held-out {sum(map(len, held_out)):,}", flush=True)
    batch = arguments.batch_tokens // SEQUENCE_LENGTH
    decay = int(arguments.decay * arguments.steps)
    stream = Windows(documents, arguments.seed)

    model = new_model(len(tokenizer), tokenizer.eos_token_id, arguments.hidden)
    torch.nn.Module.to(model, arguments.device)
    optimizers = optimizers_for(model, arguments.learning_rate)
    loss = loss_function(model, arguments.compile)
    arguments.out.mkdir(parents=True, exist_ok=True)
    checkpoint = arguments.out / "training.pt"
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=arguments.device)
        first = state["step"]
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    started = time.monotonic()
    running = math.nan
    for step in range(arguments.steps):
        windows = stream.next(batch)
        if step < first:  # the stream is drawn in order, so that a resumed run sees what an unbroken one would
            continue
        model.train()
        value = loss(windows.to(arguments.device))
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            factor = schedule(step, arguments.steps, arguments.warmup, decay)
            for group in optimizer.param_groups:
                group["lr"] = arguments.learning_rate * factor
            optimizer.step()
            optimizer.zero_grad()
        done = step + 1
        if done % 20 == 0:
            running = value.item() if math.isnan(running) else 0.5 * running + 0.5 * value.item()
            speed = (done - first) * batch * SEQUENCE_LENGTH / (time.monotonic() - started)
            print(f"step {done}/{arguments.steps}  loss {running:.4f}  {speed:,.0f} tokens/s", flush=True)
        if done % arguments.save_every == 0 or done == arguments.steps:
            model.eval()
            print(
                f"step {done}  held-out loss {held_out_loss(loss, held_out, batch, arguments.device):.4f}", flush=True
            )
            states = [optimizer.state_dict() for optimizer in optimizers]
            partial = checkpoint.with_suffix(".partial")
            torch.save({"step": done, "model": model.state_dict(), "optimizers": states}, partial)
            os.replace(partial, checkpoint)

    model.bfloat16().save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    checkpoint.unlink()
    print(f"wrote {arguments.out} after {time.monotonic() - started:,.0f} s", flush=True)


def main() -> None:
    """Read the options and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--steps", type=int, default=1300)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--warmup", type=int, default=50, help="steps of rising learning rate")
    parser.add_argument("--decay", type=float, default=0.5, help="share of the steps in which the learning rate falls")
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=256, help="width, a multiple of 64; its FFNs are four times that")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="use torch.compile")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
