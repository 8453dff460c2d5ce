"""Training on a GPU: the same numbers as on the CPU, no step that waits for it, and a checkpoint that any CPU reads."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import data_samples
import pico_tokenizer
import pytest
import torch
from converted import student

import compress
from compress import kernels
from compress.checkpoint import verify_files, verify_outputs
from compress.conversion import convert, resume
from compress.data import Corpus
from compress.dense import DenseWeights
from compress.distill.activations import Tap
from compress.distill.endtoend import EndToEnd
from compress.distill.job import Job
from compress.errors import CompressError
from compress.lookup import LookupFFN, pack
from compress.lookup.fit import SiteData, fit
from compress.models import load_pretrained
from compress.recipe import FinetuneSettings
from compress.sites import find_norms, find_sites, swap

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

RECIPE = """\
version: 1
lookup: {budget: 0.4, memory: 40, bits: 4, rank: 16}
data: {sequence_length: 32, tokens: 4000}
fit: {tokens: 2000}
distill: {steps: 60, batch_tokens: 256}
finetune: {steps: 60, batch_tokens: 256}
"""


@contextmanager
def never_waiting() -> Iterator[None]:
    """Any operation that makes the host wait for the GPU raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("cells", [1, 2])
@pytest.mark.parametrize("width", [1, 33, 384])
def test_the_gather_and_its_gradients_are_the_cpus(width: int, cells: int) -> None:
    generator = torch.Generator().manual_seed(width + cells)
    tables = torch.randn(7, 16, width, generator=generator)
    codes = torch.randint(16, (300, 7, cells), generator=generator, dtype=torch.int32)
    weights, grad = torch.randn(300, 7, cells, generator=generator), torch.randn(300, width, generator=generator)
    there = [part.cuda() for part in (grad, tables, codes, weights)]
    torch.testing.assert_close(kernels.gather(*there[1:]).cpu(), kernels.gather(tables, codes, weights))
    for ours, wanted in zip(
        kernels.gather_backward(*there), kernels.gather_backward(grad, tables, codes, weights), strict=True
    ):
        torch.testing.assert_close(ours.cpu(), wanted, rtol=1e-4, atol=1e-4)
    again = [kernels.gather_backward(*there)[0] for _ in range(3)]
    assert all(torch.equal(again[0], other) for other in again[1:])


