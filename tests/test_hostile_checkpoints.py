"""Checkpoints from strangers: whatever is wrong with one, it is refused with a message, or runs in little memory."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import checkpoints
import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor
from transformers import AutoModel

from compress.checkpoint import load, read_config, verify_files, verify_outputs
from compress.errors import CheckpointError, CompressError, KernelError
from compress.models import load_pretrained

WEIGHTS = "model.safetensors"
STUDENT = "encoder.layer.{}.intermediate"
MISSING = object()
VALUES: list[Any] = [
    *(MISSING, None, True, -1, 0, 7, 2**24, 10**12, 2**31, 2**63, 2**64, 10**400, 1.5, 8.0, math.nan, math.inf),
    *("8", "..\0", [], {}, [1], {"a": 1}),
]  # fmt: skip
MEMORY = 1 << 30  # that a refusal, or a pico model, may take at most


@contextmanager
def little_memory() -> Iterator[None]:
    """Let allocations fail that go beyond what the process has by more than MEMORY."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    return checkpoints.save("bert", tmp_path_factory.mktemp("original"))


@pytest.fixture
def folder(original: SimpleNamespace, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original.folder, tmp_path / "copy"))


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def tensors_of(path: Path) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in load_file(path).items()}  # not mapped: the file is written again


def outcome(folder: Path) -> str:
    """Load and run: "ran", or "refused" where a CompressError says why; anything else fails the test."""
    try:
        with little_memory():
            model = load(folder)
            answer = checkpoints.answer(model, checkpoints.inputs("bert"))
    except CompressError as error:
        return "refused" if error.remedy else "refused without a remedy"
    assert answer.shape == (2, 9, 32)
    return "ran"


def change(holder: dict[str, Any], key: str, value: Any) -> None:
    if value is MISSING:
        holder.pop(key, None)
    else:
        holder[key] = value


# -- config.json

SECTIONS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "geometry": lambda config: config["quantization_config"]["sites"][0]["geometry"],
    "geometry of bh4": lambda config: config["quantization_config"]["sites"][1]["geometry"],
    "site": lambda config: config["quantization_config"]["sites"][0],
    "quantization_config": lambda config: config["quantization_config"],
}
HARMLESS = {  # a block size that bh4 alone reads, facts that nothing depends on, and "the same" in other words
    *(("geometry", "block", size) for size in ("0", "7", "16777216")), ("geometry", "tables", "7"),
    *(("quantization_config", key, "None") for key in ("revision", "rest_dtype", "transformers")),
    *(("quantization_config", key, repr(text)) for key in ("source", "revision", "rest_dtype", "transformers")
      for text in VALUES if isinstance(text, str)),
}  # fmt: skip


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_of_the_format_is_checked(folder: Path, section: str) -> None:
    good = config_of(folder)
    ran = set()
    for key in [*SECTIONS[section](good), "unknown"]:
        if key == "quant_method":  # without it this is no compressed checkpoint at all
            continue
        for value in VALUES:
            bad = copy.deepcopy(good)
            change(SECTIONS[section](bad), key, value)
            if bad == good:
                continue
            (folder / "config.json").write_text(json.dumps(bad))
            if outcome(folder) == "ran":
                ran.add((section, key, "MISSING" if value is MISSING else repr(value)))
    allowed = {found for found in ran if found[1] == "unknown" and section == "quantization_config"}  # kept as they are
    assert ran - allowed - HARMLESS == {(section, "rest_dtype", "MISSING"), (section, "transformers", "MISSING")} & ran


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("entry", "encoder"), ("entry", "encoder.layer.0"), ("entry", "encoder.layer.1.intermediate"),
        ("entry", "embeddings.word_embeddings"), ("entry", "encoder.layer.0.output.dense"), ("entry", "..intermediate"),
        ("name", "encoder.layer.0.intermediate.dense"), ("name", "pooler.dense"), ("name", "encoder"), ("name", "bias"),
        ("name", "../../etc/passwd"), ("identities", []), ("identities", ["encoder"]), ("identities", "encoder"),
        ("identities", ["encoder.layer.0.output"]), ("identities", ["encoder.layer.0.output.dense"] * 2),
        ("identities", ["encoder.layer.0.intermediate"]), ("identities", ["encoder.layer.0.intermediate.dense"]),
        ("identities", [["encoder.layer.0.output.dense"]]), ("identities", [3]),
    ],
)  # fmt: skip
def test_a_place_is_one_of_the_model(folder: Path, key: str, path: object) -> None:
    config = config_of(folder)
    config["quantization_config"]["sites"][0][key] = path
    (folder / "config.json").write_text(json.dumps(config))
    assert outcome(folder) == "refused"


