"""The figures of `docs/why.md` and the sentences under them: why models break beyond their training length.

Each figure has numbers, read from the schemes themselves or from a published study; a picture of them; and a sentence
that quotes them. A picture holds a digest of its numbers, so that a test can say when it is not current.

`python -m tools.docs` renews all of it.
"""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

import pezoo
from pezoo.drawing.axes import GREY, mark
from pezoo.drawing.view import View
from pezoo.files import replacing
from pezoo.report.axes import bare
from pezoo.report.comparisons import Comparison, compare
from pezoo.report.figure import PALETTE, SAVING
from pezoo.report.findings import in_a_row
from pezoo.report.groups import WINDOWED, select
from pezoo.report.lines import lines_by_length, lines_by_position
from pezoo.report.statistics import TOLERANCE, curves, length_name
from pezoo.results import Result
from pezoo.results.losses import Sources
from tools.choose import effect
from tools.questions import Studies

Numbers = dict[str, dict[str, float]]
"""Line -> place on the x axis, as text -> value."""
HEAD, TRAINED, LONGER = 64, 2048, 8
"""Of the computed figure: width of a head, tokens trained on, how many times longer it is used."""
CUT_OFF = "rope+rerope"
"""RoPE that cuts distances off inside L."""
WINDOW = "rope+window"
FAR = 16
"""Multiple of L at which the worth of far text is told."""
HEADS = {"narrow_long": 8, "wide_long": 32}
"""Channels of a head in the parts of `base_bound` that are trained on 128 tokens."""
BASE = "rope:base="


@dataclass(frozen=True)
class Kept:
    """Results that a figure is made of."""

    study: str
    results: Sequence[Result]
    """What `select` returned."""
    losses: Sources | None
    others: Sequence[Result] = ()
    """All results of the study."""

    @property
    def trained(self) -> int:
        """The training length."""
        return self.results[0].train_length

    @property
    def longest(self) -> int:
        """The longest test length."""
        return max(r.test_length for r in self.results)

    @property
    def far(self) -> str:
        """The longest test length in words, such as "8L"."""
        return length_name(self.longest, self.trained)

    @property
    def source(self) -> str:
        """Beginning of a sentence, with a link to the study."""
        return f"From [{self.study}](../experiments/results/{self.study}/table.md)"

    def beside(self, label: str, other: str) -> str:
        """Return how two schemes compare at the longest length."""
        return effect(self.compared(label, other))

    def compared(self, label: str, other: str) -> Comparison:
        """Return the same as numbers."""
        return compare(self.results, label, other, self.longest, self.losses)


# ---- numbers -------------------------------------------------------------------------------------


def wavelengths(kept: None) -> Numbers:
    """Return tokens per turn of each pair of channels, by scheme."""
    found = {}
    for scheme in ("rope", "rope+pi", "rope+ntk", "rope+yarn"):
        made = pezoo.create(scheme, d_model=HEAD, n_heads=1, n_layers=1, train_length=TRAINED)
        coordinates = View(made, []).at(LONGER * TRAINED).positions.query[0]
        step = float(coordinates[1] - coordinates[0])
        turns = 2 * math.pi / (made.frequencies(LONGER * TRAINED) * step)
        found[scheme] = {str(k): float(n) for k, n in enumerate(turns)}
    return found


def loss_by_position(kept: Kept) -> Numbers:
    """Return how much higher the loss is at each position than where distances are cut off inside L, by scheme."""
    lines = lines_by_position(kept.results, kept.losses)
    least = {position: mean for position, (mean, _, _) in lines[CUT_OFF].items()}
    return {
        label: {str(p): mean - least[p] for p, (mean, _, _) in lines[label].items()}
        for label in ("rope", "rope+pi", "sinusoidal")
    }


def by_length(kept: Kept) -> Numbers:
    """Return the mean at each test length, by scheme."""
    lines = lines_by_length(kept.results)
    return {label: {str(n): mean for n, (mean, _, _) in points.items()} for label, points in lines.items()}


def around_a_window(kept: Kept) -> Numbers:
    """Return the same of RoPE, and of what keeps it inside a window."""
    return {label: by_length(kept)[label] for label in ("rope", WINDOW, "rope+sinks", "rope+lm_infinite")}


def windows(kept: Kept) -> Numbers:
    """Return the value far out, of each scheme and of the same model with a window of L."""
    means = {label: curve[kept.longest].mean for label, curve in curves(kept.results).items()}
    plain = [label for label in means if label + WINDOWED in means]
    return {label: {"all": means[label], "window": means[label + WINDOWED]} for label in plain}


