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

from pezoo.report import figure, table
from pezoo.report.statistics import curves, losses_by_label, mean_by_position, metrics, select
from pezoo.results import Result

HEADLINE = "perplexity"
"""The metric whose card stands first, with the figure beside it."""
PLAIN_PROTOCOL = "prefix"
"""The protocol that tags do not name."""
ADDRESS = "http://localhost:6006/?smoothing=0#timeseries"
"""Where to look: without TensorBoard's smoothing, which would bend curves of a few points."""


class Card(NamedTuple):
    """What one card shows."""

    tag: str
    curves: dict[str, dict[int, float]]
    """Label -> step -> value."""
    picture: Figure | None = None
    text: str = ""


def write(results: Iterable[Result], logdir: str | Path, cells: str | Path | None = None) -> Path:
    """Write the extrapolation view, replacing the one that is there.

    A scheme's run holds, as means over seeds, `extrapolation/perplexity` and, in the group
    `extrapolation_more`, the other metrics, all with step = test length, and `loss_by_position`
    with step = position. The run "all schemes" holds the figures and tables. The run "training
    length ..." draws an upright line there; its points also keep the ends of steep curves on the
    card, of which TensorBoard would cut off what it takes for outliers. Protocols other than
    "prefix" have groups of their own, such as `extrapolation_non_overlapping`.

    Args:
        results: results of one study.
        logdir: the study's TensorBoard folder.
        cells: its folder of cells, to read losses by position from; without it they are left out.

    Returns:
        The folder of the runs.

    Raises:
        UserError: if there are no results, or they cannot share a figure.
        OSError: if the folder cannot be written.
    """
    from torch.utils.tensorboard import SummaryWriter

    results = list(results)
    cards = list(_cards(results, cells))
    folder, overview = Path(logdir) / "test", "all schemes"
    marker = f"training length {results[0].train_length}"
    folders = run_names([*dict.fromkeys(r.label for r in results), marker, overview])
    for old in folder.rglob("events.out.tfevents.*"):
        old.unlink()
    for label in folders:
        with SummaryWriter(folder / folders[label]) as writer:
            for card in cards:
                points = card.curves.get(label, {})
                if label == marker:
                    points = _marker(card, results[0].train_length)
                for step, value in points.items():
                    writer.add_scalar(card.tag, value, step)
                if label == overview and card.picture is not None:
                    writer.add_image(card.tag, _pixels(card.picture), dataformats="HWC")
                if label == overview and card.text:
                    writer.add_text(card.tag, card.text)
    for gone in [path for path in folder.iterdir() if path.is_dir() and not any(path.iterdir())]:
        gone.rmdir()
    return folder


def run_names(labels: Iterable[str]) -> dict[str, str]:
    """Return for each label the name of its run: as it is, less what some file systems refuse.

    >>> list(run_names(["rope+pi, 200 steps @ 8x", "rope+pi:factor=4"]).values())
    ['rope+pi, 200 steps @ 8x', 'rope+pi factor=4']
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for label in labels:
        plain = re.sub(r"\s+", " ", label.replace(":", " "))
        plain = re.sub(r"[^\w +,@=.()\[\]{}-]", "_", plain).strip(" .")[:120] or "_"
        name, n = plain, 1
        while name.casefold() in taken:
            n += 1
            name = f"{plain} ({n})"
        taken.add(name.casefold())
        names[label] = name
    return names


def _group(protocol: str, headline: bool) -> str:
    group = "extrapolation" if protocol == PLAIN_PROTOCOL else f"extrapolation_{protocol}"
    return group if headline else f"{group}_more"


def _cards(results: list[Result], cells: str | Path | None) -> Iterator[Card]:
    for protocol, names in metrics(results).items():
        headline = HEADLINE if HEADLINE in names else names[0]
        for metric in names:
            kept, first = select(results, metric, protocol), metric == headline
            yield Card(
                tag=f"{_group(protocol, first)}/{metric}",
                curves={
                    label: {step: s.mean for step, s in curve.items() if s.mean is not None}
                    for label, curve in curves(kept).items()
                },
                picture=figure.draw_curves(kept, metric, protocol) if first else None,
                text=table.markdown(kept, metric, protocol),
            )
        losses = {} if cells is None else losses_by_label(results, cells, protocol)
        if losses:
            yield Card(
                tag=f"{_group(protocol, False)}/loss_by_position",
                curves={
                    label: {round(at): mean for at, mean in mean_by_position(seeds).items()}
                    for label, seeds in losses.items()
                },
                picture=figure.draw_by_position(results, cells, protocol),
            )


def _marker(card: Card, train_length: int) -> dict[int, float]:
    """Return an upright line at the training length: step -> value.

    TensorBoard scales a card from the 5th to the 95th percentile of all points on it, one for each
    step of a run; so the line has as many at its top, and at its foot, as keep the extremes inside.
    """
    values = [value for curve in card.curves.values() for value in curve.values()]
    if not values:
        return {}
    n = len(values) // 16 + 2
    first = max(0, train_length - n)
    return {first + i: (max if i < n else min)(values) for i in range(2 * n)}


def _pixels(picture: Figure) -> np.ndarray:
    """Render a figure to (height, width, 3) uint8."""
    canvas = FigureCanvasAgg(picture)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]
