"""Schemes laid out by encoding and extension, where a study crosses them."""

from collections import Counter
from collections.abc import Iterable

import pandas

from pezoo.report.groups import WINDOWED, Tuning, tuning_of
from pezoo.report.statistics import curves, frame_of
from pezoo.results import Result

PLAIN = "plain"
"""The column of a grid for encodings without extensions."""


def grids(results: Iterable[Result]) -> dict[tuple[int, Tuning], pandas.DataFrame]:
    """Lay schemes out by encoding and extension, where a study crosses at least three of each.

    Args:
        results: what `select` returned.

    Returns:
        Test length and tuning, ascending -> a frame. Rows: encodings; columns: "plain", then extensions, both in
        order of first appearance. Cells: a `Summary`, or None. Names stand without settings, except for what would
        share a cell with another label; what then still would has its label for a column. Companions with a window are
        left out. Empty unless three encodings have two extensions or more, and there are three such extensions.
    """
    results = [r for r in results if not r.label.endswith(WINDOWED)]
    firsts = {r.label: r for r in results}
    places: dict[tuple[str, str, Tuning], str] = {}
    for label, r in sorted(firsts.items(), key=lambda one: ":" in one[1].scheme):  # who has no settings goes first
        full, tuning = _with_settings(r), tuning_of(r)
        names = ((r.encoding, "+".join(r.extensions) or PLAIN), full, (full[0], label))
        places[next((*name, tuning) for name in names if (*name, tuning) not in places)] = label
    order = list(firsts)
    places = dict(sorted(places.items(), key=lambda one: order.index(one[1])))
    pairs = {key[:2] for key in places if key[1] != PLAIN}
    counts = Counter(encoding for encoding, _ in pairs)
    crossed = {encoding for encoding, n in counts.items() if n > 1}
    if len(crossed) < 3 or len({extension for encoding, extension in pairs if encoding in crossed}) < 3:
        return {}
    found = curves(results)
    columns = sorted(dict.fromkeys(extension for _, extension, _ in places), key=lambda name: name != PLAIN)
    frames = {}
    for length in sorted({length for curve in found.values() for length in curve}):
        for tuning in sorted({tuning for *_, tuning in places}):
            cells = {key[:2]: found[label].get(length) for key, label in places.items() if key[2] == tuning}
            if any(cells.values()):
                encodings = dict.fromkeys(encoding for encoding, *_ in places)
                rows = {encoding: [cells.get((encoding, name)) for name in columns] for encoding in encodings}
                frames[length, tuning] = frame_of(rows, "encoding", columns)
    return frames


def _with_settings(result: Result) -> tuple[str, str]:
    """Return encoding and extensions as the scheme spells them; one that joins several stands for itself."""
    if result.scheme.startswith("{"):
        return result.label, PLAIN
    members, n = result.scheme.split("+"), len(result.scheme.split("+")) - len(result.extensions)
    return "+".join(members[:n]), "+".join(members[n:]) or PLAIN
