"""Checkpoints: every file that is written, and the checks of those files."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import checkpoints
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from compress.checkpoint import (
    CheckpointConfig,
    Placement,
    Problem,
    load,
    read_config,
    save_checkpoint,
    verify_files,
    write_report,
)
from compress.errors import CheckpointError
from compress.lookup import Geometry
from compress.models import Pretrained

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SimpleNamespace]:
    """One checkpoint of each family; tests that change a folder make their own."""
    return {name: checkpoints.save(name, tmp_path_factory.mktemp(name)) for name in checkpoints.TASKS}


@pytest.fixture
def made(tmp_path: Path) -> SimpleNamespace:
    return checkpoints.save("bert", tmp_path)


@pytest.mark.parametrize("name", ["llama", "vit"])
def test_same_model_same_bytes(saved: dict[str, SimpleNamespace], name: str, tmp_path: Path) -> None:
    first, second = saved[name].folder, checkpoints.save(name, tmp_path).folder
    files = sorted(path.name for path in first.glob("*.safetensors"))
    assert files == sorted(path.name for path in second.glob("*.safetensors")) == [WEIGHTS, "probe.safetensors"]
    for file in (*files, "config.json"):
        assert (first / file).read_bytes() == (second / file).read_bytes(), file


@pytest.mark.parametrize("name", checkpoints.TASKS)
def test_weight_files(saved: dict[str, SimpleNamespace], name: str) -> None:
    made = saved[name]
    for path in made.folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
        assert path.stat().st_mode & 0o444 == (made.folder / "config.json").stat().st_mode & 0o444
    stored = load_file(made.folder / WEIGHTS)
    empty = [key for key, tensor in stored.items() if tensor.numel() == 0]
    with safe_open(made.source / WEIGHTS, "pt") as file:
        assert set(empty) <= set(file.keys())  # a dense load would want exactly these names
    assert len(empty) == len(made.placements)
    dense_output = {"llama": "down_proj", "gpt2": "mlp.c_proj"}.get(name, "output.dense")
    assert all(key.endswith(f"{dense_output}.weight") for key in empty)


def test_config_is_the_source_s(saved: dict[str, SimpleNamespace]) -> None:
    for made in saved.values():
        source = json.loads((made.source / "config.json").read_text())
        config = json.loads((made.folder / "config.json").read_text())
        quantization = config.pop("quantization_config")
        assert config == source
        assert config["architectures"] == [type(made.model).__name__]
        assert quantization["quant_method"] == "lookup_ffn"
        assert quantization["format_version"] == 1
        assert (quantization["source"], quantization["revision"]) == (f"acme/pico-{made.name}", "abc123")
        assert read_config(made.folder).sites == tuple(made.placements)


def test_side_files(made: SimpleNamespace) -> None:
    for name, content in checkpoints.SIDE_FILES.items():
        assert (made.folder / name).read_bytes() == content, name
    assert (made.folder / "README.source.md").read_bytes() == checkpoints.README
    report = json.loads((made.folder / "report.json").read_text())
    assert report["checkpoint"]["left_out"] == sorted([*checkpoints.LEFT_OUT, WEIGHTS])
    for name in checkpoints.LEFT_OUT:
        assert not (made.folder / name).exists(), name
    assert not (made.folder / ".gitattributes").exists()
    assert not (made.folder / "generation_config.json").exists()
    assert (made.folder / "recipe.yaml").read_text() == "version: 1\n"
    assert (made.folder / "recipe.resolved.yaml").read_text() == "version: 1\nseed: 0\n"


def test_generation_config_is_the_source_s_even_if_invalid(tmp_path: Path) -> None:
    model = checkpoints.dense_folder("gpt2", tmp_path / "dense")
    content = b'{"do_sample": false, "temperature": 0.5, "eos_token_id": 7}\n'  # transformers refuses to write this
    (tmp_path / "dense" / "generation_config.json").write_bytes(content)
    model.generation_config.temperature = 0.5
    placements = checkpoints.convert(model)
    (tmp_path / "out").mkdir()
    source = Pretrained(model, None, "causal", str(tmp_path / "dense"), None, tmp_path / "dense")
    save_checkpoint(
        tmp_path / "out", model=model, source=source, placements=placements, recipe_text="", resolved_recipe="",
        report=None, probe_batch=checkpoints.inputs("gpt2"),
    )  # fmt: skip
    assert (tmp_path / "out" / "generation_config.json").read_bytes() == content
    assert model.generation_config.temperature == 0.5
    assert load(tmp_path / "out").generation_config.eos_token_id == 7
    assert read_config(tmp_path / "out").source == "dense"  # a folder's name, not where it lies
    assert str(tmp_path) not in (tmp_path / "out" / "config.json").read_text()


def test_weights_are_stored_as_narrow_as_the_source_s(tmp_path: Path) -> None:
    made = checkpoints.save("llama", tmp_path, dtype=torch.bfloat16)
    assert json.loads((made.source / "config.json").read_text())["dtype"] == "bfloat16"
    stored = load_file(made.folder / WEIGHTS)
    outside = {key: tensor for key, tensor in stored.items() if ".mlp." not in key}
    assert {tensor.dtype for tensor in outside.values()} == {torch.bfloat16}
    assert "lm_head.weight" not in stored
    model, batch = load(made.folder), checkpoints.inputs("llama")
    assert model.dtype == torch.float32  # as it was converted and measured
    assert torch.equal(checkpoints.answer(model, batch), checkpoints.answer(made.model, batch))
    model.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (made.folder / WEIGHTS).read_bytes()
    # What training moved off the narrow dtype's grid is kept in float32, exactly.
    with torch.no_grad():
        model.model.norm.weight += 1e-4
    model.save_pretrained(tmp_path / "trained")
    stored = load_file(tmp_path / "trained" / WEIGHTS)
    assert torch.equal(stored["model.norm.weight"], model.model.norm.weight)
    assert stored["model.embed_tokens.weight"].dtype == torch.bfloat16


def test_several_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.checkpoint.saving.MAX_SHARD_SIZE", "20KB")
    made = checkpoints.save("bert", tmp_path)
    shards = sorted(path.name for path in made.folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    recorded = json.loads((made.folder / "manifest.json").read_text())["files"]
    assert {*shards, "model.safetensors.index.json"} <= set(recorded)
    batch = checkpoints.inputs("bert")
    assert torch.equal(checkpoints.answer(load(made.folder), batch), checkpoints.answer(made.model, batch))
    (made.folder / shards[1]).unlink()
    with pytest.raises(CheckpointError, match=shards[1]):
        load(made.folder)


def test_placements_and_students_must_agree(tmp_path: Path) -> None:
    model = checkpoints.dense_folder("bert", tmp_path / "dense")
    placements = checkpoints.convert(model)
    other = checkpoints.moved(placements[1], "encoder.layer.0.intermediate")
    for wrong, message in (
        ([], "has no student"),
        (placements[:1], r"student at encoder\.layer\.1\.intermediate is not described"),
        ([placements[0], other], r"no packed student of the described geometry at encoder\.layer\.0"),
        ([placements[0], checkpoints.moved(placements[1], "nowhere")], "at nowhere"),
    ):
        with pytest.raises(CheckpointError, match=message):
            save_checkpoint(
                tmp_path, model=model, source=None, placements=wrong, recipe_text="", resolved_recipe="", report=None,
                probe_batch={},
            )  # fmt: skip
    assert not (tmp_path / WEIGHTS).exists()


@settings(max_examples=30)
@given(
    bits=st.integers(1, 8), tables=st.integers(1, 9),
    projection=st.sampled_from(["hadamard", "lowrank", "dense", "acdc"]),
    table_dtype=st.sampled_from(["int4", "int8", "bfloat16", "float32"]),
    identities=st.lists(st.text(st.characters(exclude_characters="."), min_size=1), max_size=2, unique=True),
)  # fmt: skip
def test_config_survives_json(bits: int, tables: int, projection: str, table_dtype: str, identities: list[str]) -> None:
    geometry = Geometry(24, 16, tables, bits, projection=projection, rank=8)
    placement = Placement("a.b", "a.b", tuple(f"c.{path}" for path in identities), geometry, table_dtype, "float32")
    config = CheckpointConfig("acme/x", None, (placement,), "bfloat16", "5.24.0", extra={"later": [1]})
    assert CheckpointConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_verify_files(made: SimpleNamespace) -> None:
    recorded = json.loads((made.folder / "manifest.json").read_text())["files"]
    present = {path.relative_to(made.folder).as_posix() for path in made.folder.rglob("*") if path.is_file()}
    assert set(recorded) == present - {"manifest.json"}
    (made.folder / "added.txt").write_text("no problem")
    assert verify_files(made.folder) == []
    (made.folder / "vocab.txt").unlink()
    (made.folder / "LICENSE").write_bytes(b"Apache-2.1")
    (made.folder / "1_Pooling" / "config.json").write_bytes(b"{}")
    assert verify_files(made.folder) == [
        Problem("1_Pooling/config.json", "2 bytes, not 34 as recorded"),
        Problem("LICENSE", "altered: its SHA-256 is not the recorded one"),
        Problem("vocab.txt", "missing"),
    ]
    (made.folder / "manifest.json").write_text("{}")
    assert verify_files(made.folder) == [Problem("manifest.json", "damaged: no 'version'")]
    (made.folder / "manifest.json").unlink()
    assert verify_files(made.folder) == [Problem("manifest.json", "missing")]


def front_matter(card: str) -> dict[str, object]:
    return yaml.safe_load(card.split("---")[1])


def plain_card(made: SimpleNamespace) -> str:
    """The card of a checkpoint that is no pipeline of sentence-transformers."""
    (made.folder / "modules.json").unlink()
    write_report(made.folder, {})
    return (made.folder / "README.md").read_text()


def test_card_of_an_unmeasured_model(tmp_path: Path) -> None:
    card = plain_card(checkpoints.save("llama", tmp_path))
    assert front_matter(card) == {
        "base_model": "acme/pico-llama", "base_model_relation": "quantized", "library_name": "transformers",
        "license": "mit", "language": ["en"], "pipeline_tag": "text-generation",
        "tags": ["compress", "lookup-ffn", "cpu"],
    }  # fmt: skip
    code = card.split("```python\n")[1].split("```")[0]
    assert code.splitlines() == [
        "import compress  # teaches transformers the format",
        "from transformers import AutoModelForCausalLM",
        'model = AutoModelForCausalLM.from_pretrained("PATH OR HUB ID")',
    ]
    assert "[acme/pico-llama](https://huggingface.co/acme/pico-llama), revision `abc123`" in card
    assert "were not measured" in card
    assert "| layers.1.mlp.down_proj | 6 | 3 | bh4 | 8 | 5 | bfloat16 | float32 |" in card
    assert "Weight files: " in card
    assert "```yaml\nversion: 1\nseed: 0\n```" in card
    assert card.endswith(
        "## License\n\nThis model stays under the licence of acme/pico-llama: mit (see [LICENSE](LICENSE)).\n"
    )


@pytest.mark.parametrize(
    ("name", "auto", "tag"),
    [
        ("gpt2", "AutoModelForCausalLM", "text-generation"), ("bert", "AutoModel", "feature-extraction"),
        ("bert_masked", "AutoModelForMaskedLM", "fill-mask"),
        ("vit", "AutoModelForImageClassification", "image-classification"),
    ],
)  # fmt: skip
def test_card_names_task_and_class(name: str, auto: str, tag: str, tmp_path: Path) -> None:
    card = plain_card(checkpoints.save(name, tmp_path))
    assert (front_matter(card)["pipeline_tag"], front_matter(card)["library_name"]) == (tag, "transformers")
    assert f"{auto}.from_pretrained" in card


def test_card_of_a_sentence_embedder(made: SimpleNamespace) -> None:
    card = (made.folder / "README.md").read_text()
    assert front_matter(card)["library_name"] == "sentence-transformers"
    assert front_matter(card)["pipeline_tag"] == "sentence-similarity"
    assert 'model = SentenceTransformer("PATH OR HUB ID")' in card


@pytest.mark.parametrize(
    ("readme", "license_file", "said"),
    [
        ("---\nlicense: other\nlicense_name: pico-1\nlicense_link: LICENSE\n---\n", True,
         ": other, pico-1, LICENSE (see [LICENSE](LICENSE))."),
        ("# No front matter", False, ", which its files do not state."),
    ],
)  # fmt: skip
def test_card_states_the_licence_of_the_source(
    made: SimpleNamespace, readme: str, license_file: bool, said: str
) -> None:
    (made.folder / "README.source.md").write_text(readme)
    if not license_file:
        (made.folder / "LICENSE").unlink()
    card = plain_card(made)
    assert card.endswith(f"stays under the licence of acme/pico-bert{said}\n")
    assert front_matter(card).get("license") == ("other" if license_file else None)


def test_an_older_id_of_the_hub_is_one(made: SimpleNamespace) -> None:
    checkpoints.edit_config(made.folder, source="gpt2")
    card = plain_card(made)
    assert front_matter(card)["base_model"] == "gpt2"
    assert "[gpt2](https://huggingface.co/gpt2)" in card


def test_write_report(made: SimpleNamespace) -> None:
    write_report(made.folder, checkpoints.REPORT)
    report = json.loads((made.folder / "report.json").read_text())
    assert report.pop("checkpoint")["weight_bytes"] == (made.folder / WEIGHTS).stat().st_size
    assert report == checkpoints.REPORT
    assert verify_files(made.folder) == []
    card = (made.folder / "README.md").read_text()
    assert "| perplexity | 4.27 | 4.5 ± 0.01 | +0.23 |" in card
    assert "**The compressed model is not faster than the fastest dense one: whole model at batch 1" in card
    assert "**The compressed model is bigger than the dense one: 5.0 kB against 1.0 kB (5.00x).**" in card
    assert "| whole model | 1 | 1 | 4.00 ms | 2.00 ms | 3.00 ms | 0.67x |" in card
    assert "Measured with 2 threads of ACME 9000 (avx2), on text: 512 tokens; torch 2.13." in card
    (made.folder / "report.json").unlink()
    with pytest.raises(CheckpointError, match="report is missing"):
        write_report(made.folder, checkpoints.REPORT)


def test_card_says_where_the_files_grew(made: SimpleNamespace) -> None:
    report = json.loads((made.folder / "report.json").read_text())
    ours = report["checkpoint"]["weight_bytes"]
    report["checkpoint"]["source_weight_bytes"] = ours // 2
    (made.folder / "report.json").write_text(json.dumps(report))
    write_report(made.folder, {})
    assert "**larger** than the dense model's, 2.00x" in (made.folder / "README.md").read_text()


def test_card_of_a_local_source_with_a_broken_readme(tmp_path: Path) -> None:
    made = checkpoints.save("vit", tmp_path)
    (made.folder / "README.source.md").write_text("---\nlicense: [\n---\n")
    config = json.loads((made.folder / "config.json").read_text())
    config["quantization_config"].update(source="dense", revision=None)
    (made.folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "own.Model"}}))
    card = plain_card(made)
    assert "base_model" not in front_matter(card)
    assert "license" not in front_matter(card)
    assert "Made from `dense`:" in card
    assert 'AutoModelForImageClassification.from_pretrained("PATH OR HUB ID", trust_remote_code=True)' in card
