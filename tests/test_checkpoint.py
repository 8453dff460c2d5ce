"""Checkpoints: that they come back as they were saved, and what is said where they cannot."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import checkpoints
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from compress.checkpoint import FORMAT_VERSION, is_compressed, load, read_config, verify_files, verify_outputs
from compress.errors import CheckpointError
from compress.lookup import LookupFFN, PackedLookupFFN

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SimpleNamespace]:
    """One checkpoint of each family; tests that change a folder make their own."""
    return {name: checkpoints.save(name, tmp_path_factory.mktemp(name)) for name in checkpoints.TASKS}


@pytest.fixture
def made(tmp_path: Path) -> SimpleNamespace:
    return checkpoints.save("bert", tmp_path)


def students(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, (PackedLookupFFN, LookupFFN))]


def rewrite(folder: Path, change: object) -> None:
    """Change the tensors of a checkpoint's only weight file."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize("name", checkpoints.TASKS)
def test_loads_as_it_was_saved(saved: dict[str, SimpleNamespace], name: str) -> None:
    made, batch = saved[name], checkpoints.inputs(name)
    model = load(made.folder)
    assert type(model) is type(made.model)
    assert not model.training
    assert torch.equal(checkpoints.answer(model, batch), checkpoints.answer(made.model, batch))
    assert [type(student) for student in students(model)] == [PackedLookupFFN] * 2
    assert not any(parameter.requires_grad for student in students(model) for parameter in student.parameters())
    assert verify_files(made.folder) == []
    assert verify_outputs(made.folder, model) == []


@torch.no_grad()
def test_loads_under_other_heads(saved: dict[str, SimpleNamespace], caplog: pytest.LogCaptureFixture) -> None:
    made, batch = saved["llama"], checkpoints.inputs("llama")
    causal = AutoModelForCausalLM.from_pretrained(made.folder)
    hidden = causal(**batch, output_hidden_states=True).hidden_states[-1]
    assert torch.equal(AutoModel.from_pretrained(made.folder)(**batch)[0], hidden)
    classifier = AutoModelForSequenceClassification.from_pretrained(made.folder, num_labels=3)
    assert len(students(classifier)) == 2
    assert torch.equal(classifier.model(**batch)[0], hidden)
    assert classifier.score.weight.shape == (3, 32)
    # A base model's checkpoint loads under a head, and a masked model's without its own.
    bert, batch = saved["bert"], checkpoints.inputs("bert")
    headed = AutoModelForSequenceClassification.from_pretrained(bert.folder)
    assert torch.equal(headed.bert(**batch)[0], checkpoints.answer(bert.model, batch))
    masked = saved["bert_masked"]
    base = AutoModel.from_pretrained(masked.folder)
    assert torch.equal(base(**batch)[0], checkpoints.answer(masked.model.bert, batch))
    assert "down_proj.weight" not in caplog.text
    assert "output.dense.weight" not in caplog.text


@pytest.mark.parametrize("dtype", ["auto", torch.float32, torch.bfloat16])
def test_students_keep_their_storage_dtypes(saved: dict[str, SimpleNamespace], dtype: object) -> None:
    made, batch = saved["bert_masked"], checkpoints.inputs("bert_masked")
    from transformers import AutoModelForMaskedLM

    model = AutoModelForMaskedLM.from_pretrained(made.folder, dtype=dtype)
    assert model.dtype == (torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)
    for student, placement in zip(students(model), made.placements, strict=True):
        state = student.state_dict()
        assert {name: (value.shape, value.dtype) for name, value in state.items()} == placement.layout()
        wanted = made.model.bert.get_submodule(placement.entry).state_dict()
        assert all(torch.equal(value, wanted[name]) for name, value in state.items())
    answer = checkpoints.answer(model, batch).float()
    wanted = checkpoints.answer(made.model, batch)
    assert (answer - wanted).norm() <= (0.05 if dtype == torch.bfloat16 else 0.0) * wanted.norm()


