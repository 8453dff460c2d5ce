"""What sites see and answer during a forward pass, recorded by hooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DataError
from ..sites import Site, listed
from ..streams import Stream, accepted, real_tokens
from ..students import PackedStudent, Student


@dataclass(frozen=True)
class Tap:
    """Where a site is observed: the norm that first sees residual plus FFN output (None: no norm), and its tokens."""

    site: Site
    norm: str | None
    stream: Stream = "main"


@dataclass
class Trace:
    """One site's tensors of one forward pass, one entry a call: inputs x, FFN outputs y, inputs of the norm behind."""

    x: list[Tensor] = field(default_factory=list)
    y: list[Tensor] = field(default_factory=list)
    behind: list[Tensor] = field(default_factory=list)

    def rows(self, model: nn.Module, batch: Mapping[str, Tensor], stream: Stream) -> tuple[Tensor, Tensor, Tensor]:
        """x [N, d_in], y and behind [N, d_out] over all calls, without the padding that `batch` has in `stream`."""
        behind = self.behind or self.y
        size = next(iter(batch.values())).shape[0]

        def join(parts: list[Tensor]) -> Tensor:
            flat = [part.reshape(-1, part.shape[-1]) for part in parts]
            keeps = _kept(model, batch, stream, [part.shape[0] // size for part in flat])
            kept = [part if keep is None else part[keep] for part, keep in zip(flat, keeps, strict=True)]
            return torch.cat(kept).float()

        return join(self.x), join(self.y), join(behind)


def _kept(
    model: nn.Module, batch: Mapping[str, Tensor], stream: Stream, positions: Sequence[int]
) -> list[Tensor | None]:
    """Which rows [B * T] of each call are no padding; several calls may share a sequence out."""
    if len(positions) > 1 and (whole := real_tokens(model, batch, stream, sum(positions))) is not None:
        masks = [batch.get(name) for name in ("attention_mask", "decoder_attention_mask")]
        if any(mask is not None and mask.shape == whole.shape for mask in masks):
            return [part.reshape(-1) for part in whole.split(list(positions), dim=1)]
    found = [real_tokens(model, batch, stream, count) for count in positions]
    return [None if mask is None else mask.reshape(-1) for mask in found]


class _PassedLastTap(Exception):
    """Ends a forward pass early: nothing behind the last tap is wanted."""


@contextmanager
def observe(model: nn.Module, taps: Sequence[Tap], *, stop: bool = False) -> Iterator[dict[str, Trace]]:
    """Record the taps' tensors of one forward pass inside the block; with `stop` the pass ends behind the last one.

    Works on a dense site (outputs of its output linear) and on a replaced one (outputs of the student) alike.
    """
    traces = {tap.site.name: Trace() for tap in taps}
    handles = []
    last = taps[-1].site.name if stop and taps else None

    def attach(tap: Tap) -> None:
        name, trace = tap.site.name, traces[tap.site.name]
        entry = model.get_submodule(tap.site.entry)
        answer = entry if isinstance(entry, Student | PackedStudent) else model.get_submodule(tap.site.output)

        def on_entry(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            trace.x.append(args[0] if args else next(iter(kwargs.values())))

        def on_answer(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            trace.y.append(output.clone())  # some models add to it in place
            if tap.norm is None and name == last:
                raise _PassedLastTap

        def on_norm(_: nn.Module, args: tuple[Any, ...]) -> None:
            if len(trace.behind) < len(trace.y):
                trace.behind.append(args[0])
                if name == last:
                    raise _PassedLastTap

        handles.append(entry.register_forward_pre_hook(on_entry, with_kwargs=True))
        handles.append(answer.register_forward_hook(on_answer))
        if tap.norm is not None:
            handles.append(model.get_submodule(tap.norm).register_forward_pre_hook(on_norm))

    try:
        for tap in taps:
            attach(tap)
        yield traces
    except _PassedLastTap:
        pass
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class Activations:
    """A site's training data: x [N, d_in] and residual [N, d_out] as the student will meet them, goal [N, d_out].

    The student's answer should make residual + y equal to the goal, the dense model's residual plus FFN output.
    """

    x: Tensor
    residual: Tensor
    goal: Tensor

    def __len__(self) -> int:
        return self.x.shape[0]

    @classmethod
    def join(cls, parts: Sequence[Activations]) -> Activations:
        """All parts, one behind the other."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("x", "residual", "goal")))

    def first(self, tokens: int) -> Activations:
        """The first tokens, as views."""
        return Activations(self.x[:tokens], self.residual[:tokens], self.goal[:tokens])

    def rows(self, index: Tensor) -> Activations:
        """A selection of tokens."""
        return Activations(self.x[index], self.residual[index], self.goal[index])


@torch.no_grad()
def record_batch(dense: nn.Module, converted: nn.Module | None, tap: Tap, batch: dict[str, Tensor]) -> Activations:
    """Run a batch through both models up to the norm behind the site.

    Inputs come from the converted prefix, or from the dense model where `converted` is None; goals always from the
    dense model.
    """
    batch = {key: value.to(_device(dense)) for key, value in batch.items()}
    x, y, goal = forward_to(dense, tap, batch).rows(dense, batch, tap.stream)
    behind = goal
    if converted is not None:
        x, y, behind = forward_to(converted, tap, batch).rows(dense, batch, tap.stream)
    return Activations(x, behind - y if tap.norm is not None else torch.zeros_like(y), goal)


def forward_to(model: nn.Module, tap: Tap, batch: dict[str, Tensor]) -> Trace:
    """The trace of one site, the forward pass ended behind it."""
    with observe(model, [tap], stop=True) as traces:
        model(**accepted(model, batch))
    return traces[tap.site.name]


@torch.no_grad()
def check_reached(model: nn.Module, taps: Sequence[Tap], batch: Mapping[str, Tensor]) -> None:
    """Raise DataError naming the sites that a batch of the data never reaches: an encoder of images, given texts."""
    with observe(model, taps) as traces:
        model(**accepted(model, {key: value.to(_device(model)) for key, value in batch.items()}))
    if missed := [name for name, trace in traces.items() if not trace.x]:
        raise DataError(
            f"the data never reaches {listed(missed)}",
            where="data.source, sites",
            remedy="exclude these in the recipe (sites.exclude), or distil on data of the kind that they work on",
        )


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
