"""LEGO: follow a chain of signs (Kazemnejad et al. 2023, arXiv 2305.19466; as in their `s2s_lego` data).

    input: a = +1, b = -a, c = +b; c?        a + 1  b - a  c + b  c
    output: its value, +1 or -1              -

Length: clauses (n), 2 or more, as many as there are variables in the question. The variable asked for is uniform among
places (n + 1) // 2 ... n - 1 of the chain, counted from 0; values and names are uniform. A clause is three tokens:
variable, sign, and the variable before it (the first clause: the number 1). The task is from Zhang et al. 2022
(arXiv 2206.04301), who shuffle the clauses; the paper has both orders.
Departures: no = and no commas; names from a larger set than the paper's 26 letters, for longer chains.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pezoo.data.tasks._bounds import check_length
from pezoo.registry import register, setting
from pezoo.task import Pairs, Task

ONE, NAMES = 2, 3  # signs, and the values of that sign, are 0 (plus) and 1 (minus)


@register(
    "lego",
    title="LEGO",
    year=2023,
    authors="Kazemnejad et al.",
    arxiv="2305.19466",
    family="length generalisation",
    equation="v_0 = s_0, v_i = s_i v_{i-1}; y = v_q, q >= n / 2",
)
class Lego(Task):
    """The value of a variable late in a chain of assignments; length: clauses."""

    chance = 0.5
    least_length = 2

    @dataclass(frozen=True)
    class Config:
        """Names and order of the clauses."""

        variables: int = setting(100, "distinct names; no chain is longer", at_least=2)
        order: Literal["chain", "shuffled"] = setting("chain", "clauses as they follow, or in random order")

    @property
    def n_symbols(self) -> int:
        """Two signs, the number 1 and the names."""
        return NAMES + self.config.variables

    @property
    def symbols(self) -> list[str]:
        """The names are v0, v1, and so on."""
        return ["+", "-", "1", *(f"v{i}" for i in range(self.config.variables))]

    def input_length(self, length: int) -> int:
        """Three tokens for a clause, and the variable asked for."""
        return 3 * length + 1

    def output_length(self, length: int) -> int:
        """One value."""
        return 1

    def solve(self, inputs: Tensor) -> Tensor:
        """Follow the chain back from the variable asked for."""
        what = "clauses of variable, sign, and an earlier variable or 1, all of one chain; then a variable of it"
        self.require(inputs.shape[1] % 3 == 1 and inputs.shape[1] > 3, inputs, what)
        names, signs, sources = inputs[:, :-1].view(len(inputs), -1, 3).unbind(2)
        good = (names >= NAMES) & (signs < ONE) & (sources >= ONE)
        self.require(good, inputs, what)
        for ids in (names, sources):
            self.require(ids.sort().values.diff() > 0, inputs, what)
        origin, sign = inputs.new_zeros(2, len(inputs), self.n_symbols)  # of each id: where its value is from, and how
        origin.scatter_(1, names, sources)[:, ONE] = ONE
        sign.scatter_(1, names, signs)
        for _ in range(names.shape[1].bit_length()):  # twice as far back each time
            sign ^= sign.gather(1, origin)
            origin = origin.gather(1, origin)
        self.require(origin.gather(1, inputs[:, -1:]) == ONE, inputs, what)
        return sign.gather(1, inputs[:, -1:])

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Uniform values, distinct names."""
        most = self.config.variables
        check_length("lego", length, self.least_length, most, f"type lego:variables={length} for longer ones")
        names = NAMES + torch.rand(batch_size, most, generator=generator).argsort(1)[:, :length]
        values = torch.randint(2, (batch_size, length), generator=generator)
        signs, sources = values.clone(), torch.full_like(names, ONE)
        signs[:, 1:] ^= values[:, :-1]
        sources[:, 1:] = names[:, :-1]
        clauses = torch.stack([names, signs, sources], 2)
        if self.config.order == "shuffled":
            order = torch.rand(batch_size, length, generator=generator).argsort(1)
            clauses = clauses.gather(1, order[..., None].expand(-1, -1, 3))
        asked = torch.randint((length + 1) // 2, length, (batch_size, 1), generator=generator)
        inputs = torch.cat([clauses.flatten(1), names.gather(1, asked)], 1)
        return Pairs(inputs, self.solve(inputs))