def test_tied_weights_stay_tied(saved: dict[str, SimpleNamespace]) -> None:
    model = load(saved["llama"].folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "lm_head.weight" not in load_file(saved["llama"].folder / WEIGHTS)


@pytest.mark.parametrize("name", ["llama", "vit"])
def test_a_loaded_model_saves_the_same_again(saved: dict[str, SimpleNamespace], name: str, tmp_path: Path) -> None:
    made, batch = saved[name], checkpoints.inputs(name)
    load(made.folder).save_pretrained(tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == (made.folder / WEIGHTS).read_bytes()
    assert read_config(tmp_path) == read_config(made.folder)
    assert torch.equal(checkpoints.answer(load(tmp_path), batch), checkpoints.answer(made.model, batch))


def test_the_base_model_of_a_head_saves_a_checkpoint_too(saved: dict[str, SimpleNamespace], tmp_path: Path) -> None:
    AutoModel.from_pretrained(saved["bert_masked"].folder).save_pretrained(tmp_path)
    batch = checkpoints.inputs("bert")
    wanted = checkpoints.answer(saved["bert_masked"].model.bert, batch)
    assert torch.equal(checkpoints.answer(load(tmp_path), batch), wanted)


def test_trainable_students(saved: dict[str, SimpleNamespace], tmp_path: Path) -> None:
    made, batch = saved["gpt2"], checkpoints.inputs("gpt2")
    model = load(made.folder, trainable=True)
    assert [type(student) for student in students(model)] == [LookupFFN] * 2
    wanted = checkpoints.answer(made.model, batch)
    torch.testing.assert_close(checkpoints.answer(model, batch), wanted, rtol=1e-4, atol=1e-4)
    parameters = [parameter for student in students(model) for parameter in student.parameters()]
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in parameters)
    loss = model(**batch, labels=batch["input_ids"]).loss
    loss.backward()
    with torch.no_grad():
        for student in students(model):
            assert student.tables.grad.abs().sum() > 0
            student.bias -= 0.5 * student.bias.grad
    trained = checkpoints.answer(model, batch)
    assert (trained - wanted).norm() > 1e-3 * wanted.norm()
    model.save_pretrained(tmp_path)  # packs again, in the recorded dtypes
    again = load(tmp_path)
    assert [type(student) for student in students(again)] == [PackedLookupFFN] * 2
    assert read_config(tmp_path) == read_config(made.folder)
    torch.testing.assert_close(checkpoints.answer(again, batch), trained, rtol=1e-3, atol=1e-3)


def test_students_must_stay_as_described(saved: dict[str, SimpleNamespace], tmp_path: Path) -> None:
    model = load(saved["gpt2"].folder)
    model.transformer.h[0].mlp = LookupFFN(32, tables=2, bits=2, block=16)
    with pytest.raises(CheckpointError, match=r"h\.0\.mlp is not the student"):
        model.save_pretrained(tmp_path)


def test_a_cast_model_is_saved_in_the_recorded_dtypes(saved: dict[str, SimpleNamespace], tmp_path: Path) -> None:
    load(saved["gpt2"].folder).to(torch.bfloat16).save_pretrained(tmp_path)
    stored = load_file(tmp_path / WEIGHTS)
    for placement in saved["gpt2"].placements:
        for name, (shape, dtype) in placement.layout().items():
            tensor = stored[f"transformer.{placement.entry}.{name}"]
            assert (tensor.shape, tensor.dtype) == (shape, dtype)


def test_newer_format(made: SimpleNamespace) -> None:
    checkpoints.edit_config(made.folder, format_version=FORMAT_VERSION + 1)
    for read in (read_config, load, AutoModel.from_pretrained):
        with pytest.raises(CheckpointError, match=rf"format_version {FORMAT_VERSION + 1}(.|\n)*upgrade"):
            read(made.folder)
    assert is_compressed(made.folder)


def test_damaged_config(made: SimpleNamespace) -> None:
    site = made.placements[0].to_dict()
    for sites in (None, [{}], [{**site, "entry": 3}], [{**site, "table_dtype": "int3"}],
                  [{**site, "geometry": {**site["geometry"], "bits": 99}}], [{**site, "geometry": 5}]):  # fmt: skip
        checkpoints.edit_config(made.folder, sites=sites)
        with pytest.raises(CheckpointError, match="quantization_config is damaged"):
            read_config(made.folder)
    checkpoints.edit_config(made.folder, sites=[site], format_version="one")
    with pytest.raises(CheckpointError, match="format_version is 'one'"):
        read_config(made.folder)


def test_unknown_keys_are_kept(made: SimpleNamespace, tmp_path: Path) -> None:
    checkpoints.edit_config(made.folder, later={"key": 1})
    load(made.folder).save_pretrained(tmp_path / "again")
    assert read_config(tmp_path / "again").extra == {"later": {"key": 1}}


def test_missing_and_misshapen_tensors_are_named(made: SimpleNamespace) -> None:
    student = "encoder.layer.0.intermediate"

    def damage(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[f"{student}.scales"]
        tensors[f"{student}.tables"] = tensors[f"{student}.tables"][:-1].contiguous()

    rewrite(made.folder, damage)
    for read in (load, AutoModelForSequenceClassification.from_pretrained):
        kwargs = {} if read is load else {"ignore_mismatched_sizes": True}
        with pytest.raises(CheckpointError) as caught:
            read(made.folder, **kwargs)
        assert f"{student}.scales [6]" in caught.value.message
        assert f"{student}.tables [6, 8, 32]" in caught.value.message
        assert str(made.folder) == caught.value.where
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):  # transformers' own check comes first
        AutoModel.from_pretrained(made.folder)


def test_missing_and_misshapen_tensors_outside_the_students(made: SimpleNamespace) -> None:
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["encoder.layer.1.attention.self.key.weight"]
        tensors["pooler.dense.bias"] = torch.zeros(7)

    rewrite(made.folder, damage)
    with pytest.raises(CheckpointError) as caught:
        load(made.folder)
    assert "encoder.layer.1.attention.self.key.weight is missing" in caught.value.message
    assert "pooler.dense.bias is [7], not [32]" in caught.value.message


def test_integers_where_numbers_belong(made: SimpleNamespace) -> None:
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        tensors["encoder.layer.0.intermediate.scales"] = torch.ones(6, dtype=torch.int8)

    rewrite(made.folder, damage)
    with pytest.raises(CheckpointError, match=r"scales \[6\] is stored as I8, config\.json says F32"):
        load(made.folder)


def test_truncated_weights(made: SimpleNamespace) -> None:
    content = (made.folder / WEIGHTS).read_bytes()
    (made.folder / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(made.folder)


def test_sites_that_the_architecture_lacks(made: SimpleNamespace) -> None:
    config = json.loads((made.folder / "config.json").read_text())
    config["num_hidden_layers"] = 1
    (made.folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"encoder\.layer\.1\.output\.dense has no place") as caught:
        load(made.folder)
    assert read_config(made.folder).transformers in caught.value.remedy


def test_what_is_no_checkpoint(made: SimpleNamespace, tmp_path: Path) -> None:
    assert is_compressed(made.folder)
    for folder, message in (
        (made.source, "no compressed checkpoint"), (tmp_path / "absent", "no config.json"), (tmp_path, "no config.json")
    ):  # fmt: skip
        assert not is_compressed(folder)
        with pytest.raises(CheckpointError, match=message):
            load(folder)
    (made.source / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        read_config(made.source)
    (made.source / "config.json").write_text("[]")
    assert not is_compressed(made.source)


def test_unknown_architecture(made: SimpleNamespace) -> None:
    config = json.loads((made.folder / "config.json").read_text())
    (made.folder / "config.json").write_text(json.dumps({**config, "architectures": ["OwnModel"]}))
    with pytest.raises(CheckpointError, match="no architecture OwnModel"):
        load(made.folder)


def test_dense_model_is_not_quantised_on_the_fly(made: SimpleNamespace) -> None:
    from compress.checkpoint.quantizer import LookupQuantizationConfig

    config = LookupQuantizationConfig(**read_config(made.folder).to_dict())
    with pytest.raises(CheckpointError, match="by distillation"):
        AutoModel.from_pretrained(made.source, quantization_config=config)
