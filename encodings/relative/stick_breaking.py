"""Stick-breaking attention: a query breaks pieces off one stick, for the nearest key first, until nothing is left.

    b_ij = sigmoid(q_i . k_j / sqrt(d)),   A_ij = b_ij prod over j < t < i of (1 - b_it)   for j < i

Each key takes its share b of what nearer keys have left: so the order of tokens counts, without any encoding of it. A
query's own key takes no share. What is left of the stick, prod over t < i of (1 - b_it), weighs the query's own value;
with `rest=none` it is lost, and weights sum to less than 1.

Shapes: logits (B, H, Lq, Lk) -> weights of the same. Training and testing: the same; no parameters. No fused attention.
Keys that a mask hides take nothing. It reads no coordinates; beside an encoding it breaks by that encoding's logits. An
encoder is refused.

Source: Tan, Yang, Courville, Panda, Shen 2024 (arXiv 2410.17980) and the authors' code, which computes A and what is
left, and whose tests give that to the query's own value.
Departures: none in A. The authors' 3B model gives what is left to a learned vector of each head, and norms each head's
output; both are left out here.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pezoo.contract import Encoding, Positions, Shape, Traits
from pezoo.errors import UserError
from pezoo.registry import register, setting


@register(
    "stick_breaking",
    title="Stick-breaking attention",
    year=2024,
    authors="Tan, Yang, Courville, Panda, Shen",
    arxiv="2410.17980",
    equation="A_ij = b_ij prod_{j<t<i} (1 - b_it),  b_ij = sigmoid(q_i.k_j / sqrt(d))",
)
class StickBreaking(Encoding):
    """The nearest key takes a part of the attention, the next one a part of the rest, and so on."""

    traits = Traits(shift_invariant=True, bidirectional=False, contextual=True)

    @dataclass
    class Config:
        """Settings of what is left."""

        rest: Literal["own", "none"] = setting("own", "what is left of the stick weighs the query's value, or nothing")

    def __init__(self, shape: Shape, config: Config) -> None:
        super().__init__(shape, config)
        if not shape.causal:
            raise UserError("stick_breaking is for decoders only: it goes from a query to ever earlier keys")

    def normalise(self, logits: Tensor, positions: Positions) -> Tensor:
        """A_ij, and on the diagonal what is left."""
        own = (positions.steps() == 0)[:, None] & positions.visible()[:, None]
        logits = logits.masked_fill(own, -torch.inf)
        left = F.logsigmoid(-logits)  # ln(1 - b), 0 for keys that are not seen
        nearer = left.flip(-1).cumsum(-1).flip(-1) - left
        weights = (F.logsigmoid(logits) + nearer).exp()
        return weights if self.config.rest == "none" else torch.where(own, left.sum(-1, keepdim=True).exp(), weights)
