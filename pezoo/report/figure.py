"""What all figures share: the looks of schemes, headings, and how they are saved.

A scheme looks the same in every figure: its colour is its encoding's, its line and marker are its
extensions', and its markers are filled once it is tuned. In figures of one encoding with several
extensions, where that colour tells nothing, it is its extensions' as well.
"""

import re
import textwrap
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import PlaceHolderLayoutEngine

from pezoo.escape import in_figure
from pezoo.files import replacing
from pezoo.report.groups import title
from pezoo.report.statistics import scale_of
from pezoo.results import LANGUAGE_MODELLING, Result

# Okabe and Ito's and Paul Tol's colours, which people with colour vision deficiencies can tell
# apart; neighbours in the list differ most.
PALETTE = (
    "#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00",
    "#56B4E9", "#882255", "#999933", "#332288", "#888888",
)  # fmt: skip
# Seven line styles and eleven markers have no common factor: 77 pairs before one comes again.
DASHES = (
    (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (8, 2.5)),
    (0, (4, 1.2, 1, 1.2, 1, 1.2)), (0, (2, 2)), (0, (1, 3)),
)  # fmt: skip
SOLID = (0, ())
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
# Names with a look of their own; any other name's look is drawn from its letters.
ENCODINGS = (
    "nope", "rope", "alibi", "sinusoidal", "t5", "kerple", "learned", "fire", "shaw", "xpos",
    "dynamic_sinusoidal", "transformer_xl", "deberta", "cope", "sandwich", "tisa", "floater",
    "complex_order", "tupe", "hierarchical",
)  # fmt: skip
EXTENSIONS = (
    "pi", "ntk", "yarn", "random", "shift", "window", "dynamic_ntk", "rerope", "ntk_by_parts",
    "self_extend", "longrope", "abf", "llama3", "giraffe", "logn", "sinks", "lm_infinite", "cape",
    "pose", "dape", "memory", "blockwise", "clex", "dynamic_yarn", "leaky_rerope", "resonance",
)  # fmt: skip
GREY = "0.35"
SAVING = {"svg.fonttype": "none", "svg.hashsalt": "pezoo"}


@dataclass(frozen=True)
class Style:
    """How the curve of one scheme looks."""

    colour: str
    dashes: tuple
    marker: str
    filled: bool


def style(result: Result) -> Style:
    """Return the look of the scheme that a result belongs to, whatever else is in the figure."""
    encoding = _place(result.encoding, ENCODINGS)
    extended = _extended(result) if result.extensions else -1
    # Markers also tell apart encodings of one colour, step counts, and settings.
    marker = extended + 1 + 3 * (encoding // len(PALETTE)) + result.finetune_steps.bit_length()
    if ":" in result.scheme:
        marker += zlib.crc32(result.scheme.encode())
    return Style(
        colour=PALETTE[encoding % len(PALETTE)],
        dashes=DASHES[extended % len(DASHES)] if result.extensions else SOLID,
        marker=MARKERS[marker % len(MARKERS)],
        filled=result.finetune_steps > 0,
    )


def styles(results: Iterable[Result]) -> dict[str, Style]:
    """Return a look for each label, in order of first appearance.

    Labels that would look the same, such as one extension with two settings, get other markers. Where training lengths
    differ, they have a marker each.
    """
    firsts: dict[str, Result] = {}
    for result in results:
        firsts.setdefault(result.label, result)
    trained = sorted({r.train_length for r in firsts.values()})
    one = len({r.encoding for r in firsts.values()}) == 1 and len({r.extensions for r in firsts.values()} - {()}) > 1
    found: dict[str, Style] = {}
    for label, result in firsts.items():
        look = style(result)
        if one and result.extensions:
            others = [colour for colour in PALETTE if colour != look.colour]
            look = replace(look, colour=others[_extended(result) % len(others)])
        if len(trained) > 1:
            look = replace(look, marker=MARKERS[trained.index(result.train_length) % len(MARKERS)])
        found[label] = next(other for other in _alternatives(look) if other not in found.values())
    return found


def heading(figure: Figure, text: str, kept: list[Result], *facts: str) -> None:
    """Write a title, and below it on what, how and over how many seeds, into space made above everything else.

    Args:
        figure: a figure with a constrained layout and all that it shows.
        text: what the figure shows; study, part and task follow.
        kept: the results it shows, of one part; those of many tasks have no corpus and protocol of their own.
        facts: more to say.
    """
    one, seeds = kept[0], len({r.seed for r in kept})
    about, said = [one.study, one.part], []
    if len({r.task for r in kept}) == 1:
        about = [one.study, title(one)]
        corpus = f"corpus {one.corpus}" if one.task == LANGUAGE_MODELLING else one.corpus
        said = [corpus, f"{one.protocol} protocol"]
    mean = "geometric mean" if scale_of(one.metric) == "log" else "mean"
    said.append(f"{mean} of {seeds} seeds" if seeds > 1 else "one seed")
    width, height = figure.get_size_inches()
    bold = folded(f"{text}: {', '.join(filter(None, about))}", int(10 * width))
    plain = folded("; ".join([*said, *facts]), int(14 * width))
    below = 0.16 + 0.18 * (1 + bold.count("\n"))
    space = below + 0.16 + 0.17 * (1 + plain.count("\n"))
    height += space
    figure.set_size_inches(width, height)
    figure.get_layout_engine().set(rect=(0.005, 0, 0.99, 1 - space / height))
    figure.text(0.1 / width, 1 - 0.1 / height, bold, va="top", weight="bold", fontsize=11)
    figure.text(0.1 / width, 1 - below / height, plain, va="top", color=GREY, fontsize=9)


def folded(label: str, width: int = 44) -> str:
    r"""Return a text for a figure on as many lines as it needs, broken at spaces or before a plus sign.

    >>> folded("rope+yarn:factor=8+window", 20)
    'rope+yarn:factor=8\n+window'
    """
    broken = textwrap.fill(in_figure(label).replace("+", " \0+"), width)
    return re.sub(r" ?\0", "", broken)


def save(figure: Figure, path: str | Path) -> tuple[Path, Path, Path]:
    """Save a figure as SVG, PNG and PDF; the same figure always gives the same bytes.

    Args:
        figure: what to save; its layout is settled by this.
        path: either file, or their common name without a suffix.

    Returns:
        Paths of the SVG, PNG and PDF file.

    Raises:
        OSError: if they cannot be written.
    """
    path = Path(path)
    stem = path.with_suffix("") if path.suffix in (".svg", ".png", ".pdf") else path
    metadata = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}, "pdf": {"CreationDate": None}}
    paths = {form: stem.with_name(f"{stem.name}.{form}") for form in metadata}
    with matplotlib.rc_context(SAVING):
        settle(figure)
        for form, path in paths.items():
            with replacing(path) as file:
                figure.savefig(file, format=form, dpi=150, metadata=metadata[form])
    return tuple(paths.values())


