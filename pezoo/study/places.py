"""On which devices of this machine the workers sit.

Each takes as many GPUs as a training of the study has processes, one after the other and round again. So workers share
a GPU only where there are too few. One that dies is replaced in its place.
"""

from collections import Counter
from collections.abc import Sequence

from pezoo.model.devices import find_device, gpus
from pezoo.study.recipe import Recipe

Place = tuple[str, ...]
"""The devices of a worker, one for each process of a training; the first is that of all other cells."""


def places(recipe: Recipe) -> list[Place]:
    """The place of each worker, by its number; none where cells run elsewhere."""
    if recipe.launcher != "local":
        return []
    device, each = find_device(recipe.device), max(part.train.devices for _, part in recipe.split())
    if device.type != "cuda":
        return [(device.type,) * each] * recipe.workers
    there = gpus()
    starts = [each * number if device.index is None else device.index for number in range(recipe.workers)]
    return [tuple(there[(start + i) % len(there)] for i in range(each)) for start in starts]


def seated(taken: Sequence[Place]) -> str:
    """How many workers sit where, for people; nothing where they have no GPU.

    >>> seated([("cuda:0",), ("cuda:1",), ("cuda:0",)])
    '2 workers on cuda:0, 1 on cuda:1'
    """
    counts = Counter(" and ".join(place) for place in taken if place[0].startswith("cuda"))
    lines = [f"{count} on {where}" for where, count in counts.items()]
    if lines:
        count = next(iter(counts.values()))
        lines[0] = lines[0].replace(" on ", " worker on " if count == 1 else " workers on ", 1)
    return ", ".join(lines)
