"""What a model's cache gives back, and what a scheme keeps of earlier tokens in it, as further layers.

So what transformers does to a cache (beams reordered, rows repeated, tokens taken back) is done to that as well.

Legend: B batch, L new tokens, K tokens so far, or places of a cache of fixed size.
"""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache, DummyLayer, DynamicLayer, StaticLayer, StaticSlidingWindowLayer

PLACES = "_pezoo_places"
"""Where a cache keeps which of its layers holds what."""


def spans(cache: Cache, new: int, n_layers: int, kinds: Sequence[str] | None) -> list[tuple[int, int]]:
    """Which keys each layer's cache will give back once it has the new tokens: [start, stop).

    A layer without a cache of its own reuses the keys of the last one of its kind.
    """
    found: list[tuple[int, int]] = []
    for layer in range(n_layers):
        if kinds and layer < len(cache.layers) and isinstance(cache.layers[layer], DummyLayer):
            found.append(next(found[i] for i in reversed(range(layer)) if kinds[i] == kinds[layer]))
        else:
            length, start = (int(size) for size in cache.get_mask_sizes(new, layer))
            found.append((start, start + length))
    return found


def extend(cache: Cache, name: Any, new: Tensor, n_layers: int, places: int) -> Tensor:
    """Add what is kept of new tokens, (B, L, ...), under a name; returns that of all places, (B, K, ...).

    Args:
        cache: of the model.
        name: of what is kept.
        new: one line for each new token.
        n_layers: how many layers of the cache are the model's.
        places: K; those that hold nothing yet are zeros.
    """
    held = vars(cache).setdefault(PLACES, {})
    if name not in held:
        while len(cache.layers) < n_layers:
            cache.layers.append(DynamicLayer())
        sizes = [y.max_cache_len for y in cache.layers if type(y) is StaticLayer]
        fixed = isinstance(cache.layers[0], StaticSlidingWindowLayer | StaticLayer)
        cache.layers.append(StaticLayer(max_cache_len=sizes[0]) if fixed and sizes else DynamicLayer())
        held[name] = len(cache.layers) - 1
    lines = new.flatten(2)[:, None] if new.ndim > 2 else new[:, None, :, None]
    kept, _ = cache.layers[held[name]].update(lines, lines[..., :1])
    kept = F.pad(kept, (0, 0, 0, places - kept.shape[2]))
    return kept[:, 0].unflatten(-1, new.shape[2:]) if new.ndim > 2 else kept[:, 0, :, 0]
