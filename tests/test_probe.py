"""The probe: answers that are those recorded, on every processor, and a kernel that computes what is stored."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import checkpoints
import pytest
import torch
from kernel_levels import LEVELS, using_level
from safetensors.torch import load_file, save_file

from compress.checkpoint import Placement, Problem, load, save_checkpoint, verify_outputs
from compress.checkpoint.probe import TOLERANCE
from compress.lookup import LookupFFN, pack
from compress.lookup.packed import HashDtype
from compress.models import Pretrained
from compress.sites import find_sites, swap

needs_extension = pytest.mark.skipif(not LEVELS, reason="the native extension is not installed")


def save_gpt2(root: Path, hash_dtype: HashDtype) -> Path:
    """A GPT-2 whose students have large tables and whose probe has many tokens: last bits matter."""
    model = checkpoints.dense_folder("gpt2", root / "dense")
    torch.manual_seed(2)
    placements = []
    for site in find_sites(model):
        student = LookupFFN(
            site.d_in, site.d_out, tables=16, bits=4, projection="lowrank", rank=16, neurons=8,
            activation=site.activation,
        )  # fmt: skip
        torch.nn.init.normal_(student.tables, std=0.1)
        packed = pack(student, hash_dtype=hash_dtype).eval()
        swap(model, site, packed)
        placements.append(Placement.of(model, site, packed))
    out = root / "out"
    out.mkdir()
    save_checkpoint(
        out, model=model, source=Pretrained(model, None, "causal", "acme/pico@main", "abc123", root / "dense"),
        placements=placements, recipe_text="version: 1\n", resolved_recipe="version: 1\n", report=None,
        probe_batch={"input_ids": torch.randint(0, 64, (4, 24))},
    )  # fmt: skip
    return out


@pytest.fixture
def made(tmp_path: Path) -> SimpleNamespace:
    return checkpoints.save("bert", tmp_path)


def test_verify_outputs(made: SimpleNamespace) -> None:
    model = load(made.folder)
    student = model.encoder.layer[0].intermediate
    probe = load_file(made.folder / "probe.safetensors")
    assert {*probe} == {"input.input_ids", "input.attention_mask", "output.last_hidden_state", "output.pooler_output",
                        "tolerance"}  # fmt: skip
    with torch.no_grad():
        student.bias[0] += 1.0
        student.to("cpu")  # forgets what the kernel prepared
    problems = verify_outputs(made.folder, model)
    assert [problem.what.split(" by ")[0] for problem in problems] == [
        "output last_hidden_state differs", "output pooler_output differs",
    ]  # fmt: skip
    with torch.no_grad():
        student.bias.fill_(float("nan"))
        student.to("cpu")
    assert len(verify_outputs(made.folder, model)) == 2
    probe["output.logits"] = torch.zeros(3)
    probe["output.pooler_output"] = torch.zeros(3)
    save_file(probe, made.folder / "probe.safetensors")
    wrong = {problem.what for problem in verify_outputs(made.folder, load(made.folder))}
    assert wrong == {
        "output logits is absent, recorded were 3",
        "output pooler_output is of 64 numbers, recorded were 3",
    }
    (made.folder / "probe.safetensors").write_bytes(b"short")
    assert "damaged" in verify_outputs(made.folder, model)[0].what
    (made.folder / "probe.safetensors").unlink()
    assert verify_outputs(made.folder, model) == [Problem("probe.safetensors", "missing")]


def test_a_long_answer_is_recorded_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.checkpoint.probe._MOST", 100)
    made = checkpoints.save("gpt2", tmp_path)
    logits = checkpoints.answer(made.model, checkpoints.inputs("gpt2")).flatten()  # 2 x 9 x 64
    assert torch.equal(load_file(made.folder / "probe.safetensors")["output.logits"], logits[::12])
    assert verify_outputs(made.folder, made.model) == []


@needs_extension
@pytest.mark.parametrize("hash_dtype", ["w8a8", "int8"])
def test_every_instruction_set_is_within_what_last_bits_may_move(tmp_path: Path, hash_dtype: HashDtype) -> None:
    out = save_gpt2(tmp_path, hash_dtype)
    for level in LEVELS:
        with using_level(level):
            assert verify_outputs(out, load(out)) == []


def test_what_last_bits_may_move_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs rounded to 8 bits turn over more easily than float32 ones; what hardly moves is allowed the least."""
    monkeypatch.setattr("compress.checkpoint.probe.TOLERANCE", 1e-7)
    allowed = {}
    for dtype in ("w8a8", "float32"):
        (tmp_path / dtype).mkdir()
        allowed[dtype] = load_file(save_gpt2(tmp_path / dtype, dtype) / "probe.safetensors")["tolerance"].item()
    assert 1e-6 < 3 * allowed["float32"] < allowed["w8a8"] < 0.1


def test_a_model_that_last_bits_hardly_move_is_allowed_the_least(made: SimpleNamespace) -> None:
    assert load_file(made.folder / "probe.safetensors")["tolerance"].item() == pytest.approx(TOLERANCE)


@needs_extension
def test_a_kernel_that_computes_something_else_is_named(made: SimpleNamespace) -> None:
    model = load(made.folder)
    student = model.encoder.layer[1].intermediate
    checkpoints.answer(model, checkpoints.inputs("bert"))  # prepares the kernel's layout
    student.bias.data[0] += 1.0  # which is then of other numbers than PyTorch computes with
    (problem,) = verify_outputs(made.folder, model)
    assert problem.file == "encoder.layer.1.intermediate"
    assert problem.what.startswith("the kernel's answers (")
    assert "COMPRESS_ISA" in problem.remedy
