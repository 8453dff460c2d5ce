"""Recordings as model inputs, resampled, through the model's own feature extractor; long ones are cut."""

from __future__ import annotations

import inspect
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ..errors import DataError
from ..streams import accepted, has_rule, shortened
from .sequences import Draw, Hasher, OneStream, Rows

if TYPE_CHECKING:
    from ..models import Pretrained

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


@dataclass(frozen=True)
class Ear:
    """A model's feature extractor, told to pad a batch and to say where."""

    extractor: Any

    @property
    def rate(self) -> int:
        """Samples a second that it takes."""
        return int(self.extractor.sampling_rate)

    @property
    def window(self) -> float | None:
        """Seconds behind which it cuts off; None where nothing is."""
        samples = getattr(self.extractor, "n_samples", None)
        return None if samples is None else samples / self.rate

    def hear(self, waves: list[NDArray[np.float32]]) -> dict[str, Tensor]:
        """Turn samples into the model's arguments, padded its own way or to the longest."""
        known = inspect.signature(self.extractor.__call__).parameters
        options: dict[str, Any] = {}
        if "padding" in known and known["padding"].default in (False, None):
            options["padding"] = True
        if "return_attention_mask" in known:
            options["return_attention_mask"] = True
        found = self.extractor(waves, sampling_rate=self.rate, return_tensors="pt", **options)
        return {name: value.float() if value.is_floating_point() else value.long() for name, value in found.items()}


@dataclass(frozen=True)
class Recordings(OneStream):
    """Stretches of recordings, read when their batch is made: files, or the bytes of a data set's rows.

    Example i is `files[which[i]]` from frame start[i] to stop[i] of its own rate; `lengths` counts its positions at a
    site.
    """

    files: Sequence[Any]
    which: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    lengths: NDArray[np.int64]
    ear: Ear

    def collate(self, rows: Rows, draw: Draw | None) -> dict[str, Tensor]:
        """Give what the extractor makes, float32, and attention_mask [B, frames] where it tells padding."""
        return self.ear.hear([self.wave(int(row)) for row in rows])

    def wave(self, row: int) -> NDArray[np.float32]:
        """One example's samples [N] at the model's rate, all channels averaged."""
        return wave_of(self.files[self.which[row]], self.ear.rate, int(self.start[row]), int(self.stop[row]))

    def targets(self, rows: Rows, inputs: dict[str, Tensor]) -> None:
        """Recordings predict no tokens."""

    def hash_into(self, hasher: Hasher) -> None:
        """Feed a hash the recordings' bytes, where they are cut, and the extractor's settings."""
        for file in tqdm(self.files, desc="hashing", unit=" recordings", disable=None, delay=2):
            data = file.read_bytes() if isinstance(file, Path) else file
            hasher.update(len(data).to_bytes(8, "little"))
            hasher.update(data)
        for array in (self.which, self.start, self.stop):
            hasher.update(np.ascontiguousarray(array))
        hasher.update(self.ear.extractor.to_json_string().encode())


