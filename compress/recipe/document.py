"""YAML text <-> plain values, with the place of every value.

Scalars follow the core schema of YAML 1.2 (with `_` allowed between digits): `1e-3` is a number, `010` is ten, `on` and
`yes` are text, and there are no dates or sexagesimals. Duplicate keys and tags of programming languages are errors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

import yaml

from ..errors import RecipeError

KeyPath = tuple[str | int, ...]

_TAG = "tag:yaml.org,2002:"
_BREAKS = re.compile("[\x85\u2028\u2029]")
_SCALARS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+|0o[0-7]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
)
_MOST_CHARACTERS = 1 << 18  # far beyond any recipe; PyYAML reads some 100,000 a second
_MOST_VALUES = 10_000  # an alias that multiplies itself would otherwise grow without end
_MOST_DEPTH = 20  # PyYAML builds nested values by recursion
_MOST_WHOLE = 1 << 63


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own attribute)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, data: str) -> yaml.ScalarNode:
        """Escape what other styles would write as a line break, to be read back as a blank."""
        return self.represent_scalar(f"{_TAG}str", data, style='"' if _BREAKS.search(data) else None)


_Dumper.add_representer(str, _Dumper.represent_text)

for _name, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), _first)


class Place(NamedTuple):
    """Where a value was written; places sort in the order of reading."""

    order: int
    text: str


@dataclass
class Document:
    """Plain values, and the place of each key path (`recipe.yaml:12`, or the `--set` that gave it)."""

    name: str
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, Place] = field(default_factory=dict)
    noun: str = "recipe"  # what is read, in messages

    def place(self, path: KeyPath) -> Place:
        """Find the place of a key, or of the nearest section around it where the key is not written."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return Place(0, self.name)

    def where(self, path: KeyPath) -> str:
        """Name a place and the key."""
        place = self.place(path).text
        return f"{place}, {dotted(path)}" if path else place


def dotted(path: KeyPath) -> str:
    """Write a key path as `overrides.0.tables`."""
    return ".".join(str(part) for part in path)


def read_document(text: str, name: str, noun: str = "recipe") -> Document:
    """Read a recipe's text, or a study's; `name` stands for the file in messages. Raises RecipeError."""
    document = Document(name, noun=noun)
    values = _Builder(document, lambda line: Place(line, f"{name}:{line}")).read(text)
    if not isinstance(values, dict):
        raise RecipeError(
            f"the {noun} is empty" if values is None else f"a {noun} is a mapping of keys and values",
            where=name,
            remedy="begin with `version: 1`; `compress recipes` lists recipes to start from",
        )
    document.values = values
    return document


def apply_override(document: Document, assignment: str) -> None:
    """Set one value from `a.b=c`, where c is YAML; what stood there or below it is forgotten. Raises RecipeError."""
    key, equals, text = assignment.partition("=")
    place = Place(1_000_000 + len(document.places), f"--set {assignment}")
    parts = key.strip().split(".")
    path: KeyPath = tuple(int(part) if part.isdecimal() and len(part) < 10 else part for part in parts)
    if isinstance(path[0], int):
        path = (parts[0], *path[1:])
    if not equals or "" in path:
        raise RecipeError("not of the form key=value", where=place.text, remedy="write it as --set distill.steps=200")
    part_of = Document(place.text)
    value = _Builder(part_of, lambda line: place).read(text)

    holder: Any = document.values
    for depth in range(1, len(path)):
        if isinstance(holder, dict) and path[depth - 1] not in holder and isinstance(path[depth], str):
            holder[path[depth - 1]] = {}
            document.places[path[:depth]] = place
        holder = _inside(holder, path[:depth], place)
    if not isinstance(holder, dict) or isinstance(path[-1], int):
        _inside(holder, path, place)
    holder[path[-1]] = value
    document.places = {known: at for known, at in document.places.items() if known[: len(path)] != path}
    document.places[path] = place
    document.places.update({path + below: at for below, at in part_of.places.items()})


