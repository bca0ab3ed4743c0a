"""Text from a trained model: decoding through the key/value cache, and the models that a study trained.

A prompt is read in one pass, and each new token in one more, with the keys and values of those before it taken from the
cache. All passes are told one length, by default that of the text when it is whole, so that what comes out is what
reading everything anew for each token would give, also where a scheme depends on the total length.

Legend: B rows, n prompt tokens, V vocabulary.
"""

import os
import shlex
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pezoo.contract import Undefined
from pezoo.errors import UserError, suggest
from pezoo.transformer import Transformer

GRAM = 4
"""Tokens in the n-grams whose repetition is counted."""
CTRL_C = "Ctrl-C"
STRETCHES = 16
"""Most lines in the table of stretches, give or take one."""


def stream(
    model: Transformer,
    prompt: Tensor,
    n_new: int,
    *,
    length: int | None = None,
    rows: tuple[int, ...] | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Continue a prompt, token by token.

    The model is in evaluation mode until the iterator ends or is closed, and then in the mode it was in.

    Args:
        model: a decoder.
        prompt: (B, n) int64, n at least 1.
        n_new: tokens to add.
        length: total length that length-dependent schemes are told; default: n + n_new. The last new token is not read,
            so that n + n_new - 1 is enough.
        rows: names of the sequences, the keys of random positions; default: 0 ... B - 1.
        temperature: what logits are divided by before a token is drawn; 0: the likeliest token, nothing is drawn.
        top_k: draw among so many likeliest tokens; default: all.
        top_p: draw among the fewest likeliest tokens that have this much probability together (nucleus sampling;
            Holtzman et al. 2019, arXiv 1904.09751).
        generator: of the draws; default: torch's global one.

    Returns:
        An iterator over n_new steps: the next token of each row, (B,) int64, and its log-probability under the model,
        in nats, (B,) float32. It raises `Undefined` at the first token for which the scheme has no value.

    Raises:
        UserError: if an argument is out of its range, or the model is an encoder.
    """
    n = prompt.shape[1]
    length = n + n_new if length is None else length
    if not model.config.causal:
        raise UserError("an encoder cannot continue a text: it was trained to see what comes after a token")
    if n < 1:
        raise UserError("the prompt is empty; a model predicts a token from those before it, so give at least one")
    if n_new < 0:
        raise UserError(f"the number of new tokens must be at least 0, got {n_new}")
    if length < n + n_new - 1:
        raise UserError(f"length = {length}, but {n} tokens of a prompt and {n_new} new ones need {n + n_new - 1}")
    if not temperature >= 0:
        raise UserError(f"temperature must be at least 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k must be at least 1, got {top_k}")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p must be above 0 and at most 1, got {top_p}")

    def choose(logits: Tensor) -> Tensor:
        return _choose(logits, temperature, top_k, top_p, generator)

    return _steps(model, prompt, n_new, length, rows, choose)


@torch.inference_mode()
def _steps(
    model: Transformer,
    prompt: Tensor,
    n_new: int,
    length: int,
    rows: tuple[int, ...] | None,
    choose: Callable[[Tensor], Tensor],
) -> Iterator[tuple[Tensor, Tensor]]:
    """The steps of `stream`; `choose` takes logits (B, V) to tokens (B,)."""
    batch, n = prompt.shape
    training = model.training
    model.eval()
    try:
        positions = model.positions(batch, length, rows=rows or range(batch))
        cache = model.cache(batch, n + n_new)
        unread = prompt.to(positions.query.device)
        for _ in range(n_new):
            logits = model.head(model.hidden(unread, positions, cache)[:, -1]).float()
            ids = choose(logits)
            yield ids, logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]
            unread = ids[:, None]
    finally:
        model.train(training)


def decode(model: Transformer, prompt: Tensor, n_new: int, **how: Any) -> Tensor:
    """The continuation of a prompt, (B, n) -> (B, n_new) int64: what `stream` yields, with its arguments `how`.

    Raises:
        UserError: if an argument is out of its range, or the model is an encoder.
        Undefined: if the scheme has no value for one of the tokens.
    """
    tokens = [ids for ids, _ in stream(model, prompt, n_new, **how)]
    return torch.stack(tokens, dim=1) if tokens else prompt[:, :0]


def _choose(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float, generator: torch.Generator | None
) -> Tensor:
    """One token a row, (B, V) -> (B,)."""
    if temperature == 0:
        return logits.argmax(-1)
    device = generator.device if generator is not None else logits.device
    ordered, ids = logits.sort(dim=-1, descending=True, stable=True)
    p = (ordered[:, :top_k] / temperature).softmax(-1)
    p = p.where(p.cumsum(-1) - p < top_p, 0)  # the likeliest always stays
    place = torch.multinomial(p.to(device), 1, generator=generator).to(ids.device)
    return ids.gather(-1, place)[:, 0]


# ---- the models of a study ----------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """A language model of a study, as it was tested there."""

    model: Transformer
    """On the CPU and in evaluation mode."""
    label: str
    seed: int
    part: str
    """Of the recipe; empty if it has none."""
    inputs: dict[str, Any]
    """What determined its evaluation."""
    lengths: dict[int, str]
    """Lengths that it has seen, in tokens, and in what: "training", "tuning"."""
    changed: bool
    """Whether the source of a member is no longer what it was trained with."""


def find_model(folder: str | Path, scheme: str | None, seed: int | None = None, part: str | None = None) -> Trained:
    """Find a language model in the folder of a study, however far the study has come.

    It is found by way of `results.jsonl`, not by planning the recipe again: so it is found on another device, and
    after a member's source has changed.

    Args:
        folder: of the study.
        scheme: a row's label ("rope+pi, 200 steps @ 8x"), or a scheme that one row alone was tested with.
        seed: of the training; default: the recipe's first.
        part: of the recipe, if the row is in several.

    Raises:
        UserError: if there is no such study, row, seed or trained model; the message lists what there is.
    """
    # Imported here: evaluation, which the study imports, decodes by way of this module.
    from pezoo.config import LANGUAGE_MODELLING
    from pezoo.lightning import load
    from pezoo.registry import entries
    from pezoo.results import read
    from pezoo.scheme import parse
    from pezoo.study.cells import carry_over
    from pezoo.study.plan import Cell
    from pezoo.study.store import Store

    path = Path(folder) / "results.jsonl"
    if not path.is_file():
        raise UserError(f"{folder} is no folder of a study: it has no results.jsonl; name one that `pezoo run` made")
    results = [r for r in read(path) if r.task == LANGUAGE_MODELLING and part in (None, r.part)]
    if not results:
        where = f"part {part!r} of {folder}" if part is not None else str(folder)
        raise UserError(f"{where} has no tested language model, and only those can write text")
    label = _label(folder, scheme, {r.label: r.scheme for r in results})
    results = [r for r in results if r.label == label]
    parts = list(dict.fromkeys(r.part for r in results))
    if len(parts) > 1:
        raise UserError(
            f"{label!r} is in several parts of the recipe, {', '.join(parts)}; type --part {shlex.quote(parts[0])}"
        )
    seeds = list(dict.fromkeys(r.seed for r in results))
    seed = seeds[0] if seed is None else seed
    if seed not in seeds:
        raise UserError(f"{label!r} was not trained with seed {seed}; its seeds: {', '.join(map(str, seeds))}")

    result, store = next(r for r in results if r.seed == seed), Store(Path(folder))
    parent = store.facts(result.cell)["inputs"]["parent"] if store.kept(result.cell) else None
    if parent is None or not store.kept(parent) or not (weights := store.path(parent) / "model.pt").is_file():
        why = result.reason.removeprefix("no trained model: ") or "its files are gone or damaged; run the study again"
        raise UserError(f"{folder} has no trained model of {label!r}, seed {seed}: {why}")
    inputs = store.facts(result.cell)["inputs"]
    if missing := [name for name in inputs["sources"] if name not in entries()]:
        _refuse_unknown(Path(folder), label, missing)
    model = Cell("", inputs).model()
    carry_over(load(weights)[0], model)
    fit = store.facts(parent)["inputs"]
    lengths = {inputs["train_length"]: "training"}
    if fit["kind"] == "tune":
        lengths |= {fit["settings"]["length"]: "tuning"}
    changed = parse(inputs["scheme"]).sources() != inputs["sources"]
    return Trained(model.eval(), label, seed, result.part, inputs, lengths, changed)


def _refuse_unknown(folder: Path, label: str, missing: list[str]) -> None:
    """Say which plug-ins a row needs, whose members are not registered."""
    from pezoo.study.folder import plugins_of, read_record, require_plugins

    require_plugins(plugins_of(read_record(folder), folder), (), f"the study in {folder}")
    raise UserError(f"{label!r} needs {', '.join(missing)}, which is not registered; name its file: --plugin FILE.py")


def _label(folder: str | Path, given: str | None, schemes: dict[str, str]) -> str:
    """The label that is meant, of the labels whose schemes these are."""
    from pezoo.scheme import parse

    if given in schemes:
        return given
    found = []
    if given is not None:
        try:
            scheme = str(parse(given))
        except UserError:
            scheme = given
        found = [label for label, its in schemes.items() if its == scheme]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"several rows of {folder} are {given}: {_list(found)}; name one of them")
    wrong = "say which scheme" if given is None else f"{folder} has no {given!r}"
    near = "" if given is None else suggest(given, {*schemes, *schemes.values()})
    raise UserError(f"{wrong}.{near} It has: {_list(schemes)}")


def _list(labels: Iterable[str]) -> str:
    return "; ".join(map(repr, labels))


def opening(folder: str | Path, trained: Trained, n: int) -> tuple[Tensor, str]:
    """The first n tokens, (1, n), of the first window that the study tested on, and where they stand, in words.

    Raises:
        UserError: if the text is not there any more.
    """
    from pezoo.config import load_recipe
    from pezoo.data import load, windows

    recipe = dict(load_recipe(Path(folder) / "recipe.yaml").split())[trained.part]
    corpus = load(recipe.data)
    if corpus.tokenizer != trained.inputs["data"]["tokenizer"]:
        raise UserError(f"the recipe in {folder} now has another tokenizer than the model; give a --prompt")
    cut = windows(corpus.test, max(recipe.test_lengths), recipe.test.windows, recipe.test.seed)
    where = f"{n} tokens of the test document {corpus.test.names[cut.document[0]]}, from token {cut.offset[0]} on"
    return cut.ids[:1, :n], where


# ---- a page of text -----------------------------------------------------------------------------


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
    trained: Trained,
    prompt: Tensor,
    steps: Iterator[tuple[Tensor, Tensor]],
    n_new: int,
    text: Callable[..., str],
) -> bool:
    """Write a prompt, (1, n), and its continuation, with marks where the text passes lengths the model has seen.

    Args:
        trained: the model that continues it.
        prompt: (1, n).
        steps: from `stream`, of `n_new` tokens.
        n_new: tokens to come.
        text: tokens to text, from `Tokenizer.decoder`.

    Returns:
        False if Ctrl-C ended it.
    """
    page, n, stopped = Page(), prompt.shape[1], ""
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
    except KeyboardInterrupt:
        stopped = CTRL_C
    page.write(text([], final=True))
    if stopped:
        page.mark(f"stopped before token {len(written) + 1} of {n + n_new}: {stopped}")
    page.end()
    if len(written) > n:
        _print(stretches(*zip(*written[n:], strict=True), n, trained.inputs["train_length"]))
    return stopped != CTRL_C


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


def _print(found: Sequence[Stretch]) -> None:
    table = Table(box=None, header_style="dim", style="dim")
    for title in ("new tokens", "mean log-probability (nats)", f"distinct {GRAM}-grams"):
        table.add_column(title, justify="right", no_wrap=True)
    for s in found:
        share = "" if s.distinct is None else f"{s.distinct:.0%}"
        table.add_row(f"{s.first}-{s.last}", f"{s.log_probability:.2f}", share)
    Console(stderr=True, highlight=False).print(table)
