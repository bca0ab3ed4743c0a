"""DroPE: trained with rotation, which is dropped after training; a short tuning without it follows.

    w_k -> 0,     logits of q.k times 1 + c ln s,   s = max(1, T / L)

So RoPE becomes NoPE, and order comes from the causal mask alone. L is the training length, T the declared one.

Shapes: frequencies (R, n) -> the same. Not in training; in tuning and testing. Tune at the training length
(`tune.length=1x`): without tuning the model has never seen q.k without rotation. s follows T after tuning too, hence
not prefix-stable unless `sharpen=0`.

Source: Gelberg, Eguchi, Akiba, Cetin 2025 (arXiv 2512.12167). In the paper's run from scratch the last eighth of the
training steps is without rotation. c is fitted to a model: 0.412 from scratch (the default), 0.103 for SmolLM. The
paper's text was read at second hand, for these numbers too. The authors' code has no ln s: it sets the scale of the
logits to one number.
Departures: any encoding with frequencies. A sinusoid becomes the same vector for all tokens, a bias made of
frequencies a constant; xPos keeps its decay. What other encodings of the scheme add stays. q and k get no norm, which
the paper adds where it tunes at a high learning rate.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pezoo.contract import Extension, Positions, Traits, overrides
from pezoo.registry import register, setting


@register(
    "drope",
    title="Dropped positional embeddings (DroPE)",
    year=2025,
    authors="Gelberg, Eguchi, Akiba, Cetin",
    arxiv="2512.12167",
    equation="w_k -> 0,  q.k -> (1 + c ln s) q.k",
)
class DroPE(Extension):
    """Rotation dropped after training, and logits sharpened with the length."""

    traits = Traits(shift_invariant=True, prefix_stable=False)

    @dataclass
    class Config:
        """Settings of the temperature."""

        sharpen: float = setting(0.412, "c; 0: no temperature", at_least=0)

    @property
    def prefix_stable(self) -> bool:
        """Only without a temperature, which follows the length."""
        return self.config.sharpen == 0

    def refuses_beside(self, other: Extension) -> str | None:
        """Another rule for frequencies: there are none left."""
        if not overrides(other, "frequencies"):
            return None
        return "drope sets all frequencies to 0, and nothing is left to change; let them act in other phases (at=)"

    def frequencies(self, inv_freq: Tensor, positions: Positions) -> Tensor:
        """Zeros."""
        return torch.zeros_like(inv_freq)

    def scale(self, positions: Positions) -> float | Tensor:
        """1 + c ln s, a number or (R, 1)."""
        s = positions.factor(self.shape.train_length)
        return 1 + self.config.sharpen * (s.log() if isinstance(s, Tensor) else math.log(s))
