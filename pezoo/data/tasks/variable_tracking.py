"""Chains of assignments, all variables of one value asked (after RULER's vt; Hsieh et al. 2024, arXiv 2404.06654).

    input:  filler ... x_1 = v ... filler ... x_2 = x_1 ... x_{h+1} = x_h ... filler QUERY v
    output: x_1 ... x_{h+1}

An assignment is three tokens and counts as one needle. The assignments of a chain stand in its order, those
of other chains anywhere between; all variables in a row differ, and so do the chains' values. Variables are
the first ids, then come the values, the filler, "=" and QUERY. RULER has one chain by default, in which
naming all variables in the order of the text would do; here there are two.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pezoo.data.tasks._recall import DIGITS, Needles, column, distinct, names, places, strew, uniform
from pezoo.errors import UserError
from pezoo.registry import register, setting
from pezoo.task import Pairs


@register(
    "variable_tracking",
    title="Variable tracking",
    year=2024,
    authors="Hsieh et al.",
    arxiv="2404.06654",
    family="recall",
    equation='y_1 "=" v and y_{i+1} "=" y_i in x, v = x_{n-1}',
)
class VariableTracking(Needles):
    """The variables that hold the asked value, along their chain; length: tokens that the model reads."""

    @dataclass
    class Config:
        """Settings of variable_tracking."""

        n_chains: int = setting(2, "chains, with the asked one", at_least=1, at_most=DIGITS)
        n_hops: int = setting(4, "assignments from variable to variable in a chain (h)", at_least=1)
        n_names: int = setting(26, "names that variables are drawn from", at_least=2)
        n_filler: int = setting(20, "different tokens of the filler", at_least=1)

        def __post_init__(self) -> None:
            """Check that variables can differ."""
            least = self.n_chains * (self.n_hops + 1)
            if self.n_names < least:
                what = f"n_chains={self.n_chains} and n_hops={self.n_hops}"
                raise UserError(f"variable_tracking: {what} need n_names of at least {least}, got {self.n_names}")

    depths = ()
    width = 3
    tail = 2
    n_needles = property(lambda self: self.config.n_chains * (self.config.n_hops + 1))
    equals = property(lambda self: self.config.n_names + DIGITS + self.config.n_filler)
    query = property(lambda self: self.equals + 1)
    n_symbols = property(lambda self: self.equals + 2)

    @property
    def symbols(self) -> list[str]:
        """Variables v0, v1 and so on, values 0 ... 9, filler f0, f1 and so on, = and QUERY."""
        return [*names("v", self.config.n_names), *names("", DIGITS), *names("f", self.config.n_filler), "=", "QUERY"]

    chance = property(lambda self: 1 / self.config.n_names)

    def output_length(self, length: int) -> int:
        """The variables of one chain."""
        return self.config.n_hops + 1

    def solve(self, inputs: Tensor) -> Tensor:
        """Go from the value to the first variable, and from each to the next."""
        self.require_room(inputs)
        first_filler, equals = self.config.n_names + DIGITS, inputs[:, 1:-3] == self.equals
        what = f"{self.n_needles} assignments of three tokens in filler, in chains from a value; then QUERY and a value"
        self.require((equals.sum(1) == self.n_needles) & (inputs[:, -2] == self.query), inputs, what)
        before, behind = inputs[:, : equals.shape[1]], inputs[:, 2 : 2 + equals.shape[1]]
        variables, sources = (side[equals].view(-1, self.n_needles) for side in (before, behind))
        self.require((variables < self.config.n_names) & (sources < first_filler), inputs, what)
        self.require(sources.sort().values.diff() > 0, inputs, what)
        after = torch.full((len(inputs), self.n_symbols), self.query).scatter_(1, sources, variables)
        chain = [inputs[:, -1:]]
        for _ in range(self.config.n_hops + 1):
            chain.append(after.gather(1, chain[-1]))
        chain = torch.cat(chain, 1)
        good = (chain[:, 1:] < self.config.n_names).all(1) & (chain[:, 0] >= self.config.n_names)
        self.require(good, inputs, what)
        return chain[:, 1:]

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Random chains in random filler.

        Raises:
            UserError: if the length has no room for assignments and question.
        """
        config, room = self.config, self.spare(length)
        chains = (batch_size, config.n_chains, config.n_hops + 1)
        filler = uniform(config.n_names + DIGITS, config.n_filler, (batch_size, room), generator)
        variables = distinct(batch_size, self.n_needles, config.n_names, generator).view(chains)
        values = config.n_names + distinct(batch_size, config.n_chains, DIGITS, generator)
        sources = torch.cat([values[..., None], variables[..., :-1]], 2)
        assignments = torch.stack([variables, torch.full_like(variables, self.equals), sources], 3)
        order = places(batch_size, self.n_needles, room, None, generator).view(chains).sort().values
        body = strew(filler, assignments.flatten(1, 2), order.flatten(1))
        inputs = torch.cat([body, column(self.query, batch_size), values[:, :1]], 1)
        return Pairs(inputs, self.solve(inputs))
