"""Outputs of a head that no metric is known for: how far the compressed model's are from the dense one's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..data import EvalBatch
from ..distill.objectives import float_outputs, outputs_error
from ..padding import RealRows
from .embeddings import run


@dataclass
class Outputs:
    """Squared errors of every tensor that the head gives, padding left out, relative to its mean square."""

    errors: list[float] = field(default_factory=list)
    examples: int = 0

    def add(self, dense: Any, compressed: Any, batch: EvalBatch) -> None:
        """Take a batch's outputs of both models."""
        theirs, ours = (run(model, batch.inputs) for model in (dense, compressed))
        count = len(batch.rows)
        error = float(outputs_error(RealRows(dense, batch.inputs), ours, theirs))
        self.errors.append(count * error / len(float_outputs(theirs)))
        self.examples += count

    def quality(self, task: str) -> dict[str, dict[str, Any]]:
        """Nothing: what the outputs are good for is not known."""
        return {}

    def agreement(self) -> dict[str, Any]:
        """Mean relative error over examples and outputs."""
        seen = max(1, self.examples)
        return {"kl": None, "top1": None, "positions": self.examples, "output_error": sum(self.errors) / seen}
