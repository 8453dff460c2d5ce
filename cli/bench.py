"""`compress bench`: one FFN in every way that runs it on this machine, side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from compress.errors import CompressError

from .options import Threads, TrustRemoteCode
from .profile import draw_profile, run_profile, show_profile
from .show import console


def bench(
    context: typer.Context,
    checkpoint: Annotated[
        str | None, typer.Argument(help="Folder or hub id of a compressed model; without one, layers are random.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The dense model; by default the one it was converted from.")
    ] = None,
    hidden: Annotated[int, typer.Option(min=1, metavar="D", help="Width of the block.")] = 768,
    intermediate: Annotated[int | None, typer.Option(min=1, metavar="F", help="By default four times as wide.")] = None,
    gated: Annotated[bool, typer.Option("--gated", help="Two input matrices, as in SwiGLU.")] = False,
    activation: Annotated[str, typer.Option(help="Of the dense FFN.")] = "gelu",
    budget: Annotated[float, typer.Option(metavar="C", help="Cost of the student that conversions ship.")] = 0.25,
    tables: Annotated[
        int | None, typer.Option(min=1, metavar="H", help="A student of so many tables instead, sized below.")
    ] = None,
    bits: Annotated[int, typer.Option(min=1, max=16)] = 8,
    projection: Annotated[str, typer.Option(help="bh4, dense, acdc; hadamard and lowrank need a rank.")] = "bh4",
    block: Annotated[int, typer.Option(min=1, help="Of BH4.")] = 64,
    rank: Annotated[int, typer.Option(min=0)] = 0,
    neurons: Annotated[int, typer.Option(min=0)] = 0,
    read: Annotated[str, typer.Option(help="top1 or top2.")] = "top1",
    table_dtype: Annotated[
        str | None, typer.Option(help="int4, int8, bfloat16, float32; by default every width, matrices alike.")
    ] = None,
    hash_dtype: Annotated[
        str | None, typer.Option(help="Of the student's matrices; by default as its tables, w8a8 for integers.")
    ] = None,
    batch: Annotated[str, typer.Option(metavar="N,N,...", help="Tokens of a pass.")] = "1,16,512",
    layers: Annotated[int, typer.Option(min=1, help="Different layers in a pass.")] = 4,
    whole: Annotated[
        bool,
        typer.Option(
            "--whole", help="The whole model of a checkpoint, not its FFNs alone; PyTorch, OpenVINO, llama.cpp."
        ),
    ] = False,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Whole models of known sizes with random weights: gpt2, llama-1b, bert-base, minilm."
        ),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            metavar="BxT,...",
            help="Of whole models: sequences x tokens, or 1x1+128, a token behind 128 cached "
            "ones; by default 1x16,32x32, of causal models 1x1+128,1x128.",
        ),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="The paper's profile: dense, SLIDE and LookupFFN; time, misses, energy.")
    ] = False,
    counters: Annotated[
        str, typer.Option(metavar="C", help="With --profile: perf, cachegrind (valgrind) or none.")
    ] = "auto",
    caches: Annotated[
        str | None, typer.Option(metavar="K,M,M", help="With --profile: caches to simulate; by default the machine's.")
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help='Dense variants to measure; of whole models engines, or ways such as "openvino int8".',
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="Of measuring a batch size, at least three rounds.")] = 6.0,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write the numbers as JSON; - for standard output.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Draw a bar chart and a roofline; needs matplotlib.")
    ] = None,
    threads: Threads = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Time an FFN, dense in every engine that is installed and as look-ups, interleaved on the same inputs.

    Weights and rows come from memory: caches are swept before every pass. ONNX Runtime, OpenVINO and torchao take part
    where they are installed. With --whole and --config, models run as in a process that runs nothing else.
    """
    _refuse_ignored(context, checkpoint, whole, config, profile)
    if whole or config is not None:
        _check_writable(json_file)
        result = _whole(checkpoint, against, config, budget, shape, only, seconds, threads, trust_remote_code)
        _give(result, json_file, _show_whole)
        return
    from compress.bench.contestants import DENSE
    from compress.bench.report import can_draw, draw
    from compress.bench.stacks import of_checkpoint, of_sizes
    from compress.evaluate.latency import threads_set

    batches = _batches(batch)
    dense = {"hidden": hidden, "intermediate": intermediate or 4 * hidden, "gated": gated, "activation": activation}
    sizes = {
        "tables": tables, "bits": bits, "projection": projection, "block": block, "rank": rank, "neurons": neurons,
        "read": read,
    }  # fmt: skip
    wanted = DENSE if only is None else _variants(only, DENSE)
    _check_writable(json_file)
    if report is not None:
        can_draw()
    if profile:
        result = run_profile(
            dense, sizes, budget, (table_dtype, hash_dtype), batches=batches if _given(context, "batch") else None,
            threads=threads, layers=layers, seconds=seconds, counters=counters, caches=caches,
        )  # fmt: skip
        _give(result, json_file, show_profile)
        if report is not None:
            draw_profile(result, report)
        return
    with threads_set(threads) as count:
        if checkpoint is not None:
            stacks = of_checkpoint(checkpoint, against, count, wanted, trust_remote_code=trust_remote_code)
        else:
            student = budget if tables is None else sizes
            stacks = of_sizes(dense, student, layers, count, wanted, table_dtype, hash_dtype)
        result = stacks.measure(batches, seconds)
    _give(result, json_file, _show)
    if report is not None:
        for path in draw(result, report):
            typer.echo(f"written to {path}", err=True)


