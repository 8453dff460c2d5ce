"""Train one masked-language model with FFNs of some kind, resumably; its loss on held-out text."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from ..baselines.vanilla import VanillaFFN
from ..devices import autocast
from ..distill.optimisation import Schedule, clip, moments, restore_moments
from ..distill.progress import save_tensors
from ..distill.stopped import Stopped
from ..errors import CompressError
from ..lookup import LookupFFN
from ..quiet import silent_transformers
from ..replace import replace_ffn
from .masked_text import BEGIN, END, PAD, MaskedText
from .runner import Stop
from .settings import ModelSettings, PretrainingStudy, SystemCell, TrainingSettings

_STATE = "state.safetensors"
_KEEP_SECONDS = 120.0  # of training that a kill may cost
_BETAS = (0.9, 0.98)  # RoBERTa's
_CLIP = 1.0
_EVALUATED = 32  # blocks at once


def build_model(settings: ModelSettings, vocabulary: int, length: int) -> nn.Module:
    """A masked-language model of fresh weights, without dropout: a short training does not see its text often enough.

    RoBERTa, or with rotary positions RoFormer, which is the same but for them and finds neighbours in fewer steps.
    """
    from transformers import RobertaConfig, RobertaForMaskedLM, RoFormerConfig, RoFormerForMaskedLM

    shared: dict[str, Any] = {
        "vocab_size": vocabulary, "hidden_size": settings.hidden, "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.heads, "intermediate_size": 4 * settings.hidden, "type_vocab_size": 1,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pad_token_id": PAD,
    }  # fmt: skip
    with silent_transformers():
        if settings.positions == "rotary":
            return RoFormerForMaskedLM(
                RoFormerConfig(embedding_size=settings.hidden, max_position_embeddings=length, **shared)
            )
        return RobertaForMaskedLM(
            RobertaConfig(max_position_embeddings=length + PAD + 1, bos_token_id=BEGIN, eos_token_id=END, **shared)
        )


def model_of(study: PretrainingStudy, cell: SystemCell, seed: int, vocabulary: int) -> tuple[nn.Module, list[str]]:
    """The model of a cell, and the names of its FFNs; what is no FFN begins the same in every cell of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(study.model, vocabulary, study.data.sequence_length)
        settings: dict[str, Any] = dict(cell.settings)
        replace_ffn(model, cell.ffn, **settings)
    return model, [name for name, module in model.named_modules() if isinstance(module, VanillaFFN | LookupFFN)]


def masked_logits(model: nn.Module, inputs: Tensor, positions: Tensor) -> Tensor:
    """Logits at the masked positions alone: [B, L], [B, k] -> [B, k, vocabulary]."""
    hidden = model.base_model(input_ids=inputs).last_hidden_state  # type: ignore[operator]
    chosen = hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))
    head = model.cls if hasattr(model, "cls") else model.lm_head
    logits: Tensor = head(chosen)  # type: ignore[operator]
    return logits


def train(
    model: nn.Module, study: PretrainingStudy, cell: SystemCell, seed: int, text: MaskedText, *, folder: Path,
    device: str, stop: Stop,
) -> float:  # fmt: skip
    """Train on the study's schedule, from what `folder` kept of it; gives the seconds of training, of all calls.

    Raises Stopped behind a durable state where `stop` says so, CompressError where the loss is no number.
    """
    settings, state, began = study.training, folder / _STATE, time.monotonic()
    optimiser = _optimiser(model, cell, settings)
    schedule = Schedule(optimiser, settings.steps, warmup=settings.warmup)
    step, spent, kept = _restore(model, optimiser, state), 0.0, time.monotonic()
    if step:
        spent = float(load_file(state)["seconds"])
    model.train()
    losses: list[float] = []
    with tqdm(total=settings.steps, initial=step, desc=folder.name, unit=" steps", disable=None, delay=2) as bar:
        batches = text.batches(settings.batch, seed, step)
        while step < settings.steps:
            blocks = next(batches)
            inputs, positions = text.masked(blocks, settings.mask, seed, step)
            wanted = blocks.gather(1, positions)
            inputs, positions, wanted = (part.to(device) for part in (inputs, positions, wanted))
            schedule.set(step)
            with autocast(torch.device(device), settings.dtype):
                logits = masked_logits(model, inputs, positions)
            loss = functional.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten())
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            clip(model.parameters(), _CLIP)
            optimiser.step()
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise CompressError(f"training diverged at step {step}", remedy="lower training.learning_rate")
            step += 1
            bar.update()
            bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
            stopping = stop()
            if stopping or time.monotonic() - kept > _KEEP_SECONDS:
                _keep(model, optimiser, state, step, spent + time.monotonic() - began)
                kept = time.monotonic()
            if stopping:
                raise Stopped
    return spent + time.monotonic() - began


def _optimiser(model: nn.Module, cell: SystemCell, settings: TrainingSettings) -> torch.optim.AdamW:
    rates = settings.learning_rate
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        rate, decay = getattr(rates, cell.ffn), 0.0 if parameter.dim() < 2 else settings.weight_decay
        if cell.ffn == "lookup" and name.endswith(".tables"):
            rate, decay = rates.tables, 0.0
        elif cell.ffn == "lookup" and name.endswith(".hash.projection.weight"):
            rate, decay = rates.hash * float(parameter.detach().square().mean().sqrt()), 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": own, "lr": rate, "weight_decay": decay} for (rate, decay), own in groups.items()],
        betas=_BETAS, eps=1e-6, fused=True,
    )  # fmt: skip


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {f"model.{name}": tensor for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def _keep(model: nn.Module, optimiser: torch.optim.Optimizer, file: Path, step: int, seconds: float) -> None:
    numbers = {"step": torch.tensor(step), "seconds": torch.tensor(seconds, dtype=torch.float64)}
    save_tensors(file, {**_tensors(model), **moments(optimiser), **numbers})


@torch.no_grad()
def _restore(model: nn.Module, optimiser: torch.optim.Optimizer, file: Path) -> int:
    """Put back what was kept; the step that comes next."""
    if not file.is_file():
        return 0
    kept: Mapping[str, Tensor] = load_file(file)
    for name, tensor in _tensors(model).items():
        tensor.copy_(kept[name])
    restore_moments(optimiser, kept)
    return int(kept["step"])


def forget_state(folder: Path) -> None:
    """Remove what was kept of a training that is done."""
    (folder / _STATE).unlink(missing_ok=True)


@torch.no_grad()
def held_out_loss(model: nn.Module, text: MaskedText, share: float, device: str) -> tuple[float, float]:
    """Mean loss in nats at the held-out text's masked tokens, and its standard error over blocks; in float32."""
    model.eval()
    blocks: list[Tensor] = []
    for inputs, positions, wanted in text.held_out_batches(share, _EVALUATED):
        logits = masked_logits(model, inputs.to(device), positions.to(device))
        losses = functional.cross_entropy(logits.transpose(1, 2).float(), wanted.to(device), reduction="none")
        blocks.append(losses.double().mean(1).cpu())  # every block has as many masked tokens
    means = torch.cat(blocks)
    return float(means.mean()), float(means.std() / math.sqrt(len(means))) if len(means) > 1 else math.nan