def _inside(holder: Any, path: KeyPath, place: Place) -> Any:
    try:
        return holder[path[-1]]
    except (IndexError, KeyError, TypeError):
        outer = dotted(path[:-1])
        found = f"a list of {len(holder)}" if isinstance(holder, list) else "a single value"
        raise RecipeError(
            f"there is no {dotted(path)}" + (f": {outer} is {found}" if outer else " in the recipe"),
            where=place.text,
            remedy=f"set {outer or path[-1]} as a whole"
            + (", or count its entries from 0" if isinstance(holder, list) else ""),
        ) from None


def dump_document(values: Mapping[str, Any]) -> str:
    """Write plain values as YAML that `read_document` reads back to the same values, in the order given."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Builder:
    """Turns YAML nodes into plain values and notes where each came from."""

    def __init__(self, document: Document, place: Any) -> None:
        self.document, self.place_of = document, place
        self.open: set[int] = set()
        self.count = 0

    def read(self, text: str) -> Any:
        if len(text) > _MOST_CHARACTERS:
            raise RecipeError(
                f"{len(text)} characters, where a recipe may have {_MOST_CHARACTERS}", where=self.document.name,
                remedy="give a recipe; data does not stand in it",
            )  # fmt: skip
        try:
            self.check_depth(text)
            node = yaml.compose(text, Loader=_Loader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise RecipeError(
                f"not valid YAML: {error.problem or error.context}",
                where=self.place_of(mark.line + 1).text if mark else self.document.name,
                remedy="look at the indentation (spaces, no tabs), colons and brackets of this line and the one above",
            ) from None
        except (yaml.YAMLError, ValueError, OverflowError) as error:  # a character that no YAML text may hold
            message = f"not valid YAML: {error}"
            raise RecipeError(message, where=self.document.name, remedy="save it as plain UTF-8") from None
        return self.build(node, ()) if node is not None else None

    def check_depth(self, text: str) -> None:
        """Refuse what is nested too deeply, from the parser's flat stream of events."""
        depth = 0
        for event in yaml.parse(text, Loader=_Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _MOST_DEPTH:
                line = event.start_mark.line + 1 if event.start_mark else 1
                raise RecipeError(
                    "nested too deeply", where=self.place_of(line).text, remedy="`compress recipes demo` shows a recipe"
                )

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        self.document.places.setdefault(path, self.place_of(node.start_mark.line + 1))
        self.count += 1
        if id(node) in self.open or self.count > _MOST_VALUES:
            self.refuse("an alias contains itself, or the recipe is too large", node, path, "write the values out")
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, path)
        self.open.add(id(node))
        value: Any
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            value = [self.build(item, (*path, index)) for index, item in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            value = self.mapping(node, path)
        else:
            self.refuse(f"the tag {node.tag} has no meaning here", node, path, "remove the tag")
        self.open.discard(id(node))
        return value

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _TAG + "str":
                self.refuse("a key must be plain text", key_node, path, "`compress recipes demo` shows a recipe")
            key = self.text(key_node, path)
            below = (*path, key)
            if key in values:
                first = self.document.places[below].text
                self.refuse(f"the key `{key}` is given twice, first at {first}", key_node, below, "keep one of them")
            self.document.places[below] = self.place_of(key_node.start_mark.line + 1)
            values[key] = self.build(value_node, below)
        return values

    def scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        kind, text = node.tag.removeprefix(_TAG), node.value
        plain = text.replace("_", "").lower()
        try:
            if kind == "str":
                return self.text(node, path)
            if kind == "null":
                return None
            if kind == "bool":
                return plain == "true"
            if kind == "int":
                whole = int(plain, {"0x": 16, "0o": 8}.get(plain[:2], 10))
                if abs(whole) >= _MOST_WHOLE:
                    raise ValueError
                return whole
            if kind == "float":
                return float(plain.replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:
            return self.refuse(f"{text[:40]!r} cannot be read as !!{kind}", node, path, "write a plain number")
        return self.refuse(f"the tag {node.tag} has no meaning here", node, path, "remove the tag")

    def text(self, node: yaml.ScalarNode, path: KeyPath) -> str:
        text: str = node.value
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            self.refuse("half a surrogate pair is no character", node, path, "write the character itself")
        return text

    def refuse(self, message: str, node: yaml.Node, path: KeyPath, remedy: str) -> NoReturn:
        place = self.place_of(node.start_mark.line + 1).text
        raise RecipeError(message, where=f"{place}, {dotted(path)}" if path else place, remedy=remedy)
