from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from compress.errors import RecipeError
from compress.lookup.geometry import PROJECTIONS, READS
from compress.recipe import LookupSettings, Recipe, bundled_recipes, load_recipe, match_sites, parse_recipe
from compress.recipe.document import dump_document, read_document

SITES = [f"encoder.layer.{layer}.output.dense" for layer in range(4)]


def recipe(text: str = "", *overrides: str) -> Recipe:
    return parse_recipe("version: 1\n" + text, "r.yaml", overrides=overrides)


def refusal(text: str, *overrides: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "r.yaml", overrides=overrides)
    assert caught.value.remedy
    return caught.value


# -- defaults and values


def test_defaults_are_those_of_the_format() -> None:
    r = recipe()
    assert r.lookup.model_dump() == {
        "student": "lookup", "budget": 0.25, "memory": 2, "tables": "auto", "bits": "auto", "projection": "hadamard",
        "rank": "auto", "neurons": "auto", "block": 64, "read": "top1", "hash_dtype": "auto",
    }  # fmt: skip
    assert r.data.model_dump() == {
        "source": "text", "path": None, "name": None, "split": "train", "field": "text", "sequence_length": 256,
        "tokens": 2_000_000, "holdout": 0.02, "target_field": "target", "fields": {}, "seconds": 30.0,
        "written_length": "auto",
        "sentences": "auto",
    }  # fmt: skip
    assert r.fit.model_dump() == {"tokens": 200_000, "ridge": 1e-3}
    assert r.distill.model_dump() == {
        "steps": 2000, "batch_tokens": 4096, "learning_rate": "auto", "objective": "block", "inputs": "student",
        "dtype": "auto",
    }  # fmt: skip
    assert r.finetune.model_dump() == {
        "steps": 4000, "batch_tokens": 1024, "learning_rate": "auto", "train": "all", "temperature": 1.0,
        "hidden_weight": "auto", "dtype": "auto",
    }  # fmt: skip
    assert r.pack.model_dump() == {"table_dtype": "int4", "rest": "keep"}
    assert r.eval.model_dump() == {"data": None, "tasks": ()}
    assert (r.sites.include, r.sites.exclude, r.overrides, r.seed) == (("*",), (), (), 0)
    assert r.text == "version: 1\n"


def test_choices_are_those_of_the_method() -> None:
    fields = LookupSettings.model_fields
    assert set(get_args(fields["projection"].annotation)) == set(PROJECTIONS)
    assert set(get_args(fields["read"].annotation)) == set(READS)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("1e-3", 1e-3), ("1.0e-3", 1e-3), ("2", 2), (".5", 0.5), ("+1.5E2", 150.0), ("2_000_000", 2000000), ("010", 10),
        ("0x1F", 31), ("0o17", 15), ("on", "on"), ("yes", "yes"), ("No", "No"), ("1:30", "1:30"), ("12e", "12e"),
        ("2001-01-01", "2001-01-01"), ("true", True), ("FALSE", False), ("null", None), ("~", None), ("", None),
        ("'1'", "1"), ("<<", "<<"), ("=", "="), (".inf", math.inf), ("-.Inf", -math.inf), ("[1, a]", [1, "a"]),
        ("!!str 5", "5"), ("!!float 5", 5.0),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(written: str, read: object) -> None:
    value = read_document(f"key: {written}\n", "r.yaml").values["key"]
    assert value == read
    assert type(value) is type(read)


@given(
    st.dictionaries(
        st.text("abc_0123 -#:'\"\n", min_size=1),
        st.none() | st.booleans() | st.integers(1 - 2**63, 2**63 - 1) | st.floats(allow_nan=False) | st.text()
        | st.sampled_from(["1e-3", "on", "010", "0o7", "~", "2001-01-01", "1:30", "=", "<<", "1_0", ".5"]),
    )
)  # fmt: skip
@example({"0": "\x85"})
def test_what_is_written_reads_back_the_same(values: dict[str, object]) -> None:
    keys = {f"k {key}": value for key, value in values.items()}
    read = read_document(dump_document(keys), "r.yaml").values if keys else {}
    assert read == keys
    assert [type(value) for value in read.values()] == [type(value) for value in keys.values()]


def test_an_integral_float_is_a_whole_number() -> None:
    r = recipe("data: {tokens: 2e6}\nlookup: {bits: 8.0, budget: 1}")
    assert (r.data.tokens, r.lookup.bits, r.lookup.budget) == (2_000_000, 8, 1.0)
    assert isinstance(r.data.tokens, int)
    assert isinstance(r.lookup.bits, int)


