"""FIRE: a small network maps the distance, relative to how far the query stands from the start, to a bias.

    l_ij^h = q_i . k_j / sqrt(d) + MLP( psi(p_i - p_j) / (psi(max(p_i - p_0, T)) + eps) )_h
    psi(x) = ln(|c| x + 1),   T = |m T_0|

p_0 is the coordinate of the document's first token, MLP: 1 -> width -> H with one ReLU; c and m are learned. The
argument stays in [0, 1]. The released DAPE has a leaky ReLU (slope 0.01) in its FIRE: `activation=leaky_relu`.

Shapes: bias (R, H, Lq, Lk), of position pairs: of distance alone only while p_i - p_0 <= T. Each layer has a network
of its own; `shared` is FIRE-S.
Training and testing: the same.

Source: Li et al. 2023 (arXiv 2310.04418). c = 0.1, m = 1, eps = 1e-6, width 32.
Departures: p_i - p_0 for p_i, so that shifted, packed and random positions keep the argument in [0, 1]; T_0 defaults
to the training length (512 in the paper). In an encoder the distance is taken without its sign.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pezoo.contract import Encoding, Positions, Shape, Traits
from pezoo.registry import register, setting


@register(
    "fire",
    title="Functional interpolation for relative positions (FIRE)",
    year=2023,
    authors="Li, You, Guruganesh, Ainslie, Ontanon, Zaheer, Sanghai, Yang, Kumar, Bhojanapalli",
    arxiv="2310.04418",
    equation="l_ij = q_i.k_j / sqrt(d) + MLP(psi(i - j) / psi(max(i, T)))_h,  psi(x) = ln(|c| x + 1)",
    aliases={"fire_shared": ("fire:shared=true", "FIRE-S")},
)
class FIRE(Encoding):
    """A small network from the relative distance to a bias for each head."""

    # Coordinates enter as differences only, to each other and to the document's start: a constant changes nothing.
    traits = Traits(
        shift_invariant=True,
        bidirectional=False,
        parameters=lambda shape, c: 2 * c.width + (c.width + 1) * shape.n_heads + 2,
        deviations={
            "every_row_learns": "a ReLU may be off at every distance",
            "every_parameter_learns": "softmax ignores the offset of the last layer, which is the paper's",
        },
    )

    @dataclass
    class Config:
        """Settings of the network."""

        width: int = setting(32, "hidden units", at_least=1)
        threshold: float | None = setting(None, "T_0; unset: the training length", above=0)
        shared: bool = setting(False, "one network for all layers")
        activation: Literal["relu", "leaky_relu"] = setting("relu", "leaky_relu: as in the released DAPE")

    def __init__(self, shape: Shape, config: Config) -> None:
        super().__init__(shape, config)
        act = nn.ReLU() if config.activation == "relu" else nn.LeakyReLU(0.01)
        self.network = nn.Sequential(nn.Linear(1, config.width), act, nn.Linear(config.width, shape.n_heads))
        self.c = nn.Parameter(torch.tensor([0.1]))
        self.m = nn.Parameter(torch.tensor([1.0]))

    @classmethod
    def per_layer(cls, config: Config) -> bool:
        """Each layer has a network of its own, unless shared."""
        return not config.shared

    def psi(self, x: Tensor) -> Tensor:
        """ln(|c| x + 1)."""
        return torch.log1p(self.c.abs() * x)

    def bias(self, positions: Positions) -> Tensor:
        """The network's output for every pair, (R, H, Lq, Lk)."""
        distance = positions.distance()
        distance = distance.clamp(min=0) if positions.causal else distance.abs()
        threshold = (self.m * (self.config.threshold or self.shape.train_length)).abs()
        reach = torch.maximum(positions.query - positions.origin(), threshold)  # (R, Lq)
        argument = self.psi(distance) / (self.psi(reach)[..., None] + 1e-6)
        # In float32: near distances far from the start are a small part of the argument.
        first, act, last = self.network
        a, b, c, d = (layer.get_parameter(name).float() for layer in (first, last) for name in ("weight", "bias"))
        return F.linear(act(F.linear(argument[..., None], a, b)), c, d).movedim(-1, 1)
