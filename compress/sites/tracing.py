"""One traced forward pass: which modules ran, on which values, inside which other modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..errors import SiteError
from . import linears
from .flow import FlowTracer, Function, Value, parameters_and_buffers


@dataclass(eq=False)
class Call:
    """One execution of a module; paths are relative to the traced model."""

    number: int  # in the order in which calls began
    module: nn.Module
    path: str
    parent: Call | None
    given: tuple[Value, ...]  # tensors among the arguments
    plain: bool  # called with one positional tensor and nothing else
    function: Function | None  # what a linear layer's input is of earlier linear outputs
    output: Value | None = None  # None where the module does not return a tensor

    def inside(self) -> Iterator[Call]:
        """Yield the calls that this one happened in, innermost first."""
        call = self.parent
        while call is not None:
            yield call
            call = call.parent

    def maps(self, before: Value | None, after: Value | None) -> bool:
        """Whether the module is a plain function that turned `before` into `after`, token by token."""
        return (
            self.plain
            and self.output is not None
            and self.given[0].same(before)
            and self.output.same(after)
            and self.given[0].shape[:-1] == self.output.shape[:-1]
        )


@dataclass
class Trace:
    """What one forward pass showed."""

    calls: list[Call] = field(default_factory=list)
    joined: frozenset[Call] = frozenset()  # linear calls whose output was added to a residual
    norms: dict[Call, Call] = field(default_factory=dict)  # linear call -> first norm its output went into

    def and_then(self, other: Trace) -> Trace:
        """This pass and another one behind it."""
        return Trace([*self.calls, *other.calls], self.joined | other.joined, {**self.norms, **other.norms})

    def times(self, module: nn.Module) -> int:
        """How often a module ran."""
        return sum(call.module is module for call in self.calls)


def trace(model: nn.Module, example: Mapping[str, Any], *, runs: nn.Module | None = None) -> Trace:
    """Run `runs` (a part of `model`; by default all of it) once on `example`, in eval mode, without gradients.

    The model and the random state are left as they were. Raises SiteError where the pass fails.
    """
    if any(tensor.is_meta for tensor in parameters_and_buffers(model)):
        raise SiteError(
            f"{type(model).__name__} has no weights yet (meta tensors), so it cannot be run",
            remedy="load the model before looking for its sites",
        )
    recorder = _Recorder(model)
    with recorder.watching(), evaluating(model), torch.random.fork_rng(devices=[]), torch.no_grad(), recorder.tracer:
        try:
            (runs or model)(**example)
        except Exception as error:
            raise SiteError(
                f"{type(runs or model).__name__} does not run on {', '.join(example)}: {error}",
                remedy="give forward arguments to trace with: find_sites(model, example={...})",
            ) from error
    joined = {mark.ffn if isinstance(mark, _Projected) else mark for mark in recorder.tracer.joined}
    return Trace(recorder.calls, frozenset(joined), recorder.norms)


@dataclass(frozen=True)
class _Projected:
    """A linear layer whose output goes through one more to the residual (Zamba): no norm sees its sum with that."""

    ffn: Call


class _Recorder:
    """Hooks on every module that write down calls and tell the flow tracer where linear outputs begin."""

    def __init__(self, model: nn.Module) -> None:
        self.tracer = FlowTracer(parameters_and_buffers(model))
        self.calls: list[Call] = []
        self.norms: dict[Call, Call] = {}
        self._open: list[Call] = []
        self._paths = {module: path for path, module in model.named_modules()}

    @contextmanager
    def watching(self) -> Iterator[None]:
        with ExitStack() as stack:
            for module in self._paths:
                before = module.register_forward_pre_hook(self._enter, with_kwargs=True)
                after = module.register_forward_hook(self._leave)
                stack.callback(before.remove)
                stack.callback(after.remove)
            yield

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = tuple(self.tracer.value(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        plain = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
        function = self.tracer.functions.get(given[0].exact) if given and linears.is_linear(module) else None
        parent = self._open[-1] if self._open else None
        call = Call(len(self.calls), module, self._paths[module], parent, given, plain, function)
        self.calls.append(call)
        self._open.append(call)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        call = self._open.pop()
        if not isinstance(output, Tensor):
            return
        call.output = self.tracer.value(output)
        if linears.is_linear(module):
            self.tracer.start(output, call)
            if call.function is not None:
                read = self.tracer.carried.get(call.given[0].exact, frozenset())
                projected = [
                    _Projected(ffn) for ffn in read if isinstance(ffn, Call) and call.given[0].same(ffn.output)
                ]
                self.tracer.mark(output, call, *projected)
        elif _is_norm(module, call):
            for linear in self.tracer.carried.get(call.given[0].exact, ()):
                if isinstance(linear, Call) and linear not in self.norms and _same_tokens(linear.output, call.output):
                    self.norms[linear] = call


def _is_norm(module: nn.Module, call: Call) -> bool:
    if next(module.children(), None) is not None or not call.given or call.output is None:
        return False
    weight = getattr(module, "weight", None)
    one_scale_a_channel = isinstance(weight, Tensor) and weight.shape == call.given[0].shape[-1:]
    return call.given[0].shape == call.output.shape and (one_scale_a_channel or "Norm" in type(module).__name__)


def _same_tokens(a: Value | None, b: Value) -> bool:
    return a is not None and a.shape.numel() == b.shape.numel() and a.shape[-1:] == b.shape[-1:]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode inside the block, and as it was afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
