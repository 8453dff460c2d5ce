"""How values flow through one forward pass, seen operator by operator.

A tensor that is an elementwise function of linear layers' outputs, and of nothing else but constants, carries that
function; anything that mixes other data in (matmul, softmax, attention) ends it. That alone tells a feed-forward
network from attention, whatever the modules are called. A norm or a depth-wise convolution on the way is written down:
what holds one is a feed-forward network, though none of the simple kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

Key = tuple[Any, ...]

_aten = torch.ops.aten
_COPIES = {_aten.clone.default, _aten._to_copy.default, _aten._unsafe_view.default}
_UNTAGGED = {_aten.gelu_.default, _aten.hardswish.default, _aten.hardswish_.default, _aten.glu.default}
_NORMS = {_aten.native_layer_norm.default, _aten._fused_rms_norm.default, _aten.native_group_norm.default}
_REDUCTIONS = {
    *(_aten.mean.dim, _aten.sum.dim_IntList, _aten.var.correction, _aten.linalg_vector_norm.default),
    *(_aten.norm.ScalarOpt_dim, _aten.amax.default, _aten.native_layer_norm.default, _aten._fused_rms_norm.default),
}
_SUMS = {_aten.add.Tensor, _aten.add_.Tensor, _aten.addcmul.default, _aten.addcmul_.default}


@dataclass(frozen=True)
class Value:
    """A tensor as it was at one moment: where its bytes lie and how often they had been written."""

    exact: Key
    tokens: Key  # the same for every view and copy that holds the same rows of the last dimension in the same order
    shape: torch.Size

    def same(self, other: Value | None) -> bool:
        """Whether both hold the same vectors in the same order, whatever the leading dimensions."""
        return other is not None and self.tokens == other.tokens


@dataclass(eq=False)
class Function:
    """A tensor as a function of linear outputs; `source` is one such output, named by whoever ran the linear."""

    sources: frozenset[Any]
    holds: frozenset[str] = frozenset()  # what on the way is not elementwise
    source: Any = None
    operator: OpOverload | None = None
    args: tuple[Any, ...] = ()  # tensors that are functions of the sources appear as Function
    kwargs: Mapping[str, Any] | None = None
    index: int = 0

    def __call__(self, probes: Mapping[Any, Tensor]) -> Tensor:
        """Compute the function again with other linear outputs, of the shapes that were seen but any precision."""
        if self.operator is None:
            return probes[self.source].clone()  # operators that work in place may follow

        def again(leaf: Any) -> Any:
            return leaf(probes) if isinstance(leaf, Function) else leaf

        args = tree_map(again, self.args)
        if self.operator is _aten._to_copy.default:  # keeps the probes' precision
            return args[0]
        outputs = tree_leaves(self.operator(*args, **tree_map(again, dict(self.kwargs or {}))))
        return outputs[self.index]


class FlowTracer(TorchDispatchMode):
    """Follow functions of linear outputs, and what becomes of feed-forward outputs, through a forward pass."""

    def __init__(self, constants: Iterable[Tensor]) -> None:
        super().__init__()
        self.functions: dict[Key, Function] = {}
        self.carried: dict[Key, frozenset[Any]] = {}  # which marked outputs a tensor carries on, in sums and norms
        self.joined: set[Any] = set()  # marked outputs that were added to other data of their shape: a residual
        self._copies: dict[Key, Key] = {}
        self._writes: Counter[int] = Counter()  # by address; memory that is handed out anew counts as written
        self._constants = {_address(tensor) for tensor in constants}
        self._computed: set[Key] = set()  # tensors that were made of constants alone

    def value(self, tensor: Tensor) -> Value:
        """Identify a tensor as it is now."""
        return Value(self._exact(tensor), self._tokens(tensor), tensor.shape)

    def start(self, tensor: Tensor, source: Any) -> None:
        """Declare a linear layer's output."""
        self.functions[self._exact(tensor)] = Function(frozenset([source]), source=source)

    def mark(self, tensor: Tensor, *sources: Any) -> None:
        """Watch where a tensor goes: a feed-forward network's output."""
        self.carried[self._exact(tensor)] = frozenset(sources)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, then note what its outputs are functions of and what they carry."""
        leaves, structure = tree_flatten((args, kwargs or {}))
        inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        keys = [self._exact(tensor) for tensor in inputs]
        tokens = self._tokens(inputs[0]) if inputs else ()
        result = func(*args, **(kwargs or {}))
        if not isinstance(func, OpOverload):
            return result
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        constant = bool(inputs) and all(self._is_constant(tensor) for tensor in inputs)
        old = set() if func is _aten.lift_fresh.default else {_address(tensor) for tensor in inputs}
        written = {_address(tensor) for tensor in _written(func, args, kwargs or {})}
        for address in written | {_address(tensor) for tensor in outputs} - old:
            self._writes[address] += 1
        if constant and not written:
            self._computed |= {self._exact(tensor) for tensor in outputs}
        local = torch.Tag.pointwise in func.tags or func.is_view or func in _COPIES or func in _UNTAGGED
        holds = _holds(func, args)
        if func in _COPIES and inputs and outputs[0].shape[-1:] == inputs[0].shape[-1:]:
            self._copies[self._tokens(outputs[0])] = tokens
        if local or holds:
            known = [self.functions.get(key) for key in keys]
            if any(known) and all(f or self._is_constant(t) for f, t in zip(known, inputs, strict=True)):
                of_tensor = {id(tensor): f for tensor, f in zip(inputs, known, strict=True) if f}
                seen = tree_unflatten([of_tensor.get(id(leaf), leaf) for leaf in leaves], structure)
                self._note(func, seen, outputs, [f for f in known if f], holds)
        if local or func in _NORMS:
            self._carry(func, inputs, keys, outputs)
        return result

    def _note(
        self, func: OpOverload, arguments: Any, outputs: list[Tensor], parents: list[Function], holds: frozenset[str]
    ) -> None:
        args, kwargs = arguments
        sources = frozenset().union(*(parent.sources for parent in parents))
        holds = holds.union(*(parent.holds for parent in parents))
        for index, output in enumerate(outputs):
            self.functions.setdefault(self._exact(output), Function(sources, holds, None, func, args, kwargs, index))

    def _carry(self, func: OpOverload, inputs: list[Tensor], keys: list[Key], outputs: list[Tensor]) -> None:
        held = [self.carried.get(key, frozenset()) for key in keys]
        everything = frozenset().union(*held)
        if not everything:
            return
        if func in _SUMS:
            for tensor, mine in zip(inputs, held, strict=True):
                if tensor.numel() == outputs[0].numel() and not self._is_constant(tensor):
                    self.joined |= everything - mine
        for output in outputs:
            self.carried.setdefault(self._exact(output), everything)

    def _is_constant(self, tensor: Tensor) -> bool:
        return (
            tensor.numel() == 1 or _address(tensor) in self._constants or self._exact(tensor) in self._computed
        )  # fmt: skip

    def _exact(self, tensor: Tensor) -> Key:
        address = _address(tensor)
        place = (address, self._writes[address], tensor.storage_offset(), tensor.dtype)
        return (*place, tuple(tensor.shape), tensor.stride())

    def _tokens(self, tensor: Tensor) -> Key:
        key = self._exact(tensor)
        if tensor.is_contiguous() and tensor.dim():
            key = (*key[:4], tensor.numel(), tensor.shape[-1])
        return self._copies.get(key, key)


def _holds(func: OpOverload, args: tuple[Any, ...]) -> frozenset[str]:
    if func in _REDUCTIONS:
        return frozenset(["a norm"])
    if func is _aten.convolution.default and args[8] > 1 and args[8] == args[1].shape[0]:  # a filter a channel
        return frozenset(["a depth-wise convolution"])
    return frozenset()


def parameters_and_buffers(model: nn.Module) -> Iterable[Tensor]:
    """Every tensor of the model that counts as constant."""
    yield from model.parameters()
    yield from model.buffers()


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _written(func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterable[Tensor]:
    if not func._schema.is_mutable:
        return
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[position] if position < len(args) else kwargs.get(argument.name)
            yield from (leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor))
