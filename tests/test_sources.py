"""Every kind of source becomes a checkpoint through a whole job: dtypes, shards, pickles, own code, the hub's cache."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pico
import pytest
import torch
from pico_tokenizer import PROCESSORS
from safetensors.torch import load_file
from torch import Tensor, nn

import compress
from compress.checkpoint import read_config, verify_files, verify_outputs
from compress.conversion import convert, resume
from compress.distill.job import Job
from compress.errors import JobError, ModelError
from compress.models import load_pretrained

RECIPE = """\
version: 1
lookup: {budget: 0.5, memory: 40, bits: 3, rank: 8}
data: {path: text.txt, sequence_length: 16, tokens: 1000}
fit: {tokens: 500}
distill: {steps: 1, batch_tokens: 64}
finetune: {steps: 0}
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    draw = random.Random(0)
    lines = [" ".join(draw.choices(["the", "cat", "sat", "on", "a", "mat"], k=8)) + "." for _ in range(200)]
    (folder / "text.txt").write_text("\n".join(lines) + "\n")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(autouse=True)
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without latencies: they would take most of the time here."""
    monkeypatch.setattr("compress.evaluate.evaluation.measure_latency", lambda *_, **__: [])


def save_llama(folder: Path, dtype: torch.dtype = torch.float32, shard: str = "5GB", **changes: Any) -> nn.Module:
    model = pico.llama().to(dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    PROCESSORS["llama"]().save_pretrained(folder)
    return model


def save_bins(folder: Path, shards: int) -> nn.Module:
    """A folder with pickled weights, as older versions of transformers wrote them."""
    model = save_llama(folder)
    (folder / "model.safetensors").unlink()
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    if shards == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return model
    names = {name: f"pytorch_model-{index % shards + 1:05}-of-{shards:05}.bin" for index, name in enumerate(state)}
    for file in set(names.values()):
        torch.save({name: state[name] for name in state if names[name] == file}, folder / file)
    index = {"metadata": {"total_size": 1}, "weight_map": names}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return model


SOURCES: dict[str, Callable[[Path], nn.Module]] = {
    "float16": lambda folder: save_llama(folder, torch.float16),
    "bfloat16": lambda folder: save_llama(folder, torch.bfloat16),
    "shards": lambda folder: save_llama(folder, shard="20KB"),
    "pickle": lambda folder: save_bins(folder, 1),
    "pickles": lambda folder: save_bins(folder, 3),
}


def is_student(name: str) -> bool:
    return ".mlp." in name


def check(out: Path, dense: dict[str, Tensor]) -> None:
    """Whole, the same in a load of its own, and what is no student's is the source's, in its dtype."""
    assert verify_files(out) == []
    model = compress.load(out)
    assert verify_outputs(out, model) == []
    stored = load_file(out / "model.safetensors")
    kept = [name for name in stored if not is_student(name)]
    assert len(kept) > 5
    for name in kept:
        assert stored[name].dtype == dense[name].dtype, name
        assert torch.equal(stored[name], dense[name]), name
    assert model.lm_head.weight is model.model.embed_tokens.weight  # tied, and stored once
    assert "lm_head.weight" not in stored


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_of_weights_converts(work: Path, tmp_path: Path, kind: str) -> None:
    dense = SOURCES[kind](tmp_path / "dense")
    if kind in ("shards", "pickles"):
        assert len([path for path in (tmp_path / "dense").iterdir() if "-of-" in path.name]) > 2
    out = tmp_path / "out"
    # finetune.steps: 0, so that nothing but the students is new
    convert(str(tmp_path / "dense"), work / "recipe.yaml", out, threads=1)
    check(out, dense.state_dict())
    assert not [path.name for path in out.rglob("*") if path.suffix == ".bin" or ".index." in path.name]


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_trained_matrices_are_stored_in_the_source_s_dtype(work: Path, tmp_path: Path, kind: str) -> None:
    SOURCES[kind](tmp_path / "dense")
    overrides = ("finetune.steps=2", "finetune.batch_tokens=64", "finetune.learning_rate=0.05")
    convert(str(tmp_path / "dense"), work / "recipe.yaml", tmp_path / "out", threads=1, overrides=overrides)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    matrices = {name: tensor for name, tensor in stored.items() if tensor.dim() > 1 and not is_student(name)}
    assert {tensor.dtype for tensor in matrices.values()} == {getattr(torch, kind)}
    assert verify_outputs(tmp_path / "out", compress.load(tmp_path / "out")) == []


class Malicious:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("shards", [1, 2])
def test_a_pickle_that_is_a_program_is_refused_unrun(work: Path, tmp_path: Path, shards: int) -> None:
    save_bins(tmp_path / "dense", shards)
    file = sorted((tmp_path / "dense").glob("*.bin"))[0]
    torch.save({**torch.load(file, weights_only=True), "x": Malicious(tmp_path / "trace")}, file)
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        convert(str(tmp_path / "dense"), work / "recipe.yaml", tmp_path / "out", threads=1)
    assert "would run as a program" in (caught.value.remedy or "")
    assert not (tmp_path / "trace").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("shard", "message"),
    [("../other/model.safetensors", "no file beside it"), ("/etc/passwd", "no file beside it"),
     ("gone.safetensors", r"lacks gone\.safetensors")],
)  # fmt: skip
def test_an_index_names_files_beside_it(tmp_path: Path, shard: str, message: str) -> None:
    save_llama(tmp_path / "other")
    shutil.copytree(tmp_path / "other", tmp_path / "dense")
    names = load_file(tmp_path / "dense" / "model.safetensors")
    (tmp_path / "dense" / "model.safetensors").unlink()
    index = tmp_path / "dense" / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, shard)}))
    with pytest.raises(ModelError, match=message):
        load_pretrained(str(tmp_path / "dense"))
    for damaged in ("[", "[]", '{"weight_map": 5}', "{}"):
        index.write_text(damaged)
        with pytest.raises(ModelError, match="is damaged"):
            load_pretrained(str(tmp_path / "dense"))


def test_no_stranger_s_link_is_copied(work: Path, tmp_path: Path) -> None:
    save_llama(tmp_path / "dense")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "dense" / "NOTES").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match="NOTES of the model's folder leads out of it"):
        convert(str(tmp_path / "dense"), work / "recipe.yaml", tmp_path / "out", threads=1, dry_run=True)
    (tmp_path / "dense" / "NOTES").unlink()
    (tmp_path / "dense" / "model.safetensors").rename(tmp_path / "weights")
    (tmp_path / "dense" / "model.safetensors").symlink_to(tmp_path / "weights")  # never copied
    convert(str(tmp_path / "dense"), work / "recipe.yaml", tmp_path / "out", threads=1, dry_run=True)


# -- code of its own

_CONFIG = """
from transformers import PretrainedConfig

