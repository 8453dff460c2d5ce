"""`compress eval`: quality, speed and size of a compressed model beside its dense one."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from compress.errors import CompressError

from .failures import resumable
from .options import Threads, TrustRemoteCode
from .show import show_report


def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="Folder or hub id of a compressed model.")],
    against: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The dense model; by default the one it was converted from.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="FILE|hub:NAME", help="Data to measure on; by default the recipe's eval.data."),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|FILE", help="A task of lm-evaluation-harness, or its YAML file; repeatable. Causal models."
        ),
    ] = None,
    task_limit: Annotated[
        int | None, typer.Option(metavar="DOCUMENTS", min=1, help="Score each task on its first so many documents.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="TOKENS", min=1, help="Evaluate on about so many tokens, evenly spread.")
    ] = None,
    latency: Annotated[bool, typer.Option(help="Measure speed too.")] = True,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write the report as JSON; - for standard output.")
    ] = None,
    against_baselines: Annotated[
        bool,
        typer.Option(
            "--against-baselines", help="Convert again without tables, at the same cost, by the same recipe; compare."
        ),
    ] = False,
    budgets: Annotated[
        str | None, typer.Option(metavar="C,C,...", help="Costs to compare at; by default the checkpoint's own.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder of the baselines; by default CHECKPOINT-baselines."),
    ] = None,
    threads: Threads = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Measure quality, speed and size of a compressed model beside its dense one, on the same inputs.

    With --task, scores of tasks too; where there is no data, the tasks alone.

    With --against-baselines, beside the same budget spent on pruned neurons or low-rank factors instead, and beside the
    dense model in int8: every baseline is fitted and distilled as the checkpoint was, which takes as long as its
    conversion, and can be stopped and continued. The runs are a study's cells, as those of `compress study frontier`.
    """
    from compress.evaluate import evaluate as measure

    if against_baselines:
        _refuse_beside_baselines(against, data, task, task_limit, limit, json_file, None if latency else False)
        _compare(checkpoint, output, budgets, threads, trust_remote_code)
        return
    if budgets is not None or output is not None:
        raise CompressError(
            "--budgets and --output belong to --against-baselines", remedy="add --against-baselines, or leave them out"
        )
    if json_file not in (None, "-") and not Path(json_file).absolute().parent.is_dir():
        raise CompressError("the report cannot be written: no such folder", where=json_file, remedy="make it first")
    report = measure(
        checkpoint, against, data, limit_tokens=limit, threads=threads, latency=latency,
        trust_remote_code=trust_remote_code, tasks=task, limit_documents=task_limit,
    )  # fmt: skip
    if json_file == "-":
        typer.echo(report.to_json(), nl=False)
        return
    show_report(report)
    if json_file is not None:
        report.save(Path(json_file))


def _refuse_beside_baselines(*given: object) -> None:
    if any(value is not None for value in given):
        raise CompressError(
            "baselines are converted and measured as the checkpoint was, which leaves other options no meaning",
            where="--against-baselines",
            remedy="give only --budgets, --output, --threads and --trust-remote-code with it; the numbers go to "
            "table.csv in the folder",
        )


def _compare(
    checkpoint: str, output: Path | None, budgets: str | None, threads: int | None, trust_remote_code: bool
) -> None:
    from compress.comparison import against_baselines
    from compress.studies.runner import MARK

    from .study import show_outcome

    folder = Path(checkpoint)
    out = output if output is not None else folder.resolve().with_name(f"{folder.resolve().name}-baselines")
    numbers = _numbers(budgets)
    with resumable(out, begun=Path(MARK), how=shlex.join(["compress", *sys.argv[1:]])) as stop:
        outcome = against_baselines(
            folder, out, numbers, threads=threads, trust_remote_code=trust_remote_code,
            tell=lambda line: typer.echo(line, err=True), stop=stop,
        )  # fmt: skip
    show_outcome(outcome, out)


def _numbers(text: str | None) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")] if text is not None else []
    except ValueError:
        numbers = [0.0]
    if any(not number > 0 for number in numbers):
        raise CompressError(f"{text} is no list of costs", where="--budgets", remedy="write 0.125,0.25, say")
    return numbers