def test_recipes_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        recipe().lookup.budget = 0.5  # type: ignore[misc]


# -- mistakes: what, where, remedy


@pytest.mark.parametrize(
    ("text", "message", "where", "remedy"),
    [
        ("", "empty", "r.yaml", "version: 1"),
        ("- 1", "mapping", "r.yaml", "version: 1"),
        ("seed: 1", "no version", "r.yaml", "version: 1"),
        ("\nversion: 2\nnew: 1", "version 2", "r.yaml:2, version", "upgrade"),
        ("version: one", "the text 'one' is no recipe version", "r.yaml:1, version", "version: 1"),
        ("version: true", "true is no recipe version", "r.yaml:1, version", "version: 1"),
        ("version: 1\nlookup:\n  budgte: 1", "unknown key `lookup.budgte`", "r.yaml:3, lookup.budgte", "lookup.budget"),
        ("version: 1\nlearning_rate: 1", "unknown key", "r.yaml:2, learning_rate", "distill.learning_rate"),
        ("version: 1\nzzz: 1", "unknown key", "r.yaml:2, zzz", "known here: version, sites"),
        ("version: 1\noverrides:\n- layers: [0]\n  tabels: 3", "`overrides.0.tabels`", "r.yaml:4", "tables"),
        ("version: 1\nseed: 1\nfit: {}\nseed: 2", "given twice, first at r.yaml:2", "r.yaml:4, seed", "keep one"),
        ("version: 1\nfit: {ridge: 1, ridge: 2}", "given twice", "r.yaml:2, fit.ridge", "keep one"),
        ("version: 1\nlookup: {bits: 0}", "from 1 to 16 or auto; it is 0", "r.yaml:2, lookup.bits", "default, auto"),
        ("version: 1\nlookup:\n  bits: 17", "from 1 to 16 or auto; it is 17", "r.yaml:3, lookup.bits", "auto"),
        ("version: 1\nlookup: {bits: 7.5}", "whole number", "r.yaml:2, lookup.bits", "auto"),
        ("version: 1\nlookup: {bits: atuo}", "the text 'atuo'", "r.yaml:2, lookup.bits", "did you mean `auto`?"),
        ("version: 1\nlookup: {block: 48}", "48 is not a power of two", "r.yaml:2, lookup.block", "32"),
        ("version: 1\nlookup: {budget: .inf}", "a number above 0", "r.yaml:2, lookup.budget", "0.25"),
        ("version: 1\nlookup: {read: top3}", "one of top1, top2", "r.yaml:2, lookup.read", "top"),
        ("version: 1\ndistill: {steps: -1}", "at least 0; it is -1", "r.yaml:2, distill.steps", "2000"),
        ("version: 1\ndata: {holdout: 1}", "above 0 and below 1; it is 1", "r.yaml:2, data.holdout", "0.02"),
        ("version: 1\ndata: {holdout: true}", "it is true", "r.yaml:2, data.holdout", "0.02"),
        ("version: 1\nfit: {ridge: x}", "a number of at least 0; it is the text 'x'", "r.yaml:2, fit.ridge", "0.001"),
        ("version: 1\nfit:", "a section with keys of tokens, ridge; it is null", "r.yaml:2, fit", "remove"),
        ("version: 1\nsites: {include: a}", "a list, each entry text", "r.yaml:2, sites.include", "remove"),
        ("version: 1\nsites:\n  include:\n  - a\n  - 3", "must be text; it is 3", "r.yaml:5, sites.include.1", "entry"),
        ("version: 1\noverrides: [{layers: [0], keep_dense: yes}]", "true or false; it is the text 'yes'",
         "overrides.0.keep_dense", "change"),
        ("version: 1\noverrides: [{tables: 3}]", "does not say which sites", "r.yaml:2, overrides.0", "`layers`"),
        ("version: 1\noverrides: [{layers: [0], sites: [a], rank: 3}]", "does not say which", "overrides.0", "either"),
        ("version: 1\noverrides: [{layers: [0]}]", "changes nothing", "overrides.0", "keep_dense: true"),
        ("version: 1\noverrides: [{layers: [0], keep_dense: true, rank: 3}]", "have no rank", "overrides.0", "keep"),
        ("version: 1\ndata: {source: audoi}", "one of text, jsonl", "r.yaml:2, data.source", "did you mean `audio`?"),
        ("version: 1\ndata: {seconds: 0}", "a number above 0; it is 0", "r.yaml:2, data.seconds", "30"),
        ("version: 1\ndata: {fields: {text: a}}", "does not read `fields`", "r.yaml:2, data", "jsonl"),
        ("version: 1\ndata: {source: jsonl, fields: {text: 3}}", "must be text; it is 3", "data.fields.text", "change"),
        ("version: 1\ndata: {source: jsonl, fields: [a]}", "a section of names", "r.yaml:2, data.fields", "change"),
        ("version: 1\ndata: {source: teacher, path: a}", "reads no data", "r.yaml:2, data", "leave out"),
        ("version: 1\ndata: {written_length: 512}", "does not read `written_length`", "r.yaml:2, data", "teacher"),
        ("version: 1\ndata: {source: teacher, written_length: 9}", "less than `sequence_length`", "r.yaml:2", "one"),
        ("version: 1\ndata: {source: txt}", "one of text, jsonl", "r.yaml:2, data.source", "did you mean `text`?"),
        ("version: 1\ndata: {source: hub}", "needs a data set", "r.yaml:2, data", "name"),
        ("version: 1\ndata: {source: hub, name: a, path: b}", "does not read `path`", "r.yaml:2, data", "name"),
        ("version: 1\ndata: {name: a}", "does not read `name`", "r.yaml:2, data", "hub"),
        ("version: 1\neval: {tasks: [arc, own.yaml]}", "`own.yaml` is no name of a task", "r.yaml:2, eval", "--task"),
        ("version: 1\neval: {tasks: [../own]}", "`../own` is no name of a task", "r.yaml:2, eval", "--task"),
        ("version: 1\na: [1\nb: }", "not valid YAML", "r.yaml:3", "brackets"),
        ("version: 1\n\tb: 1", "not valid YAML", "r.yaml:2", "tabs"),
        ("version: 1\nb: \x01", "not valid YAML", "r.yaml", "UTF-8"),
        ("version: 1\n1: 1", "a key must be plain text", "r.yaml:2", "recipe"),
        ("version: 1\nfit: !!python/object:os.system {}", "tag", "r.yaml:2, fit", "remove the tag"),
        ("version: 1\nseed: !!int x", "cannot be read as !!int", "r.yaml:2, seed", "number"),
        ("version: 1\nfit: &a {ridge: *a}", "alias", "r.yaml:2, fit.ridge", "write the values out"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_place_and_remedy(text: str, message: str, where: str, remedy: str) -> None:
    error = refusal(text)
    assert message in error.message
    assert where in (error.where or "")
    assert remedy in (error.remedy or "")


def test_the_first_mistake_is_told_and_the_others_named() -> None:
    error = refusal("version: 1\nzzz: 3\ndistill:\n  steps: x\nfit: {tokens: 0}")
    assert error.where == "r.yaml:2, zzz"
    assert "wrong too: r.yaml:4, distill.steps; r.yaml:5, fit.tokens" in error.message


def test_an_alias_that_grows_without_end_is_refused() -> None:
    lines = ["version: 1", "a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert "too large" in refusal("\n".join(lines)).message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version: 1\nfit: " + "[" * 30_000, "nested too deeply"),
        ("version: 1\nfit: " + "{a: " * 30 + "}" * 30, "nested too deeply"),
        ("version: 1\n" + "".join(f"{' ' * depth}a:\n" for depth in range(300)), "nested too deeply"),
        ("version: 1\nfit: " + "- " * 300, "not valid YAML"),
        ("version: 1\n" + "#" * 300_000, "characters"),
        ("version: 1\nseed: " + "9" * 5000, "cannot be read as !!int"),
        ("version: 1\nseed: 0x" + "f" * 5000, "cannot be read as !!int"),
        ("version: 1\nseed: 9223372036854775808", "cannot be read as !!int"),
        ('version: 1\nseed: "\\U00110000"', "not valid YAML"),
        ('version: 1\ndata: {path: "\\ud800"}', "surrogate"),
        ('version: 1\n"\\ud800": 1', "surrogate"),
        ("%YAML 1" + "9" * 5000 + ".1\n---\nversion: 1", "not valid YAML"),
        ("version: 1\n---\nversion: 1", "not valid YAML"),
        ("version: 1\nseed: !!python/name:os.system", "tag"),
        ("version: 1\nseed: !!python/object/apply:os.system [true]", "tag"),
        ("version: 1\nseed: !!binary aGk=", "tag"),
        ("version: 1\n<<: {seed: 1}", "unknown key"),
        ("version: 1\nlookup: {bits: {a: [1]}}", "`lookup.bits` must be"),
    ],
)  # fmt: skip
def test_hostile_yaml_is_refused(text: str, message: str) -> None:
    assert message in refusal(text).message


# -- overrides from the command line


def test_set_is_read_as_yaml_and_wins() -> None:
    r = recipe(
        "lookup: {bits: 4, tables: 8}\noverrides: [{layers: [0], rank: 4}]", "lookup.bits=auto", "lookup.budget=1e-1",
        "distill.steps=2e2", "sites.include=[a*, b]", "overrides.0.rank=8", "seed= 3",
    )  # fmt: skip
    assert (r.lookup.bits, r.lookup.tables, r.lookup.budget) == ("auto", 8, 0.1)
    assert (r.distill.steps, r.sites.include, r.overrides[0].rank, r.seed) == (200, ("a*", "b"), 8, 3)
    assert recipe("fit: {tokens: 5}", "fit={ridge: 0}").fit.tokens == 200_000
    assert recipe("eval: {data: x}", "eval.data=").eval.data is None


@pytest.mark.parametrize(
    ("assignment", "message", "remedy"),
    [
        ("lookup.bits=17", "from 1 to 16", "auto"),
        ("lookup.bitz=7", "unknown key `lookup.bitz`", "lookup.bits"),
        ("nothing.at.all=7", "unknown key `nothing`", "known here"),
        ("seed=1.5", "whole number", "0"),
        ("seed.a=1", "there is no seed.a: seed is a single value", "set seed as a whole"),
        ("overrides.1.tables=3", "there is no overrides.1: overrides is a list of 1", "count its entries from 0"),
        ("overrides.0.x=3", "unknown key `overrides.0.x`", "known here"),
        ("sites.include.0=a", "there is no sites", "as a whole"),
        ("distill.steps", "not of the form key=value", "distill.steps=200"),
        ("=3", "not of the form key=value", "distill.steps=200"),
        ("a..b=3", "not of the form key=value", "distill.steps=200"),
        ("seed=[1", "not valid YAML", "brackets"),
        ("version=2", "version 2", "upgrade"),
    ],
)
def test_a_mistake_in_set_names_it(assignment: str, message: str, remedy: str) -> None:
    error = refusal("version: 1\nseed: 0\noverrides: [{layers: [0], rank: 4}]", assignment)
    assert message in error.message
    assert (error.where or "").startswith(f"--set {assignment}")
    assert remedy in (error.remedy or "")


# -- files, paths, bundled recipes


def test_a_recipe_file_is_read_and_keeps_its_text(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("\ufeffversion: 1  # mine\n", encoding="utf-8")
    assert load_recipe(file).text == "version: 1  # mine\n"
    assert load_recipe(str(file), ["seed=2"]).seed == 2


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Recipe]:
    """Loads a recipe with a data path from recipes/r.yaml, in a working directory beside it."""
    for folder in ("recipes", "recipes/deep", "here"):
        (tmp_path / folder).mkdir()
    for file in ("recipes/both.txt", "here/both.txt", "here/only.txt", "recipes/part1.txt", "recipes/deep/own.txt"):
        (tmp_path / file).touch()
    monkeypatch.chdir(tmp_path / "here")

    def load(path: str, *overrides: str, section: str = "data: {path") -> Recipe:
        file = tmp_path / "recipes" / "r.yaml"
        file.write_text(f"version: 1\n{section}: {json.dumps(path)}}}\n")
        return load_recipe(file, overrides)

    return load


def test_a_path_starts_at_the_recipe_one_on_the_command_line_here(
    tmp_path: Path, written: Callable[..., Recipe]
) -> None:
    assert written("both.txt").data.path == str(tmp_path / "recipes/both.txt")
    assert written("part*.txt").data.path == str(tmp_path / "recipes/part*.txt")
    assert written("deep").data.path == str(tmp_path / "recipes/deep")
    assert written("only.txt").data.path == str(tmp_path / "recipes/only.txt")  # whoever opens it reports it
    assert written("hub.txt", section="eval: {data").eval.data == str(tmp_path / "recipes/hub.txt")
    assert written("hub:a/b", section="eval: {data").eval.data == "hub:a/b"
    assert written("only.txt", "data.path=both.txt").data.path == str(tmp_path / "here/both.txt")
    assert written("x", f"data.path={tmp_path}/here/*.txt").data.path == str(tmp_path / "here/*.txt")
    assert written("only.txt", "data.path=../recipes").data.path == f"{tmp_path}/here/../recipes"
    assert written("x").with_data("both.txt").data.path == str(tmp_path / "here/both.txt")


@pytest.mark.parametrize("section", ["data: {path", "eval: {data"])
def test_a_path_in_a_recipe_cannot_leave_its_folder(
    tmp_path: Path, written: Callable[..., Recipe], section: str
) -> None:
    recipes = tmp_path / "recipes"
    (recipes / "link.txt").symlink_to(tmp_path / "here" / "only.txt")
    (recipes / "up").symlink_to(tmp_path / "here")
    (recipes / "holds").mkdir()
    (recipes / "holds" / "link").symlink_to("/etc/passwd")
    (recipes / "circle").symlink_to("circle")
    (recipes / "fine.txt").symlink_to("both.txt")
    assert written("fine.txt", section=section)
    for path, named in (
        ("/etc/passwd", "/etc/passwd"), ("../here/only.txt", "../here/only.txt"), ("deep/../../here", "deep"),
        ("~/x", "~/x"), ("link.txt", "link.txt"), ("up/only.txt", "only.txt"), ("l*.txt", "link.txt"), ("up", "up"),
        ("holds", "holds/link"), ("*/only.txt", "only.txt"),
    ):  # fmt: skip
        with pytest.raises(RecipeError, match="outside the recipe's folder") as caught:
            written(path, section=section)
        assert named in caught.value.message
        assert "r.yaml:2" in (caught.value.where or "")
        assert "--set" in (caught.value.remedy or "")


@pytest.mark.parametrize("name", ["../x", "/etc", "./a", "~", "a/b/c", "..", ".:x@y"])
def test_a_data_set_in_a_recipe_is_the_hub_s(written: Callable[..., Recipe], name: str) -> None:
    assert written("owner/name:config@v1", section="data: {source: hub, name").data.name == "owner/name:config@v1"
    assert written("hub:owner/name", section="eval: {data").eval.data == "hub:owner/name"
    with pytest.raises(RecipeError, match="outside the recipe's folder"):
        written(name, section="data: {source: hub, name")
    with pytest.raises(RecipeError, match="outside the recipe's folder"):
        written(f"hub:{name}", section="eval: {data")
    assert written("x", f"eval.data=hub:{name}").eval.data == f"hub:{name}"  # one's own


@pytest.mark.parametrize("path", ["a\0b", "a\0*", "x" * 5000])
def test_a_path_that_no_system_has(written: Callable[..., Recipe], path: str) -> None:
    try:
        assert written(path).data.path
    except RecipeError as error:
        assert "no path" in error.message  # noqa: PT017


def test_other_data_can_be_put_in() -> None:
    r = recipe("data: {source: hub, name: a/b, tokens: 5}")
    assert r.has_data
    assert not recipe().has_data
    local = r.with_data("/x/y.txt")
    assert (local.data.source, local.data.path, local.data.name, local.data.tokens) == ("text", "/x/y.txt", None, 5)
    assert local.text == r.text
    hub = recipe("data: {source: images}").with_data("hub:c/d:e")
    assert (hub.data.source, hub.data.path, hub.data.name) == ("hub", None, "c/d:e")


@pytest.mark.parametrize("content", [None, b"version: 1\xff"])
def test_a_recipe_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "r.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RecipeError, match=str(file)):
        load_recipe(file)


def test_a_misspelt_bundled_name_is_corrected() -> None:
    with pytest.raises(RecipeError, match="did you mean the bundled recipe minilm"):
        load_recipe("minilmm")


def test_bundled_recipes_load_and_need_nothing_of_this_machine() -> None:
    bundled = bundled_recipes()
    assert {"demo", "deit-tiny", "gpt2", "llama", "minilm", "stories", "t5", "wav2vec2", "whisper"} <= bundled.keys()
    for name, file in bundled.items():
        r = load_recipe(name)
        assert r.text == file.read_text(encoding="utf-8")
        assert r.data.path is None, "a bundled recipe cannot know where the user's data is"
        assert load_recipe(file).fingerprint() == r.fingerprint()


# -- the resolved recipe


FULL = """
sites: {exclude: ["*.3.*"]}
lookup: {budget: 1e-1, rank: 0}
overrides:
- {layers: [0, -1], tables: 64}
- {sites: ["*.1.*"], keep_dense: true}
data: {path: /somewhere/on/this/machine/text.txt}
eval: {data: "hub:a/b"}
"""


def test_the_resolved_recipe_reads_back_the_same() -> None:
    r = recipe(FULL, "seed=7")
    text = r.dump()
    assert "machine" not in text
    assert "path: text.txt" in text
    again = parse_recipe(text, "resolved")
    assert again.dump() == text
    assert again.fingerprint() == r.fingerprint()
    assert match_sites(again, SITES) == match_sites(r, SITES)


def test_the_fingerprint_is_of_the_content() -> None:
    r = recipe(FULL)
    elsewhere = recipe("# a comment\n" + FULL.replace("/somewhere/on/this/machine", "/elsewhere"))
    assert elsewhere.fingerprint() == r.fingerprint()
    assert recipe(FULL, "lookup.bits=8").fingerprint() != r.fingerprint()
    assert len(r.fingerprint()) == 64
    assert recipe(FULL, "seed=1").fingerprint("lookup", "data") == r.fingerprint("lookup", "data")
    assert recipe(FULL, "lookup.bits=8").fingerprint("lookup") != r.fingerprint("lookup")


def test_a_stored_recipe_goes_on_as_it_was(tmp_path: Path) -> None:
    from compress.recipe import restore_recipe

    r = recipe(FULL, "seed=7")
    again = restore_recipe(r.stored(), r.text, "r.yaml", ["distill.steps=3"])
    assert (again.text, again.seed, again.data.path) == (r.text, 7, r.data.path)
    assert again.distill.steps == 3
    assert match_sites(again, SITES) == match_sites(r, SITES)
    assert restore_recipe(r.stored(), r.text, "r.yaml").fingerprint() == r.fingerprint()


# -- which site gets which settings


def test_sites_are_included_excluded_and_overridden() -> None:
    r = recipe("""
sites: {include: ["*"], exclude: ["*.1.*"]}
lookup: {tables: 8, bits: 4}
overrides:
- {sites: ["*.0.*", "*.2.*"], tables: 16}
- {layers: [-1], keep_dense: true}
- {layers: [2], bits: 6}
""")
    matched = match_sites(r, SITES)
    assert list(matched) == SITES
    sizes = [None if settings is None else (settings.tables, settings.bits) for settings in matched.values()]
    assert sizes == [(16, 4), None, (16, 6), None]
    assert matched[SITES[0]] is not None
    assert matched[SITES[0]].budget == 0.25  # type: ignore[union-attr]


def test_a_later_override_wins_over_keep_dense() -> None:
    r = recipe("overrides: [{layers: [0, 1, 2, 3], keep_dense: true}, {layers: [1], bits: 4}]")
    assert [settings is not None for settings in match_sites(r, SITES).values()] == [False, True, False, False]


@pytest.mark.parametrize(
    ("text", "message", "where", "remedy"),
    [
        ('sites: {include: ["*", "x*"]}', "'x*' hits no site", "sites.include", SITES[0]),
        ('sites: {exclude: ["x"]}', "'x' hits no site", "sites.exclude", SITES[3]),
        ('overrides: [{sites: ["*.0.*", "*.9.*"], bits: 4}]', "'*.9.*' hits no site", "overrides.0.sites", SITES[0]),
        ("overrides: [{layers: [4], bits: 4}]", "no layer 4: the model has 4 sites", "overrides.0.layers", "-4 to 3"),
        ("overrides: [{layers: [-5], bits: 4}]", "no layer -5", "overrides.0.layers", "-4 to 3"),
        ('sites: {exclude: ["*.0.*"]}\noverrides: [{layers: [0], bits: 4}]', "leaves out", "overrides.0", SITES[0]),
        ("overrides: [{layers: [0, 1, 2, 3], keep_dense: true}]", "no site is left", "overrides", SITES[0]),
        ("sites: {include: []}", "no site is left", "sites", SITES[0]),
    ],
)
def test_a_pattern_that_misses_is_an_error(text: str, message: str, where: str, remedy: str) -> None:
    with pytest.raises(RecipeError) as caught:
        match_sites(recipe(text), SITES)
    assert message in caught.value.message
    assert where in (caught.value.where or "")
    assert remedy in (caught.value.remedy or "")


@pytest.mark.parametrize("key", ["data.path", "eval.data"])
def test_an_empty_path_is_refused(tmp_path: Path, key: str) -> None:
    section, name = key.split(".")
    with pytest.raises(RecipeError, match="no path: it is empty"):
        parse_recipe(f'version: 1\n{section}: {{{name}: ""}}\n', "r.yaml", folder=tmp_path)