def by_base(kept: Kept) -> Numbers:
    """Return the exact match at L by RoPE's base, for heads of two widths."""
    found = {}
    for part, width in HEADS.items():
        means = curves(_passkeys(kept, part))
        line = {label.removeprefix(BASE): curve[kept.trained].mean for label, curve in means.items()}
        found[f"heads of {width} channels"] = line
    return found


def _passkeys(kept: Kept, part: str) -> list[Result]:
    return select([r for r in kept.others if r.part == part], "exact_match", "answers")


def least_base(width: int, length: int) -> int:
    """Return the bound on RoPE's base: the smallest for which sum_k cos(m base^(-2k/d)) >= 0 at all m up to a length.

    Source: Xu et al., 2024 (arXiv 2405.14591).
    """
    distance, pair = np.arange(length + 1), np.arange(0, width, 2) / width
    for first in itertools.count(2, 1000):
        bases = np.arange(first, first + 1000.0)
        turned = distance[:, None, None] * bases[:, None] ** -pair
        holds = (np.cos(turned).sum(-1) >= 0).all(0)
        if holds.any():
            break
    return first + int(holds.argmax())


# ---- pictures ------------------------------------------------------------------------------------


def draw_wavelengths(numbers: Numbers, kept: None) -> Figure:
    """Draw tokens per turn over pairs of channels, beside the training length."""
    figure, axes = _lines(numbers, "pair of channels, the fastest first", "tokens for one turn")
    axes.set_yscale("log")
    for length, name in ((TRAINED, "L"), (LONGER * TRAINED, f"{LONGER}L")):
        mark(axes, length, vertical=False, text="")
        axes.annotate(f"{name} = {length:,} tokens", (0, length), va="bottom", fontsize=8, color=GREY)
    axes.axhspan(TRAINED, axes.get_ylim()[1], color="0.5", alpha=0.08, lw=0)
    return figure


def draw_positions(numbers: Numbers, kept: Kept) -> Figure:
    """Draw the loss over the position in the text."""
    figure, axes = _lines(numbers, "position in the text (tokens)", f"loss above {CUT_OFF}'s (nats)")
    mark(axes, kept.trained)
    return figure


def draw_shares(numbers: Numbers, kept: Kept) -> Figure:
    """Draw shares of the attention over the test length."""
    figure, axes = _lines(numbers, f"test length (tokens), L = {kept.trained}", "attention at distances of L and more")
    _lengths(axes, numbers)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def draw_perplexities(numbers: Numbers, kept: Kept) -> Figure:
    """Draw perplexities over the test length."""
    figure, axes = _lines(numbers, f"test length (tokens), L = {kept.trained}", "perplexity")
    _lengths(axes, numbers)
    return figure


def draw_windows(numbers: Numbers, kept: Kept) -> Figure:
    """Draw the two values of each scheme on one line."""
    figure, axes = _axes()
    for y, each in enumerate(reversed(numbers.values())):
        axes.plot(list(each.values()), [y, y], color="0.7", lw=2, zorder=1)
        axes.plot(each["all"], y, "o", color=PALETTE[2], label="all of the text" if y == 0 else None)
        axes.plot(each["window"], y, "s", color=PALETTE[1], label="a window of L" if y == 0 else None)
    bare(axes)
    axes.set_yticks(range(len(numbers)), list(reversed(numbers)))
    axes.set_xlabel(f"perplexity at {kept.far}")
    axes.legend(title="each token sees", frameon=False, fontsize=8, title_fontsize=8)
    return figure


def draw_bases(numbers: Numbers, kept: Kept) -> Figure:
    """Draw passkeys found over the base, each seed's too, with the bound of each width."""
    figure, axes = _lines(numbers, "RoPE's base", f"passkeys found at L = {kept.trained}")
    for i, (part, width) in enumerate(HEADS.items()):
        seeds, color = _passkeys(kept, part), PALETTE[i + 1]
        at = [(float(r.label.removeprefix(BASE)), r.value) for r in seeds if r.test_length == kept.trained]
        axes.plot(*zip(*at, strict=True), "o", color=color, ms=4, alpha=0.6)
        axes.axvline(least_base(width, kept.trained), color=color, lw=1, ls=":")
        axes.annotate(
            "bound", (least_base(width, kept.trained), 1), xycoords=axes.get_xaxis_transform(),
            xytext=(0, 2), textcoords="offset points", ha="center", va="bottom", color=color, fontsize=8,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_ylim(0, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.6, 3.4), layout="constrained")
    return figure, figure.add_subplot()


