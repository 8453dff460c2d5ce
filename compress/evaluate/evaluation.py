"""Evaluate a compressed model beside its dense one: load both, measure, report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..checkpoint import read_config
from ..data import EvalData, load_as, load_examples
from ..data.inputs import longest_sequence
from ..distill.job import FOLDER as JOB_FOLDER
from ..distill.job import Job
from ..distill.writing import write_examples
from ..errors import CheckpointError, DataError, ModelError
from ..hub import is_hub_id, local_folder
from ..models import Pretrained, load_pretrained
from ..recipe import Recipe, parse_recipe
from ..recipe.settings import HUB
from ..sites import Site, find_norms, find_sites
from . import quality, sizes
from .harness import described, load_tasks, score
from .inputs import Pool, make_pool
from .latency import BATCHES, SECONDS, measure_latency, threads_set
from .report import Report
from .setting import public_name, setting
from .site_errors import site_errors
from .students import Student, ffn_cost, ffn_sizes, students

SEQUENCE_LENGTH = 128  # tokens of a sequence whose pass is timed


def evaluate(
    checkpoint: str | Path | tuple[Pretrained, Pretrained],
    against: str | Path | None = None,
    data: str | Path | EvalData | None = None,
    *,
    limit_tokens: int | None = None,
    threads: int | None = None,
    latency: bool = True,
    batches: Sequence[int] = BATCHES,
    seconds: float = SECONDS,
    trust_remote_code: bool = False,
    tasks: Sequence[str] | None = None,
    limit_documents: int | None = None,
) -> Report:
    """Compare a compressed model with its dense one on the same inputs.

    checkpoint: a compressed folder, or (dense, compressed) in memory.  against: the dense model, by default the source
    that the checkpoint names.  data: a path, `hub:NAME` or loaded data; by default the recipe's `eval.data`. Text is
    read in windows of the recipe's `data.sequence_length`, where the folder has a recipe.
    limit_tokens: evaluate on about so many tokens, evenly spread.  threads: of torch and the kernel; None: as they are.
    batches, seconds: sequences a timed pass, and how long each row of the latency is measured.
    tasks: of lm-evaluation-harness, by name or YAML file, for causal models; by default the recipe's `eval.tasks`. With
    tasks there may be no data: then they alone are scored.  limit_documents: score each on its first so many.
    Raises CheckpointError without a student, ModelError where the two are no pair or the dense one is not known,
    DataError where there is no data or it does not fit the model, or a task is unknown.
    """
    folder = None if isinstance(checkpoint, tuple) else _folder(str(checkpoint))
    recipe = _recipe(folder)
    if tasks is None:
        tasks = recipe.eval.tasks if recipe else ()
    if data is None:
        with suppress(DataError) if tasks else nullcontext():
            data = _recipe_data(folder, recipe)
    dense, compressed = (
        _checked(checkpoint)
        if isinstance(checkpoint, tuple)
        else load_pair(checkpoint, against, trust_remote_code=trust_remote_code)
    )
    loaded = load_tasks(tasks, dense) if tasks else None
    examples = None
    if data is not None:
        examples = data if isinstance(data, EvalData) else checkpoint_data(folder, str(data), dense)
        examples = write_examples(dense, examples if limit_tokens is None else examples.limited(limit_tokens))
    sites = find_sites(dense.model)
    found = _students(compressed, sites)
    measured: dict[str, Any] = {"quality": {}, "agreement": {}, "latency": [], "sites": []}
    with threads_set(threads) as count:
        if examples is not None:
            measured["quality"], measured["agreement"] = quality.compare(dense, compressed, examples)
            measured["sites"] = site_errors(
                dense.model, compressed.model, sites, find_norms(dense.model, sites), found, _inputs(examples, dense)
            )
        if examples is not None and latency:
            pool = timed_pool(examples, dense)
            measured["latency"] = measure_latency(
                dense.task, dense.model, compressed.model, sites, pool, batches=batches, seconds=seconds
            )
        made = setting(dense, compressed, examples, count)
        if loaded is not None:
            measured["tasks"] = score(loaded, dense, compressed, limit_documents)
            made["tasks"] = described(loaded, limit_documents)
        return Report(
            **measured, size=_sizes(dense, compressed, sites, found), cost=ffn_cost(sites, found), setting=made
        )


def checkpoint_data(folder: Path | None, data: str | None, pretrained: Pretrained) -> EvalData:
    """Load data as a checkpoint's recipe reads it; by default (None) what the recipe evaluates on.

    Raises DataError where there is none or it does not fit the model.
    """
    recipe = _recipe(folder)
    source = data or _recipe_data(folder, recipe)
    return load_examples(source, pretrained) if recipe is None else load_as(recipe.data, source, pretrained)


def _folder(checkpoint: str) -> Path:
    """Find the checkpoint's folder, which is looked at before anything is loaded."""
    path = Path(checkpoint)
    if (path / JOB_FOLDER).is_dir() and not (path / "config.json").is_file():
        raise CheckpointError(
            "the conversion in this folder is not finished", where=checkpoint,
            remedy=f"go on with it: compress resume {checkpoint}",
        )  # fmt: skip
    folder, _ = local_folder(checkpoint)
    read_config(folder)
    return folder


def load_pair(
    checkpoint: str | Path, against: str | Path | None = None, *, trust_remote_code: bool = False
) -> tuple[Pretrained, Pretrained]:
    """Load a compressed model and its dense one: (dense, compressed).

    Raises CheckpointError where the folder is no checkpoint, ModelError where the two are no pair or the dense one is
    not known.
    """
    folder = _folder(str(checkpoint))
    source = str(against) if against is not None else _source(folder)
    dense = load_pretrained(source, trust_remote_code=trust_remote_code)
    compressed = load_pretrained(str(checkpoint), trust_remote_code=trust_remote_code)
    return _checked((dense, compressed))


