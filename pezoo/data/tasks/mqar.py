"""Multi-query associative recall (Arora et al. 2023, arXiv 2312.04927).

    input:  k_1 v_1 ... k_K v_K, then each key once more, at slots between random tokens
    asked:  at the later place of k_j, v_j

For a vocabulary of V ids, keys are drawn from 1 ... V/2 - 1 and values from V/2 ... V - 1, all different in a
row. After the pairs come slots of two tokens; key j stands first in slot g_j, drawn without replacement with
probability

    P(g) ~ (g + 1)^(a - 1)

so that a = 1 is uniform and the published a = 0.01 favours slots near the pairs. All other tokens are random
ids, but none of the row's keys: a key is read twice, with one value. (The authors' code draws them from all
ids, where in a small vocabulary chance makes other pairs of them. Its vocabulary is 8192.)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pezoo.data.tasks._recall import Recall, distinct, uniform
from pezoo.errors import UserError
from pezoo.registry import register, setting
from pezoo.task import IGNORE, Pairs


@register(
    "mqar",
    title="Multi-query associative recall",
    year=2023,
    authors="Arora et al.",
    arxiv="2312.04927",
    family="recall",
    equation="y_i = x_{j+1}, x_j = x_i, j < i; P(g) ~ (g + 1)^(a - 1)",
)
class MQAR(Recall):
    """The value of each key when it comes again; length: tokens that the model reads, at least 4 n_pairs."""

    @dataclass
    class Config:
        """Settings of mqar."""

        n_pairs: int = setting(4, "keys, with a value each (K)", at_least=1)
        vocabulary: int = setting(64, "ids of keys and values together (V)", at_least=4)
        a: float = setting(0.01, "exponent of the gaps' power law; 1: uniform", above=0)

        def __post_init__(self) -> None:
            """Check that keys can differ."""
            least = 2 * self.n_pairs + 2
            if self.vocabulary < least:
                what = f"mqar:n_pairs={self.n_pairs} needs a vocabulary of at least {least}"
                raise UserError(f"{what}, got {self.vocabulary}; type mqar:n_pairs={self.n_pairs}:vocabulary={least}")

    layout = "inline"
    least_length = property(lambda self: 4 * self.config.n_pairs)
    n_symbols = property(lambda self: self.config.vocabulary)
    chance = property(lambda self: 1 / (self.config.vocabulary - self.config.vocabulary // 2))

    def solve(self, inputs: Tensor) -> Tensor:
        """Look each later token up among the keys."""
        n_pairs, half = self.config.n_pairs, self.config.vocabulary // 2
        what = (
            f"{n_pairs} different keys from 1 to {half - 1}, each with a value from {half} on, then each key once more"
        )
        self.require(inputs.shape[1] >= self.least_length, inputs, what)
        keys, values = inputs[:, : 2 * n_pairs : 2], inputs[:, 1 : 2 * n_pairs : 2]
        self.require((keys > 0) & (keys < half) & (values >= half), inputs, what)
        self.require(keys.sort().values.diff() > 0, inputs, what)
        table = torch.full((len(inputs), self.n_symbols), IGNORE).scatter_(1, keys, values)
        outputs = table.gather(1, inputs)
        outputs[:, : 2 * n_pairs] = IGNORE
        times = (outputs != IGNORE).sum(1)
        self.require(times == n_pairs, inputs, what)
        asked = inputs[outputs != IGNORE].view(keys.shape)
        self.require(asked.sort().values == keys.sort().values, inputs, what)
        return outputs

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Random pairs, gaps and filler.

        Raises:
            UserError: if the length has no slot for each key.
        """
        self.spare(length)
        n_pairs, vocabulary, half = self.config.n_pairs, self.config.vocabulary, self.config.vocabulary // 2
        keys = 1 + distinct(batch_size, n_pairs, half - 1, generator)
        values = half + distinct(batch_size, n_pairs, vocabulary - half, generator)
        slots = torch.arange(1.0, length // 2 - n_pairs + 1, dtype=torch.float64)
        chances = slots ** (self.config.a - 1)
        gaps = chances.expand(batch_size, -1).multinomial(n_pairs, generator=generator)
        queries = 2 * (n_pairs + gaps)
        inputs = uniform(0, vocabulary - n_pairs, (batch_size, length), generator)
        skipped = keys.sort().values - torch.arange(n_pairs)  # where the remaining ids jump over a key
        inputs += torch.searchsorted(skipped, inputs, right=True)
        inputs[:, : 2 * n_pairs] = torch.stack([keys, values], 2).flatten(1)
        inputs.scatter_(1, queries, keys)
        return Pairs(inputs, self.solve(inputs))
