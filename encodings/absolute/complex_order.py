"""Complex-order embedding: the pairs of a token's channels are waves, which turn as the position grows.

    x_i[k] = sqrt(D) E[token_i][k] exp(i w_k p_i),   k = 0 ... D/2 - 1

with channels (2k, 2k+1) read as the complex number k: amplitude and initial phase are those of the token's embedding,
w_k is a learned frequency that starts at base^(-2k/D). It multiplies, where the sinusoid adds.

Shapes: (B, L, D) -> (B, L, D).
Training and testing: the same.

Source: Wang, Zhao, Lioma, Li, Zhang, Simonsen 2019 (arXiv 1912.12333).
Departures: frequencies are shared by all words, one of the paper's reductions (its full form has one for each word as
well), since an encoding sees vectors, not words. The network that reads x is real, theirs complex. Frequencies are
stored as the logarithm of their ratio to the initial ones, so that a step of the optimiser is a share of each, and
stay positive. An odd last channel does not turn. Frequencies are open to extensions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pezoo.contract import Encoding, Positions, Shape, Traits, to_device
from pezoo.encodings.relative._rotary import rotary_frequencies, turn, turns
from pezoo.errors import UserError
from pezoo.registry import register, setting


@register(
    "complex_order",
    title="Complex-order embedding",
    year=2019,
    authors="Wang, Zhao, Lioma, Li, Zhang, Simonsen",
    arxiv="1912.12333",
    equation="x_i[k] = sqrt(D) E[token_i][k] exp(i w_k p_i), complex, w_k learned",
)
class ComplexOrder(Encoding):
    """Pairs of channels of the token embeddings, turned by the position at learned frequencies."""

    traits = Traits(parameters=lambda shape, c: shape.d_model // 2)

    @dataclass
    class Config:
        """Settings of the initial frequencies."""

        base: float = setting(10000.0, "wavelengths start between 2 pi and 2 pi base", above=1)

    def __init__(self, shape: Shape, config: Config) -> None:
        super().__init__(shape, config)
        if shape.d_model < 2:
            raise UserError("complex_order turns pairs of channels; d_model = 1 leaves none to turn")
        self.log_ratio = nn.Parameter(torch.zeros(shape.d_model // 2))

    def inv_freq(self) -> Tensor:
        """Frequencies w_k, (D // 2,)."""
        start = rotary_frequencies(2 * len(self.log_ratio), self.config.base)
        return to_device(start, self.log_ratio.device) * self.log_ratio.float().exp()

    def embed(self, x: Tensor, positions: Positions) -> Tensor:
        """sqrt(D) x, turned."""
        by = turns(positions.angles(positions.query))
        return turn(x[:, None] * x.shape[-1] ** 0.5, by)[:, 0]
