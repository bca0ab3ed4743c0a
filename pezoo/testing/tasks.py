"""The properties that make a task, each a small function named after it: `pezoo check` runs them on tasks.

As in `pezoo.testing.properties`, a check raises `CheckFailed` with what was expected and what came, or
`NotApplicable`. It holds what is drawn against what is declared, and against what the task answers. Whether answers are
right is for each task's tests, by a solution of their own.
"""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pezoo.errors import UserError
from pezoo.registry import Entry
from pezoo.task import IGNORE, SHARE, Pairs, Task, draw, make_task
from pezoo.testing.subject import Check, CheckFailed, NotApplicable

FARTHEST = 40
"""How far beyond the least length most checks look."""
LONG = 500
"""A test length at which a task should still have questions."""


def questions(task: Task, rows: int, length: int, seed: int = 0, **place: float) -> Pairs:
    """Rows of a length, the same for one seed."""
    return task.sample(rows, length, torch.Generator().manual_seed(seed), **place)


def lengths(task: Task) -> list[int]:
    """Lengths to look at."""
    return [task.least_length + more for more in (0, 1, 2, 7, FARTHEST)]


def within(ids: Tensor, count: int, what: str) -> None:
    """Raise unless all ids are those of `count` symbols."""
    if ids.numel() and not 0 <= ids.min() <= ids.max() < count:
        raise CheckFailed(f"{what} from 0 to {count - 1}", f"{ids.min()} to {ids.max()}")


def same(a: Pairs, b: Pairs) -> bool:
    """Whether questions and answers are the same."""
    return torch.equal(a.inputs, b.inputs) and torch.equal(a.outputs, b.outputs)


def rows(task: Task) -> None:
    """Questions and answers have the rows asked for, ids of the task's symbols, and the declared lengths at most."""
    for length in lengths(task):
        for seed in range(5):
            pairs = questions(task, 7, length, seed)
            most = {"inputs": task.input_length(length)}
            most["outputs"] = most["inputs"] if task.layout == "inline" else task.output_length(length)
            for name, limit in most.items():
                ids, what = getattr(pairs, name), f"{name} at length {length}"
                if ids.dtype != torch.int64 or ids.ndim != 2 or len(ids) != 7:
                    raise CheckFailed(f"{what} of shape (7, ...) in int64", f"{tuple(ids.shape)} in {ids.dtype}")
                if not 0 < ids.shape[1] <= limit:
                    raise CheckFailed(f"{what} of 1 to {limit} symbols, as declared", f"{ids.shape[1]}")
            asked = pairs.outputs != IGNORE
            within(pairs.inputs, task.n_symbols, f"inputs at length {length}")
            within(pairs.outputs[asked], task.n_symbols, f"answers at length {length}")
            if task.layout == "inline" and pairs.inputs.shape != pairs.outputs.shape:
                raise CheckFailed("a target for each input, as the layout is inline", f"{tuple(pairs.outputs.shape)}")
            if task.layout != "inline" and (asked[:, 1:] > asked[:, :-1]).any():
                raise CheckFailed("IGNORE only after the end of an answer", "a symbol after it")


def forms(task: Task) -> None:
    """In each form every row asks something, and no sequence has other ids or more tokens than declared."""
    for form in task.forms:
        for length in lengths(task):
            example, most = task.example(questions(task, 7, length), form), task.n_tokens(length, form)
            what = f"{form} form at length {length}"
            if not 0 < example.tokens.shape[1] <= most:
                raise CheckFailed(f"{what} of at most {most} tokens", f"{example.tokens.shape[1]}")
            if example.tokens.shape != example.targets.shape:
                raise CheckFailed(f"a target for each token in {what}", f"{tuple(example.targets.shape)}")
            asked = example.targets != IGNORE
            within(example.tokens, task.vocab_size, f"tokens in {what}")
            within(example.targets[asked], task.vocab_size, f"targets in {what}")
            if not asked.any(1).all():
                raise CheckFailed(f"something asked in every row of {what}", "a row without targets")


def declared_length(task: Task) -> None:
    """The longest of many questions has half the declared tokens or more: they are the model's training length."""
    length = task.least_length + 7
    for form in task.forms:
        most = task.n_tokens(length, form)
        longest = max(task.example(questions(task, 1, length, s), form).tokens.shape[1] for s in range(100))
        if longest < most / 2:
            raise CheckFailed(f"at length {length} nearly {most} tokens, {form} form", f"at most {longest}")


def draws(task: Task) -> None:
    """The generator decides all that is drawn, and nothing else is drawn from or changed."""
    length, generators = task.least_length + FARTHEST, (torch.get_rng_state, random.getstate, np.random.get_state)
    state = [get() for get in generators]
    first = questions(task, 16, length)
    if [str(get()) for get in generators] != [str(s) for s in state]:
        raise CheckFailed("draws from the given generator alone", "a draw from a global one")
    random.random(), torch.rand(1), np.random.random()
    if not same(first, questions(task, 16, length)):
        raise CheckFailed("the same questions from the same generator", "others")
    generator = torch.Generator().manual_seed(0)
    batches = [task.sample(16, length, generator) for _ in range(2)]
    if same(*batches):
        raise CheckFailed("another batch from a generator that has moved on", "the same")
    if len(first.inputs.unique(dim=0)) < 8:
        raise CheckFailed("rows that differ", f"{len(first.inputs.unique(dim=0))} different ones among 16")


def one_answer(task: Task) -> None:
    """A question has one answer, wherever it is drawn again."""
    known: dict[tuple[int, ...], list[int]] = {}
    for length in lengths(task)[:3]:
        pairs = questions(task, 2000, length)
        for question, answer in zip(pairs.inputs.tolist(), pairs.outputs.tolist(), strict=True):
            if (other := known.setdefault((length, *question), answer)) != answer:
                raise CheckFailed(f"one answer to {question} at length {length}", f"{other} and {answer}")


