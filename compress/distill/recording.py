"""Record a site's training data; where that takes long, in durable pieces that a resumed job reads back."""

from __future__ import annotations

from torch import nn

from ..data import Ahead, Split
from .activations import Activations, Tap, record_batch
from .progress import Progress


class Recorder:
    """Runs batches through the dense model and the converted prefix (None: the dense model gives the inputs too)."""

    def __init__(
        self, dense: nn.Module, converted: nn.Module | None, tap: Tap, batch_tokens: int, seed: int, progress: Progress
    ) -> None:
        self.dense, self.converted, self.tap = dense, converted, tap
        self.batch_tokens, self.seed, self.progress = batch_tokens, seed, progress
        self.device = next(dense.parameters()).device

    def record(self, split: Split, steps: range, slot: str) -> list[Activations]:
        """Batches `steps` of a split, one entry a batch; pieces are kept in slots whose names begin with `slot`."""
        parts: list[Activations] = []
        fresh: list[Activations] = []  # not durable yet
        with Ahead(split, self.batch_tokens, self.seed, self.device, steps.stop) as ahead:
            while len(parts) < len(steps):
                step = steps.start + len(parts)
                piece = self._kept(f"{slot}{step}")
                if piece:
                    fresh = []  # too little before it to be kept
                else:
                    piece = [record_batch(self.dense, self.converted, self.tap, ahead.batch(step))]
                    fresh += piece
                parts += piece
                if fresh and self.progress.due():
                    self._keep(f"{slot}{step + 1 - len(fresh)}", fresh)
                    fresh = []
        return parts[: len(steps)]

    def _keep(self, slot: str, parts: list[Activations]) -> None:
        piece = Activations.join(parts)
        tensors = {"x": piece.x, "residual": piece.residual, "goal": piece.goal}
        self.progress.keep(slot, tensors, {"lengths": [len(part) for part in parts]})

    def _kept(self, slot: str) -> list[Activations]:
        kept = self.progress.get(slot)
        if kept is None:
            return []
        tensors, values = kept
        split = {name: tensor.to(self.device).split(values["lengths"]) for name, tensor in tensors.items()}
        return [Activations(*rows) for rows in zip(split["x"], split["residual"], split["goal"], strict=True)]
