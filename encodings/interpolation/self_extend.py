"""Self-Extend: beyond a window of neighbours, positions are read in groups, so that distances stay in training.

    n -> n for n < w,  else floor(p_i / G) - floor(p_j / G) + w - floor(w / G)        n = p_i - p_j

w: window of neighbours, G: size of a group. Far distances grow by 1 each G tokens and join the near ones without a
gap where G divides w.

Shapes: one far region over (R, Lq, Lk), two in an encoder. Not in training or tuning; in testing. Twice the attention
cost.

Source: Jin et al. 2024 (arXiv 2401.01325). The authors' code divides w by G without rounding in places:
`shift=exact`; it ships w = 1024, G = 8 for L = 4096.
Departures: any encoding with a term of position pairs; groups of 1 leave real coordinates as they are. w defaults to a
quarter of the training length L, made a multiple of G. G defaults to the least that keeps every distance of the
declared length T below L, ceil((T - w) / (L - w)) where it divides w, so it is then not prefix-stable.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pezoo.contract import Branch, Extension, Positions, Traits, settle, to_device
from pezoo.encodings.interpolation.rerope import far_regions
from pezoo.registry import register, setting


@register(
    "self_extend",
    title="Self-Extend",
    year=2024,
    authors="Jin, Han, Yang, Jiang, Liu, Chang, Chen, Hu",
    arxiv="2401.01325",
    equation="n -> n if n < w, else floor(i/G) - floor(j/G) + w - floor(w/G)",
)
class SelfExtend(Extension):
    """Grouped positions beyond a window of neighbours."""

    traits = Traits(prefix_stable=False, neutral={"group": 1})
    default_at = ("test",)

    @dataclass
    class Config:
        """Settings of the window and the groups."""

        window: int | None = setting(None, "w; unset: a quarter of the training length", at_least=1)
        group: int | None = setting(None, "G; unset: what keeps distances within training", at_least=1)
        shift: Literal["floor", "exact"] = setting("floor", "w / G in the far distance: rounded down, or not")

    @property
    def prefix_stable(self) -> bool:
        """Only with a fixed G."""
        return self.config.group is not None

    def sizes(self, total: int) -> tuple[int, int]:
        """The window w and the group G for a declared length."""
        length = self.shape.train_length
        window = self.config.window or max(1, length // 4)
        room = max(1, length - window)
        group = self.config.group or max(1, math.ceil((total - window) / room))
        if self.config.window is None:
            window = window // group * group or window
        if self.config.group is None and window % group:  # then the seam costs a step
            group = math.ceil(total / room)
        return window, group

    def branches(self, positions: Positions) -> tuple[Branch, ...]:
        """Pairs at least w apart, read in groups."""
        sizes = [self.sizes(total) for total in positions.lengths]
        window, group = sizes[0]
        if len(sizes) > 1:
            window, group = to_device(torch.tensor(sizes), positions.query.device).T[..., None]  # (R, 1) each
        shift = window / group if self.config.shift == "exact" else window // group

        def grouped(p: Tensor) -> Tensor:
            in_groups = (settle(p) / group).floor()
            return torch.where(group > 1, in_groups, p) if isinstance(group, Tensor) else in_groups if group > 1 else p

        query, key = grouped(positions.query), grouped(positions.key)
        return far_regions(positions, query, key, window - shift, window)
