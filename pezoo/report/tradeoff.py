"""Cost against how far a scheme works."""

import math
from collections.abc import Sequence

from matplotlib.figure import Figure

from pezoo.report.axes import bare
from pezoo.report.costs import cost_baseline, costs, training_seconds
from pezoo.report.figure import GREY, folded, heading, styles
from pezoo.report.groups import WINDOWED
from pezoo.report.statistics import TOLERANCE, best_value, curves, effective_length, length_name
from pezoo.results import Result


def draw_cost(kept: Sequence[Result]) -> Figure | None:
    """Draw the training time of each scheme against the length at which it is as good as the best one at L.

    Args:
        kept: what `select` returned, of the foremost metric.

    Returns:
        The figure; None where training lengths differ, no training was timed or nothing works.
    """
    kept = [r for r in kept if not r.label.endswith(WINDOWED)]
    trained, found, looks = {r.train_length for r in kept}, curves(kept), styles(kept)
    beside, spent = cost_baseline(kept), training_seconds(costs(kept))
    if len(trained) > 1 or beside is None or len(found) < 3:
        return None
    length = trained.pop()
    best = best_value(found, length)
    if best is None:
        return None
    rows = []
    for label, curve in found.items():
        reached = effective_length(curve, length, reference=best)
        times = spent[label] / spent[beside]
        if math.isfinite(times):
            rows.append((0 if reached is None else reached[0], -times, label))
    if len(rows) < 3:
        return None
    rows.sort()
    figure = Figure(figsize=(8.6, 0.9 + 0.21 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    bare(axes)
    axes.axvline(1, color=GREY, lw=1, ls="--", zorder=1.5)
    for y, (_, times, label) in enumerate(rows):
        look = looks[label]
        face = look.colour if look.filled else "white"
        axes.plot(-times, y, look.marker, color=look.colour, mfc=face, ms=6)
    for reached in sorted({at for at, _, _ in rows}):
        own = [y for y, (at, _, _) in enumerate(rows) if at == reached]
        axes.axhline(own[0] - 0.5, color=GREY, lw=0.6)
        said = f"good to {length_name(reached, length)}" if reached else "not even at L"
        place = axes.get_yaxis_transform()
        axes.annotate(said, (1, own[-1]), (6, 0), place, "offset points", va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [folded(label, 40) for _, _, label in rows], fontsize=8)
    axes.set_ylim(-0.5, len(rows) - 0.5)
    axes.set_xlabel(f"training time beside {beside}")
    near = f"good to: within {100 * TOLERANCE:g} % of the best scheme's value at L"
    heading(figure, "Cost against effective length", kept, near)
    return figure
