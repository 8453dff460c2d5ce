"""The probe: an input and what the model answered when it was saved, for a later check of file, kernel and machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .. import kernels
from ..students import PackedStudent
from .arithmetic import TOLERANCE as ARITHMETIC_TOLERANCE
from .arithmetic import kernel_errors
from .manifest import Problem

PROBE_FILE = "probe.safetensors"
# Relative error of an answer as a whole, ||y - y0|| / ||y0||: at least the first and at most the second is allowed, and
# between them a multiple of what last bits were seen to make of it.
TOLERANCE, _WORST = 5e-3, 0.5
_MARGIN = 4
_DRAWS, _LAST_BITS = 8, 1e-5  # relative difference of a student's answers on two processors
_MOST = 1 << 16  # numbers kept of one output, evenly spaced


def write_probe(folder: Path, model: nn.Module, batch: Mapping[str, Tensor]) -> None:
    """Record a batch (the model's keyword arguments) and the model's floating-point outputs for it, in float32.

    With it the relative error that another processor's answer may have. Processors sum in different orders; a rounding
    or a bit of a hash then turns over here and there, later layers make more of it, and how much depends on the model:
    it is measured, with noise of that size on every student's answers.
    """
    tensors = {f"input.{name}": tensor.detach().cpu().contiguous().clone() for name, tensor in batch.items()}
    answers = _answers(model, batch)
    tensors |= {f"output.{name}": tensor for name, tensor in answers.items()}
    tensors["tolerance"] = torch.tensor(_allowed(model, batch, answers))
    save_file(tensors, folder / PROBE_FILE, metadata={"format": "pt"})


def _allowed(model: nn.Module, batch: Mapping[str, Tensor], answers: Mapping[str, Tensor]) -> float:
    return max(TOLERANCE, _MARGIN * _moved_by_last_bits(model, batch, answers))


def _moved_by_last_bits(model: nn.Module, batch: Mapping[str, Tensor], answers: Mapping[str, Tensor]) -> float:
    """The largest relative error of an answer over a few draws of noise in the last bits of the students' answers."""
    generator = torch.Generator()

    def disturb(student: nn.Module, arguments: tuple[Tensor, ...], y: Tensor) -> Tensor:
        noise = torch.randn(y.shape, generator=generator).to(y)
        return y * (1 + _LAST_BITS * noise)

    hooks = [part.register_forward_hook(disturb) for part in model.modules() if isinstance(part, PackedStudent)]
    try:
        errors = [0.0]
        for seed in range(_DRAWS):
            generator.manual_seed(seed)
            disturbed = _answers(model, batch)
            errors += [_error(disturbed[name], answers[name]) for name in answers]
        return max(errors)
    finally:
        for hook in hooks:
            hook.remove()


def verify_outputs(folder: Path | str, model: nn.Module, like: nn.Module | None = None) -> list[Problem]:
    """Find where the loaded model computes something else than when it was saved, or than `like` does, on its probe.

    Parts that the native kernel computes otherwise than PyTorch does, then outputs further from those recorded than the
    recorded tolerance; or from those of `like`, by more than last bits make of them.
    """
    try:
        tensors = load_file(Path(folder) / PROBE_FILE)
        tolerance = tensors["tolerance"].item()
    except FileNotFoundError:
        return [Problem(PROBE_FILE, "missing")]
    except (SafetensorError, KeyError, RuntimeError) as failure:
        return [Problem(PROBE_FILE, f"damaged: {failure}")]
    batch = {name.removeprefix("input."): tensor for name, tensor in tensors.items() if name.startswith("input.")}
    wanted = {name.removeprefix("output."): tensor for name, tensor in tensors.items() if name.startswith("output.")}
    if not batch or not wanted:
        return [Problem(PROBE_FILE, f"it records no {'output' if batch else 'input'}")]
    if like is not None:
        wanted = _answers(like, batch)
        tolerance = _allowed(like, batch, wanted)
    tolerance = min(max(tolerance, TOLERANCE), _WORST)
    try:
        with kernel_errors(model) as errors:
            answers = _answers(model, batch)
    except Exception as failure:  # inputs that the model does not take
        return [Problem(PROBE_FILE, f"the model cannot run on its inputs: {failure or type(failure).__name__}")]
    problems = [
        Problem(
            path,
            f"the kernel's answers ({kernels.isa()}) differ from PyTorch's by {error:.2g}, allowed are "
            f"{ARITHMETIC_TOLERANCE:.2g}",
            "the kernel is wrong on this processor: set COMPRESS_ISA to a lower instruction set, and report it",
        )
        for path, error in errors.items()
        if not error <= ARITHMETIC_TOLERANCE
    ]
    for name, recorded in ((name, tensor.float()) for name, tensor in wanted.items()):
        answer = answers.get(name)
        if answer is None or answer.shape != recorded.shape:
            shape = "absent" if answer is None else f"of {answer.numel()} numbers"
            problems.append(Problem(PROBE_FILE, f"output {name} is {shape}, recorded were {recorded.numel()}"))
            continue
        error = _error(answer, recorded)
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


def _error(answer: Tensor, recorded: Tensor) -> float:
    return float((answer - recorded).norm() / recorded.norm().clamp_min(torch.finfo(torch.float32).tiny))


def _spaced(tensor: Tensor) -> Tensor:
    numbers = tensor.flatten()
    return numbers[:: -(-numbers.numel() // _MOST)].clone() if numbers.numel() > _MOST else numbers.clone()
