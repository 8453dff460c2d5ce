"""What fuzzers run: bytes in, nothing out; an exception that is no CompressError is a finding.

`run.py` drives these with coverage; tests/test_fuzz.py with hypothesis and with the corpus.
"""

from __future__ import annotations

import functools
import json
import shutil
import struct
import tempfile
from pathlib import Path

import checkpoints
import torch
from transformers.utils import logging

from compress.checkpoint import load, verify_files, verify_outputs
from compress.errors import CompressError, RecipeError
from compress.recipe import match_sites, parse_recipe

SITES = [f"encoder.layer.{layer}.output.dense" for layer in range(3)]
FILES = (
    "quantization_config",
    "config.json",
    "header",
    "model.safetensors",
    "index",
    "manifest.json",
    "probe.safetensors",
)


@functools.cache
def folder() -> Path:
    """A compressed pico model; one file is changed at a time."""
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    return checkpoints.save("bert", Path(tempfile.mkdtemp(prefix="fuzz"))).folder


def recipe(data: bytes) -> None:
    """A recipe's text, and behind each null byte a `--set`."""
    try:
        text, *overrides = data.decode("utf-8-sig").split("\0")
        read = parse_recipe(text, "r.yaml", folder=folder(), overrides=overrides)
    except (UnicodeDecodeError, RecipeError):
        return
    for path in (read.data.path, read.eval.data):
        if path is not None and not path.startswith("hub:") and not overrides:
            assert Path(path).resolve().is_relative_to(folder().resolve()), path
    dumped = read.dump()
    if "~" not in dumped:  # a file of this name in the recipe's folder; written again it means the home folder
        assert parse_recipe(dumped, "again").dump() == dumped
    assert len(read.fingerprint()) == 64
    try:
        match_sites(read, SITES)
    except RecipeError:
        return


def checkpoint(data: bytes) -> None:
    """A checkpoint, one of whose FILES (the first byte says which) is made of the other bytes."""
    if not data:
        return
    good, kind, content = folder(), FILES[data[0] % len(FILES)], data[1:]
    name = {"quantization_config": "config.json", "header": "model.safetensors"}.get(kind, kind)
    if kind == "index":
        name = "model.safetensors.index.json"
        (good / "model.safetensors").rename(good / "shard.safetensors")
    kept = (good / name).read_bytes() if kind != "index" else None
    if kind == "quantization_config":
        text = json.dumps(json.loads(kept or b""), sort_keys=True)
        before, _, behind = text.partition('"quantization_config": ')
        _, end = json.JSONDecoder().raw_decode(behind)
        content = f'{before}"quantization_config": '.encode() + content + behind[end:].encode()
    elif kind == "header":
        content = struct.pack("<Q", len(content)) + content + data_of(kept or b"")
    try:
        write(good / name, content)
        verify_files(good)
        model = load(good)
        checkpoints.answer(model, checkpoints.inputs("bert"))
        verify_outputs(good, model)
    except CompressError:
        return
    finally:
        if kept is None:
            (good / name).unlink()
            (good / "shard.safetensors").rename(good / "model.safetensors")
        else:
            write(good / name, kept)


def write(path: Path, content: bytes) -> None:
    """Put a new file in a place: the old one may be mapped into memory."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def data_of(file: bytes) -> bytes:
    """What lies behind the header of a safetensors file."""
    return file[8 + struct.unpack("<Q", file[:8])[0] :]


def seeds(target: str) -> list[bytes]:
    """Inputs to begin with, made from what is valid."""
    from compress.recipe import bundled_recipes

    if target == "recipe":
        full = b'version: 1\nsites: {include: ["*"], exclude: []}\nlookup: {budget: 1e-1, bits: auto, rank: 0x10}\n'
        full += b'overrides: [{layers: [0, -1], tables: 4}, {sites: ["*.1.*"], keep_dense: true}]\n'
        full += b"data: {path: 1_Pooling/*.json}\neval: {data: LICENSE}\nseed: 1_0\n\0lookup.bits=8\0overrides.0.rank=2"
        return [full, *(path.read_bytes() for path in bundled_recipes().values())]
    good = folder()
    config = json.loads((good / "config.json").read_bytes())
    weights = (good / "model.safetensors").read_bytes()
    header = json.loads(weights[8 : 8 + struct.unpack("<Q", weights[:8])[0]])
    index = {"metadata": {}, "weight_map": dict.fromkeys([key for key in header if key[0] != "_"], "shard.safetensors")}
    texts = [
        config["quantization_config"],
        config,
        header,
        None,
        index,
        json.loads((good / "manifest.json").read_bytes()),
    ]
    made = [bytes([kind]) + json.dumps(value).encode() for kind, value in enumerate(texts) if value is not None]
    return [*made, b"\3" + weights, b"\6" + (good / "probe.safetensors").read_bytes()]


def clean() -> None:
    """Remove what was made."""
    shutil.rmtree(folder().parent, ignore_errors=True)
    folder.cache_clear()
