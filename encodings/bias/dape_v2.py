"""DAPE V2: the correction of `dape` as a convolution, in which a pair sees the logits of neighbouring keys too.

    l_ij = A_ij + B_ij + f([A ; B])_ij
    f: two convolutions along the keys, 1 x c, 2H -> width -> H channels, with a leaky ReLU between them

A_ij = q_i . k_j / sqrt(d), B_ij: the base encoding's bias, both 0 where query i does not see key j. A row of logits is
convolved by itself: queries do not see each other. Neighbours are the keys before and after in the document, whatever
their coordinates, so f tells order by itself. Each layer has a network of its own. `reads=sum` is f(A + B), which needs
no bias: for RoPE and NoPE.

Shapes: logits (B, H, Lq, Lk), bias (R, H, Lq, Lk) -> (B, H, Lq, Lk). Training and testing: the same. No fused
attention: the logits must be built.

Source: Zheng et al. 2024 (arXiv 2410.04798) and the authors' code, over ALiBi, KERPLE and FIRE, RoPE and no encoding.
Width 32, c = 3.
No key from ahead of a query gets into its row: the first convolution reads 0 for it. The hidden units there come of
earlier keys alone, so the second convolution may read them.
Departures: the code counts the hidden units past the last key of the text as 0, so that the last c // 2 queries change
once the text goes on; here they are as for every other query (an encoder has 0 there on either side). The last layer
starts at zero and has no offset, as in `dape`. Masks such as `window` hide pairs after the correction, not from it.
"""

from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pezoo.contract import Positions, Shape, Traits
from pezoo.encodings.bias.dape import DAPE
from pezoo.errors import UserError
from pezoo.registry import register, setting


def _count(shape: Shape, config: "DAPEV2.Config") -> int:
    inputs = shape.n_heads * (1 if config.reads == "sum" else 2)
    return ((inputs + shape.n_heads) * config.kernel + 1) * config.width


@register(
    "dape_v2",
    title="Convolutional data-adaptive positional encoding (DAPE V2)",
    year=2024,
    authors="Zheng, Gao, Shi, Xiong, Sun, Li, Huang, Ren, Ng, Jiang, Li, Li",
    arxiv="2410.04798",
    equation="l = A + B + f([A ; B]),  f: convolutions over neighbouring keys",
)
class DAPEV2(DAPE):
    """A correction to the logits by convolutions over heads and neighbouring keys."""

    traits = Traits(shift_invariant=True, parameters=_count, neutral={})

    @dataclass
    class Config:
        """Settings of the network."""

        width: int = setting(32, "hidden units", at_least=1)
        kernel: int = setting(3, "keys that a convolution reads (c), an odd number", at_least=1)
        reads: Literal["both", "sum"] = setting("both", "q.k and bias apart, or their sum, which needs no bias")

        def __post_init__(self) -> None:
            if self.kernel % 2 == 0:
                raise UserError(f"dape_v2:kernel must be odd, such as 3, not {self.kernel}")

    def layer(self, inputs: int, outputs: int, bias: bool) -> nn.Conv2d:
        """One convolution."""
        return nn.Conv2d(inputs, outputs, (1, self.config.kernel), bias=bias)

    def correction(self, inputs: list[Tensor], positions: Positions) -> Tensor:
        """What the convolutions make of tensors (B or R, H, Lq, Lk) side by side, (B, H, Lq, Lk)."""
        reach, seen = self.config.kernel // 2, positions.visible()[:, None]
        weights = self.first.weight.float().split(self.shape.n_heads, dim=1)
        biases = [self.offsets.float(), *[None] * (len(weights) - 1)]
        shown = (F.pad(torch.where(seen, tensor, 0.0), (2 * reach, 2 * reach)) for tensor in inputs)
        hidden = reduce(torch.add, map(F.conv2d, shown, weights, biases))
        hidden = F.leaky_relu(hidden)  # (B, width, Lq, Lk + 2 reach): keys -reach ... Lk + reach - 1
        counts = F.pad(seen, (reach, reach))
        if positions.causal:
            key = torch.arange(-reach, seen.shape[-1] + reach, device=seen.device)
            query = positions.offset + torch.arange(seen.shape[-2], device=seen.device)
            counts = counts | (key > query[:, None])
        return F.conv2d(torch.where(counts, hidden, 0.0), self.last.weight.float())