@pytest.mark.parametrize("read", ["top1", "top2"])
@pytest.mark.parametrize("projection", ["hadamard", "lowrank", "dense", "bh4", "acdc"])
def test_a_student_is_the_same_on_both(projection: str, read: str) -> None:
    torch.manual_seed(0)
    settings = {"tables": 6, "bits": 5, "projection": projection, "read": read, "block": 16, "neurons": 3}
    here = LookupFFN(64, 48, rank=16 if projection in ("hadamard", "lowrank") else 0, **settings)
    there = copy.deepcopy(here).cuda()
    x = torch.randn(2, 100, 64)
    answers = []
    for model, inputs in ((here, x), (there, x.cuda())):
        answer = model(inputs)
        answer.square().mean().backward()
        answers.append(answer.detach().cpu())
    torch.testing.assert_close(*answers, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(here.parameters(), there.parameters(), strict=True):
        torch.testing.assert_close(theirs.grad.cpu(), ours.grad, rtol=1e-3, atol=1e-5)
    packed = pack(here, "int8", "int8").eval()
    with torch.no_grad():
        torch.testing.assert_close(copy.deepcopy(packed).cuda()(x.cuda()).cpu(), packed(x), rtol=2e-3, atol=2e-3)


def test_the_closed_form_is_as_good_on_both() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 32, generator=generator)
    gate, down = torch.randn(64, 32, generator=generator), torch.randn(32, 64, generator=generator) / 8
    dense = DenseWeights(gate=gate, gate_bias=None, up=None, up_bias=None, down=down, down_bias=None)
    y = dense.hidden(x, "gelu") @ down.T
    errors = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        made = LookupFFN(32, 32, tables=8, bits=4, projection="hadamard", rank=16, neurons=8).to(device)
        data = SiteData(*(part.to(device) for part in (x, y, torch.ones(4000), torch.ones(32))))
        weights = DenseWeights(gate.to(device), None, None, None, down.to(device), None)
        fit(made, data, weights, ridge=1e-3, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            errors.append(float((made(data.x) - data.y).square().mean() / data.y.var()))
    assert errors[0] < 0.5
    assert errors[1] == pytest.approx(errors[0], rel=0.02)


def trainer(folder: Path, dtype: str, family: str = "gpt2") -> tuple[EndToEnd, Corpus]:
    """A pico model with disturbed students on the GPU, about to be trained."""
    pico_tokenizer.save_pico(folder / "model", family)
    if family == "vit":
        corpus = data_samples.corpus(data_samples.write_images(folder / "pictures", 80), family, source="images")
    else:
        corpus = data_samples.corpus(data_samples.write_lines(folder / "text.txt", 300), family, sequence_length=32)
    dense, converted = (load_pretrained(str(folder / "model")).model for _ in range(2))
    sites = find_sites(dense)
    norms = find_norms(dense, sites)
    taps = [Tap(site, norms[site.name]) for site in sites]
    for site in find_sites(converted):
        swap(converted, site, student(converted, site, noise=0.5).requires_grad_(True))
    dense.requires_grad_(False)
    for model in (dense, converted):
        torch.nn.Module.to(model, "cuda")
    settings = FinetuneSettings(steps=200, batch_tokens=256, dtype=dtype)
    task = load_pretrained(str(folder / "model")).task
    made = EndToEnd(dense, converted, taps, task, settings, {tap.site.name: 1.0 for tap in taps}, 1.0)
    made.before = made.held_out_error(corpus.holdout, 256, 4096)
    return made, corpus


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float32"])
def test_no_step_waits_for_the_gpu(tmp_path: Path, dtype: str) -> None:
    made, corpus = trainer(tmp_path, dtype)
    batches = [corpus.train.batch(step, 256, 0) for step in range(60)]
    for batch in batches[:4]:  # what is set up at the first steps, and the fourth recorded
        made.train_step(batch)
    assert made.replay.recorded
    with never_waiting():
        told = [made.train_step(batch) for batch in batches[4:24]]
    assert told == [None] * 20
    told = [made.train_step(batch) for batch in batches[24:]]
    assert any(error is not None for error in told)
    assert made.held_out_error(corpus.holdout, 256, 4096) < 0.7 * made.before


@pytest.mark.parametrize("family", ["llama", "gpt2", "vit"])
def test_replayed_steps_are_the_steps_themselves(tmp_path: Path, family: str) -> None:
    errors = []
    for name in ("replayed", "taken"):
        (tmp_path / name).mkdir()
        made, corpus = trainer(tmp_path / name, "float32", family)
        made.replay.usable = name == "replayed"
        for step in range(8):  # of more, rounding would part the two
            made.train_step(corpus.train.batch(step, 256, 0))
        assert bool(made.replay.recorded) == (name == "replayed")
        errors.append(torch.stack(made.errors.unread))
    torch.testing.assert_close(*errors, rtol=0.02, atol=1e-4)


def test_batches_of_two_shapes_take_turns(tmp_path: Path) -> None:
    made, corpus = trainer(tmp_path, "float32")
    small = corpus.train.batch(0, 128, 1)
    for step in range(40):
        made.train_step(small if step % 10 in (3, 9) else corpus.train.batch(step, 256, 0))
    assert len(made.replay.recorded) == 2
    assert made.held_out_error(corpus.holdout, 256, 4096) < made.before


def test_a_step_that_waits_is_not_replayed(tmp_path: Path) -> None:
    made, corpus = trainer(tmp_path, "float32")
    error = made.error
    made.error = lambda *given: error(*given) * (1.0 if error(*given).item() > 0 else 0.0)  # type: ignore[method-assign]
    for step in range(12):
        made.train_step(corpus.train.batch(step, 256, 0))
    assert not made.replay.usable
    assert made.step == 12
    made.error = error  # type: ignore[method-assign]
    assert made.held_out_error(corpus.holdout, 256, 4096) < made.before


def test_a_student_that_explodes_between_two_looks_goes_back(tmp_path: Path) -> None:
    made, corpus = trainer(tmp_path, "auto")
    batch = corpus.train.batch(0, 256, 0)
    good = [value.clone() for value in made.good]
    with torch.no_grad():
        made.parameters[0].fill_(float("nan"))
    for _ in range(40):
        made.train_step(batch)
        if made.restarts:
            break
    assert made.restarts == 1
    assert made.step == 0
    assert all(torch.equal(now, before) for now, before in zip(made.parameters, good, strict=True))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "vit"])
