"""Schemes beside a baseline: columns and tables of comparisons, and of cost."""

from collections.abc import Iterable

import pandas

from pezoo.errors import UserError
from pezoo.report.captions import heading_of, length_words, metric_words
from pezoo.report.comparisons import Comparison, best_in_range, compare_all
from pezoo.report.costs import COST_BASELINE, by_clock, cost_baseline, costs, training_seconds
from pezoo.report.groups import WINDOWED, select
from pezoo.report.printed import BESIDE, Table
from pezoo.report.statistics import (
    ACCURACIES,
    PERPLEXITIES,
    scale_of,
)
from pezoo.results import BITS_PER_BYTE, Result
from pezoo.results.losses import Sources

COMPARED = (*PERPLEXITIES, "loss", BITS_PER_BYTE, *ACCURACIES)
"""Metrics of which it is known whether more or less is better."""
ONE_SEED = (
    "one seed: there is no interval and no verdict, since nobody knows how far another seed would move these numbers; "
    "two seeds would say it"
)


def against(
    results: Iterable[Result],
    metric: str,
    protocol: str,
    name: str = "",
    baseline: str = "",
    losses: Sources | None = None,
) -> Table | None:
    """Return a table that compares each scheme with the baseline at every length from L on.

    Its last columns are the interval at the longest length, and the p-value corrected for all comparisons of the table.

    Args:
        results: results of one group.
        metric: what to compare.
        protocol: how it was tested.
        name: of the group, for the heading.
        baseline: as in `by_length`.
        losses: as in `by_length`.

    Returns:
        The table; None where there are no two schemes to compare.
    """
    kept = select(results, metric, protocol)
    beside, why = _baseline(kept, baseline)
    found = [] if beside is None else compare_all(kept, beside, losses)
    if not found:
        return None
    lengths = sorted({one.test_length for one in found})
    names, tests = {length: length_words(length, kept) for length in lengths}, sum(one.p is not None for one in found)
    last, rows = names[lengths[-1]], {}
    for one in found:
        row = rows.setdefault(one.label, dict.fromkeys(names.values(), "–"))
        row[names[one.test_length]] = effect_words(one)
        if tests and one.test_length == lengths[-1]:
            p = "–" if one.p_corrected is None else _p(one.p_corrected)
            row |= {f"interval at {last}": interval_words(one), "p": p}
    frame = pandas.DataFrame.from_dict(rows, orient="index").fillna("–").rename_axis("scheme")
    notes = _meaning(found)
    if tests:
        notes.append(
            f"p: of no difference at {last}, corrected by Holm's method for {tests} comparisons; "
            "of one scheme that was named beforehand read the interval, of all of them p"
        )
    of = "ratio to" if scale_of(metric) == "log" else "difference from"
    caption = f"{metric_words(kept[0])}, {of} {beside}, {why}; {kept[0].corpus}; {protocol} protocol"
    return Table(heading_of(name, metric, f"against {beside}", f"{protocol} protocol"), caption, frame, tuple(notes))


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
    found["seconds"] = training_seconds(found)
    processor = not by_clock(found)
    own, tunings = found.loc[beside], {r.label for r in results if r.finetune_steps}
    frame = pandas.DataFrame(
        {
            "parameters": ["–" if pandas.isna(more) else f"{more:+,.0f}" for more in found["params"] - own["params"]],
            "tuned parameters": [
                "–" if pandas.isna(n) or not tuned else f"{n:,.0f}"
                for n, tuned in zip(found["trained_params"], found.index.isin(tunings), strict=True)
            ],
            **{
                name: [_times(value, own[column], unit) for value in found[column]]
                for name, column, unit in (
                    ("training seconds", "seconds", 1),
                    *([] if processor else [("tokens per second", "tokens_per_second", 1)]),
                    ("peak memory of testing in MiB", "peak_memory_bytes", 2**20),
                )
            },
        },
        index=found.index,
    )
    frame = frame.loc[:, (frame != "–").any()]
    first = next(r for r in results if r.label == beside)
    why = "" if first.scheme == COST_BASELINE else f", the one that trained fastest: there is no {COST_BASELINE}"
    notes = [] if pandas.isna(own["params"]) else [f"parameters: those added to the {own['params']:,.0f} of {beside}"]
    if processor:
        notes.append("training seconds: of the processor, which other work on the machine does not stretch")
    else:
        notes.append("training seconds: by the clock, so that other work on the machine counts as well")
    devices = {f"{r.train_device or r.device}, {r.threads} threads" for r in results}
    if len(devices) > 1:
        notes.append(f"trained on several devices, whose times do not compare: {'; '.join(sorted(devices))}")
    caption = f"Cost of a training, mean over seeds; × is beside {beside} in the same runs{why}"
    return Table(heading_of(name, "cost"), caption, frame, tuple(notes))


