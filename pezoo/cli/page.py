"""A page of text as a model writes it, on the terminal."""

import os
import signal
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from rich.console import Console
from rich.table import Table
from torch import Tensor

from pezoo.contract import Undefined
from pezoo.study.models import Trained

GRAM = 4
"""Tokens in the n-grams whose repetition is counted."""
STRETCHES = 16
"""Most lines in the table of stretches, give or take one."""


class Page:
    """Text on standard output as it comes, and marks in it on standard error.

    A terminal gets the prompt dimmed, a line break before each mark, and no control characters, which a model may
    write as it may write any others. Anything else gets the text alone.
    """

    def __init__(self) -> None:
        self.terminal = sys.stdout.isatty()
        self.dim = self.terminal and "NO_COLOR" not in os.environ
        self.last = "\n"

    def write(self, text: str, dim: bool = False) -> None:
        """Add text."""
        if not text:
            return
        if self.terminal:
            control = {c for c in text if unicodedata.category(c) == "Cc"} - {"\n", "\t"}
            text = text.translate(dict.fromkeys(map(ord, control), "\N{REPLACEMENT CHARACTER}"))
        self.last = text[-1]
        sys.stdout.write(f"\033[2m{text}\033[22m" if dim and self.dim else text)
        sys.stdout.flush()

    def mark(self, text: str) -> None:
        """A line between two tokens."""
        self.end()
        note(f"── {text} ──")

    def end(self) -> None:
        """End the line that a person sees."""
        if self.terminal and self.last != "\n":
            self.write("\n")


def note(text: str) -> None:
    """A line on standard error."""
    Console(stderr=True, highlight=False).print(text, style="dim", markup=False, soft_wrap=True)


def show(
    trained: Trained, prompt: Tensor, steps: Iterator[tuple[Tensor, Tensor]], n_new: int, text: Callable[..., str]
) -> int:
    """Write a prompt, (1, n), and its continuation, with marks where the text passes lengths the model has seen.

    Args:
        trained: the model that continues it.
        prompt: (1, n).
        steps: from `stream`, of `n_new` tokens.
        n_new: tokens to come.
        text: tokens to text, from `Tokenizer.decoder`.

    Returns:
        The exit code: that of the signal if Ctrl-C or SIGTERM ended it, else 0.
    """
    page, n, stopped, code = Page(), prompt.shape[1], "", 0
    written: list[tuple[int, float | None]] = []
    given = ((token, None) for token in prompt[0].tolist())
    new = ((int(ids), float(log)) for ids, log in steps)
    try:
        for token, log in chain(given, new):
            if len(written) in trained.lengths:
                page.mark(f"{len(written)} tokens: the {trained.lengths[len(written)]} length")
            written.append((token, log))
            page.write(text([token]), dim=log is None)
    except Undefined as reason:
        stopped = f"the scheme is undefined from here on: {reason}"
    except KeyboardInterrupt as error:
        number = (error.args or (signal.SIGINT,))[0]
        stopped, code = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name, 128 + number
    page.write(text([], final=True))
    if stopped:
        page.mark(f"stopped before token {len(written) + 1} of {n + n_new}: {stopped}")
    page.end()
    if len(written) > n:
        print_table(stretches(*zip(*written[n:], strict=True), n, trained.inputs["train_length"]))
    return code


@dataclass(frozen=True)
class Stretch:
    """What a stretch of generated text is like."""

    first: int
    """Number of its first token in the text, counted from 1."""
    last: int
    log_probability: float
    """Mean of its tokens' log-probabilities, in nats."""
    distinct: float | None
    """Different n-grams of `GRAM` tokens over all of them: low where the text runs in circles. None: too short."""


def stretches(tokens: Sequence[int], logs: Sequence[float], start: int, width: int) -> list[Stretch]:
    """Cut generated tokens at multiples of `width` of the whole text, or of a multiple of it if they are many.

    Args:
        tokens: generated.
        logs: their log-probabilities.
        start: tokens of the text before them.
        width: tokens in a stretch.
    """
    stop = start + len(tokens)
    width *= -(-len(tokens) // (width * STRETCHES))
    found = []
    for left in range(start // width * width, stop, width):
        own = slice(max(left - start, 0), left + width - start)
        here = tokens[own]
        grams = list(zip(*(here[i:] for i in range(GRAM)), strict=False))
        distinct = len(set(grams)) / len(grams) if grams else None
        first = start + own.start + 1
        found.append(Stretch(first, first + len(here) - 1, sum(logs[own]) / len(here), distinct))
    return found


def print_table(found: Sequence[Stretch]) -> None:
    """A line per stretch on standard error."""
    table = Table(box=None, header_style="dim", style="dim")
    for title in ("new tokens", "mean log-probability (nats)", f"distinct {GRAM}-grams"):
        table.add_column(title, justify="right", no_wrap=True)
    for s in found:
        share = "" if s.distinct is None else f"{s.distinct:.0%}"
        table.add_row(f"{s.first}-{s.last}", f"{s.log_probability:.2f}", share)
    Console(stderr=True, highlight=False).print(table)
