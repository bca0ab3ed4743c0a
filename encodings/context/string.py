"""STRING: far distances, which training shows too rarely, are read as nearer ones that it shows often.

    n -> n for n < S,  else n - S + W        n = p_i - p_j

S: shift, W: local window, which keeps the nearest far tokens apart from the query itself. With S = L/3 the largest
distance in a text of the training length L is read as L - 1 - S + W.

Shapes: one far region over (R, Lq, Lk), two in an encoder. Not in training or tuning; in testing, within the training
length as well. Twice the attention cost.

Source: An, Zhang, Zhong, Li, Gong, Luo, Xu, Kong 2024 (arXiv 2410.18745): S = L/3, W = 128 for an L of 128K tokens. It
is meant for texts of up to the training length: in longer ones distances reach T - 1 - S + W, more than L from some
4L/3 on.
The released code also multiplies cosines and sines by 0.1 ln 2 + 1: `attention_factor=1.0693`. Its prefill counts the
key at distance S twice, which its decoding does not, and which is left out here.
Departures: any encoding with a term of position pairs; an encoder does the same on both sides. W defaults to a
thirty-second of L, since 128 of 128K is less than a token of a short training length.
"""

from dataclasses import dataclass

from pezoo.contract import Branch, Extension, Positions, Traits
from pezoo.encodings.interpolation.rerope import far_regions
from pezoo.registry import register, setting


@register(
    "string",
    title="Shifted rotary position embedding (STRING)",
    year=2024,
    authors="An, Zhang, Zhong, Li, Gong, Luo, Xu, Kong",
    arxiv="2410.18745",
    equation="n -> n if n < S, else n - S + W",
)
class String(Extension):
    """Far distances shifted back to where training shows more."""

    traits = Traits(shift_invariant=True, neutral={"shift": 1_000_000_000})
    default_at = ("test",)

    @dataclass
    class Config:
        """Settings of the shift."""

        shift: int | None = setting(None, "S; unset: a third of the training length", at_least=1)
        local: int | None = setting(None, "W; unset: 1/32 of the training length", at_least=0)
        attention_factor: float = setting(1.0, "m; logits get its square", above=0)

    def branches(self, positions: Positions) -> tuple[Branch, ...]:
        """Pairs at least S apart, read at n - S + W."""
        c, length = self.config, self.shape.train_length
        shift = c.shift or max(1, length // 3)
        local = max(1, length // 32) if c.local is None else c.local
        return far_regions(positions, positions.query, positions.key, local - shift, shift)

    def scale(self, positions: Positions) -> float:
        """m^2."""
        return self.config.attention_factor**2
