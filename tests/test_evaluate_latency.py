"""What is timed: dense baselines in int8, FFNs alone, whole models, decoding steps; and on what inputs."""

from __future__ import annotations

import warnings

import pico
import pico_speech
import pytest
import torch
from torch import nn

from compress.errors import DataError, SiteError
from compress.evaluate import latency, variants
from compress.evaluate.contestants import DecodeStep, FFNs, WholeModel
from compress.evaluate.inputs import JoinedPool, RowPool, TokenPool, make_pool
from compress.sites import find_sites, site_weights

# The dense baselines


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "vit"])
@torch.no_grad()
def test_int8_is_int8(family: str) -> None:
    model = pico.FAMILIES[family]()
    sites = find_sites(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantised = variants.int8_model(model, sites)
    for site in sites:
        for path in (*site.inputs, site.output):
            assert quantised.get_submodule(path).weight().dtype == torch.qint8
            assert not variants.is_int8(model.get_submodule(path))  # the model itself is as it was
    assert not any(type(module) is nn.Linear or type(module).__name__ == "Conv1D" for module in quantised.modules())
    batch = {"pixel_values": torch.randn(2, 3, 32, 32)} if family == "vit" else {"input_ids": torch.arange(5, 37)[None]}
    wanted, got = (m(**batch)[0] for m in (model, quantised))
    assert float((got - wanted).norm() / wanted.norm()) < 0.05


def test_an_int8_baseline_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ao.quantization, "quantize_dynamic", lambda model, *args, **kwargs: model)
    model = pico.gpt2()
    with pytest.raises(SiteError, match="c_fc in floating point"):
        variants.int8_model(model, find_sites(model))


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "vit"])
@torch.no_grad()
def test_the_ffn_alone_is_the_models(family: str) -> None:
    model = pico.FAMILIES[family]()
    site = find_sites(model)[0]
    seen = []
    model.get_submodule(site.entry).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model.get_submodule(site.output).register_forward_hook(lambda module, args, output: seen.append(output))
    model(**({"pixel_values": torch.randn(1, 3, 32, 32)} if family == "vit" else {"input_ids": torch.arange(9)[None]}))
    alone = variants.DenseFFN(site_weights(model, site), site.activation)
    torch.testing.assert_close(alone(seen[0]), seen[1], rtol=1e-5, atol=1e-6)


# Latency


class Recorded:
    """A contestant that writes down what happens to it."""

    def __init__(self, name: str, log: list[tuple[str, int]]) -> None:
        self.name, self.log, self.round = name, log, -1

    def prepare(self, round_: int) -> None:
        self.round = round_

    def run(self) -> None:
        self.log.append((self.name, self.round))


def test_contestants_take_turns_on_the_same_rounds() -> None:
    log: list[tuple[str, int]] = []
    times, rounds = latency.interleave({name: Recorded(name, log) for name in "abc"}, seconds=0.0)
    assert rounds == latency.MIN_ROUNDS
    assert times.keys() == set("abc")
    assert min(times.values()) >= 0
    turns = [log[start : start + 3] for start in range(0, len(log), 3)]
    assert all(len({round_ for _, round_ in turn}) == 1 and {name for name, _ in turn} == set("abc") for turn in turns)
    assert len({turn[0][1] for turn in turns}) == len(turns)  # inputs are fresh each time
    assert {turn[0][0] for turn in turns} == set("abc")  # each goes first now and then


def test_pools_give_fresh_real_inputs() -> None:
    batches = [{"input_ids": torch.arange(20).view(2, 10), "attention_mask": torch.ones(2, 10, dtype=torch.long)}]
    batches[0]["attention_mask"][1, 6:] = 0
    pool = make_pool(batches, 4)
    assert isinstance(pool, TokenPool)
    assert pool.stream.tolist() == list(range(16))
    first, again, other = (pool.batch(3, number)["input_ids"] for number in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (first.diff(dim=1) == 1).all()
    assert make_pool(batches, 100).batch(2, 0)["input_ids"].shape == (2, 16)
    images = make_pool([{"pixel_values": torch.arange(5.0).view(5, 1, 1, 1)}], 4)
    assert isinstance(images, RowPool)
    assert [images.batch(3, number)["pixel_values"].flatten().tolist() for number in (0, 1)] == [[0, 1, 2], [3, 4, 0]]
    with pytest.raises(DataError, match="--no-latency"):
        make_pool([{"bbox": torch.zeros(1)}], 4)


@torch.no_grad()
def test_a_decoding_step_continues_the_sequence() -> None:
    model = pico.llama()
    pool = TokenPool(torch.randint(0, 64, (200,), generator=torch.Generator().manual_seed(0)), 12)
    step = DecodeStep(model, pool, torch.float32)
    row = pool.batch(1, 0)["input_ids"]
    for number in range(6):
        step.prepare(number)
        logits = step.run().logits[0, -1]
        torch.testing.assert_close(logits, model(input_ids=row[:, : 7 + number]).logits[0, -1], rtol=1e-4, atol=1e-5)
    step.prepare(6)  # used up: the next sequence begins
    expected = model(input_ids=pool.batch(1, 6)["input_ids"][:, :7]).logits[0, -1]
    torch.testing.assert_close(step.run().logits[0, -1], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_decoder_steps_behind_what_its_encoder_read() -> None:
    model = pico_speech.t5()
    stream = torch.randint(3, 60, (200,), generator=torch.Generator().manual_seed(0))
    pool = JoinedPool((TokenPool(stream, 9), TokenPool(stream, 6, "decoder_input_ids")))
    step = DecodeStep(model, pool, torch.float32)
    inputs = pool.batch(1, 0)
    assert inputs["decoder_input_ids"].shape == (1, 6)
    for number in range(3):
        step.prepare(number)
        written = {**inputs, "decoder_input_ids": inputs["decoder_input_ids"][:, : 4 + number]}
        torch.testing.assert_close(step.run().logits[0, -1], model(**written).logits[0, -1], rtol=1e-4, atol=1e-5)


def test_stretches_end_where_a_model_looks_for_the_end() -> None:
    ids = TokenPool(torch.arange(20) % 4, 8, end=2).batch(3, 0)["input_ids"]
    assert (ids == 2).sum(1).tolist() == [1, 1, 1]
    assert ids[:, -1].tolist() == [2, 2, 2]


@torch.no_grad()
def test_other_contestants_run_what_they_say() -> None:
    double, triple = (nn.Linear(2, 2, bias=False) for _ in range(2))
    double.weight.copy_(2 * torch.eye(2))
    triple.weight.copy_(3 * torch.eye(2))
    ffns = FFNs(
        [double, triple], [torch.arange(6.0).view(3, 2), 10 * torch.arange(6.0).view(3, 2)], [2, 2], torch.float32
    )
    ffns.prepare(1)
    assert ffns.run().tolist() == [[120, 150], [0, 30]]  # rows 2 and 0 of what was recorded
    vit = pico.vit()
    whole = WholeModel(vit.to(torch.bfloat16), RowPool("pixel_values", torch.randn(2, 3, 32, 32)), 2, torch.bfloat16)
    whole.prepare(0)
    assert whole.run().logits.shape == (2, 5)
