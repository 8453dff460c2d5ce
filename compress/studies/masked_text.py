"""Text for masked-language models: a tokenizer learned from it, blocks of tokens, and which of them are masked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..data.files import find_files, read_blocks
from ..errors import DataError
from .settings import TextSettings

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")  # as RoBERTa has them, from 0
BEGIN, PAD, END, _, MASK = range(len(SPECIALS))
_REPLACED, _RANDOM = 0.8, 0.1  # of the chosen tokens; the rest stay as they are
_SUFFIXES = (".txt", ".md", ".py", ".rst")
_HELD_OUT_SEED = 0x6D61736B  # of the mask that every held-out loss is measured with


@dataclass(frozen=True)
class MaskedText:
    """Blocks [n, L] int64, each beginning with <s>, for training and held out; a document ends with </s>.

    `unigram_loss`: nats a token of the held-out text for a model that knows only how frequent each token is.
    """

    train: Tensor
    held_out: Tensor
    vocabulary: int
    unigram_loss: float
    fingerprint: str
    description: str

    def batches(self, count: int, seed: int, begin: int = 0) -> Iterator[Tensor]:
        """Blocks [count, L] of each step from `begin` on, without end: every block once an epoch, in a random order."""
        per_epoch = len(self.train) // count
        step = begin
        while True:
            epoch, position = divmod(step, per_epoch)
            if step == begin or position == 0:
                order = torch.randperm(len(self.train), generator=_generator(seed, epoch))
            yield self.train[order[position * count : (position + 1) * count]]
            step += 1

    def masked(self, blocks: Tensor, share: float, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Mask the same number of tokens in each block [B, L]: what the model reads [B, L], and positions [B, k].

        As BERT does: 80 % become <mask>, 10 % a random token, the others stay.
        """
        generator = _generator(seed + 1, step)
        count = max(1, round(share * (blocks.shape[1] - 1)))
        chance = torch.rand(blocks.shape[0], blocks.shape[1] - 1, generator=generator)
        positions = chance.topk(count, dim=1).indices.sort(dim=1).values + 1  # never <s>
        kind = torch.rand(positions.shape, generator=generator)
        random = torch.randint(len(SPECIALS), self.vocabulary, positions.shape, generator=generator)
        wanted = blocks.gather(1, positions)
        shown = torch.where(kind < _REPLACED, MASK, torch.where(kind < _REPLACED + _RANDOM, random, wanted))
        return blocks.scatter(1, positions, shown), positions

    def held_out_batches(self, share: float, count: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """What the model reads, positions and the tokens wanted there: the same mask each time."""
        inputs, positions = self.masked(self.held_out, share, _HELD_OUT_SEED, 0)
        wanted = self.held_out.gather(1, positions)
        yield from zip(inputs.split(count), positions.split(count), wanted.split(count), strict=True)


def _generator(seed: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + number)


def load_masked_text(settings: TextSettings) -> MaskedText:
    """Read the text, learn the tokenizer, make the blocks. Raises DataError where there is too little."""
    if settings.path is None:
        from ..recipes.embedded.corpus import collect

        corpus = collect()
        train = [module.text for module in corpus.train]
        held_out = [module.text for module in corpus.held_out]
        source = "the source of Python's standard library, split by module"
    else:
        documents = ["".join(read_blocks(file)) for file in find_files(settings.path, _SUFFIXES)]
        train, held_out = _split(documents, settings.holdout)
        source = f"{Path(settings.path).name}, the last {settings.holdout:.0%} held out"
    tokenizer = _learn(train, settings.vocabulary)
    learned, kept = (_blocks(tokenizer, texts, settings.sequence_length) for texts in (train, held_out))
    for name, part in (("training", learned), ("held-out", kept)):
        if not len(part):
            raise DataError(
                f"the {name} text has less than {settings.sequence_length} tokens", where=settings.path,
                remedy="give more text, or lower data.sequence_length",
            )  # fmt: skip
    most = max(1, settings.held_out_tokens // settings.sequence_length)
    kept = kept[torch.linspace(0, len(kept) - 1, min(most, len(kept))).long()]  # evenly over the held-out text
    digest = hashlib.sha256()
    for part in (learned, kept):
        digest.update(part.numpy().tobytes())
    size = tokenizer.get_vocab_size()
    description = (
        f"{source}: {learned.numel():,} tokens for training, {kept.numel():,} held out; "
        f"byte-level BPE of {size} learned from the former"
    )
    return MaskedText(learned, kept, size, _unigram_loss(learned, kept, size), digest.hexdigest(), description)


def _split(documents: list[str], share: float) -> tuple[list[str], list[str]]:
    """Hold out the last share of all characters, from the beginning of a line on."""
    left = round(sum(map(len, documents)) * (1 - share))
    train: list[str] = []
    for number, text in enumerate(documents):
        if len(text) > left:
            cut = text.find("\n", left) + 1 or left
            return [*train, text[:cut]], [text[cut:], *documents[number + 1 :]]
        train.append(text)
        left -= len(text)
    return train, []


def _learn(texts: list[str], vocabulary: int):  # type: ignore[no-untyped-def]  # tokenizers has no types
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(SPECIALS), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _blocks(tokenizer, texts: list[str], length: int) -> Tensor:  # type: ignore[no-untyped-def]
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    stream = torch.tensor([token for one in encoded for token in (*one.ids, END)], dtype=torch.int64)
    count = len(stream) // (length - 1)
    body = stream[: count * (length - 1)].view(count, length - 1)
    return torch.cat((torch.full((count, 1), BEGIN), body), 1)


def _unigram_loss(train: Tensor, held_out: Tensor, vocabulary: int) -> float:
    """Of the training text's frequencies, every token counted once more."""
    counts = torch.bincount(train[:, 1:].flatten(), minlength=vocabulary).double() + 1
    return float(-(counts / counts.sum()).log()[held_out[:, 1:].flatten()].mean())
