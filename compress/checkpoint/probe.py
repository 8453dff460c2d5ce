"""The probe: an input and what the model answered when it was saved, for a later check of file, kernel and machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .format import read_config
from .manifest import Problem

PROBE_FILE = "probe.safetensors"
# Relative error of an answer as a whole, ||y - y0|| / ||y0||. Another processor sums in another order, and a bit of a
# hash that lies on its hyperplane may then turn over: that moves one token of an answer, not its norm.
TOLERANCE = 1e-3
INT8_TOLERANCE = 5e-2  # of a model whose activations are rounded to 8 bits, on some processors to 7
_MOST = 1 << 16  # numbers kept of one output, evenly spaced


def write_probe(folder: Path, model: nn.Module, batch: Mapping[str, Tensor], *, int8: bool = False) -> None:
    """Record a batch (the model's keyword arguments) and the model's floating-point outputs for it, in float32.

    int8: whether activations are rounded, so that another processor's answer may be further away.
    """
    tensors = {f"input.{name}": tensor.detach().cpu().contiguous().clone() for name, tensor in batch.items()}
    tensors |= {f"output.{name}": tensor for name, tensor in _answers(model, batch).items()}
    tensors["tolerance"] = torch.tensor(INT8_TOLERANCE if int8 else TOLERANCE)
    save_file(tensors, folder / PROBE_FILE, metadata={"format": "pt"})


def verify_outputs(folder: Path | str, model: nn.Module) -> list[Problem]:
    """Find outputs of the loaded model that differ from those recorded by more than the recorded tolerance."""
    try:
        tensors = load_file(Path(folder) / PROBE_FILE)
        most = INT8_TOLERANCE if read_config(folder).int8 else TOLERANCE
        tolerance = min(tensors["tolerance"].item(), most)
    except FileNotFoundError:
        return [Problem(PROBE_FILE, "missing")]
    except (SafetensorError, KeyError, RuntimeError) as failure:
        return [Problem(PROBE_FILE, f"damaged: {failure}")]
    batch = {name.removeprefix("input."): tensor for name, tensor in tensors.items() if name.startswith("input.")}
    wanted = {name.removeprefix("output."): tensor for name, tensor in tensors.items() if name.startswith("output.")}
    if not batch or not wanted:
        return [Problem(PROBE_FILE, f"it records no {'output' if batch else 'input'}")]
    try:
        answers = _answers(model, batch)
    except Exception as failure:  # inputs that the model does not take
        return [Problem(PROBE_FILE, f"the model cannot run on its inputs: {failure or type(failure).__name__}")]
    problems = []
    for name, recorded in ((name, tensor.float()) for name, tensor in wanted.items()):
        answer = answers.get(name)
        if answer is None or answer.shape != recorded.shape:
            shape = "absent" if answer is None else f"of {answer.numel()} numbers"
            problems.append(Problem(PROBE_FILE, f"output {name} is {shape}, recorded were {recorded.numel()}"))
            continue
        error = ((answer - recorded).norm() / recorded.norm().clamp_min(torch.finfo(torch.float32).tiny)).item()
        if not error <= tolerance:
            problems.append(Problem(PROBE_FILE, f"output {name} differs by {error:.2g}, allowed are {tolerance:.2g}"))
    return problems


@torch.no_grad()
def _answers(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    output = model(**{name: tensor.to(device) for name, tensor in batch.items()}, return_dict=True)
    floating = {
        name: value for name, value in output.items() if isinstance(value, Tensor) and value.is_floating_point()
    }
    return {name: _spaced(value.float().cpu()) for name, value in floating.items()}


def _spaced(tensor: Tensor) -> Tensor:
    numbers = tensor.flatten()
    return numbers[:: -(-numbers.numel() // _MOST)].clone() if numbers.numel() > _MOST else numbers.clone()
