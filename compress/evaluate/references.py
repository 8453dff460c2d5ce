"""The dense model itself in a width that users run it in, measured as a compressed model is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from ..data import EvalData
from ..distill.writing import write_examples
from ..errors import CompressError
from ..models import Pretrained
from ..plan import dense_geometry
from ..sites import find_sites
from . import quality, sizes, variants
from .evaluation import timed_pool
from .latency import BATCHES, SECONDS, measure_latency, threads_set
from .report import Report
from .setting import setting

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


def evaluate_dense(
    pretrained: Pretrained, width: str, data: EvalData, *, threads: int | None = None,
    batches: Sequence[int] = BATCHES, seconds: float = SECONDS,
) -> Report:  # fmt: skip
    """Compare the dense model in `width` with itself in float32; int8 is torch's dynamic int8 of every linear layer.

    What a report says of the compressed model it says here of the one in `width`; its cost is 1.  batches, seconds: as
    in `evaluate`.  Raises CompressError for an unknown width, SiteError where the int8 model would not be one.
    """
    if width not in _BYTES:
        raise CompressError(f"unknown width {width!r}", where="dense", remedy=f"choose one of {', '.join(_BYTES)}")
    model = pretrained.model
    sites = find_sites(model)
    made = {
        "float32": lambda: model,
        "bfloat16": lambda: variants.bfloat16(model),
        "int8": lambda: variants.int8_model(model, sites),
    }[width]()
    narrow = replace(pretrained, model=cast("PreTrainedModel", made))
    data = write_examples(pretrained, data)
    with threads_set(threads) as count:
        found, agreement = quality.compare(pretrained, narrow, data)
        latency = measure_latency(
            pretrained.task, model, model, sites, timed_pool(data, pretrained), batches=batches, seconds=seconds
        )
        for row in latency:
            row["seconds"]["compressed"] = row["seconds"][f"dense_{width}"]
        ffn = sum(dense_geometry(site).int8_bytes for site in sites)
        stored = sizes.stored_width(pretrained.folder)
        whole = sizes.int8_bytes(model) if width == "int8" else sizes.stored_bytes(model, _BYTES[width])
        size = {
            "dense_bytes": sizes.stored_bytes(model, stored),
            "compressed_bytes": whole,
            "dense_int8_bytes": sizes.int8_bytes(model),
            "dense_bytes_per_token": ffn, "compressed_bytes_per_token": ffn * _BYTES[width],
            "dense_ffn_int8_bytes": ffn, "compressed_ffn_bytes": ffn * _BYTES[width],
        }  # fmt: skip
        return Report(
            quality=found, agreement=agreement, latency=latency, size=size, sites=[], cost=1.0,
            setting=setting(pretrained, narrow, data, count),
        )  # fmt: skip
