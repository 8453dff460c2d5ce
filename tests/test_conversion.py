"""A conversion from recipe to checkpoint: its result, its refusals, and that a kill at any stage changes nothing."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pico
import pytest
import torch
from pico_tokenizer import WORDS, save_pico
from safetensors.torch import load_file

import compress
from compress.checkpoint import round_rest, verify_files, verify_outputs
from compress.conversion import convert, resume
from compress.data import load_corpus
from compress.distill.job import Job
from compress.errors import CompressError, JobError, RecipeError, SiteError
from compress.lookup import Geometry
from compress.models import load_pretrained
from compress.plan import SitePlan, make_plan
from compress.recipe import load_recipe
from compress.sites import find_sites
from compress.students import cost

RECIPE = """\
version: 1
lookup: {budget: 0.4, memory: 40, bits: 4, rank: 16}
data: {sequence_length: 32, tokens: 4000}
fit: {tokens: 2000}
distill: {steps: 8, batch_tokens: 256}
finetune: {steps: 4, batch_tokens: 256}
"""


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text, pictures and a recipe."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("conversion")
    draw = random.Random(0)
    lines = [" ".join(draw.choices(WORDS, k=draw.randint(4, 12))) + "." for _ in range(400)]
    (folder / "text.txt").write_text("\n".join(lines) + "\n")
    (folder / "pictures").mkdir()
    for index in range(24):
        pixels = bytes(draw.randrange(256) for _ in range(8 * 8 * 3))
        Image.frombytes("RGB", (8, 8), pixels).resize((32, 32)).save(folder / "pictures" / f"{index:02}.png")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def model_folder(work: Path, family: str) -> Path:
    folder = work / family
    return folder if folder.exists() else save_pico(folder, family)


def run(work: Path, family: str, out: Path, *overrides: str) -> None:
    images = family == "vit"
    data = work / ("pictures" if images else "text.txt")
    source = ("data.source=images", "data.tokens=300") if images else ()
    convert(
        str(model_folder(work, family)), work / "recipe.yaml", out, data=str(data),
        overrides=(*source, *overrides), threads=1,
    )  # fmt: skip


def result_bytes(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted([*out.glob("*.safetensors"), out / "config.json"])}


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "bert_masked", "vit"])
def test_every_family_converts_and_loads_elsewhere(work: Path, tmp_path: Path, family: str) -> None:
    out = tmp_path / "out"
    run(work, family, out)
    report = json.loads((out / "report.json").read_text())
    assert report["cost"] <= 0.4
    assert len(report["sites"]) == 2
    assert {"recipe.yaml", "recipe.resolved.yaml", "README.md", "manifest.json"} <= {p.name for p in out.iterdir()}
    assert verify_files(out) == []
    code = (
        "import sys, compress; from compress.checkpoint import load, verify_outputs;"
        "sys.exit(len(verify_outputs(sys.argv[1], load(sys.argv[1]))))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(out)], check=False).returncode == 0
    assert verify_outputs(out, load_pretrained(str(out)).model) == []
    assert resume(out) is None  # finished: nothing left to do


def test_training_in_bfloat16_ends_near_that_in_float32(work: Path, tmp_path: Path) -> None:
    found = []
    for dtype in ("float32", "bfloat16"):
        out = tmp_path / dtype
        steps = ("distill.steps=40", "finetune.steps=40")
        run(work, "llama", out, *steps, f"distill.dtype={dtype}", f"finetune.dtype={dtype}")
        units = Job.open(out).journal["units"]
        found.append((units["finetune"]["before"], units["finetune"]["after"]))
    (before, after), narrow = found
    assert after < before
    assert narrow != found[0]
    assert narrow == pytest.approx(found[0], rel=0.05)


def test_a_plan_says_that_the_data_bounds_its_tables(work: Path, tmp_path: Path) -> None:
    plans = []
    for tables in ("auto", "3"):
        overrides = (f"lookup.tables={tables}", "lookup.bits=8")
        convert(
            str(model_folder(work, "llama")), work / "recipe.yaml", tmp_path, data=str(work / "text.txt"), threads=1,
            overrides=overrides, dry_run=True, announce=plans.append,
        )  # fmt: skip
    told = [any("fill no more tables" in note for note in plan.notes) for plan in plans]
    assert told == [True, False]


def test_distillation_helps(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    seen = {}
    finish_unit = Job.finish_unit
    try:
        Job.finish_unit = lambda self, name, result, files=(): (
            seen.update({name: result}),
            finish_unit(self, name, result, files),
        )[1]
        run(work, "llama", out, "distill.steps=60", "finetune.steps=200")
    finally:
        Job.finish_unit = finish_unit
    for name, result in seen.items():
        if name.startswith("distill/"):
            assert result["distilled"] < result["fitted"], name
    assert seen["finetune"]["after"] < seen["finetune"]["before"]


def test_a_checkpoint_opens_for_training(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(work, "llama", out)
    model = compress.load(out, trainable=True)
    logits = model(input_ids=torch.arange(8)[None]).logits
    logits.square().mean().backward()
    students = [m for m in model.modules() if isinstance(m, compress.LookupFFN)]
    assert len(students) == 2
    assert all(student.tables.grad is not None for student in students)


@pytest.mark.parametrize("train", ["norms", "all"])
def test_the_rest_can_be_trained_along(work: Path, tmp_path: Path, train: str) -> None:
    out = tmp_path / "out"
    run(work, "llama", out, f"finetune.train={train}", "finetune.steps=200")
    dense = dict(load_pretrained(str(model_folder(work, "llama"))).model.named_parameters())
    changed = {
        name for name, p in compress.load(out).named_parameters() if name in dense and not torch.equal(p, dense[name])
    }
    assert any("norm" in name for name in changed)
    assert any("q_proj" in name for name in changed) == (train == "all")


def test_a_trained_rest_keeps_the_dtype_of_the_source(work: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(model_folder(work, "llama"), source)
    load_pretrained(str(source)).model.bfloat16().save_pretrained(source)
    overrides = ("finetune.train=all", "finetune.steps=200")
    convert(str(source), work / "recipe.yaml", out, data=str(work / "text.txt"), overrides=overrides, threads=1)
    stored = load_file(out / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert stored[name].dtype == torch.bfloat16
    assert not torch.equal(stored[name], load_file(source / "model.safetensors")[name])
    assert verify_outputs(out, load_pretrained(str(out)).model) == []


def test_only_what_was_trained_is_rounded(tmp_path: Path) -> None:
    dense, ours = pico.llama(), pico.llama()
    (tmp_path / "config.json").write_text('{"dtype": "bfloat16"}')
    trained, untouched, gain = ours.model.layers[0].self_attn.q_proj.weight, ours.lm_head.weight, ours.model.norm.weight
    with torch.no_grad():
        trained *= 1.01
        gain *= 1.001
    before = untouched.clone()
    round_rest(ours, SimpleNamespace(folder=tmp_path, model=dense))
    assert torch.equal(trained, trained.bfloat16().float())
    assert torch.equal(untouched, before)
    assert not torch.equal(before, before.bfloat16().float())
    assert gain.unique().tolist() == pytest.approx([1.001])


STAGES = ["distill/0", "distill/1", "finetune", "pack", "evaluate"]


@pytest.mark.parametrize("stage", STAGES)
def test_killed_and_resumed_it_gives_the_same_bytes(work: Path, tmp_path: Path, stage: str) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(work, "llama", whole)
    script = tmp_path / "killed.py"
    script.write_text(KILL)
    arguments = [
        str(model_folder(work, "llama")),
        str(work / "recipe.yaml"),
        str(killed),
        str(work / "text.txt"),
        stage,
    ]
    done = subprocess.run([sys.executable, str(script), *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    journal = json.loads((killed / ".job" / "journal.json").read_text())
    assert journal["state"] == "running"
    resume(killed, threads=1)
    assert result_bytes(killed) == result_bytes(whole)
    assert {p.name for p in (killed / ".job").iterdir()} <= {"journal.json", "journal.copy.json", "lock"}


# Runs a conversion and kills itself in the middle of a stage.
KILL = """
import os, signal, sys
import compress.conversion as conversion
import compress.distill.clock as clock
from compress.distill.layerwise import SiteDistiller
from compress.distill.endtoend import EndToEnd

