"""DAPE: a small network corrects the bias of another encoding by the logits that the content gives.

    l_ij = A_ij + B_ij + f([A_ij ; B_ij]),   A_ij = q_i . k_j / sqrt(d),   B_ij: the base encoding's bias

A and B hold all heads of a pair (i, j). f: 2H -> width -> H with one leaky ReLU mixes them; pairs do not see each
other. Each layer has a network of its own.

Shapes: logits (B, H, Lq, Lk), bias (R, H, Lq, Lk) -> (B, H, Lq, Lk). Training and testing: the same. No fused
attention: the logits must be built.

Source: Zheng et al. 2024 (arXiv 2405.14722), over ALiBi, KERPLE and FIRE; first released as "CAPE", which is not the
CAPE of 2021. Width 32.
Departures: the last layer starts at zero, so that training starts from the base encoding (the authors' code keeps the
usual initial values), and has no offset, which softmax would ignore.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pezoo.contract import Encoding, Extension, Positions, Shape, Traits, overrides
from pezoo.registry import register, setting

PAIRS = 2**19
"""Pairs (i, j) that the network takes at a time, to bound the memory of its hidden units."""


@register(
    "dape",
    title="Data-adaptive positional encoding (DAPE)",
    year=2024,
    authors="Zheng, Gao, Shi, Huang, Li, Xiong, Ren, Ng, Jiang, Li, Li",
    arxiv="2405.14722",
    equation="l = A + B + f([A ; B]),  A = q.k / sqrt(d),  B: the base encoding's bias",
)
class DAPE(Extension):
    """A correction to a bias by a small network over the heads' logits."""

    traits = Traits(shift_invariant=True, parameters=lambda shape, c: (3 * shape.n_heads + 1) * c.width, neutral={})
    default_at = ("train", "tune", "test")

    @dataclass
    class Config:
        """Settings of the network."""

        width: int = setting(32, "hidden units", at_least=1)

    def __init__(self, shape: Shape, config: Config, at: tuple[str, ...] | None = None) -> None:
        super().__init__(shape, config, at)
        self.first = nn.Linear(2 * shape.n_heads, config.width)
        self.last = nn.Linear(config.width, shape.n_heads, bias=False)
        nn.init.zeros_(self.last.weight)

    @classmethod
    def per_layer(cls, config: Config) -> bool:
        """Each layer has a network of its own."""
        return True

    def refuses(self, encoding: Encoding) -> str | None:
        """Encodings without a bias."""
        if overrides(encoding, "bias") or overrides(encoding, "distance_bias"):
            return None
        name = type(encoding).__name__
        return f"dape corrects a bias on the logits, and {name} has none; it works with alibi, kerple, fire, t5"

    def correction(self, logits: Tensor, bias: Tensor) -> Tensor:
        """f([A ; B]) for (B, H, Lq, Lk) and (R, H, Lq, Lk)."""
        weight = self.first.weight.float().split(logits.shape[1], dim=1)
        hidden = F.linear(logits.movedim(1, -1), weight[0], self.first.bias.float())
        hidden = hidden + F.linear(bias.movedim(1, -1), weight[1])  # (B, Lq, Lk, width)
        hidden = F.leaky_relu(hidden, inplace=True)
        return F.linear(hidden, self.last.weight.float()).movedim(-1, 1)

    def adapt(self, logits: Tensor, bias: Tensor | None, positions: Positions) -> Tensor:
        """A + B + f([A ; B])."""
        if bias is None:
            return logits
        rows = max(1, PAIRS // (logits.shape[0] * logits.shape[-1]))
        parts = zip(logits.split(rows, dim=2), bias.split(rows, dim=2), strict=True)
        return torch.cat([a + b + self.correction(a, b) for a, b in parts], dim=2)