def answers(task: Task) -> None:
    """A drawn question, asked again, gets the drawn answer: in its batch, among others, alone, and as text."""
    if not len(task.symbols) == len(set(task.symbols)) == task.n_symbols:
        raise CheckFailed(f"{task.n_symbols} different symbols", f"{len(set(task.symbols))} among {len(task.symbols)}")
    for length in lengths(task):
        drawn = [questions(task, 7, length, seed) for seed in range(5)]
        for pairs in drawn:
            asked = pairs.inputs.clone()
            expect(task, asked, pairs.outputs.tolist(), task.answer(pairs.inputs).tolist(), "in its batch")
            if not torch.equal(asked, pairs.inputs):
                raise CheckFailed(f"questions of length {length} that stay as they are", "others, once answered")
        for n in {pairs.inputs.shape[1] for pairs in drawn}:  # batches differ in all that a call settles
            alike = [pairs for pairs in drawn if pairs.inputs.shape[1] == n]
            inputs = torch.cat([pairs.inputs for pairs in alike])
            outputs = [task.ended(row).tolist() for pairs in alike for row in pairs.outputs]
            came = [task.ended(row).tolist() for row in task.answer(inputs)]
            expect(task, inputs, outputs, came, "among other questions")
            few, wanted = inputs[::7], outputs[::7]
            expect(task, few, wanted, task.answer(few.tolist()), "alone")
            texts = [task.answer(task.text(row)) for row in few]
            expect(task, few, list(map(task.text, wanted)), texts, "as text")


def expect(task: Task, inputs: Tensor, expected: list[Any], came: list[Any], how: str) -> None:
    """Raise unless each question is answered as expected."""
    for question, wanted, got in zip(inputs, expected, came, strict=True):
        if wanted != got:
            raise CheckFailed(f"the drawn answer {wanted} to {task.text(question)!r} {how}", str(got))


def chance(task: Task) -> None:
    """`chance` is the share of answer symbols that the best guess of one symbol for all of them gets right."""
    pairs = [questions(task, 1000, task.least_length + FARTHEST, seed) for seed in range(4)]
    answers = torch.cat([p.outputs[p.outputs != IGNORE] for p in pairs])
    share = answers.bincount().max().item() / len(answers)
    spread = (task.chance * (1 - task.chance) / 4000) ** 0.5  # rows are independent, symbols of a row need not be
    if abs(share - task.chance) > 5 * spread + 0.005:
        raise CheckFailed(f"chance = {share:.3f}, the share of the commonest symbol", f"{task.chance:.3f}")


def split(task: Task) -> None:
    """There are questions enough to keep one in eight for testing."""
    length = task.least_length + FARTHEST
    for test in (False, True):
        try:
            draw(task, 128, length, torch.Generator().manual_seed(0), test=test)
        except UserError as error:
            raise CheckFailed(f"one question in {SHARE} for testing at length {length}", str(error)) from None


def short_lengths(task: Task) -> None:
    """A length below `least_length` is refused in one message that names it."""
    length = task.least_length - 1
    expected = f"a UserError at length {length} that names {task.least_length}, the least"
    try:
        questions(task, 2, length)
    except UserError as error:
        if str(task.least_length) not in str(error):
            raise CheckFailed(expected, f"one that says: {error}") from None
    else:
        raise CheckFailed(expected, "questions")


def long_lengths(task: Task) -> None:
    """Lengths far beyond training have questions, or are refused in one message."""
    try:
        pairs = questions(task, 2, LONG)
    except UserError as refused:
        raise NotApplicable(f"length {LONG} is refused: {refused}") from None
    if pairs.inputs.shape[1] > task.input_length(LONG):
        raise CheckFailed(f"at most {task.input_length(LONG)} symbols at length {LONG}", f"{pairs.inputs.shape[1]}")


def depths(task: Task) -> None:
    """A needle stands where `depth` says: the deeper it is, the fewer tokens follow it."""
    length = task.least_length + FARTHEST
    following = [task.distance(length, depth) for depth in sorted(task.depths)]
    most = task.input_length(length)
    if following != sorted(following, reverse=True) or not 0 < following[-1] <= following[0] <= most:
        raise CheckFailed(f"distances that fall with depth, within 1 to {most}", str(following))
    drawn = [questions(task, 8, length, depth=depth) for depth in (min(task.depths), max(task.depths))]
    if same(*drawn):
        raise CheckFailed("other questions at another depth", "the same ones")
    for depth in (-0.1, 1.1):
        try:
            questions(task, 2, length, depth=depth)
        except UserError:
            continue
        raise CheckFailed(f"a UserError for depth {depth}, outside 0 ... 1", "questions")


def has_answers(found: Entry) -> str | None:
    """Reason for tasks that answer no given questions."""
    return "no `solve`" if found.cls.solve is Task.solve else None


def has_least(found: Entry) -> str | None:
    """Reason for tasks that have questions of every length."""
    return None if make_task(found.name).least_length > 1 else "all lengths have questions"


def has_depths(found: Entry) -> str | None:
    """Reason for tasks without a needle."""
    return None if make_task(found.name).depths else "no depths"


EVERY = (rows, forms, declared_length, draws, one_answer, chance, split, long_lengths)
TASK_CHECKS = {check.__name__: Check(check) for check in EVERY} | {
    "answers": Check(answers, unless=has_answers),
    "short_lengths": Check(short_lengths, unless=has_least),
    "depths": Check(depths, unless=has_depths),
}
