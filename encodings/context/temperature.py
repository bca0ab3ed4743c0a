"""Attention temperature by position: logits are sharpened a little more for each further training length.

    l_ij -> (1 + beta ln(1 + floor((i + first) / S))) l_ij        i: place in the document, from 0;  S: tokens of a step

Only q.k is scaled; a bias is not. With `first=0` nothing changes in the first S tokens. S is the training length if it
is unset.

Shapes: one factor for each query, (R, Lq). Not in training; in tuning and testing. No parameters.

Source: Llama 4, Meta 2025 (its release, which cites SSMax, arXiv 2501.19399), and Ministral 3, Liu et al. 2026 (arXiv
2601.08584), both as in transformers. The defaults are Ministral's: all layers, S the length before context was
extended (16384), beta = 0.1, beside a YaRN whose own temperature is 1: `rope+yarn:mscale=0+temperature`. Llama 4 has
it in its layers without rotation alone, with `first=1` and S = 8192:
`{layers: [rope, rope, rope, "nope+temperature:first=1"]}`.
Departures: none. Llama 4's code has it in training too where texts are that long: `at=train,tune,test`.
"""

from dataclasses import dataclass

from torch import Tensor

from pezoo.contract import Extension, Positions, Traits
from pezoo.registry import register, setting


@register(
    "temperature",
    title="Attention temperature by position (Llama 4, Ministral 3)",
    year=2026,
    authors="Meta; Liu, Khandelwal, Subramanian, Jouault, Rastogi, Sadé, Jeffares, et al.",
    arxiv="2601.08584",
    equation="l_ij -> (1 + beta ln(1 + floor(i / S))) l_ij",
)
class Temperature(Extension):
    """Logits sharpened in steps of the training length."""

    traits = Traits(shift_invariant=True, neutral={"beta": 0})

    @dataclass
    class Config:
        """Settings of the steps."""

        beta: float = setting(0.1, "how much each step sharpens", at_least=0)
        step: int | None = setting(None, "S; unset: the training length", at_least=1)
        first: int = setting(0, "place of the first token: 0 in Ministral 3, 1 in Llama 4", at_least=0, at_most=1)

    def scale(self, positions: Positions) -> Tensor:
        """One factor for each query, at least 1."""
        steps = (positions.query_index + self.config.first) // (self.config.step or self.shape.train_length)
        return 1 + self.config.beta * steps.log1p()
