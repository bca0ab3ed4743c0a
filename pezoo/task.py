"""What tasks plug into: questions drawn on the fly, with answers that can be checked.

Legend: B rows, n input symbols, m output symbols, L tokens that the model reads.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from pezoo.errors import UserError, suggest
from pezoo.registry import entry, list_tasks, make_config
from pezoo.scheme import MemberSpec, read_members

IGNORE = -100
"""Target of a place at which nothing is asked; PyTorch's own."""
Form = Literal["causal", "encoder"]
SHARE = 8
"""One question in so many is kept for testing."""
TRIES = 16
MOST = 64
"""So many questions are drawn in one try for each that is wanted, at most."""


@dataclass(frozen=True)
class Pairs:
    """Questions and their answers, all rows of one shape."""

    inputs: Tensor
    """(B, n) int64."""
    outputs: Tensor
    """(B, m) int64; `IGNORE` after the end of a shorter answer, or where an inline task asks nothing."""


class Example(NamedTuple):
    """What a model reads, and what it must say at each token."""

    tokens: Tensor
    """(B, L) int64."""
    targets: Tensor
    """(B, L) int64, `IGNORE` where nothing is asked."""


@dataclass(frozen=True)
class NoSettings:
    """The Config of a task that has no settings."""


class Task:
    """A task: what a question and its answer are at each length.

    A subclass states `n_symbols`, `sample`, `input_length` and `output_length`. Its own symbols are the ids
    0 ... n_symbols - 1; the three marks `sep`, `eos` and `empty` follow, unless neither layout nor forms use them.

    How a pair becomes a sequence is its layout, and how a model reads it its form:

    - marked, causal: `input SEP output EOS`, each answer token predicted at the token before it;
    - plain, causal: `input output`, for tasks that mark their questions themselves and whose answers have one length;
    - inline, causal: the input alone; `outputs` is as long, and says what to predict at each token of the input;
    - encoder: `input EMPTY ... EMPTY`, every answer token predicted at once at a slot of its own (not for inline).

    Args:
        config: the task's settings, of its `Config`.
    """

    Config: ClassVar[type] = NoSettings
    layout: ClassVar[Literal["marked", "plain", "inline"]] = "marked"
    forms: ClassVar[tuple[Form, ...]] = ("causal", "encoder")
    least_length: int = 1
    """Shortest task length that has questions."""
    depths: ClassVar[tuple[float, ...]] = ()
    """Where a tested needle may stand, from 0 (first) to 1 (last); empty: `sample` takes no depth."""

    def __init__(self, config: Any = None) -> None:
        self.config = self.Config() if config is None else config

    # ---- what a subclass states ------------------------------------------------------------------

    @property
    def n_symbols(self) -> int:
        """Number of the task's own symbols."""
        raise NotImplementedError

    @property
    def chance(self) -> float:
        """Share of answer tokens that the best guess of one symbol for all of them gets right."""
        return 1 / self.n_symbols

    def input_length(self, length: int) -> int:
        """Most input symbols (n) at a task length."""
        return length

    def output_length(self, length: int) -> int:
        """Most output symbols (m) at a task length."""
        raise NotImplementedError

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Draw questions of one task length; what settles their shape is drawn anew in each call.

        Args:
            batch_size: rows (B).
            length: the task length, at least 1; what it counts is the task's to say.
            generator: of all draws.
        """
        raise NotImplementedError

    def distance(self, length: int, depth: float) -> int:
        """Tokens from the needle to the end of the question, for a task that has depths."""
        raise NotImplementedError

    # ---- what follows ----------------------------------------------------------------------------

    sep = property(lambda self: self.n_symbols)
    eos = property(lambda self: self.n_symbols + 1)
    empty = property(lambda self: self.n_symbols + 2)

    @property
    def vocab_size(self) -> int:
        """Ids that can stand in a sequence: the symbols, and the marks where they are used."""
        return self.n_symbols + 3 * (self.layout == "marked" or "encoder" in self.forms)

    def n_tokens(self, length: int, form: Form = "causal") -> int:
        """Most tokens that a model reads at a task length (L)."""
        if self.layout == "inline":
            return self.input_length(length)
        spare = {"causal": {"marked": 1, "plain": -1}[self.layout], "encoder": 0}[form]
        return self.input_length(length) + self.output_length(length) + spare

    def example(self, pairs: Pairs, form: Form = "causal") -> Example:
        """Lay pairs out as sequences.

        Raises:
            UserError: if the task has no such form.
        """
        if form not in self.forms:
            raise UserError(f"{type(self).__name__} has no {form} form; form is one of {', '.join(self.forms)}")
        inputs, outputs = pairs.inputs, pairs.outputs
        if self.layout == "inline":
            return Example(inputs, outputs)
        nothing = torch.full_like(inputs, IGNORE)
        if form == "encoder":
            slots = torch.full_like(outputs, self.empty)
            return Example(torch.cat([inputs, slots], 1), torch.cat([nothing, outputs], 1))
        if self.layout == "plain":
            return Example(torch.cat([inputs, outputs[:, :-1]], 1), torch.cat([nothing[:, 1:], outputs], 1))
        answered = outputs != IGNORE
        shown = outputs.where(answered, self.eos)
        column = torch.full_like(inputs[:, :1], self.eos)
        ends = torch.cat([outputs, torch.full_like(column, IGNORE)], 1)
        ends.scatter_(1, answered.sum(1, keepdim=True), column)
        return Example(torch.cat([inputs, column - 1, shown], 1), torch.cat([nothing, ends], 1))


def is_test(inputs: Tensor) -> Tensor:
    """Which questions are kept for testing: one in `SHARE`, by a hash of their symbols, (B, n) -> (B,)."""
    keys = torch.Generator().manual_seed(0x5EED)
    keys = torch.randint(1, 2**62, (inputs.shape[1],), generator=keys)
    mixed = ((inputs + 1) * keys).sum(1)  # wraps around
    mixed = (mixed ^ (mixed >> 29)) * 0x1B873593AC4D2A7D
    return (mixed >> 40) % SHARE == 0


def draw(
    task: Task,
    batch_size: int,
    length: int,
    generator: torch.Generator,
    *,
    test: bool | None = None,
    **place: float,
) -> Pairs:
    """Draw questions, for training or for testing alone.

    Args:
        task: what is drawn.
        batch_size: rows.
        length: task length.
        generator: of all draws.
        test: True: questions of the test split alone; False: none of them; None: all.
        place: `depth`, for a task that has depths.

    Raises:
        UserError: if the task has hardly any question of that kind at that length.
    """
    if test is None:
        return task.sample(batch_size, length, generator, **place)
    size = 2 * SHARE * batch_size if test else batch_size + batch_size // 4 + SHARE
    for _ in range(TRIES):
        found = task.sample(size, length, generator, **place)
        rows = (is_test(found.inputs) == test).nonzero()[:batch_size, 0]
        if len(rows) == batch_size:
            return Pairs(found.inputs[rows], found.outputs[rows])
        size = min(2 * size, MOST * batch_size)  # where questions are few, the share of either kind is anything
    kind = "test" if test else "training"
    raise UserError(
        f"{type(task).__name__} has too few questions of length {length} to keep {kind} questions apart; "
        "choose greater lengths"
    )


def make_task(text: str) -> Task:
    """A task from its name and settings, such as `passkey` or `mqar:n_pairs=8`.

    Raises:
        UserError: if no task has that name, or it has no such setting.
    """
    spec = parse_task(text)
    config, _ = make_config(spec.name, dict(spec.settings))
    return entry(spec.name).cls(config)


def parse_task(text: str) -> MemberSpec:
    """The same as data, of which `str` is the canonical text.

    Raises:
        UserError: likewise.
    """
    [(name, settings), *more] = read_members(text)
    if more or name not in (tasks := list_tasks()):
        raise UserError(f"{text!r} is no task.{suggest(name, tasks)} Tasks: {', '.join(tasks)}")
    return MemberSpec.make(name, settings)
