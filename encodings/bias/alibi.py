"""ALiBi: a penalty on the logits that grows linearly with distance, with another slope for each head.

    l_ij^h = q_i . k_j / sqrt(d) - m_h |p_i - p_j|

For H = 2^a heads m_h = 2^(-8h/H), h = 1 ... H. For other H, with c the largest power of two below H: the c slopes of
c heads, then every second slope of the 2c-head series until H are had.

Shapes: distances (...) -> (H, ...). Training and testing: the same; no parameters unless slopes are learned.

Source: Press, Smith, Lewis 2021 (arXiv 2108.12409), section 3; slopes for any H as in the authors' code. The bias is
not divided by sqrt(d).
Departures: distance form -m (i - j), where the authors' code adds m j to each row: equal after softmax, but not in
low precision. In an encoder both sides are penalised alike.

>>> slopes(6)
[0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125]
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pezoo.contract import Encoding, Shape, Traits, to_device
from pezoo.registry import register, setting


def slopes(n_heads: int) -> list[float]:
    """The slope of each head."""
    power = 1 << (n_heads.bit_length() - 1)  # largest power of two not above n_heads
    first = [2.0 ** (-8 * h / power) for h in range(1, power + 1)]
    between = [2.0 ** (-4 * h / power) for h in range(1, 2 * power + 1, 2)]
    return first + between[: n_heads - power]


@register(
    "alibi",
    title="Attention with linear biases (ALiBi)",
    year=2021,
    authors="Press, Smith, Lewis",
    arxiv="2108.12409",
    equation="l_ij = q_i.k_j / sqrt(d) - m_h |i - j|,  m_h = 2^(-8h/H)",
)
class ALiBi(Encoding):
    """A penalty linear in distance, with a slope for each head."""

    traits = Traits(
        shift_invariant=True,
        bidirectional=False,
        parameters=lambda shape, c: shape.n_heads if c.slopes == "learned" else 0,
    )

    @dataclass
    class Config:
        """Settings of the slopes."""

        slopes: Literal["fixed", "learned"] = setting("fixed", "learned slopes start from the fixed ones")

    def __init__(self, shape: Shape, config: Config) -> None:
        super().__init__(shape, config)
        learned = config.slopes == "learned"
        self.slopes = nn.Parameter(torch.tensor(slopes(shape.n_heads))) if learned else None

    def distance_bias(self, distance: Tensor) -> Tensor:
        """-m_h |distance|, (H, ...)."""
        fixed = torch.tensor(slopes(self.shape.n_heads), dtype=torch.float32)
        m = to_device(fixed, distance.device) if self.slopes is None else self.slopes.float()
        return -m.view(-1, *(1,) * distance.ndim) * distance.abs()
