"""What schemes cost: parameters, time and memory, beside the same model without positions."""

from collections.abc import Iterable

import pandas

from pezoo.report.groups import WINDOWED
from pezoo.results import Result

COST_BASELINE = "nope"
"""The scheme that costs nothing, so that what others cost more is their own."""
MEMORY = "peak_memory_bytes"
MEASURED = ("params", "trained_params", "train_seconds", "train_cpu_seconds", "tokens_per_second", MEMORY)


def costs(results: Iterable[Result]) -> pandas.DataFrame:
    """Return what each scheme costs, as means over its trainings: all seeds, and all tasks.

    Memory is what the test at any length takes at most: under `prefix` one forward can serve all lengths.

    Args:
        results: of one part of a study.

    Returns:
        Rows: labels, in order of first appearance, without companions with a window. Columns: `MEASURED`, NaN where
        nothing was measured.
    """
    trainings: dict[tuple[str, int, str, str], dict[str, float | None]] = {}
    for r in results:
        if not r.label.endswith(WINDOWED):
            one = trainings.setdefault(
                (r.label, r.seed, r.task, r.corpus), {name: getattr(r, name) for name in MEASURED}
            )
            one[MEMORY] = max((n for n in (one[MEMORY], getattr(r, MEMORY)) if n is not None), default=None)
    labels = pandas.Index([label for label, *_ in trainings], name="scheme")
    frame = pandas.DataFrame(list(trainings.values()), columns=list(MEASURED), dtype=float).set_index(labels)
    return frame.groupby(level=0, sort=False).mean()


def training_seconds(spent: pandas.DataFrame) -> pandas.Series:
    """Return how long trainings took, such that they compare: by the processor's time, or else by the clock.

    Other work on a machine stretches the time by the clock, two workers side by side for one.

    Args:
        spent: what `costs` returned.
    """
    return spent["train_seconds" if by_clock(spent) else "train_cpu_seconds"]


def by_clock(spent: pandas.DataFrame) -> bool:
    """Return whether processor time is missing of a training.

    Args:
        spent: what `costs` returned.
    """
    timed = spent[spent["train_seconds"].notna()]
    return timed.empty or bool(timed["train_cpu_seconds"].isna().any())


def cost_baseline(results: Iterable[Result]) -> str | None:
    """Return the label that costs stand beside: `COST_BASELINE` as it was trained, or else the one trained fastest.

    Args:
        results: of one part of a study.

    Returns:
        The label; None where no training was timed.
    """
    results = list(results)
    for r in results:
        if r.scheme == COST_BASELINE and not r.finetune_steps and not r.label.endswith(WINDOWED):
            return r.label
    seconds = training_seconds(costs(results)).dropna()
    return None if seconds.empty else str(seconds.idxmin())