def settle(figure: Figure) -> None:
    """Find places for everything, once: this takes most of the time. Names at the ends of lines then move apart."""
    if isinstance(figure.get_layout_engine(), PlaceHolderLayoutEngine):
        return  # they are settled
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    space_names(figure)


def space_names(figure: Figure) -> None:
    """Move names at the ends of lines apart, up and down, so that none covers another.

    Args:
        figure: with a settled layout.
    """
    for axes in figure.axes:
        names = [text for text in axes.texts if (text.get_gid() or "").startswith("name-") and text.get_in_layout()]
        if len(names) < 2:
            continue
        renderer = figure.canvas.get_renderer() if hasattr(figure.canvas, "get_renderer") else None
        boxes = [text.get_window_extent(renderer) for text in names]
        middles = np.array([(box.y0 + box.y1) / 2 for box in boxes])
        heights = np.array([box.height for box in boxes])
        for text, middle, at in zip(names, spread(middles, heights), middles, strict=True):
            text.set_position((text.xyann[0], text.xyann[1] + (middle - at) * 72 / figure.dpi))


def spread(middles: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Return middles that are at least half the two heights apart, as near to the given ones as that allows.

    Args:
        middles: (n,) where things want to be.
        heights: (n,) how high they are.

    >>> spread(np.array([0.0, 1.0, 50.0]), np.array([10.0, 10.0, 10.0])).tolist()
    [-4.5, 5.5, 50.0]
    """
    order = np.argsort(middles, kind="stable")
    blocks: list[tuple[list[int], float]] = []
    for i in order:
        blocks.append(([int(i)], float(middles[i])))
        while len(blocks) > 1:
            (upper, above), (lower, below) = blocks[-1], blocks[-2]
            if above - heights[upper].sum() / 2 >= below + heights[lower].sum() / 2:
                break
            members = lower + upper
            starts = np.concatenate([[0.0], np.cumsum(heights[members])[:-1]]) + heights[members] / 2
            blocks[-2:] = [(members, float(np.mean(middles[members] - starts)) + heights[members].sum() / 2)]
    found = np.empty_like(middles, dtype=float)
    for members, middle in blocks:
        start = middle - heights[members].sum() / 2
        found[members] = start + np.cumsum(heights[members]) - heights[members] / 2
    return found


def _extended(result: Result) -> int:
    return _place("+".join(result.extensions), EXTENSIONS)


def _place(name: str, known: Sequence[str]) -> int:
    return known.index(name) if name in known else zlib.crc32(name.encode())


def _alternatives(look: Style) -> Iterator[Style]:
    """Yield the look itself, then others: markers change first, then lines, then colours."""
    for colour in _from(look.colour, PALETTE):
        for dashes in _from(look.dashes, (SOLID, *DASHES)):
            for marker in _from(look.marker, MARKERS):
                yield replace(look, colour=colour, dashes=dashes, marker=marker)


def _from(first: Any, items: tuple) -> tuple:
    start = items.index(first)
    return items[start:] + items[:start]
