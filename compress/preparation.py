"""Before a conversion: model and data loaded, every student planned, and everything checked that can go wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .checkpoint import FORMAT_VERSION, check_rest, check_side_files
from .data import Corpus, EvalData, load_as, load_corpus
from .distill.activations import Tap, check_reached
from .distill.job import JOURNAL_VERSION
from .distill.objectives import check_outputs
from .distill.writing import is_unwritten
from .durable import hash_file
from .evaluate.harness import load_tasks
from .models import Pretrained, load_pretrained
from .needs import estimate
from .plan import Plan, choose_sites, make_plan
from .recipe import Recipe
from .sites import find_experts, find_norms, find_sites
from .streams import stream_of

_WEIGHTS = ("*.safetensors", "*.bin", "config.json")
_PROCESSOR = (
    *("tokenizer*", "vocab*", "merges.txt", "added_tokens.json", "special_tokens_map.json", "*.model", "*.bpe"),
    *("preprocessor_config.json", "processor_config.json", "chat_template*"),
)


@dataclass
class Prepared:
    """Everything a conversion works with, loaded and checked."""

    recipe: Recipe
    pretrained: Pretrained
    corpus: Corpus
    examples: EvalData
    plan: Plan
    taps: list[Tap]  # of the sites that are converted
    fingerprints: dict[str, Any]


def prepare(source: str, recipe: Recipe, options: Mapping[str, Any]) -> Prepared:
    """Load model and data, plan every student, and check all that can go wrong before the first hour is spent.

    options: `trust_remote_code` and `device`. Raises a CompressError for whatever a user can mend.
    """
    pretrained = load_pretrained(
        source, trust_remote_code=options["trust_remote_code"], device=options["device"]
    )  # fmt: skip
    sites, experts = find_sites(pretrained.model), find_experts(pretrained.model)
    choose_sites(sites, recipe, experts)  # before the data is read, which may take long
    check_side_files(pretrained.folder)
    corpus = load_corpus(recipe.data, pretrained, recipe.seed)
    sample = next(iter(corpus.holdout.batches(1)))
    check_outputs(pretrained, sample)
    if recipe.pack.rest == "int8":
        check_rest(pretrained.model, sample)
    streams = {site.name: stream_of(pretrained.model, site.output) for site in sites}
    plan = make_plan(sites, recipe, corpus, streams, experts)
    plan = replace(plan, needs=estimate(plan, recipe, corpus, pretrained))
    if recipe.eval.data is None:
        examples = EvalData.held_out(corpus.holdout, pretrained.task, corpus.description)
    else:
        examples = load_as(recipe.data, recipe.eval.data, pretrained)
    norms = find_norms(pretrained.model, sites)
    if recipe.eval.tasks:
        load_tasks(recipe.eval.tasks, pretrained)  # now, so that hours are not spent before a mistake is found
    taps = [Tap(entry.site, norms[entry.site.name], streams[entry.site.name]) for entry in plan.converted]
    if not is_unwritten(corpus):
        check_reached(pretrained.model, taps, sample)
    fingerprints = {
        "library format": {"job": JOURNAL_VERSION, "checkpoint": FORMAT_VERSION},
        **model_fingerprints(pretrained.folder),
        "data": corpus.fingerprint,
        "evaluation data": examples.fingerprint,
        **_stage_fingerprints(recipe),
    }
    return Prepared(recipe, pretrained, corpus, examples, plan, taps, fingerprints)


def model_fingerprints(folder: Path) -> dict[str, dict[str, str]]:
    """SHA-256 of the files that make a model, and of those that make its tokenizer."""
    return {"model": _hashes(folder, _WEIGHTS), "tokenizer": _hashes(folder, _PROCESSOR)}


def _hashes(folder: Path, patterns: Sequence[str]) -> dict[str, str]:
    """SHA-256 of a folder's files that match."""
    return {path.name: hash_file(path) for pattern in patterns for path in sorted(folder.glob(pattern))}


def _stage_fingerprints(recipe: Recipe) -> dict[str, str]:
    """What each stage of the recipe depends on: a stage that has not begun may still be changed."""
    return {
        "distill": recipe.fingerprint("version", "sites", "lookup", "overrides", "fit", "distill", "seed"),
        "finetune": recipe.fingerprint("finetune"),
        "pack": recipe.fingerprint("pack"),
        "evaluate": recipe.fingerprint("eval"),
    }
