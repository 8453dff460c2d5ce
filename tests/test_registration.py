"""Importing compress: cheap, and enough for transformers to load what compress wrote, in a fresh process."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import checkpoints
import pytest
import torch
from safetensors.torch import save_file

import compress

AUTO_CLASSES = {
    "llama": "AutoModelForCausalLM", "gpt2": "AutoModelForCausalLM", "bert": "AutoModel",
    "bert_masked": "AutoModelForMaskedLM", "vit": "AutoModelForImageClassification",
}  # fmt: skip

LOAD = """
import sys
from pathlib import Path
from safetensors.torch import load_file
import torch, transformers
for argument in sys.argv[2:]:
    name, auto = argument.split("=")
    folder = Path(sys.argv[1], name)
    try:
        model = getattr(transformers, auto).from_pretrained(folder / "out")
    except Exception as error:
        print(name, type(error).__name__)
        continue
    with torch.no_grad():
        answer = model(**load_file(folder / "inputs.safetensors"))[0]
    difference = answer - load_file(folder / "answer.safetensors")["answer"]
    print(name, difference.abs().max().item() <= 1e-6)
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each family, with the dense model, the checkpoint, inputs and the answer before it was saved."""
    root = tmp_path_factory.mktemp("saved")
    for name in AUTO_CLASSES:
        (root / name).mkdir()
        made = checkpoints.save(name, root / name)
        batch = checkpoints.inputs(name)
        save_file(batch, root / name / "inputs.safetensors")
        save_file({"answer": checkpoints.answer(made.model, batch)}, root / name / "answer.safetensors")
    return root


def load_in_a_fresh_process(imports: str, saved: Path, *names: str) -> dict[str, str]:
    printed = checkpoints.python(imports + LOAD, saved, *(f"{name}={AUTO_CLASSES[name]}" for name in names))
    return dict(line.split() for line in printed.splitlines())


def test_compress_first(saved: Path) -> None:
    loaded = load_in_a_fresh_process("import compress", saved, *AUTO_CLASSES)
    assert loaded == dict.fromkeys(AUTO_CLASSES, "True")


def test_transformers_first(saved: Path) -> None:
    imports = "from transformers import AutoModelForCausalLM\nimport compress"
    assert load_in_a_fresh_process(imports, saved, "llama") == {"llama": "True"}


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
    loaded = load_in_a_fresh_process("", saved, *AUTO_CLASSES)
    assert loaded == dict.fromkeys(AUTO_CLASSES, "RuntimeError")


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
