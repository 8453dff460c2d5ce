"""replace_ffn: every kind in models of every shape, trained by transformers' Trainer, saved and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import checkpoints
import pico
import pytest
import torch
import transformers
from safetensors.torch import load_model

import compress
import compress.checkpoint
from compress import LookupFFN, PackedLookupFFN
from compress.baselines import MongooseFFN, SlideFFN, VanillaFFN
from compress.errors import CompressError, SiteError

SETTINGS: dict[str, dict[str, Any]] = {
    "vanilla": {},
    "slide": {"bits": 3, "tables": 4, "rebuild_every": 3},
    "mongoose": {"bits": 3, "tables": 4, "check_every": 3, "threshold": 0.01},
    "lookup": {"tables": 6, "bits": 4, "block": 8},
}
CLASSES = {"vanilla": VanillaFFN, "slide": SlideFFN, "mongoose": MongooseFFN, "lookup": LookupFFN}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("family", pico.FAMILIES)
def test_every_site_gets_the_kind(family: str, kind: str) -> None:
    model = pico.FAMILIES[family]().train()
    hidden = 88 if family == "llama" else 128
    names = compress.replace_ffn(model, kind, **SETTINGS[kind])
    modules = [module for module in model.modules() if type(module) is CLASSES[kind]]
    assert len(names) == len(modules) == 2
    assert all(module.training for module in modules)
    if isinstance(modules[0], VanillaFFN):
        gated = family == "llama"
        assert (modules[0].d_hidden, modules[0].gated, modules[0].bias is None) == (hidden, gated, gated)
    model(**checkpoints.inputs(family))[0].sum().backward()
    assert all(torch.isfinite(p.grad).all() for module in modules for p in module.parameters() if p.grad is not None)
    with pytest.raises(SiteError, match="no feed-forward network was found"):
        compress.replace_ffn(model, kind)


@pytest.mark.parametrize("kind", ["vanilla", "slide", "mongoose"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_kept_weights_give_the_dense_model(family: str, kind: str) -> None:
    model, batch = pico.FAMILIES[family](), checkpoints.inputs(family)
    wanted = checkpoints.answer(model, batch)
    compress.replace_ffn(model, kind, keep_weights=True, **({} if kind == "vanilla" else {"bits": 0}))
    torch.testing.assert_close(checkpoints.answer(model, batch), wanted, atol=1e-5, rtol=1e-5)


def test_a_model_in_bfloat16_stays_one() -> None:
    model = pico.llama().to(torch.bfloat16)
    compress.replace_ffn(model, "slide", keep_weights=True)
    assert model(**checkpoints.inputs("llama")).logits.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("yoso", {}, "unknown kind of FFN 'yoso'"), ("lookup", {"keep_weights": True}, "compress convert"),
        ("slide", {"block": 8}, "slide does not take these settings"), ("vanilla", {"d_hidden": 0}, "d_hidden"),
        ("slide", {"keep_weights": True, "d_hidden": 10}, "keep_weights"),
    ],
)  # fmt: skip
def test_what_cannot_be_leaves_the_model_as_it_was(kind: str, settings: dict[str, Any], message: str) -> None:
    model, batch = pico.gpt2(), checkpoints.inputs("gpt2")
    wanted = checkpoints.answer(model, batch)
    with pytest.raises(CompressError, match=message):
        compress.replace_ffn(model, kind, **settings)
    assert torch.equal(checkpoints.answer(model, batch), wanted)
    assert getattr(model, "hf_quantizer", None) is None


def trainer(model: transformers.PreTrainedModel, folder: Path, steps: int) -> transformers.Trainer:
    pytest.importorskip("accelerate")
    ids = torch.randint(0, 8, (48, 12), generator=torch.Generator().manual_seed(0))
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=8, learning_rate=1e-2, lr_scheduler_type="constant",
        save_steps=6, logging_steps=3, report_to=[], use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    return transformers.Trainer(model, arguments, train_dataset=[{"input_ids": row, "labels": row} for row in ids])


@pytest.mark.parametrize("kind", CLASSES)
def test_transformers_trainer(kind: str, tmp_path: Path) -> None:
    """The loss falls, its checkpoints hold the hash tables, and it goes on from one as if it had not stopped."""

    def make(seed: int) -> transformers.PreTrainedModel:
        model = pico.gpt2()
        torch.manual_seed(seed)
        compress.replace_ffn(model, kind, **SETTINGS[kind])
        return model

    model = make(0)
    run = trainer(model, tmp_path, 12)
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.3
    again = make(1)
    trainer(again, tmp_path, 12).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    for (name, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    if kind in ("slide", "mongoose"):
        hashed = [module for module in model.modules() if isinstance(module, SlideFFN)]
        assert all(module.schedule.steps == 12 and module.schedule.rebuilds > 0 for module in hashed)
    if kind == "lookup":
        batch = checkpoints.inputs("gpt2")
        wanted = checkpoints.answer(model.eval(), batch)
        loaded = compress.load(tmp_path / "checkpoint-12")
        assert isinstance(loaded.transformer.h[0].mlp, PackedLookupFFN)
        torch.testing.assert_close(checkpoints.answer(loaded, batch), wanted, atol=1e-5, rtol=1e-5)
        opened = compress.load(tmp_path / "checkpoint-12", trainable=True)
        assert torch.equal(checkpoints.answer(opened, batch), wanted)
    else:  # the folder has no place for the kind, so it is given again
        config = transformers.AutoConfig.from_pretrained(tmp_path / "checkpoint-12")
        loaded = transformers.AutoModelForCausalLM.from_config(config)
        compress.replace_ffn(loaded, kind, **SETTINGS[kind])
        load_model(loaded, tmp_path / "checkpoint-12" / "model.safetensors")
        batch = checkpoints.inputs("gpt2")
        assert torch.equal(checkpoints.answer(loaded.eval(), batch), checkpoints.answer(model.eval(), batch))


@pytest.mark.parametrize("kind", ["slide", "mongoose"])
def test_gradient_checkpointing_in_the_trainer(kind: str, tmp_path: Path) -> None:
    model = pico.gpt2()
    compress.replace_ffn(model, kind, **SETTINGS[kind], chunk=4)
    model.gradient_checkpointing_enable()
    trainer(model, tmp_path, 6).train()
    assert model.transformer.h[0].mlp.schedule.steps == 6


def test_fresh_lookup_models_load_like_any_checkpoint(tmp_path: Path) -> None:
    for name in checkpoints.AUTO_CLASSES:
        model = pico.FAMILIES[name]()
        torch.manual_seed(0)
        compress.replace_ffn(model, "lookup", **SETTINGS["lookup"])
        model.save_pretrained(tmp_path / name / "out")
        checkpoints.keep_answer(tmp_path / name, model, checkpoints.inputs(name))
        placed = compress.checkpoint.read_config(tmp_path / name / "out").sites
        assert [(site.table_dtype, site.hash_dtype) for site in placed] == [("float32", "float32")] * 2
    names = checkpoints.AUTO_CLASSES
    loaded = checkpoints.load_in_a_fresh_process("import compress", tmp_path, *names, tolerance=1e-5)
    assert loaded == dict.fromkeys(names, "True")
    assert checkpoints.load_in_a_fresh_process("", tmp_path, "llama") == {"llama": "RuntimeError"}
