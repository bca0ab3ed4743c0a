"""Count over the whole input (after Oolong: Bertsch et al. 2025, arXiv 2511.02817), in tokens, for small models.

    ask      input                         output
    count    b a c a b c c a QUERY a       3           (how often the label occurs, 0 ... 9)
    most     b a c a b c c a a QUERY       a           (the label that occurs most often)

Tokens are the digits 0 ... 9, then labels and QUERY. No part of the input can be left out: a model that finds one or
some of the places is not done. At each length the answers are the same ones, so that none is new:

- count: the answer is uniform in 0 ... 9, whatever the length, and its places are random. The other tokens are uniform
  among the other labels.
- most: one label is twice as likely as each other; rows in which two labels are the commonest are drawn anew. In
  expectation its lead is one share of `labels + 1` at each length; in short rows chance often decides.

The benchmark has real texts, whose labels the model must find out first, larger counts and users and dates as well.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pezoo.data.tasks._recall import DIGITS, Recall, column, uniform
from pezoo.registry import register, setting
from pezoo.task import Pairs


@register(
    "aggregate",
    title="Counting over the whole input",
    year=2025,
    authors="Bertsch et al.",
    arxiv="2511.02817",
    family="recall",
    equation="y = |{i: x_i = a}|, or argmax_a |{i: x_i = a}|",
)
class Aggregate(Recall):
    """How often a label occurs, or which does most often; length: tokens that the model reads."""

    @dataclass
    class Config:
        """Settings of aggregate."""

        ask: Literal["count", "most"] = setting("count", "how often a label occurs, or which is the commonest")
        labels: int = setting(8, "different labels", at_least=2)

    layout = "plain"
    query = property(lambda self: DIGITS + self.config.labels)
    n_symbols = property(lambda self: self.query + 1)
    symbols = property(lambda self: [*map(str, range(DIGITS)), *(f"l{i}" for i in range(self.config.labels)), "QUERY"])
    tail = property(lambda self: 2 if self.config.ask == "count" else 1)
    chance = property(lambda self: 1 / (DIGITS if self.config.ask == "count" else self.config.labels))

    @property
    def least_length(self) -> int:
        """Room for the largest count, or for one label."""
        return self.tail + (DIGITS - 1 if self.config.ask == "count" else 1)

    def output_length(self, length: int) -> int:
        """A digit, or a label."""
        return 1

    def solve(self, inputs: Tensor) -> Tensor:
        """Count all labels."""
        self.require_room(inputs)
        counting, body = self.config.ask == "count", inputs[:, : -self.tail]
        what = "labels, then QUERY" + (" and a label that occurs 9 times at most" if counting else "; one is commonest")
        self.require((body >= DIGITS) & (body < self.query), inputs, what)
        self.require(inputs[:, -self.tail] == self.query, inputs, what)
        if counting:
            counts = (body == inputs[:, -1:]).sum(1, keepdim=True)
            asked = inputs[:, -1:]
            self.require((asked >= DIGITS) & (asked < self.query) & (counts < DIGITS), inputs, what)
            return counts
        most, labels = self._counts(body).topk(2)
        self.require(most[:, 0] > most[:, 1], inputs, what)
        return DIGITS + labels[:, :1]

    def _counts(self, body: Tensor) -> Tensor:
        """How often each label occurs in a row, (B, labels)."""
        return F.one_hot(body - DIGITS, self.config.labels).sum(1)

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Random labels.

        Raises:
            UserError: if the length has no room for the largest count.
        """
        self.spare(length)
        n_labels, room = self.config.labels, length - self.tail
        if self.config.ask == "count":
            label = uniform(0, n_labels, (batch_size, 1), generator)
            count = torch.randint(DIGITS, (batch_size, 1), generator=generator)
            others = torch.randint(1, n_labels, (batch_size, room), generator=generator)
            order = torch.rand(batch_size, room, generator=generator).argsort(1)
            body = DIGITS + (label + others.where(order >= count, 0)) % n_labels
            inputs = torch.cat([body, column(self.query, batch_size), DIGITS + label], 1)
            return Pairs(inputs, self.solve(inputs))
        found = torch.empty(0, room, dtype=torch.int64)
        while len(found) < batch_size:
            winner = uniform(0, n_labels, (batch_size, 1), generator)
            weights = torch.ones(batch_size, n_labels).scatter_(1, winner, 2.0)
            body = DIGITS + weights.multinomial(room, replacement=True, generator=generator)
            most = self._counts(body).topk(2).values
            found = torch.cat([found, body[most[:, 0] > most[:, 1]]])
        inputs = torch.cat([found[:batch_size], column(self.query, batch_size)], 1)
        return Pairs(inputs, self.solve(inputs))
