"""BiPE, bilevel encoding: a learned vector for the place in a segment, and RoPE or ALiBi by the number of the segment.

    x_i = E[token_i] + W[min(i - first_i, N - 1)]           first_i: the first token of the segment of token i
    bipe:        RoPE at the coordinate n_i                 n_i: how many segments of the document ended before token i
    bipe_alibi:  l_ij = q_i . k_j / sqrt(d) - a m_h |n_i - n_j|,   a = 96, m: ALiBi's slopes

A segment ends with one of the tokens `ends`, which still belongs to it, and with the document. W: table of N rows.

Shapes: W is added at the input, (B, L, D) -> (B, L, D); q, k and biases as in `rope` and `alibi`.
Training and testing: the same. A text that is longer has more segments, not longer ones: all of W is trained, and n
grows more slowly than the position. It makes its coordinates of the tokens, so extensions of coordinates do not fit;
those of frequencies do, and work on n.

Source: He, Feng, Luo, Yang, Wang, Xu, Zhang, Yang, He 2024 (arXiv 2401.16421) and the authors' code: full stop and
newline end a segment, N = 1024 = L, RoPE's base is 10 000, W ~ N(0, 0.02^2).
Departures: `ends` defaults to the bytes of full stop and newline (46 and 10); the authors' ids, 869 and 13, are those
of LLaMA's tokenizer. With another tokenizer, and for tasks, give its own ids: where none of them occurs a document is
one segment. N defaults to the training length. In the authors' code the last row of W is, as a padding row, zero and
never trained; here it is a row like the others.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pezoo.contract import Encoding, Positions, Shape, Traits, to_device
from pezoo.encodings.bias.alibi import ALiBi
from pezoo.encodings.relative.rope import RoPE
from pezoo.registry import register, setting

IDLE = {"every_row_learns": "a row waits for a segment of its length"}


@dataclass
class SegmentConfig:
    """Settings of the segments."""

    ends: list[int] = setting([46, 10], "tokens that end a segment; these: full stop and newline of bytes", at_least=0)  # noqa: RUF009
    places: int | None = setting(None, "rows of the table (N); unset: the training length", at_least=1)

    def rows(self, shape: Shape) -> int:
        """N."""
        return self.places or shape.train_length


def segments(positions: Positions, ends: list[int]) -> tuple[Tensor, Tensor]:
    """Place in the segment and number of the segment in the document, of all keys, (B, Lk), int64."""
    assert positions.tokens is not None
    last = to_device(torch.tensor(ends, dtype=torch.int64), positions.key.device)
    ended = (positions.tokens[..., None] == last).any(-1)
    opens = positions.key_index == 0
    follows = F.pad(ended[:, :-1], (1, 0)) & ~opens
    at = torch.arange(ended.shape[1], device=ended.device)
    place = at - torch.where(follows | opens, at, 0).cummax(1).values
    number = follows.cumsum(1)
    return place, number - number.gather(1, (at - positions.key_index).expand(len(number), -1))


class Places(Encoding):
    """A learned vector for the place in a segment."""

    def add_table(self) -> None:
        """Make W."""
        self.table = nn.Parameter(torch.randn(self.config.rows(self.shape), self.shape.d_model) * 0.02)

    def embed(self, x: Tensor, positions: Positions) -> Tensor:
        """Add W of each token's place in its segment."""
        place, _ = segments(positions, self.config.ends)
        return x + self.table[positions.of_queries(place).clamp(max=len(self.table) - 1)].to(x.dtype)

    def numbered(self, positions: Positions) -> Positions:
        """Segment numbers as coordinates."""
        number = segments(positions, self.config.ends)[1].to(torch.float32)
        return positions.replace(query=positions.of_queries(number), key=number, spacing=None, ruler=None)


@register(
    "bipe",
    title="Bilevel positional encoding with RoPE (BiPE-RoPE)",
    year=2024,
    authors="He, Feng, Luo, Yang, Wang, Xu, Zhang, Yang, He",
    arxiv="2401.16421",
    equation="x_i = E[token_i] + W[place in segment];  RoPE at the segment's number",
    aliases={"bipe_rope": ("bipe", "BiPE-RoPE")},
)
class BiPERoPE(Places, RoPE):
    """Places in a segment by learned vectors, segments by RoPE."""

    traits = Traits(
        shift_invariant=True,
        contextual=True,
        tokens=True,
        parameters=lambda shape, c: c.rows(shape) * shape.d_model,
        deviations=IDLE,
    )

    @dataclass
    class Config(RoPE.Config, SegmentConfig):
        """Settings of the segments and of the rotation."""

    def __init__(self, shape: Shape, config: Config) -> None:
        super().__init__(shape, config)
        self.add_table()

    def prepare(self, positions: Positions) -> tuple[Tensor, Tensor]:
        """RoPE's turns at the segments' numbers."""
        return super().prepare(self.numbered(positions))


@register(
    "bipe_alibi",
    title="Bilevel positional encoding with ALiBi (BiPE-ALiBi)",
    year=2024,
    authors="He, Feng, Luo, Yang, Wang, Xu, Zhang, Yang, He",
    arxiv="2401.16421",
    equation="x_i = E[token_i] + W[place in segment];  l_ij = q_i.k_j / sqrt(d) - a m_h |n_i - n_j|",
)
class BiPEALiBi(Places, ALiBi):
    """Places in a segment by learned vectors, segments by ALiBi."""

    traits = Traits(
        shift_invariant=True,
        contextual=True,
        tokens=True,
        parameters=lambda shape, c: c.rows(shape) * shape.d_model + ALiBi.traits.parameters(shape, c),
        deviations=IDLE | {"bias_is_not_constant": "the few tokens of the check are one segment"},
    )

    @dataclass
    class Config(ALiBi.Config, SegmentConfig):
        """Settings of the segments and of the slopes."""

        steeper: float = setting(96.0, "what ALiBi's slopes are multiplied by (a)", above=0)

    config: Config

    def __init__(self, shape: Shape, config: Config) -> None:
        super().__init__(shape, config)
        self.add_table()

    def bias(self, positions: Positions) -> Tensor:
        """-a m_h |n_i - n_j|."""
        return self.distance_bias(self.config.steeper * self.numbered(positions).distance()).movedim(0, 1)
