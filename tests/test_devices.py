"""Where training runs: the choice of a device, its precision, and batches whose padding is found on the host."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from compress.devices import autocast, choose_device, multiplies_bfloat16, upload
from compress.distill import divergence
from compress.distill.divergence import Errors
from compress.errors import CompressError
from compress.lookup import LookupFFN
from compress.padding import RealRows

CPU = torch.device("cpu")


def test_a_device_is_chosen_or_refused(monkeypatch) -> None:
    assert choose_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(None) == "cpu"
    for name in ("cuda:99", "quantum"):
        with pytest.raises(CompressError) as caught:
            choose_device(name)
        assert name in caught.value.message
        assert caught.value.where == "--device"
        assert "cpu" in caught.value.remedy


@pytest.mark.parametrize(
    ("dtype", "fast", "product"),
    [
        ("auto", False, torch.float32), ("auto", True, torch.bfloat16),
        ("float32", True, torch.float32), ("bfloat16", False, torch.bfloat16),
    ],
)  # fmt: skip
def test_products_alone_are_narrow(monkeypatch, dtype: str, fast: bool, product: torch.dtype) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: fast)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    with autocast(CPU, dtype):
        assert functional.linear(torch.randn(2, 8), torch.randn(4, 8)).dtype == product
    assert functional.linear(torch.randn(2, 8), torch.randn(4, 8)).dtype == torch.float32
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


def test_a_processor_is_asked_whether_it_multiplies_bfloat16(monkeypatch) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name)  # another version of PyTorch may not say
    assert not multiplies_bfloat16(CPU)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert multiplies_bfloat16(CPU)
    assert multiplies_bfloat16(torch.device("cuda"))


def test_attention_stays_wide_on_the_cpu() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, 5, 8, requires_grad=True), torch.randn(8, 8, requires_grad=True)
    mask = torch.rand(5, 5) < 0.7
    mask.fill_diagonal_(True)
    with autocast(CPU, "bfloat16"):
        projected = functional.linear(x, weight)
        answer = functional.scaled_dot_product_attention(projected, key=projected, value=projected, attn_mask=mask)
        assert (projected.dtype, answer.dtype) == (torch.bfloat16, torch.float32)
        assert functional.linear(answer, weight).dtype == torch.bfloat16
    wide = projected.detach().float()
    assert torch.equal(answer, functional.scaled_dot_product_attention(wide, wide, wide, attn_mask=mask))
    answer.sum().backward()
    assert x.grad is not None
    assert weight.grad is not None
    assert x.grad.dtype == weight.grad.dtype == torch.float32


@pytest.mark.parametrize("projection", ["hadamard", "lowrank", "dense", "bh4", "acdc"])
def test_a_student_trains_in_bfloat16(projection: str) -> None:
    """Its answers stay near those of float32, and its gradients are float32."""
    torch.manual_seed(0)
    ffn = LookupFFN(32, tables=6, bits=4, projection=projection, rank=16, neurons=8, block=16)
    x = torch.randn(500, 32)
    with autocast(CPU, "bfloat16"):
        answer = ffn(x)
    answer.square().mean().backward()
    assert answer.dtype == torch.float32
    assert all(
        p.grad is not None and p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in ffn.parameters()
    )
    wanted = ffn(x)
    assert (answer - wanted).norm() < 0.1 * wanted.norm()  # a code with a z near 0 may be another


def test_errors_are_read_at_once_on_the_cpu() -> None:
    errors = Errors()
    assert errors.read(torch.tensor(0.5), now=False) == [0.5]
    assert errors.read(torch.tensor(0.25), now=True) == [0.25]


def test_errors_of_a_gpu_are_read_many_together(monkeypatch) -> None:
    """None is lost, and what is no number shows. A meta tensor says that it is elsewhere."""
    monkeypatch.setattr(divergence, "LOOK_EVERY", 3)
    monkeypatch.setattr(torch, "stack", lambda parts: torch.arange(float(len(parts))))
    errors, elsewhere = Errors(), torch.empty((), device="meta")
    found = [errors.read(elsewhere, now=False) for _ in range(4)]
    assert found == [[], [], [0.0, 1.0, 2.0], []]
    assert errors.read(elsewhere, now=True) == [0.0, 1.0]
    assert errors.unread == []


def test_what_is_no_number_is_read_as_that() -> None:
    assert math.isnan(Errors().read(torch.tensor(float("nan")), now=False)[0])


@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 6))
def test_rows_are_those_that_the_mask_keeps(seed: int, size: int, length: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(size, length, generator=generator) < 0.7
    batch = {"input_ids": torch.zeros(size, length, dtype=torch.long), "attention_mask": mask.long()}
    real = RealRows(nn.Identity(), batch)
    hidden = torch.randn(size, length, 3, generator=generator)
    for _ in range(2):  # found once, kept for the next site
        assert torch.equal(real.pick([hidden], "main")[0], hidden[mask])
    assert torch.equal(real.pick_alike(hidden).reshape(-1, 3), hidden[mask])
    assert torch.equal(real.pick_alike(hidden[:, 0]), hidden[:, 0])
    found = real.mask("main", length)
    assert (found is None) == bool(mask.all())
    assert found is None or torch.equal(found, mask)


def test_of_two_masks_as_long_the_decoder_s_counts() -> None:
    masks = {"attention_mask": torch.tensor([[1, 1, 0]]), "decoder_attention_mask": torch.tensor([[1, 0, 0]])}
    assert RealRows(nn.Identity(), masks).pick_alike(torch.randn(1, 3, 5)).shape == (1, 5)


def test_without_padding_nothing_is_copied() -> None:
    batch = {"input_ids": torch.zeros(2, 3, dtype=torch.long), "attention_mask": torch.ones(2, 3, dtype=torch.long)}
    hidden = torch.randn(2, 3, 5)
    (picked,) = RealRows(nn.Identity(), batch).pick([hidden], "main")
    assert picked.data_ptr() == hidden.data_ptr()
    assert upload(hidden, CPU) is hidden
