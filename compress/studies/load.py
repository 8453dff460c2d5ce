"""Find a study, read it, apply `--set` and resolve its paths."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from ..errors import RecipeError
from ..recipe.check import validate
from ..recipe.document import Document, apply_override, read_document
from ..recipe.load import find_text, with_paths
from .settings import KINDS, Study

_PATHS = (("data", "path"), ("data",))


def bundled_studies() -> dict[str, Path]:
    """Names and files of the studies that come with the program, in alphabetical order."""
    folder = Path(str(resources.files("compress.recipes.studies")))
    return {file.stem: file for file in sorted(folder.glob("*.yaml"), key=lambda file: file.stem)}


def load_study(study: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study from a file, or a bundled one by its name, with `--set` overrides. Raises RecipeError.

    A path inside it starts at the study's file and cannot leave that file's folder; one given by an override, or to a
    bundled study, is the user's own and starts at the working directory.
    """
    text, folder = find_text(study, bundled_studies(), "study")
    return parse_study(text, str(study), folder=folder, overrides=overrides)


def parse_study(text: str, name: str, *, folder: Path | None = None, overrides: Sequence[str] = ()) -> Study:
    """Read a study's text; `name` stands for it in messages. Raises RecipeError."""
    document = read_document(text, name, "study")
    for assignment in overrides:
        apply_override(document, assignment)
    kind = _kind(document)
    if folder is not None:
        for key in ("model", "recipe"):  # a folder or file beside the study, or else a name
            value = document.values.get(key)
            if isinstance(value, str) and not document.place((key,)).text.startswith("--set"):
                with_paths(document, folder, ((key,),)) if (folder / value).exists() else None
    study: Study = validate(with_paths(document, folder, _PATHS), KINDS[kind])
    return study


def _kind(document: Document) -> str:
    kind = document.values.get("kind")
    if isinstance(kind, str) and kind in KINDS:
        return kind
    close = difflib.get_close_matches(str(kind), KINDS, n=1)
    raise RecipeError(
        "the study does not say its kind" if kind is None else f"`{kind}` is no kind of study",
        where=document.where(("kind",)) if kind is not None else document.name,
        remedy=f"did you mean `kind: {close[0]}`?" if close else f"write one of kind: {', '.join(KINDS)}",
    )