def test_it_converts_and_the_cpu_reads_it(tmp_path: Path, family: str) -> None:
    folder = pico_tokenizer.save_pico(tmp_path / "model", family)
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    recipe.write_text(RECIPE)
    overrides: tuple[str, ...] = ()
    if family == "vit":
        data_samples.write_images(tmp_path / "pictures", 24)
        overrides = ("data.source=images", "data.tokens=300")
    else:
        data_samples.write_lines(tmp_path / "text.txt", 300)
    data = tmp_path / ("pictures" if family == "vit" else "text.txt")
    convert(str(folder), recipe, out, data=str(data), overrides=overrides, device="cuda", threads=2)
    units = Job.open(out).journal["units"]
    sites = [result for name, result in units.items() if name.startswith("distill/")]
    assert all(result["distilled"] <= result["fitted"] for result in sites)
    assert units["finetune"]["after"] < units["finetune"]["before"] or not units["finetune"]["kept"]
    assert verify_files(out) == []
    assert verify_outputs(out, load_pretrained(str(out)).model) == []
    there, here = compress.load(str(out), device="cuda"), compress.load(str(out))
    batch = {
        "pixel_values": torch.randn(2, 3, 32, 32)
    } if family == "vit" else {"input_ids": torch.randint(5, 60, (2, 16))}  # fmt: skip
    with torch.no_grad():
        ours, theirs = here(**batch)[0], there(**{name: value.cuda() for name, value in batch.items()})[0]
    torch.testing.assert_close(theirs.cpu(), ours, rtol=0.02, atol=0.02)


def test_stopped_on_a_gpu_it_goes_on_there(tmp_path: Path) -> None:
    folder = pico_tokenizer.save_pico(tmp_path / "model", "llama")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    data_samples.write_lines(tmp_path / "text.txt", 300)
    out = tmp_path / "out"
    code = (
        "import os, signal, sys; import compress.distill.clock as clock; clock.SAVE_SECONDS = 0.0\n"
        "from compress.distill.endtoend import EndToEnd; from compress.conversion import convert\n"
        "step = EndToEnd.train_step\n"
        "def counted(self, batch):\n"
        "    if self.step == 40: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(self, batch)\n"
        "EndToEnd.train_step = counted\n"
        "convert(sys.argv[1], sys.argv[2], sys.argv[3], data=sys.argv[4], device='cuda')\n"
    )
    arguments = [str(part) for part in (folder, tmp_path / "recipe.yaml", out, tmp_path / "text.txt")]
    assert subprocess.run([sys.executable, "-c", code, *arguments], check=False, capture_output=True).returncode == -9
    kept = Job.open(out).journal["progress"]["finetune"]["state"]["values"]["step"]
    assert 0 < kept <= 40
    resume(out)
    assert Job.open(out).journal["state"] == "finished"
    assert json.loads((out / "report.json").read_text())["quality"]["perplexity"]["compressed"] > 0


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    folder = pico_tokenizer.save_pico(tmp_path / "model", "llama")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    text = data_samples.write_lines(tmp_path / "text.txt", 300)
    with pytest.raises(CompressError, match="cuda:9"):
        convert(str(folder), tmp_path / "recipe.yaml", tmp_path / "out", data=str(text), device="cuda:9")
