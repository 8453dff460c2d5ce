import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import CompressError
from compress.lookup import Geometry, LookupFFN, pack
from compress.lookup.budget import (
    DenseGeometry,
    Sizes,
    bytes_per_token,
    cost,
    fill,
    neuron_share,
    projection_cost,
    stored_bytes,
)

CHOICES = {"table_dtype": "int8", "hash_dtype": "int8", "projection": "hadamard", "block": 64, "read": "top1"}


def test_cost_of_the_papers_example() -> None:
    g = Geometry(512, 512, 128, 8, projection="bh4", block=64)
    butterflies = 2 * 4 * 512 * 9 / 2  # additions, half a multiply-add each
    assert projection_cost(g) == 262_144 + butterflies
    assert cost(g) == pytest.approx(262_144 + butterflies + 128 * 512 + 128 * 8 * 11)


def test_cost_of_hadamard_transforms() -> None:
    g = Geometry(384, 384, 128, 8, projection="hadamard", rank=96)
    transforms = 128 * 8 // 128  # the code padded to 128 gives 16 tables at once
    assert projection_cost(g) == transforms * (2 * 128 + 2 * 7 * 128 / 2)  # diagonals, butterflies


def test_cost_counts_every_part() -> None:
    g = Geometry(10, 12, 4, 3, projection="lowrank", rank=5, neurons=2, gated=True, activation="silu", read="top2")
    code_and_linear = 5 * (10 + 12)
    hashed = 4 * 3 * 5 + 4 * 3 * 11 + 4 * 10
    assert cost(g) == code_and_linear + hashed + 4 * 2 * 12 + 2 * (10 + 10 + 12 + 10)


def test_stored_bytes_are_those_of_the_tensors() -> None:
    ffn = pack(LookupFFN(24, 20, tables=6, bits=4, projection="lowrank", rank=8, neurons=5, read="top2"))
    assert stored_bytes(ffn.geometry) == sum(p.nbytes for p in ffn.parameters())
    rows_read = 6 * 2 * 32  # 64 numbers in 4 bits, of which the row has 20
    rest = sum(p.nbytes for name, p in ffn.named_parameters() if name != "tables")
    assert bytes_per_token(ffn.geometry) == rest + rows_read


@settings(max_examples=60)
@given(
    st.sampled_from([64, 192, 384, 768]), st.integers(2, 4), st.floats(0.12, 0.6), st.floats(2, 20),
    st.integers(10_000, 30_000_000), st.booleans(),
)  # fmt: skip
def test_auto_sizes_spend_the_budget_and_no_more(d, factor, budget, memory, tokens, gated) -> None:
    dense = DenseGeometry(d, factor * d, d, gated, "silu")
    g = fill(dense, Sizes(budget, memory), tokens, tokens, **CHOICES)
    assert g.tables * g.rows * 20 <= tokens
    assert cost(g) <= budget * dense.cost
    assert stored_bytes(g) <= memory * dense.int8_bytes
    grain = 16 * (d * (3 if gated else 2) + 10)  # neurons come in sixteens
    assert cost(g) > budget * dense.cost - grain - d - 1000 or g.neurons == dense.d_hidden


def test_few_tokens_get_neurons_and_many_get_tables() -> None:
    dense = DenseGeometry(384, 1536, 384, False, "gelu")
    few, many = (fill(dense, Sizes(0.25, 40), tokens, 10**8, **CHOICES) for tokens in (100_000, 20_000_000))
    assert few.neurons > many.neurons
    assert few.tables < many.tables
    assert neuron_share(0) >= neuron_share(10**6) >= neuron_share(10**9)


def test_little_data_fills_few_rows() -> None:
    dense = DenseGeometry(192, 768, 192, False, "gelu")
    little, much = (fill(dense, Sizes(0.5, 12), 10**6, distinct, **CHOICES) for distinct in (80_000, 10**6))
    assert little.tables == 80_000 // (20 * 256)
    assert much.tables > 4 * little.tables
    assert little.neurons > much.neurons
    assert cost(little) > 0.48 * dense.cost


def test_explicit_sizes_win() -> None:
    dense = DenseGeometry(384, 1536, 384, False, "gelu")
    g = fill(dense, Sizes(0.25, 12, tables=64, bits=6, rank=48, neurons=32), 10**6, 10**6, **CHOICES)
    assert (g.tables, g.bits, g.rank, g.neurons) == (64, 6, 48, 32)


def test_neurons_alone_spend_the_whole_budget() -> None:
    dense = DenseGeometry(384, 1536, 384, False, "gelu")
    g = fill(dense, Sizes(0.25, 12, tables=0, rank=0), 10**6, 10**6, **CHOICES)
    assert (g.tables, g.rank, g.neurons) == (0, 0, 384)


@pytest.mark.parametrize("sizes", [Sizes(0.1, 12, tables=256), Sizes(0.25, 1, tables=64, neurons=0)])
def test_sizes_beyond_the_budget_are_refused(sizes: Sizes) -> None:
    with pytest.raises(CompressError, match="more than"):
        fill(DenseGeometry(384, 1536, 384, False, "gelu"), sizes, 10**6, 10**6, **CHOICES)
