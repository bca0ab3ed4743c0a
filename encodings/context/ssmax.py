"""SSMax: logits multiplied by s ln n, s learned by each head, so that attention does not fade as more keys are seen.

    l_ij -> s_h ln(n_i) l_ij       n_i: keys that query i sees;  s_h: one number for each head, in each layer

So a weight is n^(s z_j) / sum_k n^(s z_k), where softmax has e^(z_j). Only q.k is scaled; a bias is not. n_i is i + 1
in a decoder, and the length of the document in an encoder, whatever a mask hides.

Shapes: one factor for each head and query, (R, H, Lq). Training and testing: the same. `at=test` puts it into a model
that was trained without it.

Source: Nakanishi 2025 (arXiv 2501.19399). `form=biased` is the paper's variant with s ln n + b, of which it says that
it reaches less far; `form=fixed:init=1` the one in which s is 1 and stays so.
s starts at 1 over the mean of ln n in training, so that logits start with their usual size. For the paper's training
length, 1024, that is 0.168, its initial value; whether it was chosen so could not be established. Nor could the initial
value of b, which is 0 here.
Departures: none.

>>> [round(start(length), 3) for length in (128, 1024)]
[0.258, 0.168]
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pezoo.contract import Extension, Positions, Shape, Traits
from pezoo.registry import register, setting


def start(train_length: int) -> float:
    """1 over the mean of ln n, n = 1 ... train_length (at least 2, since ln 1 is 0)."""
    length = max(2, train_length)
    return length / math.lgamma(length + 1)


@register(
    "ssmax",
    title="Scalable softmax (SSMax)",
    year=2025,
    authors="Nakanishi",
    arxiv="2501.19399",
    equation="l_ij -> s_h ln(n_i) l_ij",
)
class SSMax(Extension):
    """Logits scaled by the logarithm of the keys seen, at a strength that each head learns."""

    traits = Traits(
        shift_invariant=True,
        parameters=lambda shape, c: shape.n_heads * {"learned": 1, "biased": 2, "fixed": 0}[c.form],
    )
    default_at = ("train", "tune", "test")

    @dataclass
    class Config:
        """Settings of the scale."""

        form: Literal["learned", "biased", "fixed"] = setting("learned", "s ln n, s ln n + b, or an s that stays")
        init: float | None = setting(None, "first value of s; unset: 1 over the mean of ln n in training", above=0)

    def __init__(self, shape: Shape, config: Config, at: tuple[str, ...] | None = None) -> None:
        super().__init__(shape, config, at)
        self.start = config.init or start(shape.train_length)
        learned, biased = config.form != "fixed", config.form == "biased"
        self.s = nn.Parameter(torch.full((shape.n_heads,), self.start)) if learned else None
        self.b = nn.Parameter(torch.zeros(shape.n_heads)) if biased else None

    @classmethod
    def per_layer(cls, config: Config) -> bool:
        """Each layer has an s of its own."""
        return True

    def scale(self, positions: Positions) -> Tensor:
        """Return s ln n, or s ln n + b."""
        log = positions.seen().log()
        if self.s is None:
            return self.start * log
        scaled = self.s[:, None] * log[:, None]
        return scaled if self.b is None else scaled + self.b[:, None]
