"""Random numbers by counter: each is a function of (key, row, layer, place) alone, so rows can be drawn in any batch.

Philox 4x32 with 10 rounds, from Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3". All
rows are drawn as one batch. It needs whole numbers only, so that every device draws the same.
"""

import hashlib
import math

import numpy as np
import torch
from torch import Tensor

MASK = 0xFFFFFFFF
ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Four words of 32 random bits, int64, for counters of four words (tensors that broadcast) and a key of two."""
    (a, b, c, d), (one, two) = counter, key
    for _ in range(ROUNDS):
        low, high = a * MULTIPLIERS[0], c * MULTIPLIERS[1]  # 64 bits: int64 wraps, but keeps all of them
        a, c = ((high >> 32) ^ b ^ one) & MASK, ((low >> 32) ^ d ^ two) & MASK
        b, d = high, low  # of which the lower 32 bits count
        one, two = (one + WEYL[0]) & MASK, (two + WEYL[1]) & MASK
    return a, b & MASK, c, d & MASK


def words(n: int, rows: Tensor, layer: int, name: str) -> Tensor:
    """32 random bits at each of `n` places, (R, n), int64.

    Args:
        n: how many for each row.
        rows: (R,) numbers of the sequences, int64.
        layer: of the model.
        name: of the draw, its seed included.
    """
    digest = hashlib.sha256(name.encode()).digest()
    key = int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:8], "big")
    block = torch.arange(-(-n // 4), device=rows.device)[None]
    row = rows[:, None]
    four = philox((block, row & MASK, (row >> 32) & MASK, torch.full_like(block, layer)), key)
    return torch.stack(four, dim=-1).flatten(1)[:, :n]


def uniform(bits: Tensor) -> Tensor:
    """Numbers in [0, 1), float32, from the upper 24 of 32 bits."""
    return (bits >> 8).to(torch.float32) * 2.0**-24


def whole(bits: Tensor, low: Tensor | int, high: Tensor | int) -> Tensor:
    """Whole numbers from U{low ... high}, int64; `low` where there is none."""
    choices = high - low + 1
    choices = choices.clamp(min=1) if isinstance(choices, Tensor) else max(1, choices)
    return low + (bits * choices >> 32)


def subset(bits: Tensor, size: Tensor | int, total: Tensor | int) -> Tensor:
    """Sorted subsets of `size` of {0 ... total - 1}, uniform among all such, int64, (R, W).

    Floyd's method (Bentley, Floyd 1987), all steps at once. Step c draws from {0 ... j}, j = total - size + c. It takes
    j itself if what it drew was taken before: drawn by an earlier step, or the j of one that had to take its own.

    Args:
        bits: (R, W), 32 random bits for each step, W at least `size`.
        size: of the subset, a number or (R, 1), at most `total`.
        total: of the set, a number or (R, 1).

    Returns:
        The subset in each row's first `size` places; what follows is no part of it.
    """
    width = bits.shape[1]
    step = torch.arange(width, device=bits.device)[None]
    last = total - size + step
    drawn = whole(bits, 0, last)
    shift = max(1, width - 1).bit_length()
    order = _sorted(drawn << shift | step)  # by number, and where equal by step
    number, place = order >> shift, order & ((1 << shift) - 1)
    taken = torch.zeros_like(drawn, dtype=torch.bool)
    taken.scatter_(1, place[:, 1:], number[:, 1:] == number[:, :-1])
    before = drawn - (total - size)  # the step whose own j was drawn, if any
    before = torch.where((before >= 0) & (before < step), before, step)
    for _ in range(math.ceil(math.log2(max(2, width)))):  # follow these steps to where they end
        taken = taken | taken.gather(1, before)
        further = before.gather(1, before)
        if bits.device.type == "cpu" and torch.equal(further, before):
            break  # all have ended; on a device it would cost more to ask
        before = further
    chosen = torch.where(taken, last, drawn)
    whole_width = isinstance(size, int) and size == width
    return _sorted(chosen if whole_width else torch.where(step < size, chosen, 2**40))


def _sorted(rows: Tensor) -> Tensor:
    if rows.device.type == "cpu":  # where NumPy is five times as fast
        return torch.from_numpy(np.sort(rows.numpy(), axis=1))
    return rows.sort(dim=1).values
