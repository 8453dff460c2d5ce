import copy
from dataclasses import replace
from pathlib import Path

import data_samples
import pico
import pytest
import torch
from families import FAMILIES, build
from torch import nn

from compress.dense import DenseWeights
from compress.distill.activations import Activations, Tap, check_reached, forward_to, observe
from compress.distill.endtoend import ANSWERS_A_WEIGHT, MOST_HIDDEN_WEIGHT, EndToEnd, answers_compared, hidden_weight
from compress.distill.objectives import BehindNorm, embedding_error, logits_divergence, mean_pool, output_error
from compress.distill.optimisation import Schedule, adam, scheduled, student_groups
from compress.errors import DataError
from compress.lookup import LookupFFN
from compress.padding import RealRows
from compress.recipe import FinetuneSettings
from compress.replace import replace_ffn
from compress.sites import example_inputs, find_norms, find_sites, site_weights, swap
from compress.tasks import Task


def taps(model: torch.nn.Module) -> list[Tap]:
    sites = find_sites(model)
    norms = find_norms(model, sites)
    return [Tap(site, norms[site.name]) for site in sites]


def test_bench_of_activations() -> None:
    trace = Activations(torch.arange(6.0).view(3, 2), torch.zeros(3, 1), torch.ones(3, 1))
    chosen = trace.rows(torch.tensor([2, 0]))
    assert len(chosen) == 2
    assert chosen.x.tolist() == [[4, 5], [0, 1]]


@pytest.mark.parametrize("family", sorted(pico.FAMILIES))
def test_a_trace_holds_inputs_answers_and_what_the_norm_sees(family: str) -> None:
    model = pico.FAMILIES[family]()
    for tap in taps(model):
        with torch.no_grad():
            inputs = example_inputs(model)
            trace = forward_to(model, tap, inputs)
        x, y, behind = trace.rows(RealRows(model, inputs), tap.stream)
        dense: DenseWeights = site_weights(model, tap.site)
        torch.testing.assert_close(dense.output(x, tap.site.activation), y, rtol=1e-4, atol=1e-5)
        assert tap.norm is not None
        assert behind.shape == y.shape
        assert not torch.equal(behind, y)


@pytest.mark.parametrize("family", sorted(pico.FAMILIES))
def test_a_whole_pass_holds_what_the_norms_make_of_it(family: str) -> None:
    model = pico.FAMILIES[family]()
    inputs, found = example_inputs(model), taps(model)
    with torch.no_grad(), observe(model, found) as traces:
        model(**inputs)
    real = RealRows(model, inputs)
    for tap in found:
        trace, norm = traces[tap.site.name], model.get_submodule(tap.norm)
        behind = trace.rows_behind(real, tap.stream)
        with torch.no_grad():
            torch.testing.assert_close(trace.rows_normed(real, tap.stream), norm(behind), rtol=1e-5, atol=1e-6)
        assert not torch.equal(trace.rows_normed(real, tap.stream), behind)


def test_data_that_never_reaches_a_site_is_refused() -> None:
    model = FAMILIES["clip"].make()
    text = taps(model.text_model)
    batch = {name: value for name, value in example_inputs(model).items() if name != "pixel_values"}
    check_reached(model.text_model, text, batch)
    both = nn.ModuleDict({"text": model.text_model, "vision": model.vision_model})
    both.forward = lambda **given: both["text"](**given)
    sites = [
        replace(tap.site, name=path, entry=path, output=path)
        for tap in text[:1]
        for path in ("text.encoder.layers.0.mlp.fc2", "vision.encoder.layers.0.mlp.fc2")
    ]
    with pytest.raises(DataError, match=r"never reaches vision\.encoder\.layers\.0\.mlp\.fc2"):
        check_reached(both, [Tap(site, None) for site in sites], batch)


