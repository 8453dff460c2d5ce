"""Evaluation: a compressed model beside its dense one on identical inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .report import Report

if TYPE_CHECKING:
    from .evaluation import evaluate as evaluate

__all__ = ["Report", "evaluate"]


def __getattr__(name: str) -> Any:
    if name == "evaluate":  # brings in torch, which a report does without
        from .evaluation import evaluate

        return evaluate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
