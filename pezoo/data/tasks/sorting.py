"""Sort (Kazemnejad et al. 2023, arXiv 2305.19466; as in the builder of their `s2s_sort` data).

    variant         input                            output
    token           d a c a                          a a c d
    multi_digit     3 5 0 1 , 4 2 , 7 0 0            4 2 , 7 0 0 , 3 5 0 1

Length: tokens, or numbers, to sort (n), 1 or more. Tokens are uniform; numbers are uniform in 10 ... 9999, each of 2 to
4 digits. For rows of one shape, digit counts are drawn once per call and stand in a new order in each row, which leaves
every row by itself as uniform as in the paper.
Departures: token ids of its own, whose order is that of the ids; the paper takes the first 50 of T5's unique tokens.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pezoo.data.tasks._bounds import check_length
from pezoo.registry import register, setting
from pezoo.task import Pairs, Task

COMMA = 10
MEAN_DIGITS = (2 * 90 + 3 * 900 + 4 * 9000) / 9990


@register(
    "sorting",
    title="Sorting",
    year=2023,
    authors="Kazemnejad et al.",
    arxiv="2305.19466",
    family="length generalisation",
    equation="y = sort(x)",
)
class Sorting(Task):
    """The input in ascending order; length: things to sort."""

    @dataclass(frozen=True)
    class Config:
        """What is sorted."""

        variant: Literal["token", "multi_digit"] = setting("token", "single tokens, or numbers from 10 to 9999")
        symbols: int = setting(50, "distinct tokens of the variant token", at_least=2)

    @property
    def n_symbols(self) -> int:
        """The tokens; or the digits and the comma."""
        return self.config.symbols if self.config.variant == "token" else COMMA + 1

    @property
    def symbols(self) -> list[str]:
        """Numbers; or digits and the comma."""
        names = [str(i) for i in range(self.n_symbols)]
        return names if self.config.variant == "token" else [*names[:COMMA], ","]

    @property
    def chance(self) -> float:
        """That of one token; or of the comma, of which a long list has one for each number."""
        return 1 / self.config.symbols if self.config.variant == "token" else 1 / (1 + MEAN_DIGITS)

    def input_length(self, length: int) -> int:
        """One token each; or four digits each and the commas between."""
        return length if self.config.variant == "token" else 5 * length - 1

    def output_length(self, length: int) -> int:
        """As long as the input."""
        return self.input_length(length)

    def solve(self, inputs: Tensor) -> Tensor:
        """Sort; numbers are read first, and written again."""
        if self.config.variant == "token":
            return inputs.sort(1).values
        comma, places = inputs == COMMA, torch.arange(inputs.shape[1])
        index = comma.cumsum(1)  # of the number at each place
        counts = index[:, -1:] + 1
        ends = places.where(comma, len(places)).flip(1).cummin(1).values.flip(1)  # the next comma, or the end
        digits = torch.where(comma, 0, inputs * 10 ** (ends - 1 - places).clamp(0, 4))
        numbers = inputs.new_zeros(len(inputs), int(counts.max())).scatter_add_(1, index, digits)
        missing = torch.arange(numbers.shape[1]) >= counts
        tokens, shown = _written(numbers.where(~missing, 10**5).sort(1).values, counts)
        good = (numbers >= 10) | missing
        good = good.all(1) & (shown.sum(1) == len(places))
        self.require(good, inputs, "numbers from 10 to 9999 with commas between them")
        return tokens[shown].view(inputs.shape)

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Uniform tokens, or numbers whose digit counts are the same in each row but for their order."""
        check_length("sorting", length, 1)
        if self.config.variant == "token":
            inputs = torch.randint(self.config.symbols, (batch_size, length), generator=generator)
            return Pairs(inputs, self.solve(inputs))
        pattern = torch.randint(10, 10_000, (length,), generator=generator)
        least = 10 + 90 * (pattern >= 100) + 900 * (pattern >= 1000)  # of that many digits: 10, 100 or 1000
        least = least[torch.rand(batch_size, length, generator=generator).argsort(1)]
        numbers = least + torch.randint(9000, (batch_size, length), generator=generator) * least // 1000
        tokens, shown = _written(numbers)
        inputs = tokens[shown].view(batch_size, -1)
        return Pairs(inputs, self.solve(inputs))


def _written(numbers: Tensor, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Four digits and a comma for each number, (B, n) -> (B, 5 n), and which of them are shown.

    Only the first `counts` (B, 1) numbers of a row are written; None: all.
    """
    counts = numbers.shape[1] if counts is None else counts
    powers, places = torch.tensor([1000, 100, 10, 1]), torch.arange(numbers.shape[1])
    tokens = F.pad(numbers[..., None] // powers % 10, (0, 1), value=COMMA)
    shown = (numbers[..., None] >= powers) & (places < counts)[..., None]
    comma = (places < counts - 1).expand(numbers.shape)
    return tokens.flatten(1), torch.cat([shown, comma[..., None]], 2).flatten(1)
