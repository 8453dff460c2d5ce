"""What an encoder-decoder model writes by itself: the decoder's side of its distillation data, and transcripts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..data import Corpus, EvalData, Split
from ..data.batching import FIXED_ORDER, plan
from ..data.inputs import longest_target
from ..data.paired import Paired, Unwritten, paired
from ..data.sequences import Rows

if TYPE_CHECKING:
    from ..models import Pretrained

BATCH_TOKENS = 4096
_ROOM = 8  # of the decoder's positions, for the tokens that a model begins with
State = tuple[int, list[list[int]]]  # batches done, and all their sequences


@torch.no_grad()
def greedy(pretrained: Pretrained, inputs: dict[str, Tensor], most: int, streamer: Any = None) -> list[list[int]]:
    """Let an encoder-decoder model write, the most likely token each time: one sequence an input, cut behind its end.

    A sequence begins with the token that starts the decoder. What the model's folder says of languages, tasks and
    suppressed tokens holds; what it says of sampling and beams does not.
    """
    model: Any = pretrained.model
    longest = longest_target(pretrained)
    room = most if longest is None else max(1, min(most, longest - _ROOM))
    with _quiet():
        output = model.generate(
            **{key: value.to(model.device) for key, value in _for_encoder(inputs).items()}, max_new_tokens=room,
            do_sample=False, num_beams=1, use_cache=True, return_dict_in_generate=True, streamer=streamer,
            **({"return_timestamps": False} if hasattr(model, "generate_with_fallback") else {}),
        )  # fmt: skip
    ends = _ends(model)
    return [_cut(sequence, ends) for sequence in output.sequences.tolist()]


def write(
    pretrained: Pretrained, examples: Unwritten, rows: Rows, begun: State = (0, []),
    keep: Callable[[State], None] = lambda state: None,
) -> tuple[Paired, State]:  # fmt: skip
    """Write the decoder's side of all `rows`; the other rows get the shortest sequence there is.

    begun: what an earlier call had done.  keep: told of the state behind every batch, to store it.  Gives the examples
    and the last state.
    """
    order = plan(examples.source.lengths[rows], BATCH_TOKENS, FIXED_ORDER)
    done, sequences = begun
    written = [row for batch in order for row in rows[batch]]
    with tqdm(total=len(rows), initial=len(sequences), desc="writing targets", unit=" examples", disable=None) as bar:
        for batch in order[done:]:
            sequences = sequences + greedy(pretrained, examples.collate(rows[batch], None), examples.most)
            done += 1
            keep((done, sequences))
            bar.update(len(batch))
    made = [[0, 0]] * len(examples.source.lengths)
    for row, sequence in zip(written, sequences, strict=True):
        made[row] = sequence
    return paired(examples.source, made, pretrained, examples.most), (done, sequences)


def write_corpus(
    pretrained: Pretrained, corpus: Corpus, begun: State = (0, []), keep: Callable[[State], None] = lambda state: None
) -> tuple[Corpus, State]:
    """Write the decoder's side of a corpus whose examples are `Unwritten`; `begun` and `keep` as for `write`."""
    examples = corpus.train.examples
    assert isinstance(examples, Unwritten)
    rows = np.concatenate([corpus.train.rows, corpus.holdout.rows])
    made, state = write(pretrained, examples, rows, begun, keep)
    train, holdout = (Split(made, split.rows, split.random) for split in (corpus.train, corpus.holdout))
    return Corpus(train, holdout, corpus.description, corpus.fingerprint), state


def write_examples(pretrained: Pretrained, data: EvalData) -> EvalData:
    """Write the decoder's side of data to evaluate on, if it has none."""
    if not isinstance(data.examples, Unwritten):
        return data
    return data.with_examples(write(pretrained, data.examples, data.rows)[0])


def pack_state(state: State) -> dict[str, Tensor]:
    """A state as tensors, to be stored."""
    done, sequences = state
    sizes = torch.tensor([len(sequence) for sequence in sequences], dtype=torch.int64)
    ids = torch.tensor([token for sequence in sequences for token in sequence], dtype=torch.int32)
    return {"done": torch.tensor(done), "sizes": sizes, "ids": ids}


def unpack_state(tensors: dict[str, Tensor]) -> State:
    """The state that `pack_state` got."""
    parts = tensors["ids"].split(tensors["sizes"].tolist())
    return int(tensors["done"]), [part.tolist() for part in parts]


def _for_encoder(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in inputs.items() if not key.startswith("decoder_")}


def _ends(model: Any) -> set[int]:
    end = getattr(model.generation_config, "eos_token_id", None)
    end = getattr(model.config, "eos_token_id", None) if end is None else end
    return set(end) if isinstance(end, list) else {int(end)} if end is not None else set()


def _cut(sequence: list[int], ends: set[int]) -> list[int]:
    """Leave out what fills up behind the end; a decoder may begin with the token that ends."""
    stop = next((index for index, token in enumerate(sequence) if index and token in ends), len(sequence) - 1)
    return sequence[: max(stop + 1, 2)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers, which warns of every setting of a model's folder that greedy writing leaves out."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
