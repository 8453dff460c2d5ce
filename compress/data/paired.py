"""Examples of encoder-decoder models: what the encoder reads, and the tokens that the decoder reads and predicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError
from ..streams import Stream
from .inputs import longest_target
from .sequences import IGNORED, Draw, Examples, Hasher, Rows, hash_arrays

if TYPE_CHECKING:
    from ..models import Pretrained

_GUESS = 32  # tokens that a teacher is taken to write for an example until it has


@dataclass(frozen=True)
class Paired:
    """Examples for the encoder, each with a sequence for the decoder.

    `ids` holds the sequences one behind the other, sequence i from offsets[i] to offsets[i + 1]; each begins with the
    token that starts the decoder, and `given` counts the tokens behind that which are no prediction (a language, say).
    """

    source: Examples
    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    given: NDArray[np.int64]
    pad: int
    written: int = 0  # tokens that the dense model might write at most; 0 where it did not

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example, the encoder's and the decoder's."""
        return self.source.lengths + self.lengths_in("decoder")

    def lengths_in(self, stream: Stream) -> NDArray[np.int64]:
        """Tokens of each example that the encoder sees, or the decoder."""
        return np.diff(self.offsets) - 1 if stream == "decoder" else self.source.lengths_in(stream)

    def sequence(self, row: int) -> NDArray[np.int32]:
        """Tokens of one decoder sequence, the one that starts it included."""
        return self.ids[self.offsets[row] : self.offsets[row + 1]]

    def collate(self, rows: Rows, draw: Draw | None) -> dict[str, Tensor]:
        """Add decoder_input_ids and decoder_attention_mask [B, T] int64 to the encoder's arguments."""
        width = int(self.lengths_in("decoder")[rows].max())
        ids = np.full((len(rows), width), self.pad, np.int64)
        real = np.zeros((len(rows), width), np.int64)
        for line, row in enumerate(rows):
            sequence = self.sequence(row)[:-1]
            ids[line, : len(sequence)] = sequence
            real[line, : len(sequence)] = 1
        decoder = {"decoder_input_ids": torch.from_numpy(ids), "decoder_attention_mask": torch.from_numpy(real)}
        return self.source.collate(rows, draw) | decoder

    def targets(self, rows: Rows, inputs: dict[str, Tensor]) -> Tensor:
        """Every position of the decoder predicts the next token, but for those that are given."""
        targets = torch.full_like(inputs["decoder_input_ids"], IGNORED)
        for line, row in enumerate(rows):
            following = torch.from_numpy(self.sequence(row)[1:].astype(np.int64))
            targets[line, : len(following)] = following
            targets[line, : int(self.given[row])] = IGNORED
        return targets

    def hash_into(self, hasher: Hasher) -> None:
        """Feed a hash both sides."""
        self.source.hash_into(hasher)
        hash_arrays(hasher, self.ids, self.offsets, self.given)


@dataclass(frozen=True)
class Unwritten:
    """Examples whose decoder side the dense model is still to write, `most` tokens each."""

    source: Examples
    most: int
    start: int  # what a decoder begins with

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example, the decoder's guessed."""
        return self.source.lengths + self.lengths_in("decoder")

    def lengths_in(self, stream: Stream) -> NDArray[np.int64]:
        """Tokens of each example that the encoder sees, or a guess at the decoder's."""
        if stream != "decoder":
            return self.source.lengths_in(stream)
        return np.full(len(self.source.lengths), min(_GUESS, self.most), np.int64)

    def collate(self, rows: Rows, draw: Draw | None) -> dict[str, Tensor]:
        """Give the encoder's arguments, and the decoder's first token, behind which nothing is written yet."""
        ids = torch.full((len(rows), 1), self.start)
        decoder = {"decoder_input_ids": ids, "decoder_attention_mask": torch.ones_like(ids)}
        return self.source.collate(rows, None) | decoder

    def targets(self, rows: Rows, inputs: dict[str, Tensor]) -> None:
        """Nothing is written yet."""

    def hash_into(self, hasher: Hasher) -> None:
        """Feed a hash what the decoder's side will be made from."""
        self.source.hash_into(hasher)
        hasher.update(f"{self.most} {self.start}".encode())


def unwritten(source: Examples, pretrained: Pretrained, length: int) -> Unwritten:
    """Leave the decoder's side to the dense model, at most `length` tokens or the model's longest."""
    return Unwritten(source, min(length, longest_target(pretrained) or length), decoder_start(pretrained))


def paired(source: Examples, sequences: Sequence[Sequence[int]], pretrained: Pretrained, written: int = 0) -> Paired:
    """Put examples and decoder sequences together; a sequence begins with the token that starts the decoder."""
    sizes = [len(sequence) for sequence in sequences]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.asarray(sizes, np.int64))])
    ids = np.fromiter((token for sequence in sequences for token in sequence), np.int32, int(offsets[-1]))
    tokenizer = getattr(pretrained.processor, "tokenizer", pretrained.processor)
    special = set(getattr(tokenizer, "all_special_ids", ())) - {getattr(tokenizer, "eos_token_id", None)}
    given = np.asarray([_leading(sequence[1:-1], special) for sequence in sequences], np.int64)
    return Paired(source, ids, offsets, given, decoder_pad(pretrained), written)


def _leading(tokens: Sequence[int], special: set[int | None]) -> int:
    return next((index for index, token in enumerate(tokens) if int(token) not in special), len(tokens))


def decoder_start(pretrained: Pretrained) -> int:
    """Find the token that a decoder begins with. Raises DataError where the model's config names none."""
    model: Any = pretrained.model
    for name in ("decoder_start_token_id", "bos_token_id"):
        for config in (model.config, model.generation_config, getattr(model.config, "decoder", None)):
            token = getattr(config, name, None)
            if token is not None:
                return int(token)
    raise DataError(
        "the model's config does not say which token its decoder begins with",
        where=pretrained.source,
        remedy="set decoder_start_token_id in config.json",
    )


def decoder_pad(pretrained: Pretrained) -> int:
    """Find the token that fills up a decoder's batch; it is masked, so that any will do."""
    model: Any = pretrained.model
    candidates = (getattr(config, "pad_token_id", None) for config in (model.config, model.generation_config))
    return next((int(token) for token in candidates if token is not None), 0)
