"""What a model is trained on: the text of a corpus, or the questions of a task.

Material gives batches that are a function of (step, seed) alone, so that every scheme sees the same ones. Evaluation
knows the two kinds apart; training does not.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from pezoo.data.corpus import Corpus
from pezoo.data.tokens import philox
from pezoo.errors import UserError
from pezoo.registry import entry
from pezoo.results import LANGUAGE_MODELLING
from pezoo.task import Example, Form, Pairs, draw, make_task, parse_task

TRAINING, VALIDATION, TESTING = range(3)


class Batching(Protocol):
    """What of a training's settings decides its batches."""

    batch_size: int
    """Sequences per batch of the longest."""
    lengths: str
    """fixed, uniform or curriculum."""
    min_length: int | None
    """Shortest batches, where lengths differ."""


class Batched(Protocol):
    """Gives batches: `Tokens` of a split, or `Drill` of a task."""

    def batch(self, step: int, batch_size: int, length: int, seed: int, longest: int | None = None) -> Example:
        """(B, L) tokens and targets of a step, for one seed and step always the same.

        `longest` is the length of the longest batches: shorter text is cut from the same documents.
        """

    def rows(self, batch_size: int, longest: int, length: int) -> int:
        """Rows of a batch of `length` where one of `longest` has `batch_size`."""


class Text:
    """Language modelling on a corpus."""

    causal = True

    def __init__(self, corpus: Corpus) -> None:
        self.corpus, self.vocab_size, self.name = corpus, corpus.vocab_size, LANGUAGE_MODELLING
        self.train, self.validation = corpus.train, corpus.validation
        self.source = corpus.name

    def facts(self) -> dict[str, Any]:
        """All that determines the batches, as plain data."""
        corpus = self.corpus
        facts = {"hash": corpus.hash, "digest": corpus.digest}
        facts |= {"tokenizer": corpus.tokenizer, "vocab_size": corpus.vocab_size}
        return {"task": self.name, "form": "causal"} | facts

    def n_tokens(self, length: int) -> int:
        """Tokens that the model reads."""
        return length


class Questions:
    """A task in one of its forms.

    Args:
        task: name and settings.
        form: causal or encoder.
        train_length: L; of the questions of this length or more some are kept for testing. None: none are.

    Raises:
        UserError: if there is no such task, setting or form.
    """

    def __init__(self, task: str, form: Form, train_length: int | None) -> None:
        self.spec, self.task, self.form, self.train_length = parse_task(task), make_task(task), form, train_length
        self.vocab_size, self.name, self.causal = self.task.vocab_size, str(self.spec), form == "causal"
        self.train, self.validation = Drill(self, TRAINING), Drill(self, VALIDATION)
        self.source = f"{self.name}, {form} form"
        if form not in self.task.forms:
            raise UserError(f"{self.name} has no {form} form; form is one of {', '.join(self.task.forms)}")

    def facts(self) -> dict[str, Any]:
        """All that determines the batches, as plain data."""
        facts = {"task": self.name, "settings": self.spec.full, "source": entry(self.spec.name).source_hash}
        return facts | {"form": self.form, "vocab_size": self.vocab_size, "train_length": self.train_length}

    def n_tokens(self, length: int) -> int:
        """Most tokens that the model reads at a task length."""
        return self.task.n_tokens(length, self.form)

    def distance(self, length: int, depth: float) -> int:
        """Tokens from the needle to the end of the question, for a task that has depths."""
        return self.task.distance(length, depth)

    def example(self, pairs: Pairs) -> Example:
        """Pairs as sequences of tokens."""
        return self.task.example(pairs, self.form)

    def pairs(self, purpose: int, step: int, batch_size: int, length: int, seed: int, **place: float) -> Pairs:
        """Questions of a step; from the training length on they are other ones in training than in testing."""
        generator = torch.Generator()
        generator.manual_seed(int(philox(seed, 4 * step + purpose).random_raw()) % 2**63)
        longest = self.train_length
        split = longest is not None and (length >= longest or self._size(length) == self._size(longest))
        test = purpose == TESTING if split else None
        return draw(self.task, batch_size, length, generator, test=test, **place)

    def _size(self, length: int) -> tuple[int, int]:
        """Symbols of question and answer: a task may have the same questions at two lengths."""
        return self.task.input_length(length), self.task.output_length(length)


@dataclass(frozen=True)
class Drill:
    """Batches of questions for one purpose."""

    questions: Questions
    purpose: int

    def batch(self, step: int, batch_size: int, length: int, seed: int, longest: int | None = None) -> Example:
        """See `Batched`."""
        pairs = self.questions.pairs(self.purpose, step, batch_size, length, seed)
        return self.questions.example(pairs)

    def rows(self, batch_size: int, longest: int, length: int) -> int:
        """As many questions at each length."""
        return batch_size


Material = Text | Questions


@dataclass(frozen=True)
class Batches:
    """An iterable over batches: number i is that of step i."""

    material: Batched
    settings: Batching
    length: int
    """L, the longest."""
    count: int
    """Number of batches."""
    seed: int
    fixed: bool = False
    """Batches of L alone, whatever the settings say."""
    first: int = 0
    """Number of the batch to begin with; those before it count, and are not drawn."""
    ahead: bool = False
    """Draw the next batch while a GPU works on this one. A CPU that trains has no time for that."""

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Example]:
        return drawn_ahead(self._drawn()) if self.ahead else self._drawn()

    def _drawn(self) -> Iterator[Example]:
        for step in range(self.first, self.count):
            length = self.length if self.fixed else length_at(step, self.count, self.length, self.settings, self.seed)
            rows = self.material.rows(self.settings.batch_size, self.length, length)
            yield self.material.batch(step, rows, length, self.seed, self.length)


def drawn_ahead(batches: Iterator[Example]) -> Iterator[Example]:
    """The same batches, each drawn by a thread while the one before is used, in memory that a GPU reads by itself."""

    def draw() -> Example | None:
        batch = next(batches, None)
        if batch is None or not torch.cuda.is_available():
            return batch
        return Example(*(tensor.pin_memory() for tensor in batch))

    with ThreadPoolExecutor(1, "batches") as thread:
        coming = thread.submit(draw)
        while (batch := coming.result()) is not None:
            coming = thread.submit(draw)
            yield batch


def length_at(step: int, count: int, longest: int, settings: Batching, seed: int) -> int:
    """Length of the batch of a step, as `settings.lengths` has it.

    Args:
        step: from 0.
        count: steps in all.
        longest: L.
        settings: of the training.
        seed: of the draw, where it is drawn.
    """
    least = settings.min_length or 1
    span = longest - least + 1
    if settings.lengths == "uniform":
        return least + int(philox(seed, 4 * step + 3).random_raw() % span)
    if settings.lengths == "curriculum":
        return min(longest, least + 2 * step * span // count)
    return longest
