"""Turning by angles that tokens add up along a document: what members that read them share."""

import torch
from torch import Tensor

from pezoo.contract import Positions
from pezoo.encodings.relative._rotary import turn


def turn_along(q: Tensor, k: Tensor, angles: Tensor, positions: Positions) -> tuple[Tensor, Tensor]:
    """Turn pairs of channels of q (B, H, Lq, d) and k (B, H, Lk, d) by the angles of all tokens up to their own.

    Args:
        q: queries.
        k: keys.
        angles: what each of the keys' tokens adds, radians, (B, Lk, H, n), float32; 2n channels turn.
        positions: of q and k.
    """
    total = positions.sums(angles).transpose(1, 2)
    by = torch.polar(torch.ones_like(total), total)
    return turn(q, positions.of_queries(by, 2)), turn(k, by)