_OF_ALL = {"checkpoint", "json_file", "seconds", "threads", "trust_remote_code"}
_OF_WHOLE = {*_OF_ALL, "whole", "shape", "against", "only"}
_OF_CONFIG = {*_OF_ALL, "config", "budget", "whole", "shape", "only"} - {"trust_remote_code"}
_OF_CHECKPOINT = {*_OF_ALL, "against", "batch", "only", "report"}
_NOT_OF_PROFILE = {"checkpoint", "against", "whole", "config", "shape", "only", "trust_remote_code"}
_NOT_OF_SIZES = {"whole", "config", "shape", "against", "counters", "caches"}


def _given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _refuse_ignored(
    context: typer.Context, checkpoint: str | None, whole: bool, config: str | None, profile: bool
) -> None:
    """Raise CompressError for an option that means nothing beside the others that are given."""
    for parameter in context.command.params:
        name = str(parameter.name)
        if not _given(context, name):
            continue
        if profile:
            kind, used = "with --profile", name not in _NOT_OF_PROFILE
        elif config:
            kind, used = "with --config", name in _OF_CONFIG
        elif whole:
            kind, used = "with --whole", name in _OF_WHOLE
        elif checkpoint:
            kind, used = "of a checkpoint's FFNs", name in _OF_CHECKPOINT
        else:
            kind, used = "of random layers", name not in _NOT_OF_SIZES
        if not used:
            raise CompressError(
                f"{parameter.opts[0]} means nothing in a measurement {kind}", where=parameter.opts[0],
                remedy="leave it out; compress bench --help",
            )  # fmt: skip


def _whole(
    checkpoint: str | None, against: str | None, config: str | None, budget: float, shape: str | None,
    only: str | None, seconds: float, threads: int | None, trust_remote_code: bool,
) -> dict[str, Any]:  # fmt: skip
    from compress.bench.shapes import Shape
    from compress.bench.sized import sized_pair
    from compress.bench.whole import DEFAULT_SHAPES, bench_model, chosen
    from compress.evaluate.evaluation import load_pair

    if (checkpoint is None) == (config is None):
        raise CompressError(
            "--whole needs a checkpoint" if config is None else "both a checkpoint and --config are given",
            where="--whole" if config is None else "--config",
            remedy="name one: compress bench CHECKPOINT --whole, or compress bench --config gpt2",
        )
    ways = chosen(only)
    try:
        shapes = None if shape is None else [Shape.parse(part) for part in shape.split(",")]
    except ValueError:
        remedy = "write 1x16,32x32, say, and 1x1+128 for a token behind 128 others"
        raise CompressError(f"{shape} is no list of shapes", where="--shape", remedy=remedy) from None
    if config is not None:
        pair = sized_pair(config, budget)
    else:
        assert checkpoint is not None
        pair = load_pair(checkpoint, against, trust_remote_code=trust_remote_code)
    shapes = shapes or DEFAULT_SHAPES[pair[0].task == "causal"]
    return bench_model(*pair, shapes, seconds=seconds, threads=threads, ways=ways)


def _show_whole(result: dict[str, Any]) -> None:
    from compress.bench.whole import tables

    out, machine = console(), result["machine"]
    out.print(f"{machine['processor']}, {machine['isa']}, threads: {machine['threads']}")
    for made in tables(result):
        out.print(made)
    for name, reason in result["left_out"].items():
        out.print(f"left out: {name}: {reason}")


def _check_writable(json_file: str | None) -> None:
    if json_file is not None and json_file != "-" and not Path(json_file).absolute().parent.is_dir():
        raise CompressError("the numbers cannot be written: no such folder", where=json_file, remedy="make it first")


def _give(result: dict[str, Any], json_file: str | None, show: Callable[[dict[str, Any]], None]) -> None:
    """Show numbers, or print them as JSON; and write them to a file."""
    if json_file == "-":
        typer.echo(json.dumps(result, indent=2))
        return
    show(result)
    if json_file is not None:
        Path(json_file).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _batches(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if any(number < 1 for number in numbers):
        raise CompressError(f"{text} is no list of batch sizes", where="--batch", remedy="write 1,16,512, say")
    return numbers


def _variants(text: str, known: Sequence[str]) -> tuple[str, ...]:
    """The variants that are named, or whose engine is."""
    chosen = set()
    for name in text.split(","):
        named = {variant for variant in known if name in (variant, variant.partition("_")[0])}
        if not named:
            raise CompressError(
                f"unknown variant {name}", where="--only", remedy=f"choose of {', '.join(known)}, or name an engine"
            )
        chosen |= named
    return tuple(variant for variant in known if variant in chosen)


def _show(result: dict[str, Any]) -> None:
    from compress.bench.report import label, tables
    from compress.evaluate.wording import bytes_text

    out, machine = console(), result["machine"]
    out.print(
        f"{machine['processor']}, {machine['isa']}, threads: {machine['threads']}; last-level cache "
        f"{bytes_text(machine['last_level_cache'])}, streaming reads {machine['streaming_rate'] / 1e9:.1f} GB/s"
    )
    out.print(result["layer"])
    for made in tables(result):
        out.print(made)
    for name, reason in result["left_out"].items():
        out.print(f"left out: {label(name)}: {reason}")
