"""Sink logits: a learned logit of each head joins the softmax and has no value, so that a head may attend to nothing.

    w_ij = exp(l_ij) / (exp(s_h) + sum_k exp(l_ik))       s_h: one number for each head, in each layer

The weights of a query sum to less than 1; as s_h falls they become those of softmax. The sink is no token: it has no
position, and nothing scales it.

Shapes: one logit for each head, (H,). Training and testing: the same.

Source: gpt-oss, OpenAI 2025 (arXiv 2508.10925), in all layers. `learned=false` is the softmax with one more in its
denominator ("off by one"): Miller 2023, "Attention is off by one" (the author's blog); the zero sink of Xiao et al.
2023 (arXiv 2309.17453).
Departures: s starts at 0, where it is off by one. What gpt-oss started from could not be established; transformers
draws it from a normal distribution, with the deviation of all its weights (0.02).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pezoo.contract import Extension, Shape, Traits
from pezoo.registry import register, setting


@register(
    "sink_logits",
    title="Sink logits (gpt-oss)",
    year=2025,
    authors="OpenAI",
    arxiv="2508.10925",
    equation="w_ij = exp(l_ij) / (exp(s_h) + sum_k exp(l_ik))",
)
class SinkLogits(Extension):
    """A learned logit in each head's softmax, without a value."""

    traits = Traits(shift_invariant=True, parameters=lambda shape, c: shape.n_heads if c.learned else 0)
    default_at = ("train", "tune", "test")

    @dataclass
    class Config:
        """Settings of the sink."""

        learned: bool = setting(True, "s is learned; false: it stays")
        init: float = setting(0.0, "first value of s")

    def __init__(self, shape: Shape, config: Config, at: tuple[str, ...] | None = None) -> None:
        super().__init__(shape, config, at)
        self.s: Tensor
        first = torch.full((shape.n_heads,), config.init, dtype=torch.float32)
        if config.learned:
            self.s = nn.Parameter(first)
        else:
            self.register_buffer("s", first, persistent=False)

    @classmethod
    def per_layer(cls, config: Config) -> bool:
        """Each layer has an s of its own."""
        return True

    def sink(self) -> Tensor:
        """Return s."""
        return self.s
