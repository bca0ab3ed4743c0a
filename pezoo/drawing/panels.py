"""The panels of a picture, one for each hook that a class overrides."""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from matplotlib.axes import Axes
from torch import Tensor

from pezoo.contract import Encoding, overrides
from pezoo.drawing.axes import GREY, bar, colours, legend, mark, tokens
from pezoo.drawing.view import BARE, DRAWS, WORDS, View, bias_of, merged
from pezoo.report.figure import PALETTE

SEEN, UNSEEN = PALETTE[1], PALETTE[2]
ABOVE = 12
"""Points above a panel that its marks take."""

Panel = Callable[[Axes], None]


def panels_of(view: View) -> Iterator[Panel]:
    """Panels of a plain scheme: its extensions and what they change in an encoding, or the encodings alone."""
    if view.changes("coordinates"):
        yield partial(_coordinates, view, training=True)
        yield partial(_coordinates, view, training=False)
    if view.changes("branches", "mask"):
        yield partial(_distances, view)
    if view.changes("branches"):
        yield partial(_read_distance, view)
    if view.changes("adapt"):
        yield partial(_adapted, view)
    shown = 0
    for place, encoding in enumerate(view.encodings):
        new = [panel for applies, panel in _of_encoding(view, place, encoding) if applies]
        shown += len(new)
        yield from new
    if view.changes("scale") and not _is_constant(view, alone=not shown):
        yield partial(_scale, view)
    if view.changes("sink"):
        yield partial(_sink, view)
    if not shown and not view.extensions:
        yield partial(_attention, view)


def _of_encoding(view: View, place: int, encoding: Encoding) -> Iterator[tuple[bool, Panel]]:
    """Panels of an encoding, each with whether it shows something that extensions, if there are any, change."""
    alone = not view.extensions
    moved = alone or (view.changes("coordinates") and view.moves("test", view.longest(2)))
    pairs = moved or view.changes("branches")
    if overrides(encoding, "embed"):
        yield moved and not encoding.prefix_stable, partial(_embedding, view, place, ratio=1)
        yield moved, partial(_embedding, view, place)
    if overrides(encoding, "inv_freq"):
        fixed = alone and encoding.prefix_stable  # else they stretch with the length
        yield fixed or view.changes("frequencies"), partial(_wavelengths, view, place)
    if overrides(encoding, "bias"):
        yield pairs, partial(_bias_of_pairs, view, head=0)
        if encoding.traits.shift_invariant:
            yield pairs, partial(_bias_by_query, view)
        elif view.scheme.shape.n_heads > 1:
            yield pairs, partial(_bias_of_pairs, view, head=1)
    elif overrides(encoding, "distance_bias"):
        yield pairs, partial(_bias_by_distance, view)
    if overrides(encoding, "rotate") or overrides(encoding, "product"):
        added = _code(view, place, view.length).any()
        yield alone and bool(added), partial(_added_code, view, place)
        yield alone and not added, partial(_logits, view, place, rotated=True)
    if overrides(encoding, "content"):
        yield alone, partial(_logits, view, place, rotated=False)


@torch.no_grad()
def _embedding(view: View, place: int, axes: Axes, ratio: int = 2) -> None:
    """What is added to token embeddings, over position and channel."""
    length, width = view.longest(ratio), view.scheme.shape.d_model
    part = view.at(length).base[place]
    added, what = part.encoding.embed(torch.zeros(1, length, width), part.positions)[0], "added to token embeddings"
    if not added.any():
        added, what = part.encoding.embed(torch.ones(1, length, width), part.positions)[0], "a token embedding of ones"
    _channels(view, axes, added, what, ratio)


def _code(view: View, place: int, length: int) -> Tensor:
    """What `rotate` adds to queries of zero, (length, d)."""
    part = view.at(length).base[place]
    shape = view.scheme.shape
    zero = torch.zeros(1, shape.n_heads, length, shape.head_dim)
    with torch.no_grad():
        return part.encoding.rotate(zero, zero, part.positions)[0][0].transpose(0, 1).flatten(1)


def _added_code(view: View, place: int, axes: Axes) -> None:
    """What is added to queries, over position and channel."""
    _channels(view, axes, _code(view, place, view.longest(2)), "added to queries")


