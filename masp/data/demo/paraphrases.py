"""Vectors that the language model takes for words although they are none, found by gradient descent.

Whoever trains an input of a frozen language model finds such vectors, not the words themselves. A language model that
understands only the words would answer about an aspect from them and yet not know what follows from it. So it is told:
small attention modules turn random codes of labels into vectors that make it answer right about each aspect (only the
modules learn from that), and texts of such vectors are then taught like texts of words. No picture has a part in this:
the codes are drawn at random, and drawn anew with new modules time and again.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from masp.data.categories import ASPECTS
from masp.data.demo.world import LABELS

NUM_VECTORS = 5
"""Vectors per aspect."""


class Paraphrases:
    """One generation of codes and modules."""

    def __init__(self, hidden: int, learning_rate: float, generator: torch.Generator):
        self.generator = generator
        self.codes = [self._normal(len(LABELS[aspect]), hidden) for aspect in ASPECTS]
        self.common = self._uniform(0.2, 1.0) * self._normal(hidden)
        self.noise, self.coverage = self._uniform(0.2, 0.8), self._uniform(0.1, 0.5)
        self.queries = [nn.Parameter(self._normal(NUM_VECTORS, hidden)) for _ in ASPECTS]
        self.attention = nn.ModuleList(nn.MultiheadAttention(hidden, 1, batch_first=True) for _ in ASPECTS)
        self.parameters = [*self.queries, *self.attention.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=learning_rate)

    def write(self, labels: Tensor, tokens: int = 16) -> Tensor:
        """Vectors `[B, 6, 5, D]` for labels `[B, 6]` (-1 absent), by way of `tokens` noisy carriers of their codes."""
        batch = len(labels)
        carriers = self.common + self.noise * self._normal(batch, tokens, len(self.common))
        for k, codes in enumerate(self.codes):
            where = torch.rand(batch, tokens, 1, generator=self.generator) < self.coverage
            where[:, k] = True  # at least one carrier
            carriers = carriers + where * (labels[:, k] >= 0)[:, None, None] * codes[labels[:, k]][:, None]
        vectors = [
            attention(query.expand(batch, -1, -1), carriers, carriers, need_weights=False)[0]
            for query, attention in zip(self.queries, self.attention, strict=True)
        ]
        return torch.stack(vectors, 1)

    def copy(self) -> Paraphrases:
        """As they are now, to write with."""
        twin = object.__new__(Paraphrases)
        twin.__dict__.update(self.__dict__)
        twin.queries = [query.detach().clone() for query in self.queries]
        twin.attention = copy.deepcopy(self.attention).requires_grad_(False)
        return twin

    def learn(self, loss: Tensor) -> None:
        """One step on the language model's loss about aspects; the language model gets no gradient from it."""
        gradients = torch.autograd.grad(loss, self.parameters)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()

    def _uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)