def add_comparison(
    frame: pandas.DataFrame, kept: list[Result], baseline: str, losses: Sources | None, what: str = ""
) -> list[str]:
    """Add the column that compares each row with the baseline at the longest length, and return what it means."""
    beside, why = _baseline(kept, baseline)
    if beside is None:
        return []
    last = max(r.test_length for r in kept)
    found = {one.label: one for one in compare_all(kept, beside, losses, lengths=[last])}
    if all(one.effect is None for one in found.values()):
        return []
    frame[BESIDE] = [
        "baseline" if label == beside else effect_words(found[label]) if label in found else "" for label in frame.index
    ]
    of = "ratio to" if scale_of(kept[0].metric) == "log" else "difference from"
    at = what or f"at {length_words(last, kept)}"
    return [f"{BESIDE}: {at}, {of} {beside}, {why}", *_meaning(list(found.values()))]


def _baseline(kept: list[Result], baseline: str) -> tuple[str | None, str]:
    """Return what to compare with, and why; None where there is nothing to compare, or nothing to compare with."""
    labels = {r.label for r in kept if not r.label.endswith(WINDOWED)}
    if len(labels) < 2 or kept[0].metric not in COMPARED:
        return None, ""
    if baseline in labels:
        return baseline, "the study's baseline"
    try:
        at_l = any(r.test_length <= r.train_length for r in kept)
        return best_in_range(kept), "the best at L" if at_l else "the best"
    except UserError:  # no scheme has all its values
        return None, ""


def _meaning(found: list[Comparison]) -> list[str]:
    """Return what marks and intervals of comparisons mean."""
    known = [one for one in found if one.p is not None]
    if not known:
        return [ONE_SEED] if max(one.seeds + one.lost for one in found) == 1 else []
    seeds = sorted({one.seeds for one in known})
    pairs = f"{seeds[0]} seeds" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    documents = {one.documents for one in known}
    if None not in documents:
        what = f"another draw of seeds and test texts ({pairs}, {max(documents)} documents, compared in pairs)"
    elif scale_of(known[0].metric) == "share":
        what = f"another draw of seeds and questions ({pairs}, compared in pairs)"
    else:
        what = f"another draw of seeds, not of test texts ({pairs}, compared in pairs)"
    return [f"= is a tie: the 95% interval includes no difference. Intervals allow for {what}"]


def effect_words(one: Comparison) -> str:
    """Return an effect with its verdict, such as "×1.12 worse" or "×1.01 ="."""
    if one.effect is None:
        return "–"
    mark = {"tie": " =", "unknown": ""}.get(one.verdict, f" {one.verdict}")
    return f"{_size(one, one.effect)}{mark}"


def interval_words(one: Comparison) -> str:
    """Return where the interval of an effect begins and ends, such as "[1.05, 1.20]"."""
    return "–" if one.low is None else f"[{_size(one, one.low)}, {_size(one, one.high)}]".replace("×", "")


def _size(one: Comparison, effect: float) -> str:
    scale = scale_of(one.metric)
    if scale == "log":
        return f"×{effect:.2f}" if effect < 100 else f"×{effect:.3g}"
    return f"{100 * effect:+.1f}" if scale == "share" else f"{effect:+.3f}"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def _times(value: float, own: float, unit: float) -> str:
    """Return a cost, and how many times that of the baseline it is."""
    if pandas.isna(value):
        return "–"
    beside = "" if pandas.isna(own) or own == 0 else f" (×{value / own:.2f})"
    return f"{value / unit:,.{0 if value / unit >= 100 else 1}f}{beside}"
