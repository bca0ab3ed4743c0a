"""HeadScale: one temperature for each head, fitted after training, so that NoPE stays focused on longer texts.

    l_ij -> a_h l_ij,   a_h >= 1       one number for each head, in each layer

Only q.k is scaled; a bias is not.

Shapes: one factor for each head, (1, H, 1). Not in training; in tuning and testing. Tune at the length to be reached.
With `learned=false` all heads have the same factor, and no tuning is needed: the paper's uniform scale.

Source: Wang, Ji, Wu, Yan, Gui, Zhang, Huang, Wang 2024 (arXiv 2404.12224) and the authors' code, for NoPE; a uniform
scale, says the paper, does not carry RoPE as far. The code tunes the factors alone: 200 steps at a learning rate of 0.1
or 0.05, from a uniform scale found before (1.6 for four times the training length). After each step it sets those below
1 to 1. Here `tune.weights=scheme` tunes the factors alone, with the schedule of any tuning.
Departures: unless that is said, tuning moves all weights, at one learning rate. A factor below 1 counts as 1 and keeps
its gradient, so that it can rise again. Factors start at 1.2, a uniform scale that the paper is said to find useful;
this was read at second hand.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pezoo.contract import Extension, Positions, Shape, Traits
from pezoo.registry import register, setting


@register(
    "head_scale",
    title="Head-based attention scale (HeadScale)",
    year=2024,
    authors="Wang, Ji, Wu, Yan, Gui, Zhang, Huang, Wang",
    arxiv="2404.12224",
    equation="l_ij -> a_h l_ij",
)
class HeadScale(Extension):
    """A temperature for each head, fitted after training."""

    traits = Traits(
        shift_invariant=True,
        parameters=lambda shape, c: shape.n_heads if c.learned else 0,
        neutral={"init": 1},
    )

    @dataclass
    class Config:
        """Settings of the factors."""

        learned: bool = setting(True, "each head learns its own; false: all keep the first value")
        init: float = setting(1.2, "first value", at_least=1)

    def __init__(self, shape: Shape, config: Config, at: tuple[str, ...] | None = None) -> None:
        super().__init__(shape, config, at)
        self.factor = nn.Parameter(torch.full((shape.n_heads,), float(config.init))) if config.learned else None

    @classmethod
    def per_layer(cls, config: Config) -> bool:
        """Each layer has factors of its own."""
        return True

    def scale(self, positions: Positions) -> float | Tensor:
        """One factor for each head, (1, H, 1)."""
        if self.factor is None:
            return float(self.config.init)
        least = self.factor.detach().clamp(min=1) - self.factor.detach()
        return (self.factor + least)[:, None][None]