def _lines(numbers: Numbers, x: str, y: str) -> tuple[Figure, Axes]:
    figure, axes = _axes()
    for i, (label, points) in enumerate(numbers.items()):
        look = {"color": PALETTE[i + 1], "lw": 1.6, "ls": ("-", "--", ":", "-.")[i % 4]}
        axes.plot(list(map(float, points)), list(points.values()), label=label, **look)
    bare(axes)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(frameon=False, fontsize=8)
    return figure, axes


def _lengths(axes: Axes, numbers: Numbers) -> None:
    lengths = sorted({int(n) for points in numbers.values() for n in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, list(map(str, lengths)))
    axes.set_xticks([], minor=True)


# ---- sentences -----------------------------------------------------------------------------------


def say_wavelengths(numbers: Numbers, kept: None) -> str:
    """Return how many pairs reach angles that training never showed."""
    slow = {k: turn for k, turn in numbers["rope"].items() if turn > TRAINED}
    far = {s: [k for k, turn in slow.items() if LONGER * turn / turns[k] > 1.0001] for s, turns in numbers.items()}
    unseen = ", ".join(f"`{scheme}` {len(pairs)}" for scheme, pairs in far.items())
    return (
        f"Computed from the schemes: a head of {HEAD} channels, trained on {TRAINED:,} tokens and used at "
        f"{LONGER * TRAINED:,}. {len(slow)} of {HEAD // 2} pairs of `rope` do not complete a turn in training (grey). "
        f"So many of these reach angles that training never showed: {unseen}."
    )


def say_positions(numbers: Numbers, kept: Kept) -> str:
    """Return how much more the loss is before and after L."""
    means = []
    for label, points in numbers.items():
        before, after = (
            [
                (v, n)
                for (p, v), n in zip(points.items(), _widths(map(float, points)), strict=True)
                if (float(p) > kept.trained) == far
            ]
            for far in (False, True)
        )
        said = (fmean((v for v, _ in side), weights=[n for _, n in side]) for side in (before, after))
        means.append("`{}` {:+.2f} up to L and {:+.2f} beyond it".format(label, *said))
    return (
        f"{kept.source}: texts of {kept.far}, L = {kept.trained}. Zero is `{CUT_OFF}`, the same model as `rope` with "
        f"distances cut off inside L. Mean over positions, in nats: {'; '.join(means)}."
    )


def _widths(middles: Iterable[float]) -> list[float]:
    """Return how many positions each of several bins in a row has, from its middle; the first begins at 1."""
    found, first = [], 1.0
    for middle in middles:
        found.append(2 * (middle - first) + 1)
        first += found[-1]
    return found


def say_shares(numbers: Numbers, kept: Kept) -> str:
    """Return how much attention falls beyond L."""
    shares = ", ".join(f"`{label}` {points[str(kept.longest)]:.0%}" for label, points in numbers.items())
    return f"{kept.source}: at {kept.far} so much attention falls on distances of L and more: {shares}."


def say_windows(numbers: Numbers, kept: Kept) -> str:
    """Return what a model loses or gains by text beyond a window of L."""
    ratios = [f"`{label}` {kept.beside(label, label + WINDOWED)}" for label in numbers]
    return (
        f"{kept.source}: perplexity at {kept.far} of a model that sees all of the text, beside that of the "
        f"same model with a window of L: {'; '.join(ratios)}. Above 1 the far text does harm. At 1 it neither helps "
        "nor harms on average."
    )


def say_sinks(numbers: Numbers, kept: Kept) -> str:
    """Return what the first tokens add to a window."""
    return (
        f"{kept.source}: at {kept.far} the perplexity of `rope` is {kept.beside('rope', WINDOW)} that of `{WINDOW}`. "
        f"That of `rope+sinks`, which also keeps the first tokens, is {kept.beside('rope+sinks', WINDOW)}."
    )


def say_bases(numbers: Numbers, kept: Kept) -> str:
    """Return what a base below the bound costs: passkeys, and in perplexity."""
    said = []
    for (line, found), (part, width) in zip(numbers.items(), HEADS.items(), strict=True):
        low, high = min(found, key=float), max(found, key=float)
        text = select([r for r in kept.others if r.part == part], "perplexity", "prefix")
        points, ratio = (
            effect(compare(results, BASE + low, BASE + high, kept.trained, kept.losses))
            for results in (_passkeys(kept, part), text)
        )
        said.append(
            f"{line.capitalize()}, bound {least_base(width, kept.trained):,}: a base of {int(low):,} finds "
            f"{found[low]:.0%}, one of {int(high):,} {found[high]:.0%} ({points}). Perplexity: {ratio}."
        )
    return f"{kept.source}: passkeys found at L = {kept.trained}; a dot is a seed. {' '.join(said)}"


# ---- the page ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """A figure of the page."""

    alt: str
    """What it shows."""
    numbers: Callable[..., Numbers]
    draw: Callable[..., Figure]
    say: Callable[..., str]
    study: str = ""
    """Where its results are; empty: it is computed."""
    metric: str = "perplexity"
    protocol: str = "non_overlapping"
    part: str = ""

    def kept(self, studies: Studies) -> Kept | None:
        """Return the results that it is made of."""
        if not self.study:
            return None
        study = studies[self.study]
        mine = [r for r in study.results if r.part == self.part]
        return Kept(self.study, select(mine, self.metric, self.protocol), study.losses, study.results)


FIGURES = {
    "wavelengths": Shown(
        "Tokens for one turn of each pair of channels", wavelengths, draw_wavelengths, say_wavelengths
    ),
    "bases": Shown(
        "Passkeys found by RoPE's base",
        *(by_base, draw_bases, say_bases),
        *("base_bound", "exact_match", "answers", next(iter(HEADS))),
    ),
    "coordinates": Shown(
        "Loss by position in the text", loss_by_position, draw_positions, say_positions, "survey", "loss"
    ),
    "spreading": Shown(
        "Attention beyond the training length by test length",
        *(by_length, draw_shares, say_shares),
        *("interpolation", "mass_beyond", "attention", "diagnostics"),
    ),
    "recency": Shown("Perplexity with and without the far text", windows, draw_windows, say_windows, "kerple"),
    "sinks": Shown(
        "Perplexity by test length, with a window", around_a_window, draw_perplexities, say_sinks, "composition"
    ),
}
"""The figures of the page by name, which is that of their file and, after `why_`, of their block."""


def block(name: str, studies: Studies) -> str:
    """Return a figure and the sentence under it, in Markdown."""
    shown = FIGURES[name]
    kept = shown.kept(studies)
    return f"![{shown.alt}](pictures/why/{name}.svg)\n\n*{shown.say(shown.numbers(kept), kept)}*\n"


def far_text(studies: Studies) -> str:
    """Return in Markdown what text farther back than L is worth to the schemes that long texts do not break."""
    said = []
    for study, part in (("frontier", "text"), ("kerple", "")):
        if study not in studies:
            continue
        found = studies[study]
        near = [r for r in found.results if r.part == part and r.length_ratio <= FAR]
        kept = Kept(study, select(near, "perplexity", "non_overlapping"), found.losses)
        means = {label: {n: s.mean for n, s in curve.items()} for label, curve in curves(kept.results).items()}
        stable = [label for label in windows(kept) if _rise(means[label], kept) <= 1 + TOLERANCE]
        whole = {label: kept.compared(label, label + WINDOWED) for label in stable}
        if not whole:
            continue
        said += [
            f"- `{label}` with all of the text: {effect(one)} beside the last L tokens alone"
            for label, one in whole.items()
        ]
        gain = [f"`{label}`" for label, one in whole.items() if one.verdict == "better"]
        helped = f"Far text helps {in_a_row(gain)}." if gain else "Far text helps none of them."
        said += ["", f"{helped} *{kept.source}, perplexity at {kept.far}.*", ""]
    return "\n".join(said)


def _rise(means: Mapping[int, float], kept: Kept) -> float:
    near, far = means[kept.trained], means[kept.longest]
    return far / near if near and far else math.inf  # one that diverged holds nowhere


def digest(numbers: Numbers) -> str:
    """Return a digest of a figure's numbers, as they are to three digits."""
    rounded = {line: {x: f"{value:.2e}" for x, value in points.items()} for line, points in numbers.items()}
    return hashlib.sha256(json.dumps(rounded).encode()).hexdigest()


def drawn_from(path: Path) -> str:
    """Return the digest of the numbers that a picture was drawn from; empty if it holds none."""
    found = re.search(r"<dc:description>(\w+)<", path.read_text(encoding="utf-8")) if path.is_file() else None
    return found[1] if found else ""


def draw(folder: Path, studies: Studies) -> None:
    """Draw the figures into a folder, but for those that are current."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, shown in FIGURES.items():
        kept, path = shown.kept(studies), folder / f"{name}.svg"
        numbers = shown.numbers(kept)
        if drawn_from(path) != digest(numbers):
            metadata = {"Date": None, "Creator": None, "Description": digest(numbers)}
            with matplotlib.rc_context(SAVING), replacing(path) as file:
                shown.draw(numbers, kept).savefig(file, format="svg", metadata=metadata)