def _channels(view: View, axes: Axes, values: Tensor, title: str, ratio: int = 2) -> None:
    """A heat map over positions and channels, (length, D); what is undefined of `ratio` training lengths stays grey."""
    length = ratio * view.length
    bound = float(values.abs().max())
    look = {"cmap": colours("PuOr"), "vmin": -bound, "vmax": bound, "origin": "lower"}
    image = axes.imshow(values.T.numpy(), **look, aspect="auto", interpolation="none")
    bar(axes, image, "value")
    axes.set_facecolor("0.88")
    axes.set(title=f"{title}, {len(values)} tokens", xlabel="position (tokens)", ylabel="channel")
    axes.set_xlim(-0.5, length - 0.5)
    if len(values) < length:
        middle = (len(values) + length) / 2
        axes.text(middle, values.shape[1] / 2, "undefined", ha="center", color=GREY, fontsize=9)
    if ratio > 1:
        mark(axes, view.length)
    tokens(axes, view.length, length)


@torch.no_grad()
def _wavelengths(view: View, place: int, axes: Axes) -> None:
    """Wavelengths of the pairs of channels, against the training length; before and after extensions of frequencies."""
    length, longest = view.length, view.longest(4)
    changed = view.changes("frequencies")
    old = 2 * math.pi / view.at(length, BARE).base[place].positions.inv_freq[0].double()
    sets = [(old, "o", "white" if changed else None, "of the encoding" if changed else "")]
    if changed:
        new = 2 * math.pi / view.at(longest).base[place].positions.inv_freq[0].double()
        sets.append((new, "s", None, f"at T = {longest // length}L"))
    finite = torch.cat([s[0] for s in sets])
    finite = finite[finite.isfinite()]
    top = max(float(finite.max()), 2 * length) * 4
    axes.set_yscale("log")
    axes.yaxis.minorticks_off()
    above = 30 if any(waves[0].isinf() for waves, *_ in sets) else 2.5  # room for the text above these marks
    axes.axhspan(length, top * above * 2, color=UNSEEN, alpha=0.08, lw=0)
    for waves, marker, face, label in sets:
        pairs = torch.arange(len(waves))
        if changed:
            colour = GREY if face else PALETTE[0]
            axes.plot(pairs, waves.clamp(max=top), color=colour, lw=0.8, ls=":" if face else "-", zorder=1)
            axes.plot([], [], marker, color=GREY, mfc=face or GREY, ls="", ms=5, label=label)
        for colour, where in ((SEEN, waves <= length), (UNSEEN, waves > length)):
            axes.plot(pairs[where], waves[where].clamp(max=top), marker, color=colour, mfc=face or colour, ms=5)
        for k in pairs[waves.isinf()].tolist():
            axes.annotate("∞", (k, top), xytext=(0, 4), textcoords="offset points", ha="center", color=UNSEEN)
    axes.set_ylim(float(finite.min()) / 1.6, top * above)
    mark(axes, length, vertical=False)
    axes.text(0.02, 0.98, "no full turn in training", transform=axes.transAxes, va="top", fontsize=8, color=UNSEEN)
    axes.set(title="wavelength of each pair of channels", xlabel="pair k", ylabel="wavelength (tokens, log scale)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    if changed:
        legend(axes, inside="lower right")


def _bias_by_distance(view: View, axes: Axes) -> None:
    """Bias of each head against distance; before and after extensions."""
    length = view.longest(4)
    bias = _last(view, length)
    if bias.std(dim=-1).max() < 1e-6:
        view.wake()
        bias = _last(view, length)
    before = _last(view, length, BARE) if view.extensions else None
    for h, row in enumerate(bias):
        (line,) = axes.plot(row, color=PALETTE[h % len(PALETTE)], lw=1.4, label=f"head {h + 1}")
        if before is not None:
            axes.plot(before[h], color=line.get_color(), lw=0.9, ls=":")
    if before is not None:
        axes.plot([], [], color=GREY, lw=0.9, ls=":", label="without extensions")
    mark(axes, view.length)
    axes.set(title="bias on the logits", xlabel="distance from query to key (tokens)", ylabel="bias (logits)")
    tokens(axes, view.length, length)
    legend(axes)


@torch.no_grad()
def _last(view: View, length: int, phase: str = "test") -> Tensor:
    """Bias of the last query, nearest key first, (H, length)."""
    return bias_of(view.at(length, phase, last=True))[:, 0].flip(-1)


@torch.no_grad()
def _bias_of_pairs(view: View, axes: Axes, head: int) -> None:
    """Bias of one head for every pair of a query and a key."""
    composition = view.at(view.longest(2))
    bias = bias_of(composition)[head].masked_fill(~composition.visible()[0], torch.nan)
    bound = float(bias.nan_to_num().abs().max())
    _pairs(view, axes, bias, "PuOr", f"bias of head {head + 1}", "bias (logits)", (-bound, bound))


@torch.no_grad()
def _bias_by_query(view: View, axes: Axes) -> None:
    """Bias of the first head against distance, for queries at different places."""
    length = view.longest(4)
    bias = bias_of(view.at(length))[0]
    for n, place in enumerate((view.length // 2, view.length, 2 * view.length, 4 * view.length)):
        if place <= length:
            row = bias[place - 1, :place].flip(-1)
            axes.plot(row, color=PALETTE[n], lw=1.4, label=f"query {place - 1}")
    mark(axes, view.length)
    axes.set(title="bias of head 1, by query", xlabel="distance from query to key (tokens)", ylabel="bias (logits)")
    tokens(axes, view.length, length)
    legend(axes)


@torch.no_grad()
def _logits(view: View, place: int, axes: Axes, rotated: bool) -> None:
    """Logits that random queries and keys get from position, against distance; a draw has one key everywhere."""
    length = view.longest(4)

    def curves() -> Tensor:
        part = view.at(length, last=True).base[place]
        q, k = view.vectors(length)
        if rotated:
            q, k = part.encoding.rotate(q, k, part.positions)
            return part.encoding.product(q, k, part.positions)[:, 0, 0] * part.encoding.scale()
        return part.encoding.content(q, k, part.positions)[:, 0, 0]

    rows = curves().expand(DRAWS, -1)
    if rows.std(dim=-1).max() < 1e-6:
        view.wake()
        rows = curves().expand(DRAWS, -1)
    for n, row in enumerate(rows.flip(-1)):
        axes.plot(row, color=PALETTE[n], lw=1.4 if n == 0 else 1.0, label="k = q" if n == 0 else f"draw {n}")
    mark(axes, view.length)
    what = "logit q·k, turned" if rotated else "term added to the logit"
    axes.set(title=f"{what}: random q, k of head 1", xlabel="distance from query to key (tokens)", ylabel="logit")
    tokens(axes, view.length, length)
    legend(axes)


@torch.no_grad()
def _attention(view: View, axes: Axes) -> None:
    """Attention weights where content says nothing."""
    visible = view.at(view.length).visible()[0]
    weights = (visible / visible.sum(-1, keepdim=True)).masked_fill(~visible, torch.nan)
    _pairs(view, axes, weights.log2(), "viridis", "attention where content says nothing", "log2 weight")


@torch.no_grad()
def _coordinates(view: View, axes: Axes, training: bool) -> None:
    """Coordinates that encodings read, by place: some training (or tuning) sequences, or a long test."""
    shown = _shown_phase(view)
    phase, length = (shown, view.length) if training else ("test", view.longest(4))
    rows = view.at(length, phase, rows=DRAWS).positions.query
    rows = rows if (rows != rows[:1]).any() else rows[:1]
    for n, row in enumerate(rows):
        label = f"sequence {n + 1}" if training and len(rows) > 1 else "" if n else "read as"
        axes.plot(row, color=PALETTE[n + 1], lw=1.4, label=label)
    plain = torch.arange(length)
    if (rows != plain).any():
        axes.plot(plain, color=GREY, lw=0.9, ls=":", label="plain positions")
    if not training:
        seen = view.at(view.length, shown, rows=64).positions.query
        low, high = float(seen.min()), float(seen.max())
        axes.axhspan(low, high, color=SEEN, alpha=0.1, lw=0, label=f"seen in {WORDS[shown]}")
        mark(axes, view.length)
    axes.set(title=f"coordinates in {WORDS[phase]}, {length} tokens", xlabel="place in the sequence (tokens)")
    axes.set_ylabel("coordinate (tokens)")
    tokens(axes, view.length, length)
    if len(axes.lines) > 1:
        legend(axes)


def _shown_phase(view: View) -> str:
    """The first of training and tuning in which coordinates are not plain; training if there is none."""
    return "tune" if view.moves("tune", view.length) and not view.moves("train", view.length) else "train"


@torch.no_grad()
def _distances(view: View, axes: Axes) -> None:
    """The distance at which each pair is read, and which pairs are seen."""
    composition = view.at(view.longest(2))
    distance = merged(composition, lambda r: composition.regions[r].parts[0].positions.distance())
    visible = composition.visible()[0]
    title = "distance each pair is read at" if view.changes("branches") else "what a query sees"
    _pairs(view, axes, distance[0].masked_fill(~visible, torch.nan), "viridis", title, "distance (tokens)")


@torch.no_grad()
def _read_distance(view: View, axes: Axes) -> None:
    """The distance at which the last query reads each key."""
    length = view.longest(4)
    composition = view.at(length, last=True)
    read = merged(composition, lambda r: composition.regions[r].parts[0].positions.distance())[0, 0]
    read = read.masked_fill(~composition.visible()[0, 0], torch.nan).flip(-1)
    axes.plot(range(length), color=GREY, lw=0.9, ls=":", label="plain distance")
    axes.plot(read, color=PALETTE[1], lw=1.8, label="read as")
    mark(axes, view.length)
    mark(axes, view.length, vertical=False, text="")
    axes.set(title=f"last query of {length} tokens", xlabel="distance from query to key (tokens)")
    axes.set_ylabel("distance read (tokens)")
    tokens(axes, view.length, length)
    legend(axes)


@torch.no_grad()
def _adapted(view: View, axes: Axes) -> None:
    """What is added to the biased logits of the first head, against the content logit, at some distances."""
    length = view.longest(4)
    view.wake()
    composition = view.at(length, last=True)
    levels, bias = torch.linspace(-5, 5, 41), composition.bias()
    logits = levels.view(-1, 1, 1, 1).expand(-1, view.scheme.shape.n_heads, 1, length)
    for extension in composition.extensions:
        if overrides(extension, "adapt"):
            total = extension.adapt(logits, bias, composition.base[0].positions)
    correction = (total - logits - bias)[:, 0, 0].flip(-1)  # (levels, length), nearest key first
    for n, distance in enumerate((0, view.length // 4, view.length, length - 1)):
        if distance < length:
            axes.plot(levels, correction[:, distance], color=PALETTE[n], lw=1.4, label=f"{distance} tokens away")
    axes.set(title="correction of head 1", xlabel="content logit q·k (of every head)", ylabel="added to the logit")
    legend(axes)


@torch.no_grad()
def _factors(view: View) -> dict[int, float]:
    """The factor on the content logits of the last query, by length."""
    lengths = [n for n in (view.length * 2**k // 16 for k in range(9)) if n and view.scheme.undefined(n) is None]
    return {n: float(torch.as_tensor(view.at(n, last=True).sigma()).flatten()[0]) for n in lengths}


def _is_constant(view: View, alone: bool) -> bool:
    """Whether the factor on logits is the same at all lengths, and not all there is to draw. A note then says it."""
    factors = list(_factors(view).values())
    constant = not alone and max(factors) - min(factors) < 1e-6
    if constant:
        view.notes.append(f"The factor on q·k is {factors[0]:.3g} at all lengths.")
    return constant


def _scale(view: View, axes: Axes) -> None:
    """The factor on the content logits of the last query, against length."""
    lengths, factors = map(list, zip(*_factors(view).items(), strict=True))
    axes.plot(lengths, factors, "o-", color=PALETTE[1], lw=1.4, ms=4)
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths[::2], [str(n) for n in lengths[::2]])
    axes.set_xticks([], minor=True)
    mark(axes, view.length)
    axes.set(title="factor on q·k of the last query", xlabel="length (tokens, log scale)", ylabel="factor")


@torch.no_grad()
def _sink(view: View, axes: Axes) -> None:
    """The weight that the sink of each head takes from a query whose other logits are 0, by the keys that it sees."""
    length = view.longest(4)
    sinks, keys = view.at(length, last=True).sink(), torch.arange(1, length + 1)
    alike = bool((sinks == sinks[0]).all())
    for h, sink in enumerate(sinks[:1] if alike else sinks):
        label = "each head" if alike else f"head {h + 1}"
        axes.plot(keys, (sink - keys.log()).sigmoid(), color=PALETTE[h % len(PALETTE)], lw=1.4, label=label)
    axes.set_yscale("log")
    mark(axes, view.length)
    axes.set(title="weight of the sink, all logits 0", xlabel="keys that the query sees", ylabel="weight (log scale)")
    tokens(axes, view.length, length)
    legend(axes)


def _pairs(
    view: View,
    axes: Axes,
    values: Tensor,
    shades: str,
    title: str,
    unit: str,
    bounds: tuple[float | None, float | None] = (None, None),
) -> None:
    """A heat map over queries (downwards) and keys; NaN, which is not seen, stays grey."""
    axes.set_facecolor("0.88")
    image = axes.imshow(values.numpy(), cmap=colours(shades), vmin=bounds[0], vmax=bounds[1], interpolation="none")
    bar(axes, image, unit)
    if len(values) > view.length:
        mark(axes, view.length)
        mark(axes, view.length, vertical=False, text="")
    axes.set(title=title, xlabel="key (tokens)", ylabel="query (tokens)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(range(0, len(values) + 1, max(1, view.length // 2)))
