"""`compress inspect`: the feed-forward networks of a model and what they cost, dense and compressed."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .options import TrustRemoteCode
from .show import console


def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL|CHECKPOINT", help="Folder or hub id, dense or compressed.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Show a model's feed-forward networks: shapes, parameters, multiply-adds, bytes, and their share of the model."""
    import json

    from compress.evaluate.inspection import inspect_model
    from compress.models import load_pretrained

    described = inspect_model(load_pretrained(model, trust_remote_code=trust_remote_code))
    if as_json:
        typer.echo(json.dumps(described, indent=2))
    else:
        _show(described)


def _show(described: dict[str, Any]) -> None:
    from compress.evaluate.tables import table
    from compress.evaluate.wording import bytes_text, count_text, number
    from compress.sites import listed

    out = console()
    out.print(f"{described['model']}: {described['architecture']}, {described['task']}")
    headings = ["site", "shape", "activation", "parameters", "multiply-adds", "bytes", "bytes per token"]
    sites = table("Feed-forward networks, per token; a dense one in int8", headings)
    for site in described["sites"]:
        shape = f"{site['d_in']}-{site['d_hidden']}-{site['d_out']}"
        activation = f"{site['activation']}{', gated' if site['gated'] else ''}"
        rows = [(site["name"], shape, activation, site["dense"])]
        if site["compressed"] is not None:
            student = site["compressed"]
            factorised = "student" in student
            neurons = student["d_hidden"] if factorised else student["neurons"]
            sizes = "" if factorised else f"{student['tables']} x {student['bits']}, "
            kind = "low-rank factors" if factorised else student["projection"]
            rows.append(("", f"{sizes}rank {student['rank']}, neurons {neurons}", kind, student))
        for name, form, kind, costs in rows:
            sites.add_row(
                name, form, kind, count_text(costs["parameters"]), count_text(costs["multiply_adds"]),
                bytes_text(costs["bytes"]), bytes_text(costs["bytes_per_token"]),
            )  # fmt: skip
    out.print(sites)
    total = table(f"Model, at {described['sequence_length']} tokens", ["", "dense", "compressed"])
    for label, key, write in (
        ("parameters", "parameters", count_text),
        ("multiply-adds per token", "multiply_adds", count_text),
        ("FFNs' share of them", "ffn_share", lambda share: number(share, "accuracy")),
        ("FFN multiply-adds per token", "ffn_multiply_adds", count_text),
        ("size", "bytes", bytes_text),
        ("size of the FFNs, dense in int8", "ffn_bytes", bytes_text),
        ("FFN bytes per token, dense in int8", "ffn_bytes_per_token", bytes_text),
    ):
        values = [form and form[key] for form in (described["total"]["dense"], described["total"]["compressed"])]
        total.add_row(label, *("-" if value is None else write(value) for value in values))
    out.print(total)
    for site in described["sites"]:
        if site["obstacle"]:
            out.print(f"{site['name']} cannot be converted: {site['obstacle']}")
    if described["experts"]:
        out.print(f"mixture of experts, cannot be converted: {listed(described['experts'])}")
