"""Plain values -> validated settings; a mistake is told with its place, what was expected and the nearest known key."""

from __future__ import annotations

import difflib
import json
import types
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ValidationError

from ..errors import RecipeError
from .document import Document, KeyPath, dotted
from .settings import VERSION

Root = TypeVar("Root", bound=BaseModel)

_TYPES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


def validate(document: Document, root: type[Root]) -> Root:
    """Check a document against the settings of `root`. Raises RecipeError for the first mistake, naming the others."""
    _check_version(document)
    try:
        return root.model_validate(document.values)
    except ValidationError as error:
        mistakes: dict[KeyPath, tuple[str, str]] = {}
        for detail in error.errors(include_url=False):
            path = _written_path(detail["loc"], document.values)
            mistakes.setdefault(path, _explain(root, path, detail))
        first, *others = sorted(mistakes, key=lambda path: (document.place(path).order, dotted(path)))
        message, remedy = mistakes[first]
        if others:
            message += "\n  wrong too: " + "; ".join(document.where(path) for path in others)
        raise RecipeError(message, where=document.where(first), remedy=remedy) from None


def _check_version(document: Document) -> None:
    version = document.values.get("version")
    where = document.where(("version",))
    if version is None:
        raise RecipeError(
            f"the {document.noun} has no version", where=document.name, remedy=f"add `version: {VERSION}`"
        )
    if type(version) is int and version > VERSION:
        raise RecipeError(
            f"the {document.noun} is of version {version}; this program reads version {VERSION}",
            where=where,
            remedy="upgrade compress-lookup, or write it for this version",
        )
    if type(version) is not int or version != VERSION:
        raise RecipeError(
            f"{_shown(version)} is no {document.noun} version", where=where, remedy=f"write `version: {VERSION}`"
        )


def _written_path(location: tuple[int | str, ...], values: Any) -> KeyPath:
    """Cut pydantic's location where it stops naming written keys (it goes on into the branches of a union)."""
    path: list[int | str] = []
    for part in location:
        if not (part in values if isinstance(values, dict) else isinstance(values, list) and isinstance(part, int)):
            break
        path.append(part)
        values = values[part]
    return tuple(path)


def _explain(root: type[BaseModel], path: KeyPath, detail: Any) -> tuple[str, str]:
    key = dotted(path)
    kind, value = detail["type"], detail["input"]
    if kind == "missing":
        return f"the key `{dotted(detail['loc'])}` is missing", "add it"
    if kind == "extra_forbidden":
        return f"unknown key `{key}`", _nearest(root, path)
    if kind == "refused":
        return detail["msg"], detail["ctx"]["remedy"]
    return f"`{key}` must be {expected(_annotation_at(root, path))}; it is {_shown(value)}", _remedy(root, path, value)


def _remedy(root: type[BaseModel], path: KeyPath, value: Any) -> str:
    """Propose the literal that was meant, or the default."""
    close = difflib.get_close_matches(str(value), _literals(_annotation_at(root, path)), n=1, cutoff=0.6)
    if close:
        return f"did you mean `{close[0]}`?"
    field = _section_at(root, path[:-1]).model_fields.get(str(path[-1]))
    if field is None:
        return "change or remove this entry"
    if isinstance(field.default, str | int | float) and path[0] != "overrides":
        return f"change it, or remove the key for the default, {_plain(field.default)}"
    return "change or remove the key"


def _literals(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    return [name for inner in get_args(annotation) for name in _literals(inner)]


def _nearest(root: type[BaseModel], path: KeyPath) -> str:
    section = _section_at(root, path[:-1])
    known = list(section.model_fields)
    name = str(path[-1])
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean `{dotted((*path[:-1], close[0]))}`?"
    homes = [
        other
        for other, field in root.model_fields.items()
        if isinstance(field.annotation, type)
        and issubclass(field.annotation, BaseModel)
        and name in field.annotation.model_fields
    ]
    if homes:
        return "it belongs to " + " or ".join(f"`{home}.{name}`" for home in homes)
    return f"known here: {', '.join(known)}"


def _section_at(root: type[BaseModel], path: KeyPath) -> type[BaseModel]:
    section = root
    for part in path:
        if isinstance(part, str):
            section = _section_in(section.model_fields[part].annotation) or section
    return section


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _section_in(inner))), None)


def _annotation_at(root: type[BaseModel], path: KeyPath) -> Any:
    """Find what a key accepts, bounds included; an index leads to the elements of a list."""
    annotation: Any = root
    for part in path:
        if get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
        elif isinstance(part, str):
            field = (_section_in(annotation) or root).model_fields[part]
            annotation = field.annotation
            if field.metadata:
                annotation = Annotated[annotation, *field.metadata]
        else:
            annotation = _element(annotation)
    return annotation


def _element(annotation: Any) -> Any:
    if get_origin(annotation) is tuple:
        return get_args(annotation)[0]
    return next((found for inner in get_args(annotation) if (found := _element(inner)) is not None), None)


def expected(annotation: Any) -> str:
    """Say in words what an annotation accepts: `a whole number from 1 to 16 or auto`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner, *metadata = arguments
        return expected(inner) + _bounds(metadata)
    if origin in (Union, types.UnionType):
        return " or ".join(expected(branch) for branch in arguments)
    if origin is Literal:
        names = [str(value) for value in arguments]
        return names[0] if len(names) == 1 else f"one of {', '.join(names)}"
    if origin is dict:
        return "a section of names"
    if origin is tuple:
        return f"a list, each entry {expected(arguments[0]).split(' with ')[0]}"
    section = _section_in(annotation)
    if section:
        return f"a section with keys of {', '.join(section.model_fields)}"
    return _TYPES[annotation]


def _bounds(metadata: list[Any]) -> str:
    bounds = {type(bound): bound for bound in metadata if isinstance(bound, Ge | Gt | Le | Lt)}
    low, high = bounds.get(Ge) or bounds.get(Gt), bounds.get(Le) or bounds.get(Lt)
    if isinstance(low, Ge) and isinstance(high, Le):
        return f" from {low.ge} to {high.le}"
    words = {Ge: "of at least {}", Gt: "above {}", Le: "of at most {}", Lt: "below {}"}
    limits = {Ge: "ge", Gt: "gt", Le: "le", Lt: "lt"}
    said = [words[type(bound)].format(getattr(bound, limits[type(bound)])) for bound in (low, high) if bound]
    return " " + " and ".join(said) if said else ""


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return f"the text '{value}'"
    if isinstance(value, dict | list | tuple):
        return "a section" if isinstance(value, dict) else "a list"
    return _plain(value)


def _plain(value: Any) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
