"""What a model's width does to look-ups, pruning and low rank: teachers of one kind and text, each converted.

`python -m compress.recipes.embedded.trend --out DIR --device cuda --jobs 8` trains a Llama of each width on the
standard library's source, as `train` does, converts it by the recipe `demo` with each system of the study `frontier`
at each budget, and writes `table.md`, `table.csv` and `loss-over-width.png`. Interrupted, it goes on from what DIR
holds. Every FFN is converted at the same share of its own dense cost.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from compress.recipes.embedded.corpus import collect, join

from compress.durable import replace_text
from compress.recipe import load_recipe
from compress.studies import load_study
from compress.studies.conversions import COLUMNS, Conversions, Wanted
from compress.studies.pictures import Picture, draw_points
from compress.studies.results import Point
from compress.studies.runner import run_grid
from compress.studies.settings import ConversionStudy
from compress.studies.tables import Column, to_csv, to_markdown

FILE = "loss-over-width.png"
TRAIN, HELD_OUT = "train.txt", "heldout.txt"
SYSTEMS = ["LookupFFN", "pruned-neurons-and-a-low-rank-path", "low-rank-factors"]


def train_teacher(width: int, arguments: argparse.Namespace) -> Path:
    """Train the model of a width, where it is not there yet, in a process of its own."""
    folder = Path(arguments.out) / "teachers" / str(width)
    if not (folder / "config.json").is_file():
        command = [sys.executable, "-m", "compress.recipes.embedded.train", "--out", str(folder)]
        command += ["--hidden", str(width), "--steps", str(arguments.teacher_steps), "--device", arguments.device]
        command += ["--learning-rate", str(arguments.learning_rate), "--no-compile"]
        with (folder.parent / f"{width}.log").open("w") as log:
            subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)
    return folder


def write_text(folder: Path, share: float) -> None:
    """Write what is distilled on and what is measured on: of each held-out module, the first `share`."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus = collect()
    held_out = [replace(module, text=module.text[: round(share * len(module.text))]) for module in corpus.held_out]
    for name, modules in ((TRAIN, corpus.train), (HELD_OUT, held_out)):
        replace_text(folder / name, join(modules))


def conversions(width: int, arguments: argparse.Namespace) -> Conversions:
    """All conversions of one teacher."""
    study = load_study("frontier")
    assert isinstance(study, ConversionStudy)
    train, held_out = (Path(arguments.out) / "text" / name for name in (TRAIN, HELD_OUT))
    common = [
        f"finetune.steps={arguments.steps}", f"finetune.batch_tokens={arguments.batch_tokens}",
        f"data.path={json.dumps(str(train))}", f"eval.data={json.dumps(str(held_out))}",
    ]  # fmt: skip
    wanted = []
    for system in [system for system in study.systems if system.name in arguments.systems]:
        for budget in arguments.budgets:
            changes = {**system.set, "lookup.budget": budget}
            overrides = [*common, *(f"{key}={json.dumps(value)}" for key, value in changes.items())]
            recipe = load_recipe(study.recipe, overrides)
            name = f"{system.name}-{budget:g}"
            wanted.append(Wanted(name, f"{system.name} at {budget:g}", f"{system.name} at {budget:g}", recipe))
    teacher = Path(arguments.out) / "teachers" / str(width)
    return Conversions(
        str(teacher), wanted, f"# Width {width}", device=arguments.device, threads=arguments.threads
    )  # fmt: skip


def convert(arguments: argparse.Namespace) -> list[Point]:
    """Run every conversion that no other process runs, the widest first; give what there is, a point each."""
    points = []
    for width in sorted(arguments.widths, reverse=True):
        outcome = run_grid(conversions(width, arguments), Path(arguments.out) / str(width), tell=print)
        points += [
            replace(point, name=f"{width}: {point.name}", values={**point.values, "width": width})
            for point in outcome.points
        ]
    return points


def share(arguments: argparse.Namespace) -> None:
    """Let several processes share the conversions."""
    command = [sys.executable, "-m", "compress.recipes.embedded.trend", *sys.argv[1:], "--converter"]
    logs = [(Path(arguments.out) / f"converter-{number}.log").open("w") for number in range(arguments.jobs)]
    processes = [subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) for log in logs]
    for process, log in zip(processes, logs, strict=True):
        process.wait()
        log.close()


def report(points: Sequence[Point], folder: Path) -> str:
    """Write the tables and the picture."""
    columns = [Column("width", "hidden size", lambda value: f"{value:.0f}"), *COLUMNS[:8]]
    markdown = to_markdown(points, columns)
    replace_text(folder / "table.csv", to_csv(points))
    replace_text(folder / "table.md", markdown)
    draw_points(points, Picture(FILE, "width", "hidden size", "loss", "loss against the dense model, nats"), folder)
    return markdown


def main() -> None:
    """Read the options; train, convert, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for everything")
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 256, 384, 768], help="multiples of 64")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.125, 0.25])
    parser.add_argument("--systems", nargs="+", default=SYSTEMS, help="of the study `frontier`")
    parser.add_argument("--teacher-steps", type=int, default=1300)
    parser.add_argument("--learning-rate", type=float, default=5e-3, help="of the teachers")
    parser.add_argument("--steps", type=int, default=1000, help="of each conversion")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--held-out-share", type=float, default=1.0, help="of the held-out text that is measured on")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the work")
    parser.add_argument("--threads", type=int, default=2, help="of each process")
    parser.add_argument("--converter", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.converter:
        convert(arguments)
        return
    (arguments.out / "teachers").mkdir(parents=True, exist_ok=True)
    write_text(arguments.out / "text", arguments.held_out_share)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(lambda width: train_teacher(width, arguments), arguments.widths))
    if arguments.jobs > 1:
        share(arguments)
    print(report(convert(arguments), arguments.out))


if __name__ == "__main__":
    main()