def test_an_answer_that_the_model_adds_to_in_place_is_recorded_before() -> None:
    model = build(
        "FalconForCausalLM", "FalconConfig", vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        parallel_attn=True,
    )  # fmt: skip
    for tap in taps(model):
        with torch.no_grad():
            inputs = example_inputs(model)
            x, y, _ = forward_to(model, tap, inputs).rows(RealRows(model, inputs), tap.stream)
        torch.testing.assert_close(
            site_weights(model, tap.site).output(x, tap.site.activation), y, rtol=1e-4, atol=1e-5
        )


def test_the_pass_ends_behind_the_last_tap() -> None:
    model = pico.llama()
    first = taps(model)[0]
    reached = []
    model.lm_head.register_forward_hook(lambda *_: reached.append(True))
    with torch.no_grad():
        forward_to(model, first, example_inputs(model))
    assert not reached
    with torch.no_grad(), observe(model, [first]):
        model(**example_inputs(model))
    assert reached


def test_hooks_do_not_stay() -> None:
    model = pico.bert()
    with torch.no_grad():
        forward_to(model, taps(model)[1], example_inputs(model))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_students_answers_are_seen_in_a_converted_model() -> None:
    model = pico.bert()
    tap = taps(model)[0]
    student = LookupFFN(32, tables=2, bits=2, projection="dense")
    swap(model, tap.site, student)
    with torch.no_grad():
        inputs = example_inputs(model)
        x, y, _ = forward_to(model, tap, inputs).rows(RealRows(model, inputs), tap.stream)
        torch.testing.assert_close(student(x), y)


def test_hidden_states_count_beside_the_output_by_their_weight() -> None:
    dense = pico.llama()
    converted, found, inputs = copy.deepcopy(dense), taps(dense), example_inputs(dense)
    for tap in found:
        swap(converted, tap.site, LookupFFN(32, tables=2, bits=2, projection="dense"))
    scales = {tap.site.name: 1.0 for tap in found}

    def error(weight: float) -> float:
        settings = FinetuneSettings(hidden_weight=weight)
        return float(EndToEnd(dense, converted, found, "causal", settings, scales, 1.0).error(inputs).detach())

    output, both = error(0.0), error(1.0)
    hidden = 2 * both - output
    assert output != pytest.approx(hidden)
    assert error(10.0) == pytest.approx((10 * hidden + output) / 11)


def test_hidden_states_count_the_less_the_more_answers_there_are_for_each_weight() -> None:
    sites = find_sites(pico.llama())
    weights = 2 * 3 * 32 * 88  # two layers of gate, up and down
    auto = FinetuneSettings()
    assert hidden_weight(auto, sites, 1.0) == MOST_HIDDEN_WEIGHT
    assert hidden_weight(auto, sites, 10 * weights) == pytest.approx(ANSWERS_A_WEIGHT / 10)
    assert hidden_weight(auto, sites, 20 * weights) == pytest.approx(ANSWERS_A_WEIGHT / 20)
    assert hidden_weight(auto.model_copy(update={"hidden_weight": 3.0}), sites, 10 * weights) == 3.0
    assert hidden_weight(auto, sites, 0.0) == MOST_HIDDEN_WEIGHT  # nothing is trained


@pytest.mark.parametrize(
    ("task", "answers"), [("causal", 5 * 256), ("image-classification", 5 * 8), ("embedding", 5 * 8), ("other", 5 * 8)]
)
def test_a_model_answers_at_every_token_or_once_for_each_example(tmp_path: Path, task: Task, answers: float) -> None:
    corpus = data_samples.corpus(data_samples.write_lines(tmp_path / "text.txt", 300), "gpt2", sequence_length=32)
    split = replace(corpus.train, rows=corpus.train.rows[:64])  # eight windows of 32 tokens a batch
    settings = FinetuneSettings(steps=5, batch_tokens=256)
    assert answers_compared(split, task, settings) == answers


