"""The paper's other systems: what SLIDE retrieves, what MONGOOSE learns, what training and storage keep of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import compress
from compress.baselines import MongooseFFN, SlideFFN, VanillaFFN
from compress.baselines.buckets import Buckets
from compress.baselines.costs import Costs, costs
from compress.baselines.schedule import DriftSchedule, GrowingSchedule
from compress.baselines.triplet import attach, similarity, triplet_loss
from compress.dense import DenseWeights
from compress.errors import CompressError
from compress.lookup import LookupFFN, budget, pack

pytestmark = pytest.mark.usefixtures("one_thread")


KINDS = [VanillaFFN, SlideFFN, MongooseFFN]
HASHED = [SlideFFN, MongooseFFN]


def dense(d: int, f: int, *, gated: bool = False, bias: bool = True) -> DenseWeights:
    def vector(size: int) -> Tensor | None:
        return 0.3 * torch.randn(size) if bias else None

    return DenseWeights(
        torch.randn(f, d) / math.sqrt(d), vector(f), torch.randn(f, d) / math.sqrt(d) if gated else None,
        vector(f) if gated else None, torch.randn(d, f) / math.sqrt(f), vector(d),
    )  # fmt: skip


def same_bucket(ffn: SlideFFN, x: Tensor) -> Tensor:
    """Which neurons share a bucket with which token, by comparing all codes: [N, f]."""
    query, keys = torch.cat((x, torch.ones(len(x), 1)), 1), torch.cat((ffn.gate.weight, ffn.gate.bias[:, None]), 1)
    signs = [(v @ ffn.buckets.projection.t() > 0).view(len(v), ffn.buckets.tables, -1) for v in (query, keys)]
    return (signs[0][:, None] == signs[1][None]).all(-1).any(-1)


def test_they_are_found_after_the_import() -> None:
    for kind in ("VanillaFFN", "SlideFFN", "MongooseFFN"):
        ffn = getattr(compress.baselines, kind)(64)
        assert ffn(torch.randn(2, 3, 64)).shape == (2, 3, 64)
    with pytest.raises(AttributeError, match="no attribute 'YosoFFN'"):
        compress.baselines.YosoFFN  # noqa: B018


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_with_every_neuron_retrieved_it_is_the_dense_ffn(kind: type[VanillaFFN], gated: bool, bias: bool) -> None:
    torch.manual_seed(0)
    weights, x = dense(24, 60, gated=gated, bias=bias), torch.randn(3, 7, 24)
    wanted = weights.output(x.view(-1, 24), "silu").view(3, 7, 24)
    for settings in [{}] if kind is VanillaFFN else [{"bits": 0}, {"bits": 1, "tables": 100}]:
        ffn = kind.from_dense(weights, "silu", **settings).eval()
        torch.testing.assert_close(ffn(x), wanted, atol=1e-5, rtol=1e-5)
        if isinstance(ffn, SlideFFN):
            assert ffn.statistics(x).retrieved_per_token == 60
            ffn.chunk = 4
            torch.testing.assert_close(ffn(x), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_only_the_neurons_of_the_chunks_buckets_take_part(chunk: int) -> None:
    torch.manual_seed(0)
    ffn = SlideFFN(16, 12, d_hidden=100, activation="relu", bits=4, tables=3, chunk=chunk).train()
    nn.init.normal_(ffn.gate.bias)
    ffn.rebuild()
    x = torch.randn(10, 16)
    found = same_bucket(ffn, x)
    for start in range(0, 10, chunk):
        found[start : start + chunk] = found[start : start + chunk].any(0)
    y = ffn(x)
    wanted = (torch.relu(ffn.gate(x)) * found) @ ffn.down + ffn.bias
    torch.testing.assert_close(y, wanted)
    assert 0 < found.double().mean() < 1
    assert ffn.statistics().computed_in_training == pytest.approx(found.double().sum(1).mean().item())
    mixed = torch.randn(10, 12)
    parameters = [p for p in ffn.parameters() if p.requires_grad]
    got = torch.autograd.grad((y * mixed).sum(), parameters)
    for a, b in zip(got, torch.autograd.grad((wanted * mixed).sum(), parameters), strict=True):
        torch.testing.assert_close(a, b)
    gate = got[[name for name, _ in ffn.named_parameters()].index("gate.weight")]
    assert not gate[~found.any(0)].any()


def test_one_token_is_computed_as_among_others() -> None:
    torch.manual_seed(0)
    ffn = SlideFFN(32, gated=True).eval()
    x = torch.randn(5, 32)
    with torch.no_grad():
        together = ffn(x)
        torch.testing.assert_close(torch.stack([ffn(token) for token in x]), together, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_dtypes(kind: type[VanillaFFN]) -> None:
    ffn = kind(16, 24, d_hidden=40)
    for shape in ((0, 16), (2, 0, 16), (16,), (1, 16), (2, 3, 16)):
        assert ffn(torch.randn(shape)).shape == (*shape[:-1], 24)
    with torch.no_grad():
        assert ffn.eval()(torch.randn(3, 16, dtype=torch.bfloat16)).dtype == torch.bfloat16
    with torch.inference_mode():
        ffn(torch.randn(3, 16))
    with torch.autocast("cpu", torch.bfloat16):
        ffn.train()(torch.randn(3, 16)).sum().backward()
    narrow = kind(16).to(torch.bfloat16)
    narrow(torch.randn(3, 16, dtype=torch.bfloat16)).sum().backward()
    assert narrow.gate.weight.grad is not None


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"d_hidden": 0}, "d_hidden"), ({"activation": "elu"}, "activation"), ({"bits": 17}, "bits"),
        ({"tables": 0}, "tables"), ({"chunk": 1.5}, "chunk"), ({"rebuild_every": 0}, "rebuild_every"),
        ({"rebuild_growth": -1.0}, "rebuild_growth"), ({"threshold": -0.1}, "threshold"), ({"top": 2.0}, "top"),
        ({"samples": 0}, "samples"),
    ],
)  # fmt: skip
def test_settings_out_of_range(settings: dict[str, float], where: str) -> None:
    with pytest.raises(CompressError, match=where):
        MongooseFFN(16, **settings)


def test_buckets_hold_each_neuron_once_a_table() -> None:
    torch.manual_seed(0)
    buckets, vectors = Buckets(50, 8, 3, 4), torch.randn(50, 8)
    buckets.build(vectors)
    codes = buckets.code(vectors, constant=False)
    assert buckets.sizes.sum(1).tolist() == [50] * 4
    for table in range(4):
        for code in range(8):
            start, end = buckets.offsets[table, code : code + 2].tolist()
            held = buckets.order[table, start:end].tolist()
            assert held == (codes[:, table] == code).nonzero().view(-1).tolist()
    assert buckets.changed(vectors, slice(None)) == 0
    assert buckets.changed(-vectors, slice(None)) == 1


def steps_of_rebuilds(schedule: GrowingSchedule, steps: int) -> list[int]:
    return [step for step in range(1, steps + 1) if schedule.step(lambda check: 0.0)]


def test_slides_intervals_grow() -> None:
    assert steps_of_rebuilds(GrowingSchedule(10, 0.5), 100) == [10, 26, 53, 98]
    assert steps_of_rebuilds(GrowingSchedule(1, 0.0), 5) == [1, 2, 3, 4, 5]


def test_drift_is_looked_at_on_time_and_acted_on_above_the_threshold() -> None:
    schedule, drifts = DriftSchedule(5, 0.2), iter([0.1, 0.2, 0.3, 0.0])
    assert [step for step in range(1, 21) if schedule.step(lambda check: next(drifts))] == [15]
    assert (schedule.steps, schedule.rebuilds, schedule.checks) == (20, 1, 4)


def train(ffn: nn.Module, steps: int, *, lr: float = 1e-2, decay: bool = False, seed: int = 0) -> None:
    """Fit a fixed smooth map with Adam, on batches that come from a seed."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(16, 16, generator=torch.Generator().manual_seed(99))
    optimiser = torch.optim.Adam(ffn.parameters(), lr=lr)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps if decay else 1 << 30)
    ffn.train()
    for _ in range(steps):
        x = torch.randn(64, 16, generator=generator)
        (ffn(x) - torch.tanh(x @ target)).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
        rate.step()