class OwnConfig(PretrainedConfig):
    model_type = "own"

    def __init__(self, hidden_size=32, vocab_size=64, **rest):
        super().__init__(**rest)
        self.hidden_size, self.vocab_size = hidden_size, vocab_size
"""
_MODEL = """
import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from .configuration_own import OwnConfig


class Block(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = torch.nn.LayerNorm(width)
        self.up, self.act = torch.nn.Linear(width, 4 * width), torch.nn.GELU()
        self.down = torch.nn.Linear(4 * width, width)

    def forward(self, x):
        return x + self.down(self.act(self.up(self.norm(x))))


class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = torch.nn.ModuleList(Block(config.hidden_size) for _ in range(2))
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids=None, attention_mask=None, **rest):
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        return BaseModelOutput(last_hidden_state=x)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder that brings the code of its architecture."""
    import transformers

    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, name)  # of another test's folder
    folder = tmp_path / "own"
    PROCESSORS["bert"]().save_pretrained(folder)
    (folder / "configuration_own.py").write_text(_CONFIG)
    (folder / "modeling_own.py").write_text(_MODEL)
    auto = {"AutoConfig": "configuration_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    (folder / "config.json").write_text(
        json.dumps({"model_type": "own", "architectures": ["OwnModel"], "auto_map": auto, "hidden_size": 32})
    )
    torch.manual_seed(0)
    tensors = {"embed.weight": torch.randn(64, 32)}
    for layer in range(2):
        block = f"blocks.{layer}"
        tensors |= {f"{block}.norm.weight": torch.ones(32), f"{block}.norm.bias": torch.zeros(32)}
        tensors |= {f"{block}.up.weight": torch.randn(128, 32) / 5, f"{block}.up.bias": torch.zeros(128)}
        tensors |= {f"{block}.down.weight": torch.randn(32, 128) / 9, f"{block}.down.bias": torch.zeros(32)}
    from safetensors.torch import save_file

    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


_LOAD_OWN = """
import sys, compress
from transformers import AutoModel
from compress.checkpoint import load, verify_outputs
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
loaded = load(sys.argv[1], trust_remote_code=True)
print(type(model).__name__, verify_outputs(sys.argv[1], model), type(loaded).__name__)
try:
    load(sys.argv[1])