def make_recordings(
    files: Sequence[Any], pretrained: Pretrained, seconds: float | None, notes: list[str], places: Sequence[str] = ()
) -> Recordings:
    """Take recordings for a model, cut into near-equal parts of at most `seconds` (None: whole).

    The model's own longest is never exceeded: with `seconds` that is said in `notes`, without an error.
    Raises DataError where one cannot be read or is too short or too long, or a library is missing.
    """
    library("soxr")
    ear = Ear(pretrained.processor.extractor)
    rate, window = ear.rate, ear.window
    if seconds is not None and window is not None and seconds > window:
        notes.append(f"stretches of {window:g} s, the model's longest, instead of {seconds:g} s")
    most = min((limit for limit in (seconds, window) if limit is not None), default=math.inf)
    which, start, stop, sizes = [], [], [], []  # sizes in samples at the model's rate
    for index, file in enumerate(tqdm(files, desc="looking at recordings", unit=" files", disable=None, delay=2)):
        with opened(file) as sound:
            frames, own = sound.frames, sound.samplerate
        parts = max(1, math.ceil(frames / own / most))
        if parts > 1 and seconds is None:
            raise DataError(
                f"the recording lasts {frames / own:.1f} s, and the model takes {most:g} s",
                where=places[index] if places else _name(file),
                remedy="cut it, and its transcript with it",
            )
        ends = [frames * part // parts for part in range(parts + 1)]
        for begin, end in pairwise(ends):
            which.append(index)
            start.append(begin)
            stop.append(end)
            sizes.append(math.ceil((end - begin) * rate / own))
    lengths = _positions(ear, pretrained, np.asarray(sizes, np.int64))
    short = np.flatnonzero(lengths < 1)
    if len(short):
        file = which[short[0]]
        raise DataError(
            f"the recording is too short for the model: {sizes[short[0]] / rate:.3f} s",
            where=places[file] if places else _name(files[file]),
            remedy="remove it, or join it to another",
        )
    where, first, last = (np.asarray(part, np.int64) for part in (which, start, stop))
    return Recordings(files, where, first, last, lengths, ear)


def wave_of(file: Any, rate: int, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
    """Samples [N] of a recording at `rate` (Hz), all channels averaged, from frame `start` to `stop` of its own rate.

    Raises DataError where it cannot be read that far.
    """
    with opened(file) as sound:
        own, end = sound.samplerate, sound.frames if stop is None else stop
        sound.seek(start)
        samples: NDArray[np.float32] = sound.read(end - start, dtype="float32", always_2d=True).mean(1)
    if len(samples) < end - start:
        raise DataError(
            f"the recording ends at {len(samples) + start} of {end} samples", where=_name(file),
            remedy="fetch it again, or remove it",
        )  # fmt: skip
    if own == rate:
        return samples
    resampled: NDArray[np.float32] = library("soxr").resample(samples, own, rate, quality="HQ")
    return resampled


@contextmanager
def opened(file: Any) -> Iterator[Any]:
    """Open a recording (a path, or a file's bytes) with soundfile. Raises DataError where it is none."""
    soundfile = library("soundfile")
    try:
        with soundfile.SoundFile(file if isinstance(file, Path) else io.BytesIO(file)) as sound:
            yield sound
    except (soundfile.SoundFileError, OSError) as error:
        raise DataError(
            f"not a readable recording: {error}", where=_name(file), remedy="repair, convert or remove it"
        ) from None


def _name(file: Any) -> str:
    return str(file) if isinstance(file, Path) else "a recording of the data set"


def library(name: str) -> Any:
    """Import what recordings need. Raises DataError, with the extra to install, where it is missing."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise DataError(
            f"recordings need {name}, which is not installed", remedy="pip install 'compress-lookup[audio]'"
        ) from None


@torch.no_grad()
def _positions(ear: Ear, pretrained: Pretrained, samples: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions at a site that so many samples at the model's rate make: by its own rule, or as one second shows."""
    model: Any = pretrained.model
    inputs = ear.hear([np.zeros(ear.rate, np.float32)])
    mask = inputs.get("attention_mask")
    frames = ear.rate if mask is None else int(mask.sum())
    counted = torch.from_numpy(np.ceil(samples * (frames / ear.rate)).astype(np.int64))
    if has_rule(model):
        return shortened(model, counted, frames).numpy()
    encoder = model.get_encoder() if getattr(model.config, "is_encoder_decoder", False) else model
    inputs = {key: value.to(model.device) for key, value in accepted(encoder, inputs).items()}
    made = encoder(**inputs, output_hidden_states=True).hidden_states[-1].shape[1]
    if mask is None:
        return np.full(len(samples), made, np.int64)  # of a fixed length, all of which the model reads
    return np.ceil(counted.numpy() * (made / mask.shape[1])).astype(np.int64)