def test_a_step_is_counted_once_however_often_the_same_weights_run() -> None:
    torch.manual_seed(0)
    ffn, x = SlideFFN(16, rebuild_every=2, rebuild_growth=0.0), torch.randn(4, 16)
    for fused in (False, True):
        optimiser = torch.optim.Adam(ffn.parameters(), fused=fused)
        before = ffn.schedule.steps
        for _ in range(3):
            ffn(x).sum().backward()
            ffn(x).sum().backward()  # accumulation
            with torch.no_grad():
                ffn(x)
            ffn.eval()(x)
            ffn.train()
            optimiser.step()
        assert ffn.schedule.steps == before + 3
    assert ffn.schedule.rebuilds == 3


@pytest.mark.parametrize("kind", HASHED)
@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_in_the_backward_pass_sees_the_same_tables(kind: type[SlideFFN], reentrant: bool) -> None:
    gradients = []
    for again in (False, True):
        torch.manual_seed(0)
        ffn = kind(16, bits=3, tables=2, chunk=4)
        ffn.schedule = GrowingSchedule(1, 0.0)  # built again at every step
        train(ffn, 3)
        x = torch.randn(9, 16, requires_grad=True)
        y = checkpoint(ffn, x, use_reentrant=reentrant) if again else ffn(x)
        y.square().sum().backward()
        assert ffn.schedule.steps == 4
        gradients.append([x.grad, *(p.grad for p in ffn.parameters())])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", HASHED)
