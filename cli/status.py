"""`compress status`: how far a conversion is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .failures import resume_command

if TYPE_CHECKING:
    from compress.distill.job import Job

FORMAT = 1


def status(
    out: Annotated[Path, typer.Argument(help="Output folder of a conversion.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show which stages of a conversion are done, the errors reached, and how to go on."""
    import json

    from compress.distill.job import Job

    described = describe(Job.open(out))
    if as_json:
        typer.echo(json.dumps(described, indent=2))
    else:
        _show(described)


def describe(job: Job) -> dict[str, Any]:
    """Give a job's state ("running", "interrupted", "finished") and its stages, each with units done and in all.

    `problems`: what of the journal was damaged, so that its copy was read.
    """
    journal = job.journal
    finished = journal["state"] == "finished"
    state = "finished" if finished else "running" if job.running() else "interrupted"
    return {
        "format": FORMAT,
        "out": str(job.out),
        "source": journal["source"],
        "recipe": journal["recipe"]["name"],
        "device": journal["options"]["device"],
        "threads": journal["options"]["threads"],
        "state": state,
        "stages": _stages(journal, finished),
        "problems": job.problems,
        "resume": resume_command(job.out, journal["options"]["trust_remote_code"]) if state == "interrupted" else None,
    }


def _stages(journal: dict[str, Any], finished: bool) -> list[dict[str, Any]]:
    """Stages in order, with the results of finished units: errors of each site, and of the model end to end."""
    units = {
        name: {key: value for key, value in result.items() if key != "files"}
        for name, result in journal["units"].items()
    }
    plan = journal["plan"]["sites"].items()  # a site that came to stay dense has a result, too
    sites = [name for name, geometry in plan if geometry is not None or f"distill/{name}" in units]
    distilled = {name: units[f"distill/{name}"] for name in sites if f"distill/{name}" in units}
    stages: list[dict[str, Any]] = []
    if journal.get("writes"):  # what it is distilled on, by the dense model
        stages.append({"name": "write", "done": int("write" in units), "total": 1, "results": {}})
    stages.append({"name": "distill", "done": len(distilled), "total": len(sites), "results": distilled})
    if _steps(journal, "finetune") or "finetune" in units:
        result = {"model": units["finetune"]} if "finetune" in units else {}
        stages.append({"name": "finetune", "done": len(result), "total": 1, "results": result})
    stages.append({"name": "pack", "done": int("pack" in units), "total": 1, "results": {}})
    stages.append({"name": "evaluate", "done": int(finished), "total": 1, "results": {}})
    return stages


def _steps(journal: dict[str, Any], stage: str) -> int:
    from compress.recipe import restore_recipe

    stored = journal["recipe"]
    steps: int = getattr(restore_recipe(stored["values"], stored["text"], stored["name"]), stage).steps
    return steps


def _show(described: dict[str, Any]) -> None:
    typer.echo(f"{described['source']} by {described['recipe']}: {described['state']}")
    typer.echo(f"on {described['device']} with {described['threads']} threads")
    for stage in described["stages"]:
        typer.echo(f"  {stage['name']:<9} {stage['done']}/{stage['total']}")
        for name, result in stage["results"].items():
            typer.echo(f"    {name}: {_result(result)}")
    for problem in described["problems"]:
        typer.echo(f"  {problem}; its copy was read")
    if described["resume"]:
        typer.echo(f"go on with: {described['resume']}")


def _result(result: dict[str, Any]) -> str:
    if "dense" in result:
        return f"stays dense, as training diverged: {result['dense']}"
    errors = [f"{key} {result[key]:.4f}" for key in ("fitted", "distilled", "before", "after") if key in result]
    notes = [", not kept"] if result.get("kept") is False else []
    if "diverged" in result:
        notes.append(f"; training diverged: {result['diverged']}")
    elif "restarts" in result:
        notes.append(f"; began again {result['restarts']} time(s) with smaller steps")
    return f"error {', '.join(errors)}{''.join(notes)}"