def test_exchanged_and_repeated_sites(folder: Path) -> None:
    good = config_of(folder)
    first, second = good["quantization_config"]["sites"]
    for sites in ([], [first], [first, first], [first, {**second, "geometry": first["geometry"]}],
                  [{**first, "geometry": second["geometry"]}, {**second, "geometry": first["geometry"]}],
                  [first, {**second, "name": first["name"]}], [first, second, {**second, "entry": "pooler.dense"}],
                  [first, 5], [first, None], "sites", {"0": first}):  # fmt: skip
        bad = copy.deepcopy(good)
        bad["quantization_config"]["sites"] = sites
        (folder / "config.json").write_text(json.dumps(bad))
        assert outcome(folder) == "refused", sites


@pytest.mark.parametrize(
    "architectures",
    [
        [], 5, None, "BertModel", [5], [None], [["BertModel"]], ["pipeline"], ["os"], ["AutoModel"], ["AutoTokenizer"],
        ["PreTrainedModel"], ["BertConfig"], ["BertTokenizer"], ["__builtins__"], ["GPT2Model"], ["utils.logging"],
    ],
)  # fmt: skip
def test_an_architecture_is_a_model_of_transformers(folder: Path, architectures: object) -> None:
    (folder / "config.json").write_text(json.dumps({**config_of(folder), "architectures": architectures}))
    assert outcome(folder) == "refused"
    with pytest.raises(CompressError):
        assert load_pretrained(str(folder)).model is None


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 10**9}, {"vocab_size": 10**12}, {"vocab_size": -1}, {"intermediate_size": "x"},
        {"max_position_embeddings": 10**11}, {"num_attention_heads": 0}, {"model_type": 5}, {"model_type": ["bert"]},
        {"quantization_config": 5}, {"dtype": "int8"}, {"dtype": 5}, {"auto_map": 5}, {"hidden_act": "os.system"},
        {"hidden_size": 31}, {"num_hidden_layers": 1}, {"num_hidden_layers": 3}, {"num_hidden_layers": -1},
        {"transformers_weights": "../dense/model.safetensors"}, {"transformers_weights": "/etc/passwd"},
    ],
)  # fmt: skip
def test_other_keys_of_the_config(folder: Path, changes: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps({**config_of(folder), **changes}))
    harmless = "auto_map" in changes or changes == {"model_type": 5}  # the architecture says what is loaded
    assert outcome(folder) == ("ran" if harmless else "refused")


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"5", b"\xff", b"{" * 100_000, b"[" * 100_000, b'{"quantization_config":' * 20_000, b"\0" * 9],
)
def test_a_config_that_is_none(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    assert outcome(folder) == "refused"


def test_a_config_without_end(folder: Path) -> None:
    for kind in ("device", "pipe", "large"):
        (folder / "config.json").unlink()
        if kind == "device":
            (folder / "config.json").symlink_to("/dev/zero")
        elif kind == "pipe":
            os.mkfifo(folder / "config.json")
        else:
            with open(folder / "config.json", "wb") as file:
                file.truncate(1 << 40)
        assert outcome(folder) == "refused"


# -- tensors


def test_every_tensor_is_checked(folder: Path, original: SimpleNamespace) -> None:
    good = tensors_of(folder / WEIGHTS)
    ran = set()
    for index, placement in enumerate(original.placements):
        for name, (_, dtype) in placement.layout().items():
            key = f"{STUDENT.format(index)}.{name}"
            tensor = good[key]
            changed: dict[str, Tensor | None] = {
                "missing": None, "longer": torch.cat((tensor, tensor)), "flat": tensor.flatten()[1:],
                "empty": tensor[:0],
                **{str(to): tensor.to(to) for to in (torch.float64, torch.float32, torch.bfloat16, torch.int8,
                                                     torch.uint8, torch.int64)},
            }  # fmt: skip
            for what, value in changed.items():
                if value is not None and (value.shape, value.dtype) == (tensor.shape, dtype):
                    continue
                tensors = {**good, key: value}
                tensors = {kept: value.contiguous() for kept, value in tensors.items() if value is not None}
                save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
                if outcome(folder) == "ran":
                    ran.add((name, str(dtype), what))
    # A bias passes for one of the dense model's, of which there are many; it is read as float32.
    assert {name for name, _, _ in ran} <= {"bias"}


def test_no_number_leads_out_of_a_table(original: SimpleNamespace) -> None:
    """Every tensor of a student full of extremes: the kernel gives numbers, or names the tensor that it cannot take."""
    refused = set()
    for placement in original.placements:
        student = original.model.get_submodule(placement.entry)
        x = torch.randn(3, placement.geometry.d_in)
        for name, (shape, dtype) in placement.layout().items():
            values = (-128, 127) if dtype == torch.int8 else (math.nan, math.inf, -math.inf, 3e38, -3e38, 1e-45)
            for value in values:
                hostile = copy.deepcopy(student)
                hostile.get_parameter(name).data = torch.full(shape, value, dtype=dtype)
                try:
                    assert hostile(x).shape == (3, placement.geometry.d_out)
                except KernelError:
                    refused.add((name, value))
        for value in (math.nan, math.inf, -math.inf, 3e38):
            assert student(torch.full_like(x, value)).shape == (3, placement.geometry.d_out)
    assert {name for name, _ in refused} == {"scales"}  # negative or not finite
    assert len(refused) == 4


def test_tensors_that_no_model_has(folder: Path) -> None:
    tensors = tensors_of(folder / WEIGHTS)
    for name in (f"{STUDENT.format(0)}.more", "tables", "encoder.layer.7.intermediate.tables", "../x", "a\0b"):
        save_file({**tensors, name: torch.zeros(3)}, folder / WEIGHTS, metadata={"format": "pt"})
        assert outcome(folder) == "refused", name


def damaged_files(good: bytes) -> Iterator[tuple[str, bytes]]:
    """Safetensors files that are none: sizes, offsets, shapes and dtypes of the header against each other."""
    length = struct.unpack("<Q", good[:8])[0]
    header, data = json.loads(good[8 : 8 + length]), good[8 + length :]
    name = f"{STUDENT.format(0)}.tables"
    other = f"{STUDENT.format(1)}.tables"

    def packed(header: dict[str, Any], data: bytes = data) -> bytes:
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data

    begin, end = header[name]["data_offsets"]
    for changes in (
        {"data_offsets": [begin, end + 1]}, {"data_offsets": [end, begin]}, {"data_offsets": [-1, end]},
        {"data_offsets": [begin, 2**63]}, {"data_offsets": [0, end - begin]},
        {"data_offsets": header[other]["data_offsets"]},
        {"data_offsets": [begin]}, {"data_offsets": "0"}, {"shape": [6, 8, 33]}, {"shape": [-6, -8, 32]},
        {"shape": [2**63, 2, 0]}, {"shape": [2**32, 2**32, 32]}, {"shape": "x"}, {"shape": [6.0, 8, 32]},
        {"dtype": "I4"}, {"dtype": "F64"}, {"dtype": 5}, {"dtype": "F8_E4M3"}, {"dtype": "BOOL"},
    ):  # fmt: skip
        yield str(changes), packed({**header, name: {**header[name], **changes}})
    yield "overlap", packed({**header, "more": header[name]})
    yield "no entry", packed({**header, name: None})
    yield "hole behind", good + b"\0"
    yield "cut", good[:-1]
    yield "cut header", good[: 8 + length // 2]
    yield "nothing", b""
    yield "7 bytes", good[:7]
    for size in (0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1):
        yield f"header of {size}", struct.pack("<Q", size) + good[8:]
    yield "no JSON", struct.pack("<Q", 4) + b"\xff\xff\xff\xff"
    yield "deep JSON", struct.pack("<Q", 200_000) + b"[" * 200_000
    yield "a pickle", pickle.dumps({"a": 1})


def test_damaged_safetensors(folder: Path) -> None:
    good = (folder / WEIGHTS).read_bytes()
    for what, content in damaged_files(good):
        (folder / WEIGHTS).write_bytes(content)
        assert outcome(folder) == "refused", what
        with pytest.raises(Exception, match=r"."), little_memory():  # transformers' own way in
            AutoModel.from_pretrained(folder, use_safetensors=True)
    (folder / WEIGHTS).write_bytes(good)
    assert outcome(folder) == "ran"


# -- files


class Malicious:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def test_only_safetensors_is_read(folder: Path, tmp_path: Path) -> None:
    torch.save({"x": Malicious(tmp_path / "trace")}, folder / "pytorch_model.bin")
    for name in ("tf_model.h5", "model.ckpt", "pytorch_model.bin.index.json", "model.gguf"):
        (folder / name).write_bytes(pickle.dumps(Malicious(tmp_path / "trace")))
    assert outcome(folder) == "ran"  # beside model.safetensors nobody looks at it
    tensors = tensors_of(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"cannot be read: .*safetensors"):
        load(folder)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is no safetensors file"):
        AutoModel.from_pretrained(folder)
    with pytest.raises(CompressError):
        load_pretrained(str(folder))
    torch.save(tensors, folder / "pytorch_model.bin")  # harmless, and refused
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is no safetensors file"):
        load_pretrained(str(folder))
    assert not (tmp_path / "trace").exists()


def test_an_index_names_files_of_its_folder(folder: Path, original: SimpleNamespace, tmp_path: Path) -> None:
    tensors = tensors_of(folder / WEIGHTS)
    shutil.copy(folder / WEIGHTS, tmp_path / "stolen.safetensors")
    (folder / WEIGHTS).rename(folder / "shard.safetensors")
    torch.save({"x": Malicious(tmp_path / "trace")}, folder / "shard.bin")

    def index(file: object) -> None:
        text = json.dumps({"metadata": {}, "weight_map": dict.fromkeys(tensors, file)})
        (folder / "model.safetensors.index.json").write_text(text)

    index("shard.safetensors")
    assert outcome(folder) == "ran"
    for file in ("../stolen.safetensors", str(tmp_path / "stolen.safetensors"), "sub/../../stolen.safetensors",
                 "absent.safetensors", "shard.bin", "/dev/zero", "", 5, None, "\0"):  # fmt: skip
        index(file)
        assert outcome(folder) == "refused", file
    for text in ("{}", "[]", "{", '{"metadata": {}, "weight_map": []}', '{"metadata": 5, "weight_map": {"a": "b"}}'):
        (folder / "model.safetensors.index.json").write_text(text)
        assert outcome(folder) == "refused", text
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json", "config.json", "1_Pooling", "1_Pooling/config.json"])
def test_no_file_is_a_link_to_elsewhere(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    assert outcome(folder) == "refused"
    with pytest.raises(CheckpointError, match="outside the checkpoint's folder"):
        AutoModel.from_pretrained(folder)
    (folder / name).unlink()
    (tmp_path / "elsewhere").rename(folder / "inside")
    (folder / name).symlink_to(folder / "inside")
    assert outcome(folder) == "ran"


def test_a_snapshot_of_the_hub_s_cache_is_made_of_links(folder: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "c0ffee", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(exist_ok=True)
        path.rename(blobs / str(number))
        link.symlink_to(os.path.relpath(blobs / str(number), link.parent))
    assert outcome(snapshot) == "ran"
    (snapshot / "LICENSE").unlink()
    (snapshot / "LICENSE").symlink_to("/etc/passwd")
    assert outcome(snapshot) == "refused"


def test_code_in_a_checkpoint_runs_only_when_trusted(folder: Path, tmp_path: Path) -> None:
    code = f"import os; os.mkdir({str(tmp_path / 'trace')!r})\n"
    (folder / "modeling_own.py").write_text(code)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code)
    own = {"auto_map": {"AutoModel": "modeling_own.OwnModel", "AutoConfig": "modeling_own.OwnConfig"}}
    (folder / "config.json").write_text(json.dumps({**config_of(folder), **own}))
    assert outcome(folder) == "ran"  # as the architecture of transformers that it names
    (folder / "config.json").write_text(json.dumps({**config_of(folder), "architectures": ["OwnModel"]}))
    for read in (load, lambda folder: load_pretrained(str(folder))):
        with pytest.raises(CompressError, match="--trust-remote-code"):
            read(folder)
    assert not (tmp_path / "trace").exists()


def test_no_file_in_the_working_folder_runs(folder: Path, tmp_path: Path) -> None:
    """The installed command; `python -m compress` looks in the working folder, as Python has it."""
    script = Path(sys.executable).with_name("compress")
    if not script.exists():
        pytest.skip("the command is not installed beside this Python")
    here = tmp_path / "here"
    here.mkdir()
    for name in ("sitecustomize", "usercustomize", "compress", "torch", "transformers", "typer", "yaml", "numpy",
                 "safetensors", "conftest", "_kernels", "json", "wrapt"):  # fmt: skip
        (here / f"{name}.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'a').write({name!r})\n")
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONSAFEPATH", "PYTHONPATH")}
    environment |= {"HF_HUB_OFFLINE": "1", "COMPRESS_ISA": "scalar"}
    done = subprocess.run([script, "verify", folder], cwd=here, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    environment["COMPRESS_ISA"] = "../here/_kernels.py"  # a name among those that are built in, or an error
    done = subprocess.run([script, "verify", folder], cwd=here, env=environment, capture_output=True, text=True)
    assert done.returncode == 1  # `verify` loads in another process, which cannot
    assert "is not to be had here" in done.stderr
    assert not (tmp_path / "trace").exists()


def test_a_manifest_names_files_of_its_folder(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    manifest = json.loads(text)
    entry = manifest["files"]["LICENSE"]
    for files in ({"../dense/LICENSE": entry}, {"/etc/passwd": entry}, {"LICENSE": 5}, {"LICENSE": {}}, {"": entry},
                  {"LICENSE": {"bytes": "x", "sha256": []}}, [], {}, 5, {"a\0b": entry}, {"x" * 5000: entry},
                  {"1_Pooling": entry}, {"/dev/zero": {"bytes": 0, "sha256": "x"}}):  # fmt: skip
        (folder / "manifest.json").write_text(json.dumps({"version": 1, "files": files}))
        assert verify_files(folder), files
    (folder / "manifest.json").write_text("[" * 100_000)
    assert "damaged" in verify_files(folder)[0].what
    (folder / "LICENSE").unlink()
    (folder / "LICENSE").symlink_to("/etc/passwd")
    (folder / "manifest.json").write_text(text)
    assert [problem.what for problem in verify_files(folder)] == ["lies outside the folder"]


def test_a_probe_from_a_stranger(folder: Path) -> None:
    model = load(folder)
    path = folder / "probe.safetensors"
    good = tensors_of(path)

    def without(*names: str) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in good.items() if name not in names}

    wrong = {**good, "output.last_hidden_state": torch.zeros_like(good["output.last_hidden_state"])}
    for tensors in (
        {}, without("tolerance"), without("input.input_ids"), {**good, "tolerance": torch.tensor(math.nan)},
        {**wrong, "tolerance": torch.tensor(math.inf)}, {**good, "tolerance": torch.ones(2)},
        {**wrong, "tolerance": torch.tensor(1e9)}, without("output.last_hidden_state", "output.pooler_output"),
        {**good, "input.input_ids": torch.full((1, 4), 10**6)}, {**good, "input.input_ids": torch.full((1, 4), -5)},
        {**good, "input.input_ids": torch.zeros(1, 4)}, {**good, "input.self": torch.zeros(1)},
        {**good, "input.return_dict": torch.zeros(1)}, {**good, "input.past_key_values": torch.zeros(1)},
        {**good, "input.input_ids": torch.zeros(1, 1000, dtype=torch.long)}, {**good, "output.more": torch.zeros(3)},
        {**good, "output.last_hidden_state": torch.zeros(0)},
        {**wrong, "output.last_hidden_state": wrong["output.last_hidden_state"].bool()},
    ):  # fmt: skip
        path.write_bytes(save(tensors, metadata={"format": "pt"}))
        with little_memory():
            assert verify_outputs(folder, model), [*tensors]
    path.write_bytes(pickle.dumps(Malicious(folder / "trace")))
    assert "damaged" in verify_outputs(folder, model)[0].what
    assert not (folder / "trace").exists()
    path.write_bytes(save(good, metadata={"format": "pt"}))
    assert verify_outputs(folder, model) == []


def test_the_original_is_whole(original: SimpleNamespace) -> None:
    assert outcome(original.folder) == "ran"
    assert verify_files(original.folder) == []
    assert len(read_config(original.folder).sites) == 2
