"""Find a recipe, read it, apply `--set` overrides and resolve its paths."""

from __future__ import annotations

import copy
import difflib
import glob
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..hub import is_hub_id
from ..untrusted import is_inside, links_outside
from .check import validate
from .document import Document, apply_override, read_document
from .settings import HUB, Recipe

_NAME = ("data", "name")
_PATHS = (("data", "path"), ("eval", "data"), _NAME)


def bundled_recipes() -> dict[str, Path]:
    """Names and files of the recipes that come with the program, in alphabetical order."""
    folder = Path(str(resources.files("compress.recipes")))
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def load_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a file, or a bundled one by its name, with `--set` overrides (`a.b=c`). Raises RecipeError.

    A path inside it starts at the recipe file and cannot leave that file's folder, also not by a link; one given by an
    override, or to a bundled recipe, is the user's own and starts at the working directory.
    """
    text, folder = find_text(recipe, bundled_recipes(), "recipe")
    return parse_recipe(text, str(recipe), folder=folder, overrides=overrides)


def find_text(given: str | Path, bundled: Mapping[str, Path], noun: str) -> tuple[str, Path | None]:
    """Read a file, or a bundled one by its name; its text and its folder, None where it is bundled.

    Raises RecipeError where there is neither.
    """
    path = Path(given).expanduser()
    if not path.is_file() and str(given) in bundled:
        return bundled[str(given)].read_text(encoding="utf-8"), None
    try:
        return path.read_text(encoding="utf-8-sig"), path.parent
    except OSError as error:
        close = difflib.get_close_matches(str(given), bundled, n=1)
        raise RecipeError(
            f"cannot read the {noun} {given}: {error.strerror or error}",
            where=str(given),
            remedy=f"did you mean the bundled {noun} {close[0]}?" if close
            else f"give a YAML file or a bundled {noun}: {', '.join(bundled)}",
        ) from None  # fmt: skip
    except UnicodeDecodeError:
        raise RecipeError(f"the {noun} is not UTF-8 text", where=str(given), remedy="save it as UTF-8") from None


def parse_recipe(text: str, name: str, *, folder: Path | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe's text; `name` stands for it in messages. Raises RecipeError.

    `folder` is where its paths start, and what they cannot leave; None: they start at the working directory.
    """
    document = read_document(text, name)
    for assignment in overrides:
        apply_override(document, assignment)
    recipe = validate(with_paths(document, folder), Recipe)
    recipe._text = text
    return recipe


def restore_recipe(values: dict[str, Any], text: str, name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read back what `Recipe.stored` gave, and the text it came from, and apply more overrides. Raises RecipeError."""
    document = Document(name, copy.deepcopy(values))
    for assignment in overrides:
        apply_override(document, assignment)
    recipe = validate(with_paths(document, None), Recipe)
    recipe._text = text
    return recipe


def with_paths(document: Document, folder: Path | None, paths: Sequence[tuple[str, ...]] = _PATHS) -> Document:
    """Make paths absolute, in place; those written in a file cannot leave its folder. Raises RecipeError."""
    for key in paths:
        holder: Any = document.values
        for part in key[:-1]:
            holder = holder.get(part) if isinstance(holder, dict) else None
        path = holder.get(key[-1]) if isinstance(holder, dict) else None
        if not isinstance(path, str):
            continue
        own = folder is None or document.place(key).text.startswith("--set")
        try:
            if not path:
                raise ValueError("it is empty")
            if path.startswith(HUB) or key == _NAME:
                if not own and not is_hub_id(re.split("[:@]", path.removeprefix(HUB))[0]):
                    raise _Outside(path)  # the library for data sets would read a folder of this machine
            else:
                holder[key[-1]] = _located(path) if own or folder is None else _located_in(path, folder)
        except (OSError, ValueError, RuntimeError) as error:  # too long, a null, someone without a home
            raise RecipeError(
                f"no path: {error}", where=document.where(key), remedy="give a file, a folder or a glob"
            ) from None
        except _Outside as outside:
            raise RecipeError(
                f"{outside} lies outside the {document.noun}'s folder: a {document.noun} cannot name it",
                where=document.where(key),
                remedy=f"put it beside the {document.noun}, or give it on the command line: --set {'.'.join(key)}=PATH",
            ) from None  # fmt: skip
    return document


class _Outside(Exception):
    """A path that leaves the recipe's folder."""


def _located(path: str) -> str:
    """Make a path absolute where something is; one that is nowhere stays as written, for whoever opens it to report."""
    candidate = Path(path).expanduser().absolute()
    return str(candidate) if _existing(candidate) else path


def _located_in(path: str, folder: Path) -> str:
    """Make a path that starts at `folder` absolute. Raises _Outside where it, or a file that it names, is elsewhere."""
    candidate = Path(path)
    if candidate.is_absolute() or ".." in candidate.parts or path.startswith("~"):
        raise _Outside(path)
    candidate = (folder / candidate).absolute()
    for hit in _existing(candidate):
        if not is_inside(folder, hit):
            raise _Outside(hit.name)
        if hit.is_dir() and (links := links_outside(hit)):
            raise _Outside(f"{hit.name}/{links[0]}")
    return str(candidate)


def _existing(path: Path) -> list[Path]:
    if path.exists():
        return [path]
    return [Path(hit) for hit in glob.glob(str(path), recursive=True)] if glob.has_magic(str(path)) else []
