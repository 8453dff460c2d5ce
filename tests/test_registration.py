"""Importing compress: cheap, and enough for transformers to load what compress wrote, in a fresh process."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import checkpoints
import pytest
import torch

import compress


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each family, with the dense model, the checkpoint, inputs and the answer before it was saved."""
    root = tmp_path_factory.mktemp("saved")
    for name in checkpoints.AUTO_CLASSES:
        (root / name).mkdir()
        made = checkpoints.save(name, root / name)
        batch = checkpoints.inputs(name)
        checkpoints.keep_answer(root / name, made.model, batch)
    return root


def test_compress_first(saved: Path) -> None:
    loaded = checkpoints.load_in_a_fresh_process("import compress", saved, *checkpoints.AUTO_CLASSES)
    assert loaded == dict.fromkeys(checkpoints.AUTO_CLASSES, "True")


def test_transformers_first(saved: Path) -> None:
    imports = "from transformers import AutoModelForCausalLM\nimport compress"
    assert checkpoints.load_in_a_fresh_process(imports, saved, "llama") == {"llama": "True"}


def test_transformers_first_but_not_its_quantizers() -> None:
    printed = checkpoints.python(
        "import sys, transformers, compress\n"
        "print('transformers.quantizers.auto' in sys.modules)\n"
        "from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING\n"
        "print('lookup_ffn' in AUTO_QUANTIZER_MAPPING)\n"
    )
    assert printed.split() == ["False", "True"]


def test_without_the_import_nothing_loads(saved: Path) -> None:
    """The dense weights' names hold empty tensors, so transformers fails where it would else make FFNs up."""
    loaded = checkpoints.load_in_a_fresh_process("", saved, *checkpoints.AUTO_CLASSES)
    assert loaded == dict.fromkeys(checkpoints.AUTO_CLASSES, "RuntimeError")


def test_import_is_cheap() -> None:
    printed = checkpoints.python(
        "import sys, compress\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'safetensors', 'pydantic'} & sys.modules.keys()))\n"
        "print(compress.__version__)"
    )
    assert printed.splitlines() == ["[]", compress.__version__]


def test_registration_twice_is_no_error() -> None:
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    from compress.checkpoint.quantizer import LookupQuantizer, register

    register()
    importlib.reload(compress)
    assert AUTO_QUANTIZER_MAPPING["lookup_ffn"] is LookupQuantizer


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("LookupFFN", "lookup"),
        ("PackedLookupFFN", "lookup"),
        ("Recipe", "recipe"),
        ("convert", "conversion"),
        ("find_sites", "sites"),
        ("load", "checkpoint"),
        ("pack", "lookup"),
        ("push", "publishing"),
        ("replace_ffn", "replace"),
        ("resume", "conversion"),
        ("verify", "checkpoint"),
    ],
)
def test_public_names(name: str, module: str) -> None:
    assert getattr(compress, name) is getattr(importlib.import_module(f"compress.{module}"), name)
    assert name in compress.__all__


def test_names_are_listed_and_unknown_ones_refused() -> None:
    assert set(compress.__all__) <= set(dir(compress))
    with pytest.raises(AttributeError, match="no attribute 'covert'"):
        compress.covert  # noqa: B018


def test_evaluate_is_a_package_and_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever imports the package first, `compress.evaluate` can be called."""
    package = importlib.import_module("compress.evaluate")
    monkeypatch.setattr(package, "evaluate", lambda *args, **kwargs: (args, kwargs), raising=False)
    assert compress.evaluate is package
    assert isinstance(package, ModuleType)
    assert compress.evaluate("folder", against="model") == (("folder",), {"against": "model"})


def test_a_loaded_model_can_be_copied(saved: Path) -> None:
    """Loading leaves the caller's default dtype alone, and the model can be copied."""
    import copy

    model = compress.load(saved / "bert" / "out")
    assert torch.get_default_dtype() == torch.float32
    twin = copy.deepcopy(model)
    batch = checkpoints.inputs("bert")
    assert torch.equal(checkpoints.answer(twin, batch), checkpoints.answer(model, batch))
    assert SimpleNamespace(**vars(twin.config)).quantization_config.quant_method == "lookup_ffn"
