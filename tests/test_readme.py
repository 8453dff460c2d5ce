"""README and docs say what is so: commands, options, recipes, files, functions, defaults."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import shlex
from itertools import pairwise, takewhile
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import typer.main
from compress.cli import app

import compress
import compress.kernels
from compress.recipe import LookupSettings, Override, Recipe, bundled_recipes, parse_recipe
from compress.recipe.document import read_document
from compress.studies import load_study
from compress.studies.sweep import sweep_study

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WRITTEN = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def blocks(language: str) -> list[tuple[str, str]]:
    """Fenced blocks of a language, with the page they stand in."""
    return [(page, body) for page, text in WRITTEN.items() for kind, body in FENCE.findall(text) if kind == language]


def shell_lines() -> list[tuple[str, list[str]]]:
    """Words of every command line in a code block, fenced or indented."""
    found = []
    for page, text in WRITTEN.items():
        fenced = [body for kind, body in FENCE.findall(text) if kind in ("sh", "bash", "console")]
        indented = re.findall(r"^    (\S.*)$", FENCE.sub("", text), re.MULTILINE)
        for line in "\n".join([*fenced, *indented]).replace("\\\n", " ").splitlines():
            line = line.strip().removeprefix("$ ")
            if re.match(r"(compress|make|pip|apt) ", line):
                found.append((page, shlex.split(line, comments=True)))
    return found


def compress_lines() -> list[tuple[str, list[str]]]:
    return [(page, words[1:]) for page, words in shell_lines() if words[0] == "compress"]


def tables(page: str, *headings: str) -> list[list[list[str]]]:
    """Cells of every table whose first columns are called so, row by row."""
    lines = WRITTEN[page].splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith(f"| {' | '.join(headings)} |")]
    bodies = [takewhile(lambda line: line.startswith("|"), lines[start + 2 :]) for start in starts]
    return [[[cell.strip() for cell in line.strip("|").split("|")] for line in body] for body in bodies]


def plain(cell: str) -> Any:
    """Value of a cell, as a recipe would read it."""
    return read_document(f"value: {cell.strip('`')}", "docs/recipes.md").values["value"]


# Commands


def test_the_pages_show_every_command() -> None:
    assert {words[0] for page, words in compress_lines() if page == "README.md"} == set(COMMANDS)


@pytest.mark.parametrize(
    ("page", "words"), compress_lines(), ids=lambda value: " ".join([value] if isinstance(value, str) else value)
)
def test_command_lines_parse(page: str, words: list[str]) -> None:
    name, *arguments = words
    assert name in COMMANDS, f"{page}: there is no command {name}"
    COMMANDS[name].make_context(name, arguments)  # raises where an option or an argument does not fit


def test_commands_and_options_in_sentences_exist() -> None:
    parameters = [parameter for command in COMMANDS.values() for parameter in command.params]
    known = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
    spans = [(page, span) for page, text in WRITTEN.items() for span in SPAN.findall(FENCE.sub("", text))]
    checked = 0
    for page, span in spans:
        words = span.split()
        if words[0] == "compress" and len(words) > 1:
            assert words[1] in COMMANDS, f"{page}: {span}"
            options = {word for word in words if word.startswith("-")}
            assert options <= {o for parameter in COMMANDS[words[1]].params for o in parameter.opts}, f"{page}: {span}"
            checked += 1
        elif words[0].startswith("--"):
            assert words[0] in known, f"{page}: {span}"
            checked += 1
    assert checked > 5


def test_make_targets_and_variables_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) \?=", makefile, re.MULTILINE))
    lines = [(page, words[1:]) for page, words in shell_lines() if words[0] == "make"]
    spans = [(page, span) for page, text in WRITTEN.items() for span in SPAN.findall(text)]
    lines += [(page, span.split()[1:]) for page, span in spans if span.startswith("make ")]
    assert {"demo", "test", "install"} <= {word for _, words in lines for word in words}
    for page, words in lines:
        for word in words:
            name, assigned, _ = word.partition("=")
            assert name in (variables if assigned else targets), f"{page}: make {shlex.join(words)}"


def test_the_first_commands_are_demo_and_test() -> None:
    first = FENCE.search(WRITTEN["README.md"])
    assert first is not None
    assert [line.split()[:2] for line in first[2].splitlines()] == [["make", "demo"], ["make", "test"]]


# Python


@pytest.mark.parametrize("block", [body for _, body in blocks("python")])
def test_functions_take_what_they_are_given(block: str) -> None:
    tree = ast.parse(block)
    for statement in ast.walk(tree):
        for alias in statement.names if isinstance(statement, ast.Import) else ():
            if alias.name.startswith("compress."):
                importlib.import_module(alias.name)
    named = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_compress(node.value)]
    assert all(hasattr(compress, node.attr) for node in named)
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and _is_compress(call.func.value):
            keywords = {word.arg: None for word in call.keywords if word.arg}
            inspect.signature(_function(call.func.attr)).bind(*call.args, **keywords)


def _is_compress(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "compress"


def _function(name: str) -> Any:
    return compress.evaluate.evaluate if name == "evaluate" else getattr(compress, name)


def test_environment_variables_are_read_somewhere() -> None:
    source = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "compress").rglob("*.py"))
    mentioned = {name for text in WRITTEN.values() for name in re.findall(r"\bCOMPRESS_[A-Z_]+", text)}
    assert {"COMPRESS_ISA", "COMPRESS_REQUIRE_KERNEL"} <= mentioned
    assert all(f'"{name}"' in source for name in mentioned)


# Files


@pytest.mark.parametrize("page", WRITTEN)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", WRITTEN[page]):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = (ROOT / page).parent / path if path else ROOT / page
        assert linked.exists(), f"{page}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}, target


def test_source_files_that_are_named_exist() -> None:
    for page, text in WRITTEN.items():
        for name in re.findall(r"`((?:compress|kernels|cli|recipes|tests)/[\w/.]+)`", text):
            assert (ROOT / name).exists(), f"{page}: {name}"
    listed = {name for row in tables("docs/kernel.md", "file in `kernels/`")[0] for name in SPAN.findall(row[0])}
    assert len(listed) > 10
    assert all((ROOT / "kernels" / name).is_file() for name in listed)


def test_one_block_of_measurements_stands_in_the_readme() -> None:
    marks = re.findall(r"^<!-- measured: (begin|end) -->$", WRITTEN["README.md"], re.MULTILINE)
    assert marks == ["begin", "end"]


def test_the_license_is_the_one_declared() -> None:
    assert 'license = "Apache-2.0"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert text.split()[:4] == ["Apache", "License", "Version", "2.0,"]
    assert "END OF TERMS AND CONDITIONS" in text


# Recipes


def test_the_bundled_recipes_are_listed() -> None:
    listed = [row[0].strip("`") for row in tables("docs/recipes.md", "recipe")[0]]
    assert sorted(listed) == sorted(bundled_recipes())


def test_recipes_that_commands_name_exist() -> None:
    named = [words[2] for _, words in compress_lines() if words[0] == "convert" and words[2] != "RECIPE"]
    named += [words[1] for _, words in compress_lines() if words[0] == "recipes" and len(words) > 1]
    assert named
    assert set(named) - {"NAME"} <= set(bundled_recipes())


@pytest.mark.parametrize(("page", "text"), blocks("yaml"))
def test_example_recipes_are_valid(page: str, text: str) -> None:
    assert parse_recipe(text, page).text == text


@pytest.mark.parametrize(("page", "words"), [line for line in compress_lines() if "--set" in line[1]], ids=str)
def test_values_that_commands_set_are_valid(page: str, words: list[str]) -> None:
    changes = [value for option, value in pairwise(words) if option == "--set"]
    if words[0] == "study":
        load_study(words[1], changes)
        return
    if words[0] == "sweep":
        points = sweep_study("MODEL", words[2], changes).points()
        changes = [f"{key}={json.dumps(value)}" for point in points for key, value in point.items()]
    parse_recipe("version: 1", page, overrides=changes)


def defaults() -> dict[str, Any]:
    """Every key of a recipe with the value that it has where it is not written."""
    found: dict[str, Any] = {}
    for name, value in Recipe(version=1).resolved().items():
        found |= {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
    return found


def test_defaults_are_as_documented() -> None:
    main, overrides = tables("docs/recipes.md", "key", "default")
    documented = {row[0].strip("`"): row[1] for row in main}
    assert documented.pop("version") == "required"
    expected = defaults()
    assert expected.pop("version") == 1
    assert list(documented) == list(expected)
    assert {key: plain(cell) for key, cell in documented.items()} == expected

    own = {key: field for key, field in Override.model_fields.items() if key not in LookupSettings.model_fields}
    assert {row[0].strip("`"): plain(row[1]) for row in overrides} == {key: field.default for key, field in own.items()}


def choices(annotation: Any) -> list[str]:
    """Literals that an annotation allows."""
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    if get_origin(annotation) in (Union, UnionType):
        return [name for branch in get_args(annotation) for name in choices(branch)]
    return []


def test_choices_are_as_documented() -> None:
    checked = 0
    for key, _, values, _ in tables("docs/recipes.md", "key", "default")[0]:
        section, _, name = key.strip("`").partition(".")
        field = Recipe.model_fields[section]
        annotation = field.annotation.model_fields[name].annotation if name else field.annotation  # type: ignore[union-attr]
        allowed = choices(annotation)
        if allowed:
            written = values.split(", ")
            assert (written if len(allowed) > 1 else written[-1:]) == allowed, key
            checked += 1
    assert checked > 12


def test_automatic_step_sizes_are_as_documented() -> None:
    from compress.distill.endtoend import FINETUNE_FACTOR
    from compress.distill.optimisation import AUTO_LEARNING_RATE

    meanings = {row[0].strip("`"): row[3] for row in tables("docs/recipes.md", "key", "default")[0]}
    assert meanings["distill.learning_rate"].endswith(f"auto is {AUTO_LEARNING_RATE:g}")
    assert meanings["finetune.learning_rate"].endswith(f"auto is {FINETUNE_FACTOR * AUTO_LEARNING_RATE:g}")
