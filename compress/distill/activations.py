"""What sites see and answer during a forward pass, recorded by hooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..devices import upload
from ..errors import DataError
from ..padding import RealRows
from ..sites import Site, listed
from ..streams import Stream, accepted
from ..students import PackedStudent, Student


@dataclass(frozen=True)
class Tap:
    """Where a site is observed: the norm that first sees residual plus FFN output (None: no norm), and its tokens."""

    site: Site
    norm: str | None
    stream: Stream = "main"


@dataclass
class Trace:
    """One site's tensors of one forward pass, one entry a call: inputs x, FFN outputs y, the norm behind's both."""

    x: list[Tensor] = field(default_factory=list)
    y: list[Tensor] = field(default_factory=list)
    behind: list[Tensor] = field(default_factory=list)
    normed: list[Tensor] = field(default_factory=list)

    def rows(self, real: RealRows, stream: Stream) -> tuple[Tensor, Tensor, Tensor]:
        """x [N, d_in], y and behind [N, d_out] over all calls, without the padding of a stream."""
        x, y = (torch.cat(real.pick(parts, stream)).float() for parts in (self.x, self.y))
        return x, y, self.rows_behind(real, stream)

    def rows_behind(self, real: RealRows, stream: Stream) -> Tensor:
        """Inputs of the norm behind the site, or its outputs where there is none, [N, d_out] as in `rows`."""
        return torch.cat(real.pick(self.behind or self.y, stream)).float()

    def rows_normed(self, real: RealRows, stream: Stream) -> Tensor:
        """Outputs of the norm behind the site, or of the site where there is none, [N, d_out] as in `rows`."""
        return torch.cat(real.pick(self.normed or self.y, stream)).float()


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

        def on_normed(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if len(trace.normed) < len(trace.behind):
                trace.normed.append(output)

        handles.append(entry.register_forward_pre_hook(on_entry, with_kwargs=True))
        handles.append(answer.register_forward_hook(on_answer))
        if tap.norm is not None:
            handles.append(model.get_submodule(tap.norm).register_forward_pre_hook(on_norm))
            handles.append(model.get_submodule(tap.norm).register_forward_hook(on_normed))

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
        index = upload(index, self.x.device)
        return Activations(self.x[index], self.residual[index], self.goal[index])


@torch.no_grad()
def record_batch(dense: nn.Module, converted: nn.Module | None, tap: Tap, batch: dict[str, Tensor]) -> Activations:
    """Run a batch through both models up to the norm behind the site.

    Inputs come from the converted prefix, or from the dense model where `converted` is None; goals always from the
    dense model.
    """
    real = RealRows(dense, batch)
    batch = {key: upload(value, _device(dense)) for key, value in batch.items()}
    x, y, goal = forward_to(dense, tap, batch).rows(real, tap.stream)
    behind = goal
    if converted is not None:
        x, y, behind = forward_to(converted, tap, batch).rows(real, tap.stream)
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
