"""The schedule of a study, simulated: when it ends with so many workers, some of which fail on the way.

Cells are given out as the launcher does it: a cell is ready when its parents are done, and ready tests go before
tunings, and these before trainings. A worker that fails is back after a while; its cell goes on from the last state
that was saved, if it is a training, else from its start.
"""

import heapq
import random
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from pezoo.study.launcher import ORDER
from pezoo.study.plan import Cell


def ends(
    cells: Mapping[str, Cell],
    seconds: Mapping[str, float],
    workers: int,
    *,
    failure_seconds: float | None = None,
    save_seconds: float = 300.0,
    back_seconds: float = 60.0,
    seed: int = 0,
) -> dict[str, float]:
    """When each cell is done in one simulated run, in seconds since its beginning.

    Args:
        cells: of the plan by key, parents before children.
        seconds: of each cell that is not done, by key.
        workers: how many run at a time, each one cell.
        failure_seconds: between two failures of one worker, on average (a Poisson process); None: none fails.
        save_seconds: between two states that a training saves.
        back_seconds: until a worker that failed, or another in its place, is at work again.
        seed: of the failures.
    """
    draw = random.Random(seed)
    place = {key: i for i, key in enumerate(cells)}
    waits = {key: {p for p in cells[key].parents if p in seconds} for key in seconds}
    children: dict[str, list[str]] = {}
    for key, parents in waits.items():
        for parent in parents:
            children.setdefault(parent, []).append(key)
    ready = [(ORDER[cells[key].kind], place[key], key) for key, parents in waits.items() if not parents]
    heapq.heapify(ready)
    rest, busy, now, idle = dict(seconds), list[tuple[float, int, str, bool]](), 0.0, workers
    done: dict[str, float] = {}
    while ready or busy:
        while ready and idle:
            _, at, key = heapq.heappop(ready)
            failure = draw.expovariate(1 / failure_seconds) if failure_seconds else float("inf")
            fails = failure < rest[key]
            if fails and cells[key].kind in ("train", "tune"):
                rest[key] -= failure // save_seconds * save_seconds
            idle -= 1
            heapq.heappush(busy, (now + (failure + back_seconds if fails else rest[key]), at, key, fails))
        now, at, key, failed = heapq.heappop(busy)
        idle += 1
        for child in () if failed else children.get(key, ()):
            waits[child].discard(key)
            if not waits[child]:
                heapq.heappush(ready, (ORDER[cells[child].kind], place[child], child))
        if failed:
            heapq.heappush(ready, (ORDER[cells[key].kind], at, key))
        else:
            done[key] = now
    return done


def simulate(cells: Mapping[str, Cell], seconds: Mapping[str, float], workers: int, **failures: Any) -> float:
    """Seconds to the end of one simulated run; see `ends`."""
    return max(ends(cells, seconds, workers, **failures).values(), default=0.0)


def expected(
    cells: Mapping[str, Cell],
    seconds: Mapping[str, float],
    workers: int,
    failure_seconds: float,
    runs: int = 20,
    **failures: Any,
) -> float:
    """The mean of several simulated runs with failures, in seconds; see `ends`."""
    failures["failure_seconds"] = failure_seconds
    return fmean(simulate(cells, seconds, workers, seed=seed, **failures) for seed in range(runs))
