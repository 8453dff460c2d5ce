"""The model card: what the model is made from and how, how to load it, what was measured, and under which licence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import yaml

from ..baselines.factorised import FactorisedGeometry
from ..errors import CheckpointError
from ..tasks import HEADS, task_named
from .files import RESOLVED_RECIPE_FILE
from .format import CheckpointConfig, read_config, read_config_file
from .side_files import SOURCE_README_FILE

if TYPE_CHECKING:
    from rich.table import Table

PLACEHOLDER = "PATH OR HUB ID"  # where the model is, until it is known
_TAGS = ("compress", "lookup-ffn", "cpu")
# What of the source's front matter holds for the compressed model too.
_LICENSE = ("license", "license_name", "license_link")
_INHERITED = (*_LICENSE, "language", "pipeline_tag")
_SENTENCE_MODULES = "modules.json"  # a model that sentence-transformers loads
_LICENSE_FILES = ("LICEN[CS]E*", "COPYING*", "USE_POLICY*")


def model_card(folder: Path, report: Mapping[str, Any]) -> str:
    """Compose `README.md` for a checkpoint whose config and side files are in `folder`.

    `report` is what `report.json` holds: what `Report.to_dict` gives, if the model was measured, and "checkpoint" with
    `weight_bytes` and `source_weight_bytes`.
    """
    checkpoint = read_config(folder)
    sections = [
        _front_matter(folder, checkpoint),
        _introduction(folder, checkpoint),
        _usage(folder),
        "## Measured\n\n" + "\n\n".join(_measured(report)),
        _students(checkpoint),
        _recipe(folder),
        _license(folder, checkpoint),
    ]
    return "\n\n".join(section.strip() for section in sections) + "\n"


def _hub_task(folder: Path) -> str | None:
    config = read_config_file(folder)
    task = task_named(config["architectures"][0], SimpleNamespace(**config)) or "other"
    return "sentence-similarity" if task == "embedding" and _for_sentences(folder) else HEADS[task].hub_task


def _for_sentences(folder: Path) -> bool:
    return (folder / _SENTENCE_MODULES).is_file()


def auto_class(config: Mapping[str, Any]) -> str:
    """Name the class that loads the model of a config: an Auto class, or where there is none for its head, its own."""
    architecture = config["architectures"][0]
    task = task_named(architecture, SimpleNamespace(**config))
    return architecture if task == "other" else HEADS[task or "other"].auto_class


def _front_matter(folder: Path, checkpoint: CheckpointConfig) -> str:
    library = "sentence-transformers" if _for_sentences(folder) else "transformers"
    values: dict[str, Any] = {"library_name": library, "tags": list(_TAGS)}
    if (task := _hub_task(folder)) is not None:
        values["pipeline_tag"] = task
    if checkpoint.from_hub:  # of a folder only the name is known, which no page would lead to
        values |= {"base_model": checkpoint.source, "base_model_relation": "quantized"}
    inherited = _source_front_matter(folder)
    values |= {key: inherited[key] for key in _INHERITED if key in inherited}
    return f"---\n{yaml.safe_dump(values, sort_keys=True, allow_unicode=True)}---"


def _source_front_matter(folder: Path) -> dict[str, Any]:
    try:
        text = (folder / SOURCE_README_FILE).read_text(encoding="utf-8")
        values = yaml.safe_load(text.split("---", 2)[1]) if text.startswith("---") else None
    except (OSError, ValueError, IndexError, yaml.YAMLError):  # someone else's file: nothing depends on it
        return {}
    return values if isinstance(values, dict) else {}


def _introduction(folder: Path, checkpoint: CheckpointConfig) -> str:
    from ..evaluate.wording import counted

    source, count = checkpoint.source, len(checkpoint.sites)
    made_from = f"[{source}](https://huggingface.co/{source})" if checkpoint.from_hub else f"`{source}`"
    revision = f", revision `{checkpoint.revision}`" if checkpoint.revision else ""
    factorised = all(isinstance(site.geometry, FactorisedGeometry) for site in checkpoint.sites)
    kind = "low-rank factors" if factorised else "LookupFFN"
    text = (
        f"# {source.rpartition('/')[2]} with {kind}\n\n"
        f"Made from {made_from}{revision}: {counted(count, 'feed-forward network')} replaced by "
        f"{'' if factorised else 'LookupFFN '}students, distilled from the dense ones, to run fast on a CPU. "
        "`recipe.yaml` is the recipe, "
        "`recipe.resolved.yaml` has every value filled in, `report.json` the whole report."
    )
    if (folder / SOURCE_README_FILE).exists():
        text += f" The dense model's own card is [{SOURCE_README_FILE}]({SOURCE_README_FILE})."
    return text


def _usage(folder: Path) -> str:
    config = read_config_file(folder)
    auto = auto_class(config)
    code = ", trust_remote_code=True" if config.get("auto_map") else ""
    if _for_sentences(folder):
        load = [
            "from sentence_transformers import SentenceTransformer",
            f'model = SentenceTransformer("{PLACEHOLDER}"{code})',
        ]
    else:
        load = [f"from transformers import {auto}", f'model = {auto}.from_pretrained("{PLACEHOLDER}"{code})']
    return (
        "## Use\n\n`pip install compress-lookup`, then\n\n"
        "```python\nimport compress  # teaches transformers the format\n" + "\n".join(load) + "\n```\n\n"
        "Without `import compress` the load fails: the dense weights are not here."
    )


def _measured(report: Mapping[str, Any]) -> Iterable[str]:
    from ..evaluate.report import Report
    from ..evaluate.wording import bytes_text

    try:
        measured = Report.from_json({key: value for key, value in report.items() if key != "checkpoint"})
    except CheckpointError:
        yield "Quality and speed were not measured: `compress eval` does it."
    else:
        for sentence in measured.sentences():
            yield f"**{sentence}**"
        for table in measured.tables():
            yield markdown_table(table)
        if measured.setting:
            yield _conditions(measured.setting)
    facts = report["checkpoint"]
    ours, dense = facts["weight_bytes"], facts["source_weight_bytes"]
    if dense:
        grown = f"**larger** than the dense model's, {ours / dense:.2f}x" if ours > dense else f"{ours / dense:.2f}x"
        yield f"Weight files: {bytes_text(ours)} against {bytes_text(dense)} of the source ({grown})."
    else:
        yield f"Weight files: {bytes_text(ours)}."


def _conditions(setting: Mapping[str, Any]) -> str:
    from ..evaluate.wording import counted

    data = f", on {setting['data']}" if setting.get("data") else ""
    versions = ", ".join(f"{name} {version}" for name, version in setting["versions"].items())
    machine = f"{counted(setting['threads'], 'thread')} of {setting['processor']} ({setting['isa']})"
    return f"Measured with {machine}{data}; {versions}."


def markdown_table(table: Table) -> str:
    """Turn a rich table of strings into a Markdown table under its title; the first column is text, others numbers."""
    columns = [[_cell(column.header), *map(_cell, column.cells)] for column in table.columns]
    header, *rows = [f"| {' | '.join(row)} |" for row in zip(*columns, strict=True)]
    rule = "|" + "|".join("---" if position == 0 else "---:" for position in range(len(columns))) + "|"
    return "\n".join([f"**{table.title}**", "", header, rule, *rows])


def _cell(content: object) -> str:
    return str(content).replace("|", "\\|")


def _students(checkpoint: CheckpointConfig) -> str:
    lines = [
        "## Students",
        "",
        "| site | tables | bits | hash | rank | neurons | tables in | weights in |",
        "|---|---:|---:|---|---:|---:|---|---|",
    ]
    for site in checkpoint.sites:
        g = site.geometry
        sizes = (0, "-", "low-rank factors", g.rank, g.d_hidden) if isinstance(g, FactorisedGeometry) else (
            g.tables, g.bits, g.projection, g.rank, g.neurons
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, (site.name, *sizes, site.table_dtype, site.hash_dtype)))} |")
    if checkpoint.int8:
        lines += ["", "The other linear layers are in int8, and their inputs are rounded to it."]
    return "\n".join(lines)


def _recipe(folder: Path) -> str:
    recipe = (folder / RESOLVED_RECIPE_FILE).read_text(encoding="utf-8").strip()
    return f"## Recipe\n\n<details><summary>Every value</summary>\n\n```yaml\n{recipe}\n```\n\n</details>"


def _license(folder: Path, checkpoint: CheckpointConfig) -> str:
    stated = [str(value) for key, value in _source_front_matter(folder).items() if key in _LICENSE]
    files = sorted({path.name for pattern in _LICENSE_FILES for path in folder.glob(pattern)})
    text = f"This model stays under the licence of {checkpoint.source}"
    if stated:
        text += f": {', '.join(stated)}"
    if files:
        text += f" (see {', '.join(f'[{name}]({name})' for name in files)})"
    if not stated and not files:
        text += ", which its files do not state"
    return f"## License\n\n{text}."