def test_error_behind_the_norm_is_one_for_the_mean_and_zero_for_the_goal() -> None:
    torch.manual_seed(0)
    residual, answer = torch.randn(200, 8), 3 * torch.randn(200, 8) + 1
    data = Activations(torch.zeros(200, 1), residual, residual + answer)
    objective = BehindNorm(torch.nn.LayerNorm(8))
    objective.calibrate(data)
    assert float(objective(answer.mean(0).expand_as(answer), data)) == pytest.approx(1.0)
    assert float(objective(answer, data)) == 0.0


def test_weights_are_the_first_order_of_the_error() -> None:
    torch.manual_seed(0)
    norm = torch.nn.LayerNorm(16)
    torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
    goal = torch.randn(4000, 16) * (0.5 + torch.rand(4000, 1))
    data = Activations(torch.zeros(4000, 1), torch.zeros_like(goal), goal)
    objective = BehindNorm(norm)
    token, channel = objective.weights(data)
    noise = 1e-3 * torch.randn_like(goal)
    noise -= noise.mean(-1, keepdim=True)
    exact = float(objective(goal + noise, data))
    estimate = float((token[:, None] * (noise * channel).square()).mean())
    assert estimate == pytest.approx(exact, rel=0.2)  # the norm removes one direction of sixteen more


def test_outputs_of_the_teacher_cost_nothing() -> None:
    logits = torch.randn(3, 5, 7)
    assert float(logits_divergence(logits.view(-1, 7), logits.view(-1, 7), 2.0)) == pytest.approx(0.0, abs=1e-6)
    pooled = torch.randn(4, 6)
    assert float(embedding_error(pooled, 2 * pooled)) == pytest.approx(0.0, abs=1e-6)


def test_pooling_and_logits_skip_padding() -> None:
    hidden, keep = torch.randn(2, 3, 4), torch.tensor([[True, True, False], [True, True, True]])
    pooled = mean_pool(hidden, keep)
    torch.testing.assert_close(pooled[0], hidden[0, :2].mean(0))

    class Output:
        def __init__(self, logits: torch.Tensor) -> None:
            self.logits = logits

    ours, theirs = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    disturbed = ours.clone()
    disturbed[0, 2] += 9
    real = RealRows(pico.bert_masked(), {"attention_mask": keep})
    errors = [float(output_error("masked", real, Output(x), Output(theirs), 1.0)) for x in (ours, disturbed)]
    assert errors[0] == errors[1]


def test_schedule_rises_and_falls_to_nothing() -> None:
    shares = [scheduled(step, 100) for step in range(100)]
    assert max(shares) == 1.0
    assert shares[0] < 0.3
    assert shares[-1] < 0.01


def test_step_sizes_follow_the_scale_of_parameters() -> None:
    torch.manual_seed(0)
    small = LookupFFN(16, tables=4, bits=2, projection="lowrank", rank=4)
    large = copy.deepcopy(small)
    with torch.no_grad():
        large.linear.weight.mul_(100)
    rates = []
    for student in (small, large):
        names = [name for name, _ in student.named_parameters()]
        rates.append(dict(zip(names, (group["lr"] for group in student_groups(student, 0.01, 1.0)), strict=True)))
    assert rates[1]["linear.weight"] == pytest.approx(100 * rates[0]["linear.weight"])
    assert rates[1]["tables"] == rates[0]["tables"]
    optimiser = adam(student_groups(small, 0.01, 1.0))
    peaks = [group["lr"] for group in optimiser.param_groups]
    Schedule(optimiser, 10).set(9)
    assert all(group["lr"] < peak for group, peak in zip(optimiser.param_groups, peaks, strict=True))


def test_a_model_to_train_from_scratch() -> None:
    model = pico.llama()
    names = replace_ffn(model, tables=4, bits=3, block=8)
    assert names == ["layers.0.mlp.down_proj", "layers.1.mlp.down_proj"]
    model(**example_inputs(model)).logits.sum().backward()
    students = [m for m in model.modules() if isinstance(m, LookupFFN)]
    assert len(students) == 2
    assert all(torch.isfinite(s.tables.grad).all() for s in students)
