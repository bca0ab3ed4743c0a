"""What a model keeps of the tokens before, while it decodes."""

from typing import Any

import torch
from torch import Tensor

from pezoo.positions import on_tensors

SPARE = 16
"""Tokens that there is room for, at least, beside those that later queries see."""


class Cache:
    """What was seen so far, for decoding up to a declared length: tokens, and of each layer keys, values, and reads.

    Keys are as `Prepared.turn` leaves them: turned where the scheme allows that they are kept so. Those that no later
    token sees are dropped where `Prepared.seen` knows it. Reads are what the scheme keeps of a layer's input, if it
    keeps any. A model that mixes keys and values with those of the token before also keeps the last ones as they were,
    `last`.
    """

    def __init__(self, batch: int, length: int, device: Any) -> None:
        self.pairs: dict[int, Pairs] = {}
        self.tokens = torch.zeros(batch, length, device=device, dtype=torch.int64)
        self.reads: dict[int, Any] = {}
        self.last: dict[int, Tensor] = {}
        self.length = length
        self.filled = 0

    def see(self, tokens: Tensor) -> Tensor:
        """Add the ids of new tokens; returns all up to them, (B, Lk)."""
        stop = self.filled + tokens.shape[1]
        self.tokens[:, self.filled : stop] = tokens
        return self.tokens[:, :stop]

    def extend(
        self, layer: int, k: Tensor, v: Tensor, read: Any, first: int = 0, later: int = 0
    ) -> tuple[Tensor, Tensor, Any]:
        """Add keys, values and reads of new tokens at a layer.

        Args:
            layer: from 0.
            k: keys of the new tokens, (B, Hkv, L, d).
            v: values of the new tokens, likewise.
            read: what the scheme reads of the layer's input for the new tokens.
            first: token whose key is the first that the new tokens see; those before are not returned.
            later: the same for the tokens that come after them; those before need not be kept.

        Returns:
            Keys and values from `first` to the new ones, (B, Hkv, Lk, d) each, and all reads, (B, Lk, ...) in nested
            tuples.
        """
        stop = self.filled + k.shape[2]
        k, v = self.pairs.setdefault(layer, Pairs(self.length)).extend(self.filled, (k, v), first, later)
        if layer not in self.reads:
            self.reads[layer] = on_tensors(lambda t: t.new_zeros(len(t), self.length, *t.shape[2:]), read)

        def add(kept: Tensor, new: Tensor) -> Tensor:
            kept[:, self.filled : stop] = new
            return kept[:, :stop]

        return k, v, on_tensors(add, self.reads[layer], read)


class Pairs:
    """Keys and values of one layer: `rooms`, (B, Hkv, L, d) each, for the tokens from `start` on.

    A full room is left for one that has twice the space of what later tokens see, so that little is copied.
    """

    def __init__(self, length: int) -> None:
        self.length, self.start = length, 0
        self.rooms: tuple[Tensor, ...] = ()

    def extend(self, filled: int, new: tuple[Tensor, Tensor], first: int, later: int) -> tuple[Tensor, ...]:
        """Add those of the tokens from `filled` on; returns what there is from `first` on."""
        stop, kept = filled + new[0].shape[2], slice(first - self.start, filled - self.start)
        if self.rooms and stop - self.start <= self.rooms[0].shape[2]:
            for room, t in zip(self.rooms, new, strict=True):
                room[:, :, kept.stop : stop - self.start] = t
            return tuple(room[:, :, kept.start : stop - self.start] for room in self.rooms)
        seen: tuple[Tensor, ...] = new
        if first < filled:
            old = (room[:, :, kept] for room in self.rooms)
            seen = tuple(torch.cat((t, u.to(t.dtype)), dim=2) for t, u in zip(old, new, strict=True))
        size = min(self.length - later, 2 * (stop - later) + SPARE)
        self.rooms, self.start = tuple(t.new_zeros(*t.shape[:2], size, t.shape[3]) for t in new), later
        for room, t in zip(self.rooms, seen, strict=True):
            room[:, :, : stop - later] = t[:, :, later - first :]
        return seen
