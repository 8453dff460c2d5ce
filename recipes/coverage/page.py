"""The page: a table of all architectures, and how many came how far."""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from pathlib import Path

from .architectures import Architecture
from .check import STEPS, Outcome

_HEADINGS = ("Architecture", "Auto class", "Sites", "Activation", *(step.capitalize() for step in STEPS[2:]), "Reason")
_LONGEST = 300  # letters of a reason


def write_page(
    path: Path, chosen: Sequence[Architecture], outcomes: Mapping[str, Outcome], seconds: float, workers: int
) -> None:
    """Write the page about what became of the chosen architectures in `seconds`."""
    import torch
    import transformers

    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    processor = sum(use.ru_utime + use.ru_stime for use in usage)
    found = [outcomes[architecture.name] for architecture in chosen]
    experts = sum(outcome.experts for outcome in found)
    whole = [architecture for architecture in chosen if outcomes[architecture.name].whole]
    lines = [
        "# Coverage",
        "",
        "Written by `python -m compress.recipes.coverage`: every architecture of the causal, masked, "
        "sequence-to-sequence, image-classification, CTC, speech-to-text and audio-classification mappings of "
        "transformers, built from its config at pico size with random weights. *Sites*: FFNs found, in brackets those "
        "that can be converted. *Verified*: with each FFN computed from its weights and the name of its activation, "
        "the model's output stays the same to 1e-4. *Converted*: a LookupFFN of random tables at every site, packed "
        "and saved as a checkpoint. *Reloaded equal*: another process loads the folder through the Auto class and gets "
        "the same output to the bit.",
        "",
        f"transformers {transformers.__version__}, torch {torch.__version__}; {workers} processes at a time, "
        f"{seconds:.0f} s, of which they computed {processor / workers:.0f} s each (other work may share the machine).",
        "",
        f"**{len(whole)} of {len(chosen)} architectures** pass everything "
        f"({len({architecture.model_type for architecture in whole})} model types). Of the others, {experts} are "
        "mixtures of experts in every layer of the pico model, which are refused.",
        "",
        _row(_HEADINGS),
        _row(["---"] * len(_HEADINGS)),
    ]
    lines += [_row(_cells(architecture, outcomes[architecture.name])) for architecture in chosen]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _cells(architecture: Architecture, outcome: Outcome) -> list[str]:
    sites = str(outcome.sites) if outcome.sites == outcome.convertible else f"{outcome.sites} ({outcome.convertible})"
    steps = ["yes" if step in outcome.passed else "no" for step in STEPS[2:]]
    reason = "; ".join(filter(None, [outcome.reason, outcome.note]))
    return [
        architecture.name, architecture.auto.removeprefix("AutoModel"), sites, ", ".join(outcome.activations), *steps,
        _short(reason),
    ]  # fmt: skip


def _short(reason: str) -> str:
    text = " ".join(reason.split()).replace("|", "\\|")
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST].rpartition(' ')[0]} ..."


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
