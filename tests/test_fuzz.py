"""The ways in from strangers, fuzzed a little by hypothesis, and with what longer runs found (fuzz/corpus)."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from kernel_levels import LEVELS
from torch import Tensor

from compress import kernels
from compress.errors import CompressError, KernelError
from compress.kernels import layout
from compress.lookup import Geometry

HERE = Path(__file__).parent / "fuzz"
sys.path.insert(0, str(HERE))
import targets  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As fuzzers run the targets; what they made is removed."""
    from transformers.utils import logging

    before = torch.get_num_threads(), logging.get_verbosity(), logging.is_progress_bar_enabled()
    targets.folder()
    yield
    targets.clean()
    torch.set_num_threads(before[0])
    logging.set_verbosity(before[1])
    if before[2]:
        logging.enable_progress_bar()


def corpus(target: str) -> list[Path]:
    return sorted((HERE / "corpus" / target).iterdir())


@pytest.mark.parametrize("target", ["recipe", "checkpoint"])
def test_the_corpus(target: str) -> None:
    run, found = getattr(targets, target), [*targets.seeds(target), *(path.read_bytes() for path in corpus(target))]
    assert len(found) > 6
    for data in found:
        run(data)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["auto", "hadamard", "bh4", "top2", "int8", "encoder.layer.0.intermediate", "hub:x", "../x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6,
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in nested values, the value itself aside."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(value[key], (*path, key))


def put(values: Any, path: tuple[Any, ...], new: Any) -> None:
    for key in path[:-1]:
        values = values[key]
    values[path[-1]] = new


@settings(max_examples=120)
@given(data=st.data())
def test_recipes(data: st.DataObject) -> None:
    """Valid recipes with some values exchanged, and their text cut up."""
    from compress.recipe.document import read_document

    text = targets.seeds("recipe")[0].decode().partition("\0")[0]
    values = read_document(text, "seed").values
    for _ in range(data.draw(st.integers(1, 3))):
        put(values, data.draw(st.sampled_from(sorted(places(values), key=str))), data.draw(VALUES))
    written = json.dumps(values, ensure_ascii=data.draw(st.booleans()))
    overrides = data.draw(st.lists(st.text("abcdelokuptins.=0123456789[]{}:- ", max_size=20), max_size=2))
    cut = data.draw(st.integers(0, len(written))) if data.draw(st.booleans()) else len(written)
    targets.recipe("\0".join([written[:cut], *overrides]).encode(errors="replace"))


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_checkpoints(data: st.DataObject) -> None:
    """A valid config, header, index or manifest with some values exchanged."""
    seed = data.draw(st.sampled_from(targets.seeds("checkpoint")[:5]))
    values = json.loads(seed[1:])
    for _ in range(data.draw(st.integers(1, 2))):
        put(values, data.draw(st.sampled_from(sorted(places(values), key=str))), data.draw(VALUES))
    targets.checkpoint(seed[:1] + json.dumps(values).encode())


SIZES = st.integers(-2, 40) | st.sampled_from([2**24, 2**24 + 1, 2**31, 2**62, -(2**63)])


@pytest.mark.skipif(not LEVELS, reason="the native extension is not installed")
@settings(max_examples=200)
@given(
    geometry=st.lists(SIZES, min_size=11, max_size=14), weights=st.integers(0, 2000), tables=st.integers(0, 2000),
    x=st.lists(st.integers(0, 40), max_size=3),
)  # fmt: skip
@example(geometry=[0, 2**24, *[0] * 11], weights=0, tables=0, x=[18, 21, 0])  # an answer of 25 GB
def test_the_kernel_s_op_takes_only_what_fits(geometry: list[int], weights: int, tables: int, x: list[int]) -> None:
    buffers = [torch.zeros(size, dtype=torch.uint8) for size in (weights, tables)]
    try:
        answer = kernels.lookup_ffn(torch.zeros(x), buffers, geometry)
    except KernelError as error:
        assert error.remedy  # noqa: PT017
    else:
        assert list(answer.shape) == [*x[:-1], geometry[1]]


@pytest.mark.skipif(not LEVELS, reason="the native extension is not installed")
def test_buffers_that_are_smaller_than_they_seem() -> None:
    g = Geometry(8, 8, 2, 2, "dense")
    params = {name: torch.zeros(shape) for name, shape in layout.parameter_shapes(g).items()}
    (weights, tables), numbers = kernels.prepare(params, g)
    x = torch.zeros(1, 8)
    assert kernels.lookup_ffn(x, [weights, tables], numbers).shape == (1, 8)
    one = torch.zeros(1, dtype=torch.uint8)
    for bad in ([one.expand(weights.nbytes), tables], [weights, one.expand(tables.nbytes)], [weights],
                [weights, tables, tables]):  # fmt: skip
        with pytest.raises(KernelError):
            kernels.lookup_ffn(x, bad, numbers)


@pytest.mark.skipif(not LEVELS, reason="the native extension is not installed")
@settings(max_examples=150)
@given(data=st.data())
def test_prepare_takes_only_what_fits(data: st.DataObject) -> None:
    """Tensors of a small student, one of them exchanged: laid out and run, or refused."""
    numbers = st.integers(0, 20)
    try:
        g = Geometry(
            data.draw(st.integers(1, 20)), data.draw(st.integers(1, 70)), data.draw(numbers),
            data.draw(st.integers(1, 6)), data.draw(st.sampled_from(layout.PROJECTIONS)),
            data.draw(st.sampled_from([1, 4, 16])), data.draw(numbers), data.draw(numbers), data.draw(st.booleans()),
            data.draw(st.sampled_from(layout.ACTIVATIONS)), data.draw(st.sampled_from(["top1", "top2"])),
        )  # fmt: skip
    except CompressError:
        assume(False)
    extremes = st.sampled_from([0.0, 1.0, -3e38, float("nan"), float("inf")])
    params: dict[str, Tensor] = {
        name: torch.full(shape, data.draw(extremes)) for name, shape in layout.parameter_shapes(g).items()
    }
    name = data.draw(st.sampled_from(sorted(params)))
    shape = data.draw(st.just(list(params[name].shape)) | st.lists(st.integers(0, 9), max_size=4))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int8, torch.int64]))
    params[name] = torch.ones(shape).to(dtype)
    try:
        prepared, settings_ = kernels.prepare(params, g)
    except KernelError as error:
        assert error.remedy  # noqa: PT017
        return
    x = torch.full((data.draw(st.integers(0, 40)), g.d_in), data.draw(extremes))
    assert kernels.lookup_ffn(x, prepared, settings_).shape == (len(x), g.d_out)
