"""What tasks plug into: questions drawn on the fly, with answers that can be checked.

Legend: B rows, n input symbols, m output symbols, L tokens that the model reads.
"""

import numbers
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pezoo.contract import Registered
from pezoo.errors import UserError, brief, suggest
from pezoo.registry import entry, list_tasks, make_config
from pezoo.scheme import MemberSpec, read_members
from pezoo.typed import said

IGNORE = -100
"""Target of a place at which nothing is asked; PyTorch's own."""
NOTHING = "_"
"""The same in text."""
Form = Literal["causal", "encoder"]
SHARE = 8
"""One question in so many is kept for testing."""
TRIES = 16
MOST = 64
"""Upper limit on the number of questions drawn in one try, as a multiple of the number wanted."""


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


class Task(Registered):
    """A task: what a question and its answer are at each length.

    A subclass states `n_symbols`, `sample`, `input_length` and `output_length`, and `solve`, from which `answer` and
    best `sample` too take the answers. Its own symbols are the ids 0 ... n_symbols - 1; the three marks `sep`, `eos`
    and `empty` follow, unless neither layout nor forms use them.

    How a pair becomes a sequence is its layout, and how a model reads it its form:

    - marked, causal: `input SEP output EOS`, each answer token predicted at the token before it;
    - plain, causal: `input output`, for tasks that mark their questions themselves and whose answers have one length;
    - inline, causal: the input alone; `outputs` is as long, and says what to predict at each token of the input;
    - encoder: `input EMPTY ... EMPTY`, every answer token predicted at once at a slot of its own (not for inline).

    Args:
        config: the task's settings, of its `Config`.
    """

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
    def symbols(self) -> Sequence[str]:
        """What the ids 0 ... n_symbols - 1 are called in text, all different; here: by their numbers."""
        return [str(i) for i in range(self.n_symbols)]

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

    def solve(self, inputs: Tensor) -> Tensor:
        """The answers to questions, each read from the question alone; a task that has none only gets no `answer`.

        Args:
            inputs: (B, n) int64, ids of the task's symbols; to be left as they are. Rows may differ in all but n.

        Returns:
            (B, m) int64, as in `Pairs.outputs`.

        Raises:
            UserError: if a question is none; see `require`.
        """
        raise UserError(f"{self.name} answers no given questions: its class has no `solve`")

    def distance(self, length: int, depth: float) -> int:
        """Tokens from the needle to the end of the question, for a task that has depths."""
        raise NotImplementedError

    # ---- what follows ----------------------------------------------------------------------------

    sep = property(lambda self: self.n_symbols)
    eos = property(lambda self: self.n_symbols + 1)
    empty = property(lambda self: self.n_symbols + 2)

    def answer(self, inputs: Any) -> Any:
        """The answer to a question, or the answers to several, in the form in which they are asked.

        - Ids: a tensor or a NumPy array of integers, (n,) for one question or (B, n) for several; or a list of them.
          `pairs.inputs` give `pairs.outputs`.
        - Text: the names of `symbols`, with spaces between them or without, such as "95+7". Spaces are needed where
          a name of several characters could be read as several names.
        - A list of symbols is one question; any other list is one of questions, each in a form and length of its own.

        Returns:
            In a tensor or an array of several rows, (B, m) int64, shorter answers are filled up with `IGNORE`. Other
            answers end where they end. In an inline task `IGNORE`, in text "_", stands where nothing is asked.

        Raises:
            UserError: if a question is none, or the task has no `solve`.
        """
        if isinstance(inputs, str):
            return self.text(self.answer(_read(inputs, self.symbols)))
        if isinstance(inputs, np.ndarray) and inputs.dtype.kind in "iu":
            return self.answer(torch.from_numpy(inputs.astype(np.int64, order="C"))).numpy()
        if isinstance(inputs, Tensor) and inputs.ndim in (1, 2) and inputs.numel() and _whole(inputs):
            rows = inputs.to("cpu", torch.int64).reshape(-1, inputs.shape[-1]).contiguous()
            strange = rows[(rows < 0) | (rows >= self.n_symbols)]
            if strange.numel():
                raise UserError(f"{self.name} has the ids 0 to {self.n_symbols - 1}, got {strange[0]}")
            found = self.solve(rows).to(inputs.device)
            return found if inputs.ndim == 2 else self.ended(found[0])
        if isinstance(inputs, Sequence) and inputs:
            if all(isinstance(i, numbers.Integral) and not isinstance(i, bool) for i in inputs):
                return self.answer(np.array(inputs)).tolist()
            if all(isinstance(i, str) for i in inputs) and set(inputs) <= set(self.symbols):
                ids = self.answer([self.symbols.index(i) for i in inputs])
                return [NOTHING if i == IGNORE else self.symbols[i] for i in ids]
            if all(isinstance(i, str | Sequence | Tensor | np.ndarray) for i in inputs):
                return [self.answer(question) for question in inputs]
        got = f"{inputs.dtype} of shape {tuple(inputs.shape)}" if hasattr(inputs, "dtype") else repr(inputs)[:60]
        raise UserError(f"a question is text, or integer ids of shape (n,) or (B, n), not {got}")

    def ended(self, answer: Tensor) -> Tensor:
        """One answer (m,) without what fills it up to the width of its batch."""
        return answer if self.layout == "inline" else answer[answer != IGNORE]

    def text(self, ids: Iterable[int]) -> str:
        """A question's or an answer's ids (n,) as text, which `answer` reads."""
        symbols = self.symbols
        names = [NOTHING if i == IGNORE else symbols[i] for i in map(int, ids)]
        if _needs_spaces(symbols):
            return " ".join(names)
        runs = groupby(names, lambda name: len(name) == 1)
        return " ".join(part for short, run in runs for part in (["".join(run)] if short else run))

    def require(self, good: Tensor | bool, inputs: Tensor, what: str) -> None:
        """Refuse questions that are none.

        Args:
            good: whether each question is one, (B,), or each of their places is right, (B, ...); or a bool for all.
            inputs: the questions, (B, n).
            what: what a question is, to go on from "its questions are".

        Raises:
            UserError: that shows the first that is none.
        """
        good = torch.as_tensor(good)
        good = good.flatten(1).all(1) if good.ndim > 1 else good.expand(len(inputs))
        if not good.all():
            question = self.text(inputs[~good][0])
            question = question if len(question) <= 60 else question[:60] + "..."
            raise UserError(f"{question!r} is no question of {self.name}: its questions are {what}")

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
            raise UserError(f"{self.name} has no {form} form; form is one of {', '.join(self.forms)}")
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


