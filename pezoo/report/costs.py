"""What schemes cost: parameters, time and memory, beside the same model without positions."""

from collections.abc import Iterable

import pandas

from pezoo.report.groups import WINDOWED
from pezoo.report.layout import Table, make_heading
from pezoo.results import Result

COST_BASELINE = "nope"
"""The scheme that costs nothing, so that what others cost more is their own."""
MEASURED = ("params", "train_seconds", "tokens_per_second", "peak_memory_bytes")


def costs(results: Iterable[Result]) -> pandas.DataFrame:
    """Return what each scheme costs, as means over its trainings: all seeds, and all tasks.

    Args:
        results: of one part of a study.

    Returns:
        Rows: labels, in order of first appearance, without companions with a window. Columns: `MEASURED`, NaN where
        nothing was measured.
    """
    trainings = {}
    for r in results:
        if not r.label.endswith(WINDOWED):
            trainings.setdefault((r.label, r.seed, r.task, r.corpus), [getattr(r, name) for name in MEASURED])
    labels = pandas.Index([label for label, *_ in trainings], name="scheme")
    frame = pandas.DataFrame(list(trainings.values()), index=labels, columns=list(MEASURED), dtype=float)
    return frame.groupby(level=0, sort=False).mean()


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
    seconds = costs(results)["train_seconds"].dropna()
    return None if seconds.empty else str(seconds.idxmin())


def cost(results: Iterable[Result], name: str = "") -> Table | None:
    """Return a table of what each scheme costs, beside the scheme without positions.

    Args:
        results: of one part of a study.
        name: of the part, for the heading.

    Returns:
        The table; None where no training was timed.
    """
    results = list(results)
    beside, found = cost_baseline(results), costs(results)
    if beside is None:
        return None
    own = found.loc[beside]
    frame = pandas.DataFrame(
        {
            "parameters": ["–" if pandas.isna(more) else f"{more:+,.0f}" for more in found["params"] - own["params"]],
            **{
                name: [_times(value, own[column], unit) for value in found[column]]
                for name, column, unit in (
                    ("training seconds", "train_seconds", 1),
                    ("tokens per second", "tokens_per_second", 1),
                    ("peak memory in MiB", "peak_memory_bytes", 2**20),
                )
            },
        },
        index=found.index,
    )
    frame = frame.loc[:, (frame != "–").any()]
    first = next(r for r in results if r.label == beside)
    why = "" if first.scheme == COST_BASELINE else f", the one that trained fastest: there is no {COST_BASELINE}"
    notes = [] if pandas.isna(own["params"]) else [f"parameters: those added to the {own['params']:,.0f} of {beside}"]
    devices = {f"{r.train_device or r.device}, {r.threads} threads" for r in results}
    if len(devices) > 1:
        notes.append(f"trained on several devices, whose times do not compare: {'; '.join(sorted(devices))}")
    caption = f"Cost of a training, mean over seeds; × is beside {beside} in the same runs{why}"
    return Table(make_heading(name, "cost"), caption, frame, tuple(notes))


def _times(value: float, own: float, unit: float) -> str:
    """Return a cost, and how many times that of the baseline it is."""
    if pandas.isna(value):
        return "–"
    beside = "" if pandas.isna(own) or own == 0 else f" (×{value / own:.2f})"
    return f"{value / unit:,.{0 if value / unit >= 100 else 1}f}{beside}"