def test_training_goes_on_from_a_state_dict_as_if_it_had_not_stopped(kind: type[SlideFFN]) -> None:
    def make(seed: int) -> SlideFFN:
        torch.manual_seed(seed)
        ffn = kind(16, bits=3, tables=4, chunk=8)
        if kind is SlideFFN:
            ffn.schedule = GrowingSchedule(3, 0.1)
        else:
            ffn.schedule = DriftSchedule(3, 0.01)
        return ffn

    ffn, again = make(0), make(1)
    train(ffn, 10)
    x = torch.randn(20, 16)
    assert not torch.equal(ffn.eval()(x), again.eval()(x))
    again.load_state_dict(ffn.state_dict())
    assert torch.equal(ffn(x), again(x))
    train(ffn, 10, seed=1)
    train(again, 10, seed=1)
    assert ffn.schedule.rebuilds > 2
    for (name, a), b in zip(ffn.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_bytes(kind: type[VanillaFFN]) -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        ffn = kind(16, d_hidden=48)
        train(ffn, 5)
        states.append(ffn.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))


def test_an_attached_loss_changes_no_output_and_is_added_to_the_gradient() -> None:
    x, w = torch.randn(5, requires_grad=True), torch.randn(3, requires_grad=True)
    y = attach(2 * x, w.square().sum())
    assert torch.equal(y, 2 * x)
    (3 * y).sum().backward()
    assert torch.equal(x.grad, torch.full((5,), 6.0))
    torch.testing.assert_close(w.grad, 2 * w.detach())


def test_mongooses_loss_reaches_the_projection_and_nothing_else() -> None:
    torch.manual_seed(0)
    mongoose, x = MongooseFFN(32, bits=4, tables=4), torch.randn(40, 32)
    slide = SlideFFN(32, bits=4, tables=4)
    slide.load_state_dict(mongoose.state_dict() | slide.schedule.state_dict(prefix="schedule."), strict=False)
    assert torch.equal(mongoose(x), slide(x))
    mongoose(x).square().sum().backward()
    slide(x).square().sum().backward()
    for name, parameter in slide.named_parameters():
        assert torch.equal(parameter.grad, mongoose.get_parameter(name).grad), name
    (wanted,) = torch.autograd.grad(mongoose.hash_loss(x), mongoose.projection)
    torch.testing.assert_close(mongoose.projection.grad, wanted)
    assert wanted.abs().sum() > 0
    mongoose.zero_grad()
    mongoose.eval()(x).sum().backward()
    assert mongoose.projection.grad is None


def test_the_triplet_loss_counts_missed_large_and_retrieved_small_neurons() -> None:
    query, key = torch.tensor([[[9.0, 9.0]]]), torch.tensor([[[9.0, 9.0]], [[9.0, -9.0]], [[-9.0, -9.0]], [[9.0, 9.0]]])
    near = similarity(query, key)
    torch.testing.assert_close(near, torch.tensor([[1.0, 0.0, -1.0, 1.0]]) * math.tanh(1.0) ** 2)
    products = torch.tensor([[-1.0, 1.0, 5.0, 3.0]])  # neuron 2 is the largest, 0 is small
    retrieved = torch.tensor([[True, False, False, True]])
    loss = triplet_loss(query, key, products, retrieved, top=0.25, pairs=2, margin=1.0)
    torch.testing.assert_close(loss, near[0, 0] - near[0, 2] + 1)
    found = torch.tensor([[False, False, True, False]])
    assert triplet_loss(query, key, products, found, top=0.25, pairs=2, margin=1.0) == 0