def _whole(ids: Tensor) -> bool:
    """Whether a tensor holds integers."""
    return not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)


def _needs_spaces(symbols: Sequence[str]) -> bool:
    """Whether a symbol of several characters could be read as several symbols."""
    single = {name for name in symbols if len(name) == 1}
    return any(len(name) > 1 and single.issuperset(name) for name in symbols)


def _read(text: str, symbols: Sequence[str]) -> list[int]:
    """The ids of a text's symbols.

    Raises:
        UserError: if it has none, or others.
    """
    ids = {name: i for i, name in enumerate(symbols)}
    whole = _needs_spaces(symbols)
    words = [text] if " " in ids else text.split()
    names = [name for word in words for name in ([word] if whole or word in ids else word)]
    strange = next((name for name in names if name not in ids), None)
    if strange is not None or not names:
        known = " ".join(symbols if len(symbols) <= 40 else [*symbols[:20], "...", *symbols[-20:]])
        what = "a question is empty" if strange is None else f"{strange!r} is no symbol"
        raise UserError(f"{what}; symbols are: {known}")
    return [ids[name] for name in names]


def is_test(inputs: Tensor) -> Tensor:
    """Which questions are kept for testing: one in `SHARE`, by a hash of their symbols, (B, n) -> (B,)."""
    generator = torch.Generator().manual_seed(0x5EED)
    keys = torch.randint(1, 2**62, (inputs.shape[1],), generator=generator)
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
        f"{task.name} has too few questions of length {length} to keep {kind} questions apart; choose greater lengths"
    )


def make_task(text: str) -> Task:
    """A task from its name and settings, such as `passkey` or `mqar:n_pairs=8`.

    Raises:
        UserError: if no task has that name, or it has no such setting.
    """
    spec = parse_task(text)
    config, _ = make_config(spec.name, dict(spec.settings))
    cls = entry(spec.name).cls
    if cls is None or not issubclass(cls, Task):
        raise UserError(f"{spec.name} is no task: its class does not extend Task")
    try:
        return cls(config)
    except UserError:
        raise
    except Exception as error:  # in somebody's plug-in, or of a number that is too large
        raise UserError(f"{brief(text)} cannot be made: {type(error).__name__}: {said(error)}") from error


def parse_task(text: str) -> MemberSpec:
    """The same as data, of which `str` is the canonical text.

    Raises:
        UserError: likewise.
    """
    if not isinstance(text, str):
        raise UserError(f"a task is a text such as mqar:n_pairs=8, not {brief(text)}")
    [(name, settings), *more] = read_members(text)
    tasks = list_tasks()
    if more and all(part in tasks for part, _ in more):
        raise UserError(
            f"{brief(text)} is no task: tasks are not joined; list them, as in 'tasks=[{name}, {more[0][0]}]'"
        )
    if more or name not in tasks:
        near = "" if more else suggest(name, tasks)
        raise UserError(f"{brief(text)} is no task.{near} All tasks: pezoo list --tasks")
    return MemberSpec.make(name, settings)
