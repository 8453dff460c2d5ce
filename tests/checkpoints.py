"""Small compressed checkpoints on disk, made from the pico models with students that nobody trained."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pico
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from compress.checkpoint import Placement, save_checkpoint
from compress.lookup import LookupFFN, pack
from compress.models import Pretrained
from compress.sites import example_inputs, find_sites, swap

TASKS = {
    "llama": "causal", "gpt2": "causal", "bert": "embedding", "bert_masked": "masked", "vit": "image-classification",
}  # fmt: skip
AUTO_CLASSES = {
    "llama": "AutoModelForCausalLM", "gpt2": "AutoModelForCausalLM", "bert": "AutoModel",
    "bert_masked": "AutoModelForMaskedLM", "vit": "AutoModelForImageClassification",
}  # fmt: skip
_LOAD = """
import sys
from pathlib import Path
from safetensors.torch import load_file
import torch, transformers
for argument in sys.argv[3:]:
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
    print(name, difference.abs().max().item() <= float(sys.argv[2]))
"""
SIDE_FILES = {
    "tokenizer.json": b'{"version": "1.0"}\r\n',
    "vocab.txt": "[PAD]\nµ\n".encode(),
    "chat_template.jinja": b"{{ messages }}",
    "LICENSE": b"Apache-2.0",
    "modeling_own.py": b"# remote code\n",
    "original/params.json": b"{}",
    "1_Pooling/config.json": b'{"pooling_mode_mean_tokens": true}',
    "2_Dense/model.safetensors": b"a projection of the pipeline, no weights of the transformer",
    "modules.json": json.dumps(
        [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
        ]
    ).encode(),
}
LEFT_OUT = {
    "pytorch_model.bin": b"weights",
    "pytorch_model.bin.index.json": b"{}",
    "tf_model.h5": b"weights",
    "original/consolidated.00.pth": b"weights",
    "onnx/model.onnx": b"graph",
    "onnx/config.json": b"{}",
    "openvino/openvino_model.xml": b"graph",
}
README = b"---\nlicense: mit\nlanguage: [en]\ntags: [theirs]\n---\n# The dense model\n"
REPORT = {
    "format": 1,
    "quality": {"perplexity": {"dense": 4.27, "compressed": 4.5, "stderr": 0.01, "samples": 12, "unit": "windows"}},
    "agreement": {"kl": 0.01, "top1": 0.97, "positions": 512},
    "latency": [
        {"scope": "model", "batch": 1, "tokens": 1, "threads": 2,
         "seconds": {"dense_float32": 0.004, "dense_int8": 0.002, "compressed": 0.003}}
    ],
    "size": {"dense_bytes": 1000, "compressed_bytes": 5000},
    "sites": [],
    "setting": {
        "data": "text: 512 tokens", "threads": 2, "processor": "ACME 9000", "isa": "avx2", "versions": {"torch": "2.13"}
    },
}  # fmt: skip


def inputs(name: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    if name == "vit":
        return {"pixel_values": torch.randn(2, 3, 32, 32, generator=generator)}
    ids = torch.randint(0, 64, (2, 9), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def answer(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**batch)[0]


def dense_folder(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Save the dense pico model with side files, as a hub snapshot has them, and give the model."""
    model = pico.FAMILIES[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))
    copy.deepcopy(model).to(dtype).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    for file, content in {**SIDE_FILES, **LEFT_OUT, "README.md": README, ".gitattributes": b"*.bin lfs"}.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(content)
    return model


def convert(model: nn.Module, read: str = "top1") -> list[Placement]:
    """Put random packed students into every site; one in int8 and bfloat16, the next in the other dtypes."""
    torch.manual_seed(2)
    placements = []
    for index, site in enumerate(find_sites(model)):
        student = LookupFFN(
            site.d_in, site.d_out, tables=6, bits=3, projection=("lowrank", "bh4")[index % 2], block=16, rank=8,
            neurons=5, gated=site.gated, activation=site.activation, read=read,
        )  # fmt: skip
        packed = pack(student, *(("int8", "bfloat16"), ("bfloat16", "float32"))[index % 2]).eval()
        swap(model, site, packed)
        placements.append(Placement.of(model, site, packed))
    return placements


def save(name: str, root: Path, *, dtype: torch.dtype = torch.float32, **changes: object) -> SimpleNamespace:
    """Make root/dense and the checkpoint root/out; returns its folder, the model in memory and the placements."""
    source, out = root / "dense", root / "out"
    model = dense_folder(name, source, dtype)
    placements = convert(model)
    out.mkdir()
    arguments = {
        "model": model, "placements": placements, "recipe_text": "version: 1\n",
        "resolved_recipe": "version: 1\nseed: 0\n", "report": None, "probe_batch": inputs(name),
        "source": Pretrained(model, None, TASKS[name], f"acme/pico-{name}@main", "abc123", source),
    }  # fmt: skip
    save_checkpoint(out, **{**arguments, **changes})
    return SimpleNamespace(folder=out, model=model, placements=placements, name=name, source=source)


def save_model(model: nn.Module, root: Path) -> Path:
    """Save any model to root/dense, put students in and make the checkpoint root/out of it; returns its folder."""
    source, out = root / "dense", root / "out"
    model.save_pretrained(source)
    batch = example_inputs(model)
    placements = convert(model)
    out.mkdir()
    save_checkpoint(
        out, model=model, source=Pretrained(model, None, "causal", "acme/pico@main", "abc123", source),
        placements=placements, recipe_text="version: 1\n", resolved_recipe="version: 1\n", report=None,
        probe_batch=batch,
    )  # fmt: skip
    return out


def edit_config(folder: Path, **changes: object) -> None:
    """Change keys of quantization_config in a checkpoint."""
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"].update(changes)
    (folder / "config.json").write_text(json.dumps(config))


def moved(placement: Placement, entry: str) -> Placement:
    return replace(placement, entry=entry)


def python(code: str, *arguments: object) -> str:
    """Run code in a fresh interpreter that sees the tests' modules; gives what it printed."""
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1"}
    path = [str(Path(__file__).parent), *filter(None, [environment.get("PYTHONPATH")])]
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, env={**environment, "PYTHONPATH": os.pathsep.join(path)}, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-4000:]
    return run.stdout


def keep_answer(folder: Path, model: nn.Module, batch: dict[str, Tensor]) -> None:
    """Write a batch and what a model answers beside the checkpoint folder/out, for `load_in_a_fresh_process`."""
    save_file(batch, folder / "inputs.safetensors")
    save_file({"answer": answer(model, batch)}, folder / "answer.safetensors")


def load_in_a_fresh_process(imports: str, root: Path, *names: str, tolerance: float = 1e-6) -> dict[str, str]:
    """For each family in root/name: whether its checkpoint answers as kept there, or the error's name."""
    printed = python(imports + _LOAD, root, tolerance, *(f"{name}={AUTO_CLASSES[name]}" for name in names))
    return dict(line.split() for line in printed.splitlines())
