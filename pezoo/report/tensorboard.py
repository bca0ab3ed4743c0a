"""TensorBoard's extrapolation view: one run per scheme, scalars whose step is the test length.

A card then shows the curves of all schemes. The runs are `<logdir>/test/<label>`; what training
logs stands beside them in `<logdir>/train` and is left alone.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pezoo.escape import safe_names
from pezoo.files import curves_into
from pezoo.report.curves import draw_by_position, draw_curves
from pezoo.report.figure import readable
from pezoo.report.groups import groups, headline, matrices, metrics, select
from pezoo.report.intervals import losses_by_label, mean_by_position
from pezoo.report.statistics import curves
from pezoo.report.table import MANY, by_length
from pezoo.results import Result

PLAIN_PROTOCOLS = ("prefix", "answers")
"""The protocols that tags do not name."""
ADDRESS = "http://localhost:6006/?smoothing=0#timeseries"
"""Where to look: without TensorBoard's smoothing, which would bend curves of a few points."""


class Card(NamedTuple):
    """What one card shows."""

    tag: str
    train_lengths: tuple[int, ...]
    curves: dict[str, dict[int, float]]
    """Label -> step -> value."""
    picture: Figure | None = None
    text: str = ""


def write(results: Iterable[Result], logdir: str | Path, source: str | Path | None = None) -> Path:
    """Write the extrapolation view, replacing the one that is there.

    A scheme's run holds, as means over seeds (of perplexities geometric ones), `extrapolation/perplexity` and, in the
    group `extrapolation_more`, the other metrics, all with step = test length, and `loss_by_position`
    with step = position. The run "all schemes" holds the figures and tables. The run "training
    length ..." draws an upright line there; its points also keep the ends of steep curves on the
    card, of which TensorBoard would cut off what it takes for outliers. Tasks, parts and protocols
    have groups of their own, such as `passkey/exact_match` and `extrapolation_non_overlapping/perplexity`.

    Args:
        results: results of one study.
        logdir: the study's TensorBoard folder.
        source: where losses by position are; without it they are left out.

    Returns:
        The folder of the runs.

    Raises:
        UserError: if there are no results, or they cannot share a figure.
        OSError: if the folder cannot be written.
    """
    from torch.utils.tensorboard import SummaryWriter

    cards = list(_cards(list(results), source))
    folder, overview = Path(logdir) / "test", "all schemes"
    markers = {f"training length {n}": n for n in sorted({n for card in cards for n in card.train_lengths})}
    labels = dict.fromkeys(label for card in cards for label in card.curves)
    folders = safe_names([*labels, *markers, overview])
    for old in folder.rglob("events.out.tfevents.*"):
        old.unlink()
    for label in folders:
        with curves_into(folder / folders[label]), SummaryWriter(folder / folders[label]) as writer:
            for card in cards:
                points = card.curves.get(label, {})
                if label in markers:
                    points = _marker(card, markers[label])
                for step, value in points.items():
                    writer.add_scalar(card.tag, value, step)
                if label == overview and card.picture is not None:
                    writer.add_image(card.tag, _pixels(card.picture), dataformats="HWC")
                if label == overview and card.text:
                    writer.add_text(card.tag, card.text)
    for gone in [path for path in folder.iterdir() if path.is_dir() and not any(path.iterdir())]:
        gone.rmdir()
    return folder


def _group(name: str, protocol: str, headline: bool) -> str:
    """Return the group of a card, such as "extrapolation_more" or "passkey_n_digits=5_generation"."""
    parts = [
        name or "extrapolation",
        *([] if protocol in PLAIN_PROTOCOLS else [protocol]),
        *([] if headline else ["more"]),
    ]
    return "_".join(re.sub(r"[^\w.-]+", "_", part) for part in parts)


def _cards(results: list[Result], source: str | Path | None) -> Iterator[Card]:
    found = groups(results) | matrices(results)
    for name, group in found.items():
        trained = tuple(sorted({r.train_length for r in group}))
        for protocol, names in metrics(group).items():
            first, _ = headline({protocol: names})
            for metric in names:
                kept = select(group, metric, protocol)
                shown = metric == first and len(found) <= MANY and readable(kept)
                yield Card(
                    tag=f"{_group(name, protocol, metric == first)}/{metric}",
                    train_lengths=trained,
                    curves={
                        label: {step: s.mean for step, s in curve.items() if s.mean is not None}
                        for label, curve in curves(kept).items()
                    },
                    picture=draw_curves(kept, metric, protocol) if shown else None,
                    text=by_length(kept, metric, protocol).markdown(),
                )
            losses = {} if source is None or "loss" not in names else losses_by_label(group, source, protocol)
            if losses:
                yield Card(
                    tag=f"{_group(name, protocol, False)}/loss_by_position",
                    train_lengths=trained,
                    curves={
                        label: {round(at): mean for at, mean in mean_by_position(seeds).items()}
                        for label, seeds in losses.items()
                    },
                    picture=draw_by_position(group, source, protocol) if readable(group) else None,
                )


def _marker(card: Card, train_length: int) -> dict[int, float]:
    """Return an upright line at the training length: step -> value.

    TensorBoard scales a card from the 5th to the 95th percentile of all points on it, one for each
    step of a run; so the line has as many at its top, and at its foot, as keep the extremes inside.
    """
    values = [value for curve in card.curves.values() for value in curve.values()]
    if not values or train_length not in card.train_lengths:
        return {}
    n = len(values) // 16 + 2
    first = max(0, train_length - n)
    return {first + i: (max if i < n else min)(values) for i in range(2 * n)}


def _pixels(picture: Figure) -> np.ndarray:
    """Render a figure to (height, width, 3) uint8."""
    canvas = FigureCanvasAgg(picture)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]