model, recipe, out, data, stage = sys.argv[1:]
die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
count = 0

def after(calls, function):
    def wrapped(*args, **kwargs):
        global count
        count += 1
        if count > calls:
            die()
        return function(*args, **kwargs)
    return wrapped

if stage.startswith("distill/"):
    SiteDistiller.run = after(int(stage[-1]), SiteDistiller.run)
elif stage == "finetune":
    clock.SAVE_SECONDS = 0.0
    EndToEnd.train_step = after(2, EndToEnd.train_step)
elif stage == "pack":
    conversion.write_report, conversion.Job.publish = die, die
else:
    conversion.evaluate = die
conversion.convert(model, recipe, out, data=data, threads=1)
"""


def test_killed_from_outside_it_resumes(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "compress", "convert", str(model_folder(work, "llama")), str(work / "recipe.yaml")]
    command += ["-o", str(out), "--data", str(work / "text.txt"), "--threads", "1", "--set", "distill.steps=400"]
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (out / ".job" / "journal.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    job = Job.open(out)
    assert job.journal["state"] == "running"
    assert not job.running()
    resume(out)
    assert Job.open(out).journal["state"] == "finished"


def test_a_changed_recipe_model_or_text_is_refused(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = tmp_path / "text.txt"
    text.write_text((work / "text.txt").read_text())
    script = tmp_path / "killed.py"
    script.write_text(KILL)
    arguments = [str(model_folder(work, "llama")), str(work / "recipe.yaml"), str(out), str(text), "distill/1"]
    subprocess.run([sys.executable, str(script), *arguments], check=False, capture_output=True)
    with pytest.raises(JobError, match="distill"):
        resume(out, overrides=["distill.steps=9"])
    text.write_text("another text altogether. " * 400)
    with pytest.raises(JobError, match="data"):
        resume(out)
    text.write_text((work / "text.txt").read_text())
    assert resume(out, overrides=["finetune.steps=2"]) is not None  # a stage that has not begun may change


def test_two_processes_do_not_share_a_job(tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = Job.create(out, {"fingerprints": {}})
    with job.lock():
        before = (out / ".job" / "journal.json").read_bytes()
        with pytest.raises(JobError, match="another process"):
            resume(out)
        assert (out / ".job" / "journal.json").read_bytes() == before


def test_a_site_that_cannot_be_replaced_is_refused_with_the_plan(work: Path) -> None:
    pretrained = load_pretrained(str(model_folder(work, "llama")))
    recipe = load_recipe(work / "recipe.yaml").with_data(str(work / "text.txt"))
    corpus = load_corpus(recipe.data, pretrained, 0)
    sites = [replace(site, obstacle="it is welded in") for site in find_sites(pretrained.model)]
    with pytest.raises(SiteError, match="welded in"):
        make_plan(sites, recipe, corpus)


def test_automatic_sizes_come_with_the_student_of_the_same_budget_without_tables(work: Path) -> None:
    pretrained = load_pretrained(str(model_folder(work, "llama")))
    sites = find_sites(pretrained.model)

    def planned(*overrides: str) -> list[SitePlan]:
        recipe = load_recipe(work / "recipe.yaml", overrides).with_data(str(work / "text.txt"))
        return list(make_plan(sites, recipe, load_corpus(recipe.data, pretrained, 0)).sites)

    for entry in planned():
        assert isinstance(entry.geometry, Geometry)
        assert entry.plain is not None
        assert entry.geometry.tables > 0 == entry.plain.tables
        assert entry.plain.neurons >= entry.geometry.neurons
        assert cost(entry.plain) <= 0.4 * entry.dense.cost
    for fixed in ("lookup.tables=4", "lookup.neurons=8", "lookup.tables=0"):
        assert all(entry.plain is None for entry in planned(fixed))
    assert all(
        entry.plain is None for entry in planned("lookup.student=factors", "lookup.bits=auto", "lookup.rank=auto")
    )


def test_an_output_folder_with_something_in_it_is_refused(work: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("mine")
    with pytest.raises(JobError, match="something else"):
        run(work, "llama", tmp_path / "out")
    run(work, "llama", tmp_path / "job", "distill.steps=0", "finetune.steps=0")
    with pytest.raises(JobError, match="already holds"):
        run(work, "llama", tmp_path / "job")
    assert (tmp_path / "out" / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("lookup.bits=0", "bits"), ("lookup.bits=17", "bits"), ("lookup.neuron=3", "neuron"),
        ("sites.include=[\"*.nothing\"]", "hits no site"), ("distill.steps=many", "steps"),
        ("lookup.budget=0.0001", "budget"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_anything_is_written(work: Path, tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(CompressError, match=said):
        run(work, "llama", tmp_path / "out", override)
    assert not (tmp_path / "out").exists()


def test_a_block_that_does_not_divide_is_refused(work: Path, tmp_path: Path) -> None:
    with pytest.raises(CompressError, match="block"):
        run(work, "llama", tmp_path / "out", "lookup.projection=bh4", "lookup.block=64")


def test_a_recipe_without_data_asks_for_it(work: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no data") as caught:
        convert(str(model_folder(work, "llama")), work / "recipe.yaml", tmp_path / "out")
    assert "--data" in str(caught.value)


def test_a_dry_run_writes_nothing(work: Path, tmp_path: Path) -> None:
    plans = []
    done = convert(
        str(model_folder(work, "bert")), work / "recipe.yaml", tmp_path / "out", data=str(work / "text.txt"),
        dry_run=True, announce=plans.append,
    )  # fmt: skip
    assert done is None
    assert not (tmp_path / "out").exists()
    assert plans[0].cost <= 0.4


def test_sites_can_stay_dense(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(work, "llama", out, "overrides=[{layers: [0], keep_dense: true}]")
    sites = json.loads((out / "config.json").read_text())["quantization_config"]["sites"]
    assert [site["name"] for site in sites] == ["layers.1.mlp.down_proj"]
