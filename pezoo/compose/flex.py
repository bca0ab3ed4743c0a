"""Schemes for PyTorch's FlexAttention: what changes a score, and what a query sees, as functions of indices.

Legend: H heads, Lq queries, Lk keys.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pezoo.compose.prepared import Group
from pezoo.compose.tables import beside
from pezoo.contract import Positions, in_float32, overrides
from pezoo.errors import UserError

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def score_mod(groups: Sequence[Group], turned: bool) -> ScoreMod:
    """What `Scheme.score_mod` returns, for the groups of heads of one layer."""
    allowed = ("bias", "distance_bias", "mask", "scale", "branches")
    for group in groups:
        composition = group.composition
        reason = beside(composition, *allowed)
        turning = next((p.encoding for p in composition.base if overrides(p.encoding, "rotate")), None)
        if reason is None and turning is not None:
            if composition.regions[1:]:
                reason = f"{turning.name} turns queries and keys otherwise in a far region"
            elif not turned:
                reason = f"{turning.name} turns queries and keys; turn them first, and say so with turned=True"
        if reason is not None:
            raise UserError(f"no score_mod: {reason}")
    with torch.no_grad(), in_float32(groups[0].composition.positions.query.device):
        factor, (table, of_distance) = _factors(groups), _biases(groups)
    n_queries = groups[0].composition.positions.query.shape[1]

    def change(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        if factor is not None:
            score = score * factor[h, q]
        if table is not None:
            score = score + (table[h, n_queries - 1 - q + k] if of_distance else table[h, q, k])
        return score

    return change


def _factors(groups: Sequence[Group]) -> Tensor | None:
    """What the default scale of FlexAttention, 1 / sqrt(d), is to be multiplied by, (H, Lq); None if it is 1."""
    rows = []
    for group in groups:
        composition, n_heads = group.composition, group.heads.stop - group.heads.start
        query = composition.positions.query
        own = composition.scale * composition.base[0].encoding.shape.head_dim ** 0.5
        sigma = torch.as_tensor(composition.sigma(), dtype=torch.float32, device=query.device) * own
        if sigma.ndim:  # (1, 1 or H, Lq, 1)
            sigma = sigma[0, :, :, 0]
        rows.append(sigma.expand(n_heads, query.shape[1]))
    found = torch.cat(rows)
    return None if torch.allclose(found, torch.ones_like(found), rtol=1e-6) else found


def _biases(groups: Sequence[Group]) -> tuple[Tensor | None, bool]:
    """Biases: (H, Lk + Lq - 1) by distance, largest first, and True; or (H, Lq, Lk), and False; None if all are 0."""
    if not any(g.composition.uses(hook) for g in groups for hook in ("bias", "distance_bias")):
        return None, True
    tables = [_by_distance(group) for group in groups]
    if all(table is not None for table in tables):
        return torch.cat([table for table in tables if table is not None]), True
    return torch.cat([group.bias() for group in groups]), False


def _by_distance(group: Group) -> Tensor | None:
    """The bias of a group as rows of distance, (H, Lk + Lq - 1), finite; None if it needs more."""
    composition = group.composition
    table = composition.bias_by_distance()
    biased = any(map(composition.uses, ("bias", "distance_bias")))
    if table is None and not composition.regions[1:] and not biased:
        positions = composition.positions
        width = positions.query.shape[1] + positions.key.shape[1] - 1
        return torch.zeros(group.heads.stop - group.heads.start, width, device=positions.query.device)
    return table


def mask_mod(groups: Sequence[Group]) -> MaskMod:
    """What `Scheme.mask_mod` returns, for the groups of heads of one layer."""

    def one(group: Group, b: Tensor, q: Tensor, k: Tensor) -> Tensor:
        composition = group.composition
        here = _at(composition.positions, b, q, k)
        seen = here.visible()
        for extension in composition.extensions:
            mask = extension.mask(here) if overrides(extension, "mask") else None
            seen = seen if mask is None else seen & mask
        return seen[0, 0, 0]

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = one(groups[0], b, q, k)
        for group in groups[1:]:
            seen = torch.where(h >= group.heads.start, one(group, b, q, k), seen)
        return seen

    return sees


def _at(positions: Positions, b: Tensor, q: Tensor, k: Tensor) -> Positions:
    """The positions of one query and one key, whose numbers are tensors."""

    def pick(tensor: Tensor | None, place: Tensor) -> Tensor | None:
        if tensor is None:
            return None
        return (tensor[0] if len(tensor) == 1 else tensor[b])[place].view(1, 1)

    length = positions.length
    return positions.replace(
        query=pick(positions.query, q),
        key=pick(positions.key, k),
        query_index=pick(positions.query_index, q),
        key_index=pick(positions.key_index, k),
        query_document=pick(positions.query_document, q),
        key_document=pick(positions.key_document, k),
        length=length[b].view(1) if isinstance(length, Tensor) and len(length) > 1 else length,
    )
