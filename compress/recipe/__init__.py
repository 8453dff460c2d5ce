"""Recipes: what a conversion does, as frozen settings read from YAML; every mistake is named with its line."""

from .load import bundled_recipes, load_recipe, parse_recipe, restore_recipe
from .matching import included_names, match_sites, patterns_for
from .settings import (
    DataSettings,
    DistillSettings,
    EvalSettings,
    FinetuneSettings,
    FitSettings,
    LookupSettings,
    Override,
    PackSettings,
    Recipe,
    SitesSettings,
)

__all__ = [
    "DataSettings",
    "DistillSettings",
    "EvalSettings",
    "FinetuneSettings",
    "FitSettings",
    "LookupSettings",
    "Override",
    "PackSettings",
    "Recipe",
    "SitesSettings",
    "bundled_recipes",
    "included_names",
    "load_recipe",
    "match_sites",
    "parse_recipe",
    "patterns_for",
    "restore_recipe",
]
