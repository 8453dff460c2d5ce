"""Find a recipe, read it, apply `--set` overrides and resolve its paths."""

from __future__ import annotations

import copy
import difflib
import glob
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from .check import validate
from .document import Document, apply_override, read_document
from .settings import HUB, Recipe

_PATHS = (("data", "path"), ("eval", "data"))


def bundled_recipes() -> dict[str, Path]:
    """Names and files of the recipes that come with the program, in alphabetical order."""
    folder = Path(str(resources.files("compress.recipes")))
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def load_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a file, or a bundled one by its name, with `--set` overrides (`a.b=c`). Raises RecipeError.

    A relative path inside it is looked for beside the recipe file first and then in the working directory; one given by
    an override or to a bundled recipe is relative to the working directory.
    """
    bundled = bundled_recipes()
    path = Path(recipe).expanduser()
    if not path.is_file() and str(recipe) in bundled:
        return parse_recipe(bundled[str(recipe)].read_text(encoding="utf-8"), str(recipe), overrides=overrides)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        close = difflib.get_close_matches(str(recipe), bundled, n=1)
        raise RecipeError(
            f"cannot read the recipe {recipe}: {error.strerror or error}",
            where=str(recipe),
            remedy=f"did you mean the bundled recipe {close[0]}?" if close
            else f"give a YAML file or a bundled recipe: {', '.join(bundled)}",
        ) from None  # fmt: skip
    except UnicodeDecodeError:
        raise RecipeError("the recipe is not UTF-8 text", where=str(recipe), remedy="save it as UTF-8") from None
    return parse_recipe(text, str(recipe), folder=path.parent, overrides=overrides)


def parse_recipe(text: str, name: str, *, folder: Path | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe's text; `name` stands for it in messages, `folder` is where its paths start. Raises RecipeError."""
    document = read_document(text, name)
    for assignment in overrides:
        apply_override(document, assignment)
    recipe = validate(_with_paths(document, folder))
    recipe._text = text
    return recipe


def restore_recipe(values: dict[str, Any], text: str, name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read back what `Recipe.stored` gave, and the text it came from, and apply more overrides. Raises RecipeError."""
    document = Document(name, copy.deepcopy(values))
    for assignment in overrides:
        apply_override(document, assignment)
    recipe = validate(_with_paths(document, None))
    recipe._text = text
    return recipe


def _with_paths(document: Document, folder: Path | None) -> Document:
    for section, key in _PATHS:
        holder: Any = document.values.get(section)
        path = holder.get(key) if isinstance(holder, dict) else None
        if isinstance(path, str) and path and not path.startswith(HUB):
            overridden = document.place((section, key)).text.startswith("--set")
            holder[key] = _located(path, None if overridden else folder)
    return document


def _located(path: str, folder: Path | None) -> str:
    """Make a path absolute where something is; one that is nowhere stays as written, for whoever opens it to report."""
    given = Path(path).expanduser()
    for base in (folder, Path.cwd()):
        if base is not None:
            candidate = (base / given).absolute()
            if candidate.exists() or (glob.has_magic(path) and glob.glob(str(candidate), recursive=True)):
                return str(candidate)
    return path
