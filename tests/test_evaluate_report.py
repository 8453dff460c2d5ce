"""Sizes, and the report: as JSON, in sentences and in tables."""

from __future__ import annotations

import json
from pathlib import Path

import pico
import pytest
import torch

from compress.errors import CheckpointError
from compress.evaluate import Report, sizes

# Sizes


def test_sizes_follow_the_files(tmp_path: Path) -> None:
    model = pico.llama()
    count = sum(parameter.numel() for parameter in model.parameters())
    model.save_pretrained(tmp_path / "float32")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "bfloat16")
    widths = [sizes.stored_width(tmp_path / name) for name in ("float32", "bfloat16")]
    assert [*widths, sizes.stored_width(tmp_path), sizes.stored_width(None)] == [4, 2, 4, 4]
    model.float()
    for name, width in (("float32", 4), ("bfloat16", 2)):
        assert sizes.stored_bytes(model, width) == width * count
        data_bytes = (tmp_path / name / "model.safetensors").stat().st_size
        assert sizes.stored_bytes(model, width) == pytest.approx(data_bytes, abs=4096)  # but for the header
    vectors = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() == 1)
    assert sizes.int8_bytes(model) == count + 3 * vectors


# The report

REPORT = Report(
    quality={
        "perplexity": {
            "dense": 4.0, "compressed": 4.4, "stderr": 0.1, "interval": [0.3, 0.5], "samples": 9, "unit": "windows",
        }
    },
    agreement={"kl": 0.01, "top1": float("nan"), "positions": 90},
    latency=[
        {
            "scope": "ffn", "batch": 1, "tokens": 1, "threads": 2,
            "seconds": {"dense_float32": 2e-3, "dense_int8": 1e-3, "compressed": 5e-4},
        },
        {
            "scope": "model", "batch": 8, "tokens": 512, "threads": 2,
            "seconds": {"dense_float32": 2.0, "dense_int8": 1.0, "compressed": 1.5},
        },
    ],
    size={"dense_bytes": 100, "compressed_bytes": 250, "dense_bytes_per_token": 40, "compressed_bytes_per_token": 10},
    sites=[{"name": "h.0", "error": 0.125}, {"name": "h.1", "error": None}],
    cost=0.25,
)  # fmt: skip


def test_reports_survive_json() -> None:
    text = REPORT.to_json()
    values = json.loads(text)
    assert values["format"] == 1
    assert values["agreement"]["top1"] is None  # JSON has no NaN
    assert {"quality", "agreement", "latency", "size", "sites"} <= values.keys()
    again = Report.from_json(text)
    assert again.to_json() == text
    assert Report.from_json({**values, "of_a_later_version": 1}) == again


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": 1}', "no json", '{"format": 2, "quality": {}}'])
def test_what_is_no_report_is_refused(content: str) -> None:
    with pytest.raises(CheckpointError):
        Report.from_json(content)


def test_a_newer_report_says_so() -> None:
    with pytest.raises(CheckpointError, match="format 7"):
        Report.from_json({**REPORT.to_dict(), "format": 7})


def test_plain_sentences_for_what_is_worse() -> None:
    slower, bigger = REPORT.sentences()
    assert "not faster" in slower
    assert "whole model at batch 8 (512 tokens), 1.50 s against 1.00 s of dense int8" in slower
    assert "FFNs alone" not in slower
    assert "bigger" in bigger
    assert "2.50x" in bigger
    faster = Report.from_json({**REPORT.to_dict(), "latency": REPORT.latency[:1], "size": {}})
    assert faster.sentences() == []


def test_tables_show_what_was_measured() -> None:
    from rich.console import Console

    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in REPORT.tables():
        console.print(table)
    text = console.export_text()
    for expected in ("4.4 ± 0.1", "+0.3 to +0.5", "9 windows", "500 µs", "2.00x", "0.67x", "0.250x", "0.1250", "2.50x"):
        assert expected in text