def test_mongoose_finds_more_of_the_large_neurons_with_no_more_retrieved() -> None:
    """On inputs that lie in a subspace, with the weights fixed, so that only the hash learns."""
    torch.manual_seed(0)
    weights = dense(32, 256)
    basis = torch.randn(6, 32)
    held_out = torch.randn(500, 6) @ basis

    def measured(ffn: SlideFFN) -> tuple[float, float]:
        found = ffn.statistics(held_out, top=0.02)
        assert found.retrieved_per_token is not None
        assert found.recall is not None
        return found.retrieved_per_token, found.recall

    mongoose = MongooseFFN.from_dense(weights, "gelu", bits=6, tables=10)
    mongoose.schedule = GrowingSchedule(10, 0.0)
    optimiser = torch.optim.Adam([mongoose.projection], lr=3e-3)
    before = measured(mongoose)
    for _ in range(150):
        mongoose(torch.randn(64, 6) @ basis).sum().backward()
        optimiser.step()
        optimiser.zero_grad()
    mongoose.rebuild()
    retrieved, recall = measured(mongoose)
    slides = [measured(SlideFFN.from_dense(weights, "gelu", bits=6, tables=tables)) for tables in (8, 12, 16, 24)]
    at_most = [found for size, found in slides if size >= retrieved]
    assert at_most
    assert recall > min(at_most) + 0.1
    assert recall > before[1] + 0.1


def test_mongoose_rehashes_less_often_than_slide() -> None:
    """In the same training, with a learning rate that falls; and it finds as much with no more retrieved."""
    found = []
    for kind in HASHED:
        torch.manual_seed(0)
        ffn = kind(16, d_hidden=128)
        train(ffn, 400, decay=True, lr=3e-3)
        found.append(ffn.statistics(torch.randn(200, 16)))
    slide, mongoose = found
    assert slide.training_steps == mongoose.training_steps == 400
    assert 0 < mongoose.rebuilds < slide.rebuilds
    assert mongoose.retrieved_per_token <= slide.retrieved_per_token
    assert mongoose.recall > slide.recall - 0.05
    assert mongoose.outdated < 0.3


def test_the_cost_of_rebuilding_is_counted() -> None:
    slide = SlideFFN(16, bits=4, tables=5, rebuild_every=1, rebuild_growth=0.0)
    train(slide, 3)
    one = 64 * 4 * 5 * 17  # additions: the projection is +1 and -1
    assert slide.statistics().rebuild_multiply_adds == 3 * one / 2
    assert slide.statistics().learning_multiply_adds == 0
    mongoose = MongooseFFN(16, bits=4, tables=5, check_every=1, threshold=1.0, samples=8)
    train(mongoose, 3)
    assert mongoose.statistics().learning_multiply_adds == 3 * (8 * 64 * 17 + 2 * 72 * 20 * 17 + 3 * 8 * 64 * 20)
    assert mongoose.statistics().rebuilds == 0
    assert mongoose.statistics().rebuild_multiply_adds == 3 * one / 4  # a look is at every fourth neuron


def test_skew_is_of_the_fullest_bucket() -> None:
    ffn = SlideFFN(8, d_hidden=64, bits=4, tables=2)
    with torch.no_grad():
        ffn.gate.weight.copy_(torch.randn(8).expand(64, 8))  # all neurons alike
    ffn.rebuild()
    found = ffn.statistics()
    assert (found.largest_over_mean, found.buckets_used) == (16, 1 / 16)
    assert found.recall is None


def test_costs() -> None:
    vanilla = VanillaFFN(16, d_hidden=40, activation="relu")
    assert costs(vanilla) == Costs(40 * 32, (40 * 32 + 56) * 4, 40 * 32 + 56)
    slide = SlideFFN(16, d_hidden=64, activation="relu", bits=3, tables=4)
    expected = 64 * (1 - (7 / 8) ** 4)
    assert costs(slide).multiply_adds == pytest.approx(3 * 4 * 17 / 2 + expected * 32)
    slide.eval()(torch.randn(100, 16))
    computed = slide.statistics().computed
    assert costs(slide).multiply_adds == pytest.approx(3 * 4 * 17 / 2 + computed * 32)
    lookup = LookupFFN(16, tables=4, bits=3, block=4)
    numbers = sum(p.numel() for p in lookup.parameters())
    g = lookup.geometry
    assert costs(lookup) == Costs(budget.cost(g), budget.bytes_per_token(g, "float32", "float32"), numbers)
    assert costs(pack(lookup)).bytes_read == budget.bytes_per_token(g)
    assert costs(nn.Sequential(vanilla, nn.ReLU(), lookup)) == costs(vanilla) + costs(lookup)
    with pytest.raises(CompressError, match="holds no feed-forward network"):
        costs(nn.Linear(2, 2))
