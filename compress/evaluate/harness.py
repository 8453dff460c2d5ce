"""Tasks of lm-evaluation-harness, scored with a dense causal model and the compressed one."""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import CompressError, DataError, ModelError
from .statistics import compare_means

if TYPE_CHECKING:
    from ..models import Pretrained

HARNESS = "lm_eval"
FILE_SUFFIXES = (".yaml", ".yml")
_BATCH = 8  # texts at a time
_SEED = 1234  # of the examples shown before a question, the harness's own

Scores = dict[str, dict[str, dict[str, Any]]]  # task -> metric -> what `Comparison.to_dict` gives


def load_tasks(names: Sequence[str], pretrained: Pretrained) -> dict[str, Any]:
    """Load tasks and their data, by the harness's names or from YAML files, for a causal model.

    Raises CompressError where the harness is not installed, ModelError where the model is none that tasks score,
    DataError where a task is unknown, its data is missing or it would run what a model writes.
    """
    if pretrained.task != "causal" or pretrained.processor is None:
        what = "no tokenizer" if pretrained.task == "causal" else f"another task, {pretrained.task}"
        raise ModelError(
            f"tasks score causal language models, and this one has {what}", where=", ".join(names),
            remedy="leave the tasks out, and measure on data instead",
        )  # fmt: skip
    manager = _harness()
    for name in names:
        if Path(name).suffix in FILE_SUFFIXES:
            if not Path(name).is_file():
                raise DataError("there is no such task file", where=name, remedy="give the name of a task, or a file")
        elif name not in manager.task_index:
            close = difflib.get_close_matches(name, manager.task_index, n=1)
            remedy = f"did you mean {close[0]}?" if close else f"`{HARNESS} ls tasks` lists them"
            raise DataError(f"lm-evaluation-harness has no task {name}", where=name, remedy=remedy)
    try:
        with _quiet():
            loaded: dict[str, Any] = manager.load(list(names))
    except Exception as error:  # of data sets, templates, downloads: the harness lets all of them through
        what = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"the tasks cannot be loaded: {what}", where=", ".join(names),
            remedy="their data sets come from the hub: check the connection, or the task's file",
        ) from error  # fmt: skip
    for name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise DataError(f"the task {name} runs code that the model writes", where=name, remedy="leave it out")
    return loaded


def score(loaded: Mapping[str, Any], dense: Pretrained, compressed: Pretrained, limit: int | None = None) -> Scores:
    """Score both models on loaded tasks, each on its first `limit` documents; groups of tasks have a score too.

    Standard errors and the interval are there for metrics that are means over documents.
    """
    theirs, ours = (_run(loaded, pretrained, limit) for pretrained in (dense, compressed))
    scores: Scores = {}
    for task, results in ours["results"].items():
        rows = {}
        for key, value in results.items():
            if not isinstance(value, (int, float)) or "_stderr," in key or "," not in key:
                continue
            metric, _, used = key.partition(",")
            name = metric if used == "none" else key
            row = {"dense": float(theirs["results"][task][key]), "compressed": float(value)}
            rows[name] = row | _spread(theirs["samples"].get(task), ours["samples"].get(task), metric, used, row)
        scores[task] = rows
    return scores


def described(loaded: Mapping[str, Any], limit: int | None) -> dict[str, Any]:
    """Say what was scored, for a report's setting: versions of the harness and of each task, examples shown, limit."""
    tasks = {name: {"version": task.VERSION, "shots": _shots(task)} for name, task in loaded["tasks"].items()}
    return {"harness": version(HARNESS), "limit": limit, "tasks": tasks}


def _harness() -> Any:
    if importlib.util.find_spec(HARNESS) is not None:
        with contextlib.suppress(ImportError):  # it needs more than itself
            import lm_eval.models.huggingface  # noqa: F401

            return _task_manager()
    raise CompressError(
        "tasks need lm-evaluation-harness, which is not installed", where="--task, eval.tasks",
        remedy="pip install 'compress-lookup[eval]'",
    )  # fmt: skip


@functools.cache
def _task_manager() -> Any:
    """Index thousands of task files, which takes seconds."""
    from lm_eval.tasks import TaskManager

    with _quiet():
        return TaskManager()


def _run(loaded: Mapping[str, Any], pretrained: Pretrained, limit: int | None) -> dict[str, Any]:
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    for task in loaded["tasks"].values():
        task.set_config(key="num_fewshot", value=_shots(task))
        task.set_fewshot_seed(seed=_SEED)  # the same examples before the same questions
    with _quiet():
        model = HFLM(pretrained=pretrained.model, tokenizer=pretrained.processor, batch_size=_BATCH)
        for request in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
            setattr(model, request, partial(getattr(model, request), disable_tqdm=not sys.stderr.isatty()))
        found: dict[str, Any] = evaluate(model, loaded, limit=limit, bootstrap_iters=0, log_samples=True)
    return found


def _shots(task: Any) -> int:
    return int(task.get_config("num_fewshot") or 0)


def _spread(
    theirs: Sequence[Mapping[str, Any]] | None, ours: Sequence[Mapping[str, Any]] | None, metric: str, used: str,
    row: Mapping[str, float],
) -> dict[str, Any]:  # fmt: skip
    """Paired comparison over documents, where the metric is their mean; nothing for others, and for groups of tasks."""
    sides = [[sample for sample in side or () if sample["filter"] == used] for side in (theirs, ours)]
    if not sides[0] or [sample["doc_id"] for sample in sides[0]] != [sample["doc_id"] for sample in sides[1]]:
        return {}
    dense, compressed = ([sample.get(metric) for sample in side] for side in sides)
    if not all(isinstance(value, (bool, int, float, np.number)) for value in dense + compressed):
        return {}
    weights = np.ones(len(dense))
    found = compare_means(np.array(dense, float), np.array(compressed, float), weights, unit="documents").to_dict()
    exact = all(np.isclose(found[side], row[side], rtol=1e-9, atol=1e-12) for side in ("dense", "compressed"))
    return found if exact else {}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the harness: its log, and off a terminal the bars that cannot be switched off."""
    logger = logging.getLogger(HARNESS)
    level = logger.level
    logger.setLevel(logging.ERROR)
    with contextlib.ExitStack() as stack:
        if not sys.stderr.isatty():
            stack.enter_context(contextlib.redirect_stderr(stack.enter_context(open(os.devnull, "w"))))
        try:
            yield
        finally:
            logger.setLevel(level)