except compress.errors.CompressError as error:
    print("--trust-remote-code" in str(error))
"""


def test_a_model_with_code_of_its_own(work: Path, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    with pytest.raises(ModelError, match="brings code of its own") as caught:
        convert(str(own), work / "recipe.yaml", out, threads=1)
    assert "--trust-remote-code" in str(caught.value)
    assert not (tmp_path / "modules" / "transformers_modules").exists()  # nothing was even copied to be run
    assert not out.exists()

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Job, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            convert(str(own), work / "recipe.yaml", out, threads=1, trust_remote_code=True)
    with pytest.raises(JobError, match="is not trusted") as refused:  # a job folder may come from a stranger
        resume(out)
    assert "--trust-remote-code" in str(refused.value)
    assert resume(out, trust_remote_code=True) is not None

    for file in ("configuration_own.py", "modeling_own.py"):
        assert (out / file).read_bytes() == (own / file).read_bytes()
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _LOAD_OWN, str(out)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split("\n")[:2] == ["OwnModel [] OwnModel", "True"]


# -- the hub's cache

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def home(tmp_path: Path, work: Path) -> Path:
    """A temporary HF_HOME whose cache holds one revision of owner/name, tagged v1: links to blobs."""
    save_llama(tmp_path / "files", torch.bfloat16, shard="20KB")
    repository = tmp_path / "home" / "hub" / "models--owner--name"
    snapshot = repository / "snapshots" / COMMIT
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    for number, path in enumerate(sorted((tmp_path / "files").iterdir())):
        path.rename(repository / "blobs" / f"{number:040x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:040x}")
    (repository / "refs" / "v1").write_text(COMMIT)
    return tmp_path / "home"


def command(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `compress` without a connection, with a cache of its own."""
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE"):
        environment.pop(name, None)
    return subprocess.run(
        [sys.executable, "-m", "compress", *arguments], capture_output=True, text=True, env=environment, check=False
    )


def test_a_revision_converts_from_the_hub_s_cache(work: Path, home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = command(home, "convert", "owner/name@v1", str(work / "recipe.yaml"), "-o", str(out), "--threads", "1")
    assert done.returncode == 0, done.stderr[-3000:]
    config = read_config(out)
    assert (config.source, config.revision, config.rest_dtype) == ("owner/name", COMMIT, "bfloat16")
    assert verify_outputs(out, compress.load(out)) == []
    assert not any(path.is_symlink() for path in out.rglob("*"))
    assert verify_files(out) == []


def test_what_the_cache_lacks_is_named(work: Path, home: Path) -> None:
    snapshot = home / "hub" / "models--owner--name" / "snapshots" / COMMIT
    shards = sorted(path.name for path in snapshot.glob("model-*.safetensors"))
    code = (
        "import sys\nfrom compress.hub import local_folder\nfrom compress.errors import ModelError\n"
        "for name in sys.argv[1:]:\n    try:\n        local_folder(name)\n        print('found')\n"
        "    except ModelError as error:\n        print(str(error).replace('\\n', ' '))\n"
    )

    def said(*names: str) -> list[str]:
        environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}
        done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.splitlines()

    (snapshot / shards[1]).unlink()
    (lacks, other, absent) = said("owner/name@v1", "owner/name@v2", "owner/absent")
    assert f"owner/name lacks {shards[1]}, which model.safetensors.index.json names" in lacks
    assert "hf download owner/name --revision v1" in lacks
    assert f"in the hub's cache only as {COMMIT}, v1" in other
    assert "HF_HUB_OFFLINE" in other
    assert "not in the hub's cache" in absent
    for path in snapshot.glob("model*"):
        path.unlink()
    assert "the hub's cache lacks the weights of owner/name" in said("owner/name@v1")[0]
    (snapshot / "config.json").unlink()
    assert "its config.json is not in the hub's cache" in said("owner/name@v1")[0]
