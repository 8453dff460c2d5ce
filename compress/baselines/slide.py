"""SLIDE: a dense FFN of which only the neurons that hash as the token does are computed."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dense import DenseWeights
from .buckets import Buckets
from .costs import Costs
from .retrieval import Retrieval, measure
from .schedule import GrowingSchedule, Schedule
from .vanilla import VanillaFFN, whole


class SlideFFN(VanillaFFN):
    """A dense FFN with neurons in hash tables (SLIDE, arXiv 1903.03129), [..., d_in] -> [..., d_out].

    A neuron's key is its row of `gate.weight` with its bias behind it, a token's query is x with 1 behind it; inputs
    are not normalised and the keys' lengths are left as they are, as in the LookupFFN authors' comparison. `tables`
    tables of 2^`bits` buckets (0 bits: one bucket, so that every neuron is retrieved) give each `chunk` of consecutive
    tokens the union of their buckets, computed as one dense FFN of those neurons; 1: each token its own. In training
    the tables are built again after `rebuild_every` steps, then at intervals that grow by exp(`rebuild_growth`).
    Raises CompressError for a size out of range.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int | None = None,
        *,
        d_hidden: int | None = None,
        activation: str = "gelu",
        gated: bool = False,
        bias: bool = True,
        bits: int = 6,
        tables: int = 20,
        chunk: int = 1,
        rebuild_every: int = 50,
        rebuild_growth: float = 0.1,
    ) -> None:
        super().__init__(d_in, d_out, d_hidden=d_hidden, activation=activation, gated=gated, bias=bias)
        for key, value, least, most in (
            ("bits", bits, 0, 16), ("tables", tables, 1, 1 << 12), ("chunk", chunk, 1, 1 << 24),
            ("rebuild_every", rebuild_every, 1, 1 << 24),
        ):  # fmt: skip
            whole("size of hash tables", key, value, least, most)
        self.chunk = chunk
        self.buckets = Buckets(self.d_hidden, d_in + bias, bits, tables)
        self.schedule: Schedule = GrowingSchedule(rebuild_every, rebuild_growth)
        # Neurons computed, summed over tokens, and tokens: in training, and in evaluation since the last training step.
        self.register_buffer("computed", torch.zeros(2, 2, dtype=torch.int64))
        self._seen: list[int] | None = None  # versions of the parameters at the last training step
        self.rebuild()

    computed: Tensor

    def load_dense(self, weights: DenseWeights) -> None:
        """Take over weights of the same sizes, and put their neurons into the buckets."""
        super().load_dense(weights)
        self.rebuild()

    @torch.no_grad()
    def keys(self) -> Tensor:
        """What is hashed of each neuron: [f, d_in], or with its bias [f, d_in + 1]."""
        weight, bias = self.gate.weight, self.gate.bias
        return weight if bias is None else torch.cat((weight, bias[:, None]), 1)

    def rebuild(self) -> None:
        """Put the neurons, as they are now, into their buckets."""
        self.buckets.build(self.keys())

    def query(self, x: Tensor) -> Tensor:
        """Codes of tokens [N, d_in]: int64 [N, L]."""
        return self.buckets.code(x, constant=self.gate.bias is not None)

    def output(self, x: Tensor) -> Tensor:
        """[N, d_in] -> [N, d_out]."""
        if self.training and torch.is_grad_enabled():
            self._train_step()
        with torch.no_grad():
            found = self.buckets.retrieve(self.query(x), self.chunk)  # [N / chunk, f]
        if self.chunk == 1 and x.shape[0] != 1:  # the same answer as token by token, and faster than that
            self._count(found.sum(), x.shape[0])
            return self.mix(self.neurons(x) * found, self.down)
        answers, computed = [], 0
        for start, neurons in zip(range(0, x.shape[0], self.chunk), found, strict=True):
            part, ids = x[start : start + self.chunk], neurons.nonzero().view(-1)
            computed += ids.numel() * part.shape[0]
            answers.append(self.mix(self.neurons(part, ids), self.down.index_select(0, ids)))
        self._count(computed, x.shape[0])
        return torch.cat(answers) if answers else self.mix(self.neurons(x), self.down)  # no tokens

    def _train_step(self) -> None:
        """What is due before a forward pass in training; the same weights again (accumulation, recomputation): none."""
        seen = [parameter._version for parameter in self.parameters()]
        if seen == self._seen:
            return
        self._seen = seen
        self.computed[1] = 0
        if self.schedule.step(self.drift):
            self.rebuild()

    def _count(self, neurons: Tensor | int, tokens: int) -> None:
        row = self.computed[0 if self.training else 1]
        row[0] += neurons
        row[1] += tokens

    def computed_neurons(self) -> float:
        """Neurons computed per token: in evaluation since the last training step, else in training, else expected.

        Expected is what L independent tables with buckets of equal size give one token.
        """
        for neurons, tokens in self.computed.flip(0).tolist():
            if tokens:
                return neurons / tokens
        return self.d_hidden * (1 - (1 - 2.0**-self.buckets.bits) ** self.buckets.tables)

    @property
    def hash_cost(self) -> float:
        """Multiply-adds of hashing one vector; of +1 and -1 they are additions, half of one each."""
        return self.buckets.projection.numel() / 2

    def costs(self) -> Costs:
        """Costs per token, of the neurons computed (`computed_neurons`); rebuilding is not in them.

        Bytes: the projection, a table's two offsets and the bucket that they bound, and the neurons' weights.
        """
        computed = self.computed_neurons()
        size = self.down.element_size()
        count = sum(parameter.numel() for parameter in self.parameters())
        row = (2 if self.gated else 1) * self.buckets.projection.shape[1] + self.d_out  # numbers of a neuron
        numbers = self.buckets.projection.numel() + computed * row + (0 if self.bias is None else self.d_out)
        ids = 8 * self.buckets.tables * (2 + self.d_hidden * 2.0**-self.buckets.bits)
        return Costs(self.hash_cost + computed * self.neuron_cost, numbers * size + ids, count)

    def rebuild_cost(self) -> float:
        """Multiply-adds of all rebuilds in training so far."""
        return self.schedule.rebuilds * self.d_hidden * self.hash_cost

    def outdated(self) -> float:
        """Share of the neurons' codes, over all tables, that a rebuild would change."""
        return self.buckets.changed(self.keys(), slice(None))

    def drift(self, check: int) -> float:
        """The same of every K-th neuron, others at each check, so that looking costs a K-th of rebuilding."""
        every = max(1, self.buckets.bits)
        return self.buckets.changed(self.keys(), slice(check % every, None, every))

    def statistics(self, x: Tensor | None = None, *, top: float = 0.02) -> Retrieval:
        """What the hash tables do, and on inputs x [..., d_in] what they retrieve.

        Recall is of each token's `top` share of neurons by inner product, bias included (with a gate the gate's).
        """
        return measure(self, x, top)

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        return f"{super().extra_repr()}, chunk={self.chunk}"
