"""Which site gets which settings."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from ..errors import RecipeError
from .settings import LookupSettings, Override, Recipe


def included_names(recipe: Recipe, names: Sequence[str]) -> set[str]:
    """Names that `sites.include` hits and `sites.exclude` does not. Raises RecipeError where a pattern hits none."""
    included: set[str] = set()
    for pattern in recipe.sites.include:
        included |= _hits(pattern, names, "sites.include")
    for pattern in recipe.sites.exclude:
        included -= _hits(pattern, names, "sites.exclude")
    return included


def match_sites(recipe: Recipe, names: Sequence[str], experts: Sequence[str] = ()) -> dict[str, LookupSettings | None]:
    """Give every site, named in order of execution, its lookup settings, or None where it stays dense.

    `include`, then `exclude`, then `overrides` in their order, later ones over earlier ones. Patterns of the first two
    may hit `experts`, layers that are no sites. Raises RecipeError where a pattern hits nothing, a layer does not
    exist, an override reaches only excluded sites, or no site is left.
    """
    included = included_names(recipe, [*names, *experts]) - set(experts)
    settings: dict[str, LookupSettings | None] = {name: recipe.lookup if name in included else None for name in names}
    dense = set(names) - included
    for index, override in enumerate(recipe.overrides):
        chosen = _chosen(override, names, f"overrides.{index}")
        if not chosen & included:
            raise RecipeError(
                "the override reaches only sites that `sites` leaves out",
                where=f"overrides.{index}",
                remedy="remove it, or include these sites: " + ", ".join(sorted(chosen)),
            )
        for name in chosen & included:
            if override.keep_dense:
                dense.add(name)
            else:
                dense.discard(name)
                settings[name] = (settings[name] or recipe.lookup).model_copy(update=override.changes)
    if len(dense) == len(names):
        raise RecipeError(
            "no site is left to convert",
            where="sites, overrides",
            remedy="exclude fewer sites; the model has " + _listed(names),
        )
    return {name: None if name in dense else settings[name] for name in names}


def patterns_for(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """Patterns, few where they can be, that hit all the names and none of the others."""
    tails = [f"*.{name.rpartition(last)[2].lstrip('.')}" if (last := _last_number(name)) else name for name in names]
    patterns = list(dict.fromkeys(tails))
    missed = [name for name in names if not any(fnmatchcase(name, pattern) for pattern in patterns)]
    return list(names) if missed or any(fnmatchcase(o, p) for o in others for p in patterns) else patterns


def _last_number(name: str) -> str | None:
    numbers = [f".{part}." for part in name.split(".")[1:-1] if part.isdigit()]
    return numbers[-1] if numbers else None


def _chosen(override: Override, names: Sequence[str], where: str) -> set[str]:
    if override.sites:
        return set().union(*(_hits(pattern, names, f"{where}.sites") for pattern in override.sites))
    chosen = set()
    for layer in override.layers or ():
        if not -len(names) <= layer < len(names):
            raise RecipeError(
                f"there is no layer {layer}: the model has {len(names)} sites",
                where=f"{where}.layers",
                remedy=f"choose from {-len(names)} to {len(names) - 1}",
            )
        chosen.add(names[layer])
    return chosen


def _hits(pattern: str, names: Sequence[str], where: str) -> set[str]:
    found = {name for name in names if fnmatchcase(name, pattern)}
    if not found:
        message = f"the pattern {pattern!r} hits no site"
        raise RecipeError(message, where=where, remedy="the model has " + _listed(names))
    return found


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "no sites at all"
