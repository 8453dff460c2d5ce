"""What a model writes by itself: text to distil on, the decoder's side of its data, transcripts."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..data import Corpus, EvalData, Split
from ..data.batching import FIXED_ORDER, plan
from ..data.inputs import longest_target
from ..data.paired import Paired, Unwritten, paired
from ..data.sequences import BlankWindows, Examples, Rows, Windows
from ..quiet import silent_transformers
from .steps import Steps

if TYPE_CHECKING:
    from ..models import Pretrained

BATCH_TOKENS = 4096
_TOGETHER = 64  # texts that are written side by side at most, a step of all of them taking little longer than of one
_CACHE_BYTES = 1 << 28  # of their keys and values
_ON_GPU = 16  # times as many of both there
_ROOM = 8  # of the decoder's positions, for the tokens that a model begins with
State = tuple[int, list[list[int]]]  # batches done, and all their sequences
Keep = Callable[[State], None]


@torch.no_grad()
def greedy(pretrained: Pretrained, inputs: dict[str, Tensor], most: int, streamer: Any = None) -> list[list[int]]:
    """Let an encoder-decoder model write, the most likely token each time: one sequence an input, cut behind its end.

    A sequence begins with the token that starts the decoder. What the model's folder says of languages, tasks and
    suppressed tokens holds; what it says of sampling and beams does not.
    """
    model: Any = pretrained.model
    longest = longest_target(pretrained)
    room = most if longest is None else max(1, min(most, longest - _ROOM))
    with silent_transformers():
        output = model.generate(
            **{key: value.to(model.device) for key, value in _for_encoder(inputs).items()}, max_new_tokens=room,
            do_sample=False, num_beams=1, use_cache=True, return_dict_in_generate=True, streamer=streamer,
            **({"return_timestamps": False} if hasattr(model, "generate_with_fallback") else {}),
        )  # fmt: skip
    ends = _ends(model)
    return [_cut(sequence, ends) for sequence in output.sequences.tolist()]


@torch.no_grad()
def sample(pretrained: Pretrained, count: int, length: int, prefix: tuple[int, ...], seed: int) -> list[list[int]]:
    """Let a causal model write: `count` sequences of `length` tokens behind `prefix`, drawn as likely as it says.

    Where a text ends, the next one begins. The same seed gives the same tokens.
    """
    from transformers import GenerationConfig

    model: Any = pretrained.model
    start = torch.tensor([list(prefix)] * count, device=model.device)
    own, model.generation_config = model.generation_config, GenerationConfig()  # fills in what is not given
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), silent_transformers():
            torch.manual_seed(seed)
            config = GenerationConfig(max_new_tokens=length, do_sample=True, top_k=0, use_cache=True, pad_token_id=0)
            output = model.generate(input_ids=start, attention_mask=torch.ones_like(start), generation_config=config)
    finally:
        model.generation_config = own
    sequences: list[list[int]] = output[:, start.shape[1] :].tolist()
    return sequences


def write(
    pretrained: Pretrained, examples: Unwritten, rows: Rows, begun: State = (0, []), keep: Keep = lambda state: None
) -> tuple[Paired, State]:
    """Write the decoder's side of all `rows`; the other rows get the shortest sequence there is.

    begun: what an earlier call had done.  keep: told of the state behind every batch, to store it.  Gives the examples
    and the last state.
    """
    order = plan(examples.source.lengths[rows], BATCH_TOKENS, FIXED_ORDER)
    state = _in_turn(
        [len(batch) for batch in order], begun, keep,
        lambda index: greedy(pretrained, examples.collate(rows[order[index]], None), examples.most),
    )  # fmt: skip
    made = [[0, 0]] * len(examples.source.lengths)
    for row, sequence in zip((row for batch in order for row in rows[batch]), state[1], strict=True):
        made[row] = sequence
    return paired(examples.source, made, pretrained, examples.most), state


def write_windows(
    pretrained: Pretrained, blank: BlankWindows, begun: State = (0, []), keep: Keep = lambda state: None
) -> tuple[Windows, State]:
    """Write all windows; `begun` and `keep` as for `write`."""
    at_once = _side_by_side(pretrained, blank.together * blank.length)
    texts = blank.count // blank.together
    sizes = [min(at_once, texts - start) for start in range(0, texts, at_once)]
    body = blank.length - len(blank.prefix)
    state = _in_turn(
        sizes, begun, keep,
        lambda index: sample(
            pretrained, sizes[index], blank.together * body, blank.prefix or (blank.start,),
            zlib.crc32(f"{blank.seed}/{index}".encode()),
        ),
    )  # fmt: skip
    return Windows(np.asarray(state[1], np.int32).reshape(-1, body), blank.prefix), state


def _side_by_side(pretrained: Pretrained, length: int) -> int:
    """Count the texts of `length` tokens that a causal model writes at once, by the memory of their cache."""
    config: Any = pretrained.model.config.get_text_config()
    layers, width = (getattr(config, name, None) for name in ("num_hidden_layers", "hidden_size"))
    together = _TOGETHER * (_ON_GPU if pretrained.model.device.type == "cuda" else 1)
    room = cache_bytes(pretrained.model.device) // (8 * layers * width * length) if layers and width else 0  # float32
    return max(1, BATCH_TOKENS // length, min(together, room))


def cache_bytes(device: torch.device) -> int:
    """Most bytes of keys and values that are held while the dense model writes."""
    return _CACHE_BYTES * (_ON_GPU if device.type == "cuda" else 1)


def _in_turn(sizes: Sequence[int], begun: State, keep: Keep, make: Callable[[int], list[list[int]]]) -> State:
    """Make the batches that are still to do."""
    done, sequences = begun[0], list(begun[1])
    with Steps("writing", sum(sizes), len(sequences), "example") as told:
        while done < len(sizes):
            sequences += make(done)
            done += 1
            keep((done, sequences))
            told.tell(len(sequences))
    return done, sequences


def is_unwritten(corpus: Corpus) -> bool:
    """Whether the dense model is still to write a part of a corpus."""
    return isinstance(corpus.train.examples, Unwritten | BlankWindows)


def write_corpus(
    pretrained: Pretrained, corpus: Corpus, begun: State = (0, []), keep: Keep = lambda state: None
) -> tuple[Corpus, State]:
    """Write what a corpus lacks; `begun` and `keep` as for `write`."""
    examples = corpus.train.examples
    made: Examples
    if isinstance(examples, BlankWindows):
        made, state = write_windows(pretrained, examples, begun, keep)
    else:
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
