"""Mixture-of-experts layers are named and left alone; dense layers beside them are sites."""

from __future__ import annotations

import re

import families
import pytest
import torch
from torch import nn

from compress.errors import ModelError, RecipeError, SiteError
from compress.plan import choose_sites
from compress.recipe import Recipe, parse_recipe, patterns_for
from compress.sites import Site, find_experts, find_sites, listed


def recipe(include: str = '["*"]', exclude: str = "[]") -> Recipe:
    return parse_recipe(f"version: 1\nsites: {{include: {include}, exclude: {exclude}}}\n", "recipe.yaml")


def site(name: str, obstacle: str | None = None) -> Site:
    return Site(name, (), name, False, "gelu", 8, 16, 8, name, obstacle=obstacle)


@pytest.mark.parametrize("name", families.EXPERTS)
def test_a_mixture_of_experts_is_refused_with_its_layers(name: str) -> None:
    with pytest.raises(ModelError, match=r"mixture of experts in layers\.0\.mlp, layers\.1\.mlp:"):
        find_sites(families.EXPERTS[name]())


@pytest.mark.parametrize("name", families.MIXED)
def test_dense_layers_beside_experts_convert_where_the_recipe_includes_only_them(name: str) -> None:
    make, dense, experts = families.MIXED[name]
    model = make()
    sites = find_sites(model)
    assert [site.name for site in sites] == dense
    assert not any(site.obstacle for site in sites)
    assert find_experts(model) == experts
    with pytest.raises(ModelError, match=re.escape(listed(experts))) as caught:
        choose_sites(sites, recipe(), experts)
    include = (caught.value.remedy or "").partition("sites.include: ")[2]
    assert [name for name, chosen in choose_sites(sites, recipe(include), experts).items() if chosen] == dense
    left_out = "[" + ", ".join(f'"{path}"' for path in experts) + "]"
    assert set(choose_sites(sites, recipe(exclude=left_out), experts)) == set(dense)


def test_only_experts_that_the_recipe_includes_are_refused() -> None:
    sites, experts = [site("layers.0.mlp.down")], ["layers.1.mlp", "layers.2.mlp"]
    with pytest.raises(ModelError, match=r"in layers\.2\.mlp:"):
        choose_sites(sites, recipe('["layers.0.*", "layers.2.*"]'), experts)
    with pytest.raises(RecipeError, match="no site is left"):
        choose_sites(sites, recipe(exclude='["*"]'), experts)


def test_sites_that_cannot_be_replaced_are_refused_together_with_what_to_include() -> None:
    sites = [
        site("layers.0.conv.out", "a depth-wise convolution"),
        site("layers.0.mlp.down"),
        site("layers.1.mlp.down"),
    ]
    with pytest.raises(SiteError, match=r"layers\.0\.conv\.out cannot be replaced: a depth-wise") as caught:
        choose_sites(sites, recipe())
    assert 'sites.include: ["*.mlp.down"]' in (caught.value.remedy or "")
    assert choose_sites(sites, recipe('["*.mlp.down"]'))["layers.0.conv.out"] is None
    with pytest.raises(SiteError, match="convert another model"):
        choose_sites([site("layers.0.mlp.down", "welded in")], recipe())


def test_patterns_are_few_and_hit_nothing_else() -> None:
    names = [f"layers.{layer}.mlp.down" for layer in range(3)]
    assert patterns_for(names, ["layers.3.mlp"]) == ["*.mlp.down"]
    assert patterns_for(names, ["layers.3.mlp.down"]) == names
    assert patterns_for(["down"], []) == ["down"]
    assert listed([f"layers.{layer}.mlp" for layer in range(60)]) == (
        "layers.0.mlp, layers.1.mlp, layers.2.mlp and so on to layers.59.mlp (60 of them)"
    )


def test_what_is_stacked_without_being_experts() -> None:
    """Matrices a head, of a recurrence, and scales kept as [channels, 1, 1]."""

    def stacks(*shapes: tuple[int, int, int]) -> nn.Module:
        return nn.Sequential(nn.ParameterList(torch.zeros(shape) for shape in shapes))

    assert find_experts(stacks((4, 8, 8), (4, 8, 8))) == []
    assert find_experts(stacks((4, 1, 1), (4, 1, 1))) == []
    assert find_experts(stacks((4, 20, 8), (4, 8, 3))) == []  # from a head's features to a few of them
    assert find_experts(stacks((4, 24, 8), (4, 8, 12))) == ["0"]
    assert find_experts(stacks((4, 8, 12), (4, 12, 8))) == ["0"]
    assert find_experts(stacks((4, 8, 24), (4, 12, 8))) == ["0"]
