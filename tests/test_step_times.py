"""Where a step of distillation spends its time."""

from __future__ import annotations

import re

import data_samples
import pico_tokenizer
import torch
from compress.recipes import step_times

from compress import kernels
from compress.data import Split
from compress.distill.endtoend import EndToEnd

RECIPE = """\
version: 1
lookup: {budget: 0.4, memory: 40, bits: 4, rank: 16}
data: {sequence_length: 32, tokens: 4000}
fit: {tokens: 2000}
distill: {steps: 0}
finetune: {steps: 100, batch_tokens: 256}
"""


def test_parts_make_up_a_step_and_nothing_stays_replaced(tmp_path):
    folder = pico_tokenizer.save_pico(tmp_path / "model", "llama")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    text = data_samples.write_lines(tmp_path / "text.txt", 300)
    functions = (Split.batch, kernels.gather, torch.Tensor.backward, EndToEnd.train_step)
    found = step_times.measure(str(folder), str(tmp_path / "recipe.yaml"), str(text), [], 4, 1)
    assert functions == (Split.batch, kernels.gather, torch.Tensor.backward, EndToEnd.train_step)
    rows = dict(re.findall(r"^\| (.+?) \| ([\d.]+) \|", found, re.MULTILINE))
    parts = {name: float(value) for name, value in rows.items()}
    assert all(parts[name] > 0 for name in ("teacher", "student, forward", "backward", "of it, gather, backward"))
    whole = sum(value for name, value in parts.items() if name != "a step" and not name.startswith("of it"))
    assert abs(whole - parts["a step"]) < 0.5  # each is rounded to a tenth
