"""Where the tokens of one forward of a transformers model stand.

Positions of keys come from the mask of padding, (B, K), which covers all tokens so far; without one from the cache's
length. `position_ids` count where there is neither mask nor cache: there they may also begin anew within a row (packed
rows). Elsewhere they must agree with the mask, up to a number for each row.

Legend: B batch, R rows (1 or B), L new tokens, K tokens so far, or places of a cache of fixed size.
"""

from typing import Any

import torch
from torch import Tensor

from pezoo.contract import Positions
from pezoo.errors import UserError


def positions(
    batch: int,
    new: int,
    *,
    past: int = 0,
    places: int | None = None,
    valid: Tensor | None = None,
    position_ids: Tensor | None = None,
    caching: bool = False,
    device: torch.device | str | None = None,
    **facts: Any,
) -> Positions:
    """Positions of the new tokens as queries, and of all tokens as keys.

    Args:
        batch: rows (B).
        new: new tokens of a row (L).
        past: tokens that the cache holds.
        places: keys of a row, if more than past + new, as in a cache of fixed size: those ahead are never seen.
        valid: (B, past + new) or longer, False for padding.
        position_ids: of the new tokens, (R, L).
        caching: whether the model fills a cache, so that transformers does not look for packed rows.
        device: where the tensors live.
        facts: tokens, rows, declared, phase and seed, as in `Positions.build`.

    Raises:
        UserError: if the mask has holes, position_ids contradict it, or they begin anew beside a mask or a cache.
    """
    total, masked = past + new, valid is not None
    places = max(places or 0, total)
    if valid is not None:
        valid = valid[:, :total].bool()
        if valid.shape != (batch, total):
            raise UserError(
                f"attention_mask is of the shape {tuple(valid.shape)}, but there are {batch} rows of {total} tokens, "
                "those in the cache included"
            )
        if bool((valid.int().diff(dim=1) > 0).sum(dim=1).gt(~valid[:, 0]).any()):
            raise UserError("attention_mask has padding between the tokens of a row; it goes before or after them")
        valid = None if bool(valid.all()) else _longer(valid, places, True)
    documents = None
    if position_ids is not None:
        if position_ids.ndim != 2 or position_ids.shape[1] != new or len(position_ids) not in (1, batch):
            raise UserError(f"position_ids is (B, {new}), not {tuple(position_ids.shape)}")
        jumps = position_ids.diff(dim=1) != 1
        if valid is None and not past and bool(jumps.any()):
            if caching or masked:
                raise UserError(
                    "position_ids begin anew within a row. Packed rows go without a cache and without a mask: pass "
                    "use_cache=False and no attention_mask"
                )
            first = jumps.new_zeros(len(jumps), 1)
            documents = torch.cat([first, jumps], dim=1).cumsum(dim=1).expand(batch, -1)
            documents = _longer(documents, places, -1)
    found = Positions.build(places, batch, documents=documents, valid=valid, device=device, **facts)
    if position_ids is not None:
        found = _told(found, position_ids.to(found.key.device), past, valid)
    return found.slice(past, total)


def _told(found: Positions, told: Tensor, past: int, valid: Tensor | None) -> Positions:
    """Coordinates as position_ids tell them, which may be a number away from places in the document."""
    new = told.shape[1]
    index = found.key_index[:, past : past + new]
    shift = told - index
    counts = torch.ones_like(shift, dtype=torch.bool) if valid is None else valid[:, past : past + new].to(told.device)
    if not bool((shift != 0).logical_and(counts).any()):
        return found
    if not past and valid is None:  # each document may have a number of its own
        key = torch.nn.functional.pad(told.float(), (0, found.key.shape[1] - new))
        return found.replace(query=key, key=key, spacing=None)
    last = shift[:, -1:]  # of padding to the right: the largest that counts
    row = torch.where(counts, shift, torch.iinfo(shift.dtype).min).amax(dim=1, keepdim=True)
    row = torch.where(counts.any(dim=1, keepdim=True), row, last)
    if bool((shift != row).logical_and(counts).any()):
        raise UserError(
            "position_ids do not count the tokens that attention_mask and the cache say there are. Leave them out, or "
            "pass rows without padding and use_cache=False"
        )
    key = found.key + row
    return found.replace(query=key, key=key, spacing=None)


def _longer(tensor: Tensor, length: int, value: Any) -> Tensor:
    return torch.nn.functional.pad(tensor, (0, length - tensor.shape[1]), value=value)
