"""FoX, the Forgetting Transformer: each token decides how much of all that came before it is forgotten, head by head.

    l_ij^h = q_i . k_j / sqrt(d) + sum over t = j+1 ... i of ln f_t^h,     f_t^h = sigmoid(w_h . x_t + b_h)

x_t: the layer's input (after the norm); w, b: of each layer and head. After exp the weight of a key is multiplied by
the gates of all later tokens up to the query. With equal gates this is ALiBi of slope -ln f: the ablations are
`gate=fixed`, gates that are numbers, and `gate=bias_only`, where b is learned and w is not there.

Shapes: gates (B, L, H), read once per token and kept while decoding; bias (B, H, Lq, Lk), a difference of two sums,
of which fused attention needs that of the key.
Training and testing: the same; no length is special. It reads no coordinates, so extensions of these do not fit: masks
leave the gates as they are. An encoder is refused.

Source: Lin, Nikishin, He, Courville 2025 (arXiv 2503.02130) and the authors' code; w ~ N(0, 0.02^2), b = 0, so gates
start near 1/2. FoX needs no other encoding; `rope+fox` is their variant with RoPE.
Departures: the fixed gates start from ALiBi's slopes unless `min_time` and `max_time` are given: the authors space the
slopes 1/tau logarithmically, tau_1 = min_time ... tau_H = max_time, and their `bias_only` starts from b = 0 without
them (both times 1.4427, or 1 / ln 2). The times of the paper's ablation could not be established. The rest of the
authors' "Pro" block is no encoding. QK-norm and token shift are settings of the model (`model.qk_norm`,
`model.token_shift`); output gate and norm are not here. Keys that are forgotten for good are left out where attention
is fused, which changes no result (their later paper, arXiv 2504.06949).
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pezoo.contract import Encoding, Positions, Shape, Traits, to_device
from pezoo.encodings.bias.alibi import slopes
from pezoo.errors import UserError
from pezoo.registry import register, setting


@register(
    "fox",
    title="Forget gates (FoX, Forgetting Transformer)",
    year=2025,
    authors="Lin, Nikishin, He, Courville",
    arxiv="2503.02130",
    equation="l_ij = q_i.k_j / sqrt(d) + sum_{t=j+1..i} ln f_t,  f_t = sigmoid(w.x_t + b)",
)
class FoX(Encoding):
    """A penalty on the logits that each token adds to for all that came before it."""

    traits = Traits(
        shift_invariant=True,
        bidirectional=False,
        contextual=True,
        parameters=lambda shape, c: shape.n_heads * {"full": shape.input_width + 1, "bias_only": 1, "fixed": 0}[c.gate],
    )

    @dataclass
    class Config:
        """Settings of the gates."""

        gate: Literal["full", "bias_only", "fixed"] = setting("full", "what gates are made of: input and bias, a bias")
        min_time: float | None = setting(None, "tokens in which head 1 forgets all but 1/e, at first", above=0)
        max_time: float | None = setting(None, "the same of the last head; unset: ALiBi's slopes", above=0)

        def __post_init__(self) -> None:
            times = (self.min_time, self.max_time)
            if self.gate == "full" and times != (None, None):
                raise UserError("fox:gate=full reads its gates: min_time and max_time are for gate=bias_only or fixed")
            if None in times and times != (None, None):
                raise UserError("fox needs both min_time and max_time, or neither: without them slopes are ALiBi's")

    def __init__(self, shape: Shape, config: Config) -> None:
        super().__init__(shape, config)
        if not shape.causal:
            raise UserError("fox is for decoders only: its gates forget what came before")
        if config.gate == "full":
            self.gate = nn.Linear(shape.input_width, shape.n_heads)
            nn.init.normal_(self.gate.weight, std=0.02)
            nn.init.zeros_(self.gate.bias)
        elif config.gate == "bias_only":
            self.b = nn.Parameter(-torch.tensor(self.first_slopes()).expm1().log())

    @classmethod
    def per_layer(cls, config: Config) -> bool:
        """Each layer has gates of its own."""
        return True

    def first_slopes(self) -> list[float]:
        """What gates that read nothing add per token, -ln f, for each head: 1/tau, or ALiBi's."""
        low, high, n = self.config.min_time, self.config.max_time, self.shape.n_heads
        if low is None:
            return slopes(n)
        return [low ** (h / max(1, n - 1) - 1) * high ** (-h / max(1, n - 1)) for h in range(n)]

    def read(self, x: Tensor, positions: Positions) -> Tensor | None:
        """Logarithms of the gates, (B, L, H); None where gates read nothing."""
        return F.logsigmoid(self.gate(x)) if self.config.gate == "full" else None

    def slope(self, positions: Positions) -> Tensor:
        """What gates that read nothing add per token, (H,)."""
        if self.config.gate == "bias_only":
            return F.softplus(-self.b)
        return to_device(torch.tensor(self.first_slopes(), dtype=torch.float32), positions.key.device)

    def bias(self, positions: Positions) -> Tensor:
        """The sum of ln f over the tokens after a key up to the query; where all are equal, slope times distance."""
        if positions.read is None:
            return -self.slope(positions)[:, None, None] * positions.steps()[:, None]
        total = positions.sums(positions.read).mT  # (B, H, Lk)
        return positions.of_queries(total, 2)[..., None] - total[:, :, None]

    def key_bias(self, positions: Positions) -> Tensor:
        """The part of the key: minus the sum of ln f up to it, or slope times place."""
        if positions.read is None:
            return self.slope(positions)[:, None] * positions.key_index[:, None]
        return -positions.sums(positions.read).mT
