"""Pictures of members and schemes, which make the idea visible: what an encoding adds, and what its extensions change.

What is drawn is read from the hooks that a class overrides, never from its name, so that a plug-in has a picture too.
Each hook has a panel: `embed` a heat map over positions and channels; `inv_freq` and `frequencies` wavelengths against
the training length; `distance_bias` curves; `bias` heat maps of pairs; `rotate` and `content` the logits of random
queries and keys; `coordinates` maps in training and in testing; `mask` and `branches` the distance at which each pair
is read; `scale` its factor; `sink` the weight that it takes; `adapt` what it adds to a bias.
"""

import io
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from pezoo.compose import build
from pezoo.contract import Shape
from pezoo.drawing.panels import ABOVE, GREY, Panel, panels_of
from pezoo.drawing.view import View
from pezoo.errors import UserError
from pezoo.files import replacing
from pezoo.registry import entries, entry
from pezoo.report.figure import SAVING
from pezoo.scheme import Spec, parse

FORMATS = (".png", ".svg", ".pdf")


def picture(scheme: str | Spec, *, train_length: int = 64, n_heads: int = 4, d_model: int = 64) -> Figure:
    """Draw a scheme, or an extension on an encoding that it fits.

    Args:
        scheme: a scheme such as "rope+yarn", or the name of an extension.
        train_length: tokens of a training sequence (L), marked in every panel.
        n_heads: heads; as many as are named where the scheme gives each a scheme of its own.
        d_model: model width; n_heads must divide it.

    Raises:
        UserError: if the scheme is malformed, or cannot work or is undefined at these sizes.
    """
    if train_length < 1 or n_heads < 1 or d_model < 1 or d_model % n_heads:
        raise UserError(f"cannot draw train_length = {train_length}, n_heads = {n_heads}, d_model = {d_model}")
    found = entries().get(scheme) if isinstance(scheme, str) else None
    spec = _on_a_host(scheme) if found and found.kind == "extension" else parse(scheme)
    title = f"{found.name}: {found.title}" if found else str(spec)
    plain = dict.fromkeys(_plain(spec, n_heads))
    notes = [f"Training length L = {train_length} tokens."]
    if found and found.kind == "extension":
        notes.append(f"Drawn on {spec.encodings[0]}.")
    panels = []
    for part, heads in plain:
        view = View(build(part, Shape(heads * (d_model // n_heads), heads, 1, train_length)), notes)
        if reason := view.scheme.undefined(train_length):
            raise UserError(f"cannot draw {part}: {reason}")
        head = f"{part}\n" if len(plain) > 1 else ""
        panels += [(head, panel) for panel in panels_of(view)]
    if not panels:
        raise UserError(f"there is nothing to draw of {spec}: it changes no number that a panel shows")
    names = [found.name] if found and found.cls else [*spec.encodings, *spec.extensions]
    return _figure(title, panels, [e for n in names if (e := entry(n).equation)], notes)


def save(figure: Figure, path: str | Path) -> Path:
    """Save a picture in the format that its suffix names; the same picture always gives the same bytes.

    Raises:
        UserError: if the suffix is no format.
        OSError: if it cannot be written.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise UserError(f"cannot save {path}: its name must end in {', '.join(FORMATS)}")
    undated = {".png": {"Software": None}, ".svg": {"Date": None, "Creator": None}, ".pdf": {"CreationDate": None}}
    drawn = io.BytesIO()
    with matplotlib.rc_context(SAVING | {"font.sans-serif": ["DejaVu Sans"]}):
        figure.savefig(drawn, format=path.suffix[1:], dpi=150, metadata=undated[path.suffix])
    data = drawn.getvalue()
    if path.suffix == ".svg":  # tenths of a point are fine enough
        data = re.sub(rb' [dxy]="[^"]*"', lambda match: re.sub(rb"(\.\d)\d+", rb"\1", match[0]), data)
    with replacing(path) as file:
        file.write(data)
    return path


def _on_a_host(extension: str) -> Spec:
    """An extension on the plainest encoding that it fits."""
    from pezoo.testing import subjects

    return subjects(extension)[0].spec


def _plain(spec: Spec, n_heads: int) -> Iterator[tuple[Spec, int]]:
    """The plain schemes of a mixture, with their numbers of heads."""
    if spec.members:
        yield spec, n_heads
    for part in spec.layers:
        yield from _plain(part, n_heads)
    for part, heads in spec.heads:
        yield from _plain(part, heads)


def _figure(title: str, panels: list[tuple[str, Panel]], equations: list[str], notes: list[str]) -> Figure:
    """Panels side by side, above equations and notes; drawing a panel may add to the notes."""
    n = len(panels)
    figure = Figure(figsize=(1 + 4 * max(n, 1.4), 4), layout="compressed")
    figure.suptitle(title, weight="bold", x=0.01, ha="left", fontsize=11)
    for (head, panel), axes in zip(panels, figure.subplots(1, n, squeeze=False)[0], strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        panel(axes)
        axes.tick_params(labelsize=8)
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set_size(9)
        axes.set_title(head + axes.get_title(), fontsize=10, loc="left")
        axes.set_title("", pad=6 + ABOVE)  # it is one for all three titles
    width = int(figure.get_size_inches()[0] * 15)
    texts = [*equations, " ".join(dict.fromkeys(notes))]
    lines = [line for text in texts for line in textwrap.wrap(text, width, subsequent_indent="    ")]
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=8, color=GREY, parse_math=False)
    return figure