def _checked(pair: tuple[Pretrained, Pretrained]) -> tuple[Pretrained, Pretrained]:
    """Give the pair back; ModelError where it is none."""
    dense, compressed = pair
    if any(isinstance(module, Student) for module in dense.model.modules()):
        raise ModelError(
            "the model to compare with is compressed itself", where=public_name(dense.source),
            remedy="give the dense model that the other was converted from with --against MODEL",
        )  # fmt: skip
    ours, theirs = type(compressed.model).__name__, type(dense.model).__name__
    if ours != theirs:
        raise ModelError(
            f"the compressed model is a {ours}, the dense one a {theirs}: they cannot be compared",
            where=public_name(dense.source),
            remedy="give the dense model that it was converted from with --against MODEL",
        )
    odd = _differing(dense.model, compressed.model)
    if odd:
        raise ModelError(
            f"the two models are not of one size: {odd} is not the same in both", where=public_name(dense.source),
            remedy="give the dense model that the other was converted from with --against MODEL",
        )  # fmt: skip
    return dense, compressed


def _differing(dense: nn.Module, compressed: nn.Module) -> str | None:
    """What is of another size in the two, beyond the FFNs that were replaced."""
    sites, modules = find_sites(dense), dict(compressed.named_modules())
    shapes = {name: parameter.shape for name, parameter in dense.named_parameters()}
    entries = tuple(f"{site.entry}." for site in sites)
    missing = (site.entry for site in sites if site.entry not in modules)
    resized = (
        name for name, parameter in compressed.named_parameters()
        if not name.startswith(entries) and shapes.get(name, parameter.shape) != parameter.shape
    )  # fmt: skip
    return next(missing, None) or next(resized, None)


def _source(folder: Path) -> str:
    """Name the dense model that a checkpoint was made from, if it can still be named from here."""
    config = read_config(folder)
    if config.from_hub and is_hub_id(config.source):  # no path: that would leave the folder
        return f"{config.source}@{config.revision}" if config.revision else config.source
    name = config.source if Path(config.source).name == config.source else None
    recorded = [name, _journal(folder).get("source")]  # of a folder the config keeps only the name
    for candidate in recorded:
        if candidate and Path(candidate).is_dir():
            return str(candidate)
    raise ModelError(
        f"the dense model was the folder {config.source}, which is not to be found from here",
        where=str(folder),
        remedy="name it with --against MODEL",
    )


def _journal(folder: Path) -> dict[str, Any]:
    return Job.open(folder).journal if (folder / JOB_FOLDER / "journal.json").exists() else {}


def _recipe(folder: Path | None) -> Recipe | None:
    """Read the recipe that a checkpoint was made with, where it is there."""
    path = folder / "recipe.resolved.yaml" if folder is not None else None
    if path is None or not path.is_file():
        return None
    return parse_recipe(path.read_text(encoding="utf-8", errors="replace"), str(path))


def _recipe_data(folder: Path | None, recipe: Recipe | None) -> str:
    """Name the data that the checkpoint's recipe evaluates on, if it can still be named from here."""
    recorded = recipe.resolved()["eval"]["data"] if recipe else None  # a name: whatever path a stranger wrote there
    recorded = None if recorded == ".." else recorded
    if recorded and folder is not None:  # the job, where it is still here, knows the whole path
        recorded = _journal(folder).get("recipe", {}).get("values", {}).get("eval", {}).get("data") or recorded
    if recorded and (recorded.startswith(HUB) or Path(recorded).exists()):
        return recorded
    raise DataError(
        f"the recipe's eval.data was {recorded}, which is not to be found from here" if recorded
        else "there is no data to evaluate on: the recipe names none in eval.data",
        where=str(folder) if folder is not None else None,
        remedy="give it with --data FILE or --data hub:NAME",
    )  # fmt: skip


def _students(compressed: Pretrained, sites: Sequence[Site]) -> dict[str, Student]:
    found = students(compressed.model, sites)
    if not found:
        raise CheckpointError(
            "the model has no LookupFFN in it", where=public_name(compressed.source),
            remedy="give a folder that `compress convert` wrote; the dense model goes to --against",
        )  # fmt: skip
    return found


def timed_pool(data: EvalData, dense: Pretrained) -> Pool:
    """Sequences made of the data's, for passes that are timed."""
    return make_pool(_inputs(data, dense), _timed_length(dense), _last_token(dense))


def _inputs(data: EvalData, dense: Pretrained) -> Iterator[dict[str, Tensor]]:
    return (batch.inputs for batch in data.batches(quality.batch_tokens(dense)))


def _last_token(dense: Pretrained) -> int | None:
    """The token that a classifier with a decoder (BART) reads its answer from."""
    config: Any = dense.model.config
    classifies = dense.task == "text-classification" and getattr(config, "is_encoder_decoder", False)
    return config.eos_token_id if classifies else None


def _timed_length(dense: Pretrained) -> int:
    return min(SEQUENCE_LENGTH, longest_sequence(dense) or SEQUENCE_LENGTH)


def _sizes(
    dense: Pretrained, compressed: Pretrained, sites: Sequence[Site], found: dict[str, Student]
) -> dict[str, Any]:
    width = sizes.stored_width(dense.folder)
    return {
        "dense_bytes": sizes.stored_bytes(dense.model, width),
        "compressed_bytes": sizes.stored_bytes(compressed.model, width),
        "dense_int8_bytes": sizes.int8_bytes(dense.model),
        **ffn_sizes(sites, found),
    }
