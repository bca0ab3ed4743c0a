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

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pezoo.contract import Branch, Extension, Positions, Traits, settle
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

    def sizes(self, positions: Positions) -> tuple[Tensor, Tensor]:
        """The window w and the group G, int64, () or (R, 1)."""
        length = self.shape.train_length
        window = torch.tensor(self.config.window or max(1, length // 4), device=positions.query.device)
        total = torch.as_tensor(positions.length, device=window.device)
        total = total[:, None] if total.ndim else total
        room = max(1, length - int(window))
        fitted = self.config.group is None
        if fitted:
            group = torch.ceil((total - window) / room).clamp(min=1).long()
        else:
            group = torch.tensor(self.config.group, device=window.device)
        if self.config.window is None:
            multiple = window // group * group
            window = torch.where(multiple > 0, multiple, window)
        if fitted:  # the seam costs a step where the group does not divide the window
            group = torch.where(window % group == 0, group, torch.ceil(total / room).long())
        return window, group

    def branches(self, positions: Positions) -> tuple[Branch, ...]:
        """Pairs at least w apart, read in groups."""
        window, group = self.sizes(positions)
        shift = window / group if self.config.shift == "exact" else window // group

        def grouped(p: Tensor) -> Tensor:
            return torch.where(group > 1, (settle(p) / group).floor(), p)

        query, key = grouped(positions.query), grouped(positions.key)
        return far_regions(positions, query, key, window - shift, window)
