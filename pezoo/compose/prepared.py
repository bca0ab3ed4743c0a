"""A scheme made ready for one forward: what the input embedding and the attention of each layer ask it for.

Legend: B batch, H heads, Lq queries, Lk keys, L length, D d_model, d head_dim.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pezoo.attention import attend, logits
from pezoo.composition import Composition, Part, fused_refusal
from pezoo.contract import Shape, in_float32, overrides
from pezoo.errors import UserError
from pezoo.positions import leaves, on_tensors


@dataclass(frozen=True)
class Group:
    """Some heads of one layer, and what the scheme adds to their attention."""

    heads: slice
    composition: Composition

    def bias(self) -> Tensor:
        """The bias of these heads in the first row, (H, Lq, Lk), far regions included."""
        positions, n_heads = self.composition.positions, self.heads.stop - self.heads.start
        total = nothing = torch.zeros_like(positions.distance())[:, None].expand(-1, n_heads, -1, -1)
        for r, region in enumerate(self.composition.regions):
            found = self.composition.bias(r)
            bias, branch = nothing if found is None else found, region.branch
            total = bias if branch is None else torch.where(branch.region(positions)[:, None], bias, total)
        return total[0]


@dataclass(frozen=True)
class Prepared:
    """A scheme made ready for one forward."""

    shape: Shape
    input: tuple[Part, ...]
    layers: tuple[tuple[Group, ...], ...]

    @property
    def begins_document(self) -> Tensor:
        """Which of the queries' tokens are the first of their document, (R, Lq)."""
        return self.layers[0][0].composition.positions.query_index == 0

    def embed(self, x: Tensor) -> Tensor:
        """Token embeddings (B, Lq, D) with positions."""
        with in_float32(x.device):
            for part in self.input:
                x = part.encoding.embed(x, part.positions)
        return x

    def read(self, layer: int, x: Tensor) -> Any:
        """What the members of a layer need of its input, to be kept beside k and v.

        Args:
            layer: whose part of the scheme.
            x: what q, k and v are made of, (B, L, D), for the queries' tokens or for all keys.

        Returns:
            For `attend(read=)`: nested tuples of tensors (B, L, ...), to be joined token by token with those of earlier
            tokens; None if no member reads anything, as is the rule.

        Raises:
            UserError: if x is not of that shape.
        """
        groups = self.at(layer)
        parts = [g.composition.base for g in groups]
        if not any(overrides(p.encoding, "read") for row in parts for p in row):
            return None
        positions = groups[0].composition.positions
        n_queries, n_keys, width = positions.query.shape[1], positions.key.shape[1], self.shape.d_model
        if x.ndim != 3 or x.shape[1] not in (n_queries, n_keys) or x.shape[2] != width:
            tokens = f"{n_keys}" if n_queries == n_keys else f"{n_queries} or {n_keys}"
            raise UserError(f"x is (B, L, {width}), for {tokens} tokens, not {tuple(x.shape)}")

        def one(part: Part) -> Any:
            positions = part.positions
            here = positions.replace(prepared=None) if x.shape[1] == n_queries else positions.of_keys()
            found = part.encoding.read(x.float(), here)
            return on_tensors(lambda t: _as_long(t, x, part), found)

        with in_float32(x.device):
            return tuple(tuple(map(one, row)) for row in parts)

    def turn(self, layer: int, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys of new tokens as a cache keeps them: turned if the scheme was made ready for that.

        Args:
            layer: whose part of the scheme.
            q: queries, (B, H, L, d), not rotated.
            k: keys of the same tokens, (B, Hkv, L, d), not rotated.
        """
        composition = self.at(layer)[0].composition
        if not composition.turned:
            return q, k
        with in_float32(q.device):
            return composition.turn(q, k)

    def seen(self, layer: int, length: int) -> tuple[int, int]:
        """The first key that the queries see, and the first that later ones see, so that a cache can drop others.

        Both are 0 where a member may look at keys that a mask hides, or where nobody says where the mask ends.

        Args:
            layer: whose part of the scheme.
            length: tokens that there will be (L).
        """
        first, later = [], []
        for composition in (group.composition for group in self.at(layer)):
            if not _may_miss_keys(composition):
                return 0, 0
            positions = composition.positions
            start, stop = positions.offset, positions.offset + positions.query.shape[1]
            first.append(composition.reach(start, stop - 1, length)[0][0])
            later.append(composition.reach(stop, length - 1, length)[0][0] if stop < length else first[-1])
        return max(0, min(first)), max(0, min(later))

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        backend: str = "auto",
        *,
        x: Tensor | None = None,
        read: Any = None,
        first_key: int = 0,
    ) -> Tensor:
        """Attention of one layer: q (B, H, Lq, d), k and v (B, Hkv, Lk, d) -> (B, H, Lq, d).

        Args:
            layer: whose part of the scheme.
            q: queries, not rotated, or as `turn` leaves them.
            k: keys, not rotated, or as a cache has kept what `turn` left.
            v: values.
            backend: "auto", or a name from `pezoo.attention.BACKENDS`.
            x: what q, k and v are made of, (B, Lk, D), for schemes that read it.
            read: instead of x, what `read` gave for all keys.
            first_key: the token whose key is the first in k, as `seen` says.

        Raises:
            UserError: if sizes are not those of the scheme and its positions, the back-end cannot run it, or the scheme
                needs x and does not get it.
        """
        groups = self.groups(layer, q, k, v, x, read, first_key)
        if len(groups) == 1:
            return attend(q, k, v, groups[0].composition, backend)
        repeat = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
        outputs = [attend(q[:, g.heads], k[:, g.heads], v[:, g.heads], g.composition, backend) for g in groups]
        return torch.cat(outputs, dim=1)

    def logits(self, layer: int, q: Tensor, k: Tensor, *, x: Tensor | None = None) -> Tensor:
        """What the softmax of one layer sees, (B, H, Lq, Lk), float32, but for a sink; -inf where a key is not seen."""
        groups = self.groups(layer, q, k, k, x)
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        return torch.cat([logits(q[:, g.heads], k[:, g.heads], g.composition) for g in groups], dim=1)

    def groups(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        x: Tensor | None = None,
        read: Any = None,
        first_key: int = 0,
    ) -> tuple[Group, ...]:
        """The groups of heads of a layer, after a look at what they are asked to work on."""
        shape, groups = self.shape, self.at(layer)
        if any(t.ndim != 4 for t in (q, k, v)) or k.shape[:3] != v.shape[:3] or len(q) != len(k):
            shapes = ", ".join(str(tuple(t.shape)) for t in (q, k, v))
            raise UserError(f"q is (B, H, Lq, d), k and v are (B, Hkv, Lk, d) with Hkv a divisor of H, not {shapes}")
        if (q.shape[1], q.shape[3], k.shape[3]) != (shape.n_heads, shape.head_dim, shape.head_dim):
            raise UserError(
                f"q has {q.shape[1]} heads of width {q.shape[3]} and k heads of width {k.shape[3]}, but the scheme was "
                f"created for {shape.n_heads} heads of width {shape.head_dim}; for the heads of q create it with "
                f"n_heads={q.shape[1]}, head_dim={q.shape[3]}"
            )
        if q.shape[1] % k.shape[1]:
            raise UserError(f"{k.shape[1]} key/value heads do not divide {q.shape[1]} query heads")
        positions = groups[0].composition.positions
        n_queries, n_keys, rows = positions.query.shape[1], positions.key.shape[1], len(positions.key)
        if (q.shape[2], first_key + k.shape[2]) != (n_queries, n_keys) or rows not in (1, len(q)):
            raise UserError(
                f"positions are of {n_queries} queries and {n_keys} keys in {rows} rows, but q and k have {q.shape[2]} "
                f"and {k.shape[2]} in {len(q)}; positions.slice(start, stop, n_keys) cuts them"
            )
        if x is not None and len(x) != len(q):
            raise UserError(f"x has {len(x)} rows, but q has {len(q)}")
        groups = self.reading(layer, x, read)
        if first_key:
            parts = [g.composition.slice(0, n_queries, n_keys, first_key) for g in groups]
            groups = tuple(replace(g, composition=part) for g, part in zip(groups, parts, strict=True))
        return groups

    def reading(self, layer: int, x: Tensor | None = None, read: Any = None) -> tuple[Group, ...]:
        """The groups of heads of a layer, with what was read of its input for all keys: from x (B, Lk, D), or given.

        Raises:
            UserError: if the scheme reads the input and neither is given, or not for all keys.
        """
        groups = self.at(layer)
        encodings = [p.encoding for g in groups for p in g.composition.base]
        name = next((e.name for e in encodings if overrides(e, "read")), None)
        if name is None:
            return groups
        if read is None:
            if x is None:
                raise UserError(
                    f"{name} reads the input of the layer: pass x=, what q, k and v are made of, (B, Lk, D)"
                )
            read = self.read(layer, x)
        n_keys, lengths = groups[0].composition.positions.key.shape[1], {t.shape[1] for t in leaves(read)}
        if lengths - {n_keys}:
            raise UserError(
                f"{name} has read {min(lengths)} tokens of the input, but there are {n_keys} keys; pass x= of all of "
                "them, or read= with what prepared.read(layer, x) gave for earlier tokens before the new ones"
            )
        return tuple(replace(g, composition=g.composition.reading(r)) for g, r in zip(groups, read, strict=True))

    def at(self, layer: int) -> tuple[Group, ...]:
        """The groups of heads of a layer.

        Raises:
            UserError: if the scheme has no such layer.
        """
        if not 0 <= layer < len(self.layers):
            raise UserError(f"layer = {layer}, but the scheme has layers 0 ... {len(self.layers) - 1}")
        return self.layers[layer]


def _may_miss_keys(composition: Composition) -> bool:
    """Whether keys that are out of reach may be missing: no member looks at them, or changes keys or values anew."""
    known = composition.found.get("may_miss_keys")
    if known is None:
        alone = composition.positions.key_document is None and composition.states_reach
        alone = alone and fused_refusal(composition) is None and (composition.turned or not composition.uses("rotate"))
        alone = alone and not any(map(composition.uses, ("read", "change_values")))
        known = alone and (not composition.uses("bias") or composition.distance_table() is not None)
        composition.found["may_miss_keys"] = known
    return bool(known)


def _as_long(found: Tensor, x: Tensor, part: Part) -> Tensor:
    """What a member read, refused if it is not there for each token."""
    if found.shape[:2] != x.shape[:2]:
        raise UserError(
            f"read of {part.encoding.name} gives {tuple(found.shape)}, but it is to begin with {tuple(x.shape[:2])}: "
            "one line per token"
        )
    return found
