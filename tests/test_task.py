"""The base class of tasks: layouts, and training apart from testing."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pezoo.errors import UserError
from pezoo.task import IGNORE, SHARE, Pairs, Task, draw, is_test

SEEDS = st.integers(0, 2**32 - 1)


class Drawn(Task):
    """Uniform symbols, of a length that is drawn in each call; the answer is their sum."""

    n_symbols = 3

    def output_length(self, length):
        return 1

    def sample(self, batch_size, length, generator):
        n = int(torch.randint(length, length + 3, (), generator=generator))
        inputs = torch.randint(self.n_symbols, (batch_size, n), generator=generator)
        return Pairs(inputs, inputs.sum(1, keepdim=True) % 3)


class Listed(Task):
    """One of a few questions, alike."""

    n_symbols = 50

    def __init__(self, questions):
        super().__init__()
        self.questions = torch.tensor(questions)

    def sample(self, batch_size, length, generator):
        rows = torch.randint(len(self.questions), (batch_size,), generator=generator)
        return Pairs(self.questions[rows], rows[:, None])


class Deep(Drawn):
    depths = (0.0, 1.0)

    def sample(self, batch_size, length, generator, depth=0.5):
        pairs = super().sample(batch_size, length, generator)
        return Pairs(pairs.inputs, torch.full_like(pairs.outputs, int(10 * depth)))


class Plain(Drawn):
    layout = "plain"


class Inline(Drawn):
    layout = "inline"
    forms = ("causal",)


def rows_of(pairs):
    return set(map(tuple, pairs.inputs.tolist()))


def by_kind():
    """Questions of two symbols, those for training and those for testing."""
    every = torch.tensor(list(itertools.product(range(20), repeat=2)))
    kept = is_test(every)
    return every[~kept].tolist(), every[kept].tolist()


# Training apart from testing


@settings(deadline=None, max_examples=60)
@given(st.integers(4, 9), st.integers(1, 40), SEEDS, SEEDS)
def test_training_and_test_questions_never_meet(length, batch_size, one, other):
    task = Drawn()
    train = draw(task, batch_size, length, torch.Generator().manual_seed(one), test=False)
    test = draw(task, batch_size, length, torch.Generator().manual_seed(other), test=True)
    assert len(train.inputs) == len(train.outputs) == len(test.inputs) == len(test.outputs) == batch_size
    assert not rows_of(train) & rows_of(test)
    for pairs in (train, test):
        assert torch.equal(pairs.outputs, pairs.inputs.sum(1, keepdim=True) % 3)


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(2, 5000), SEEDS)
def test_a_questions_kind_depends_on_its_symbols_alone(length, n_symbols, seed):
    rows = torch.randint(n_symbols, (20, length), generator=torch.Generator().manual_seed(seed))
    kinds = is_test(rows)
    assert kinds.shape == (20,)
    assert torch.equal(kinds, torch.cat([is_test(row[None]) for row in rows]))
    assert torch.equal(kinds.flip(0), is_test(rows.flip(0)))


@pytest.mark.parametrize("n_symbols", [2, 5, 5000])
@pytest.mark.parametrize("length", [20, 40, 500])
def test_one_question_in_eight_is_kept(length, n_symbols):
    rows = torch.randint(n_symbols, (4000, length), generator=torch.Generator().manual_seed(0))
    assert is_test(rows).float().mean().item() == pytest.approx(1 / SHARE, abs=0.02)


@pytest.mark.parametrize("place", [0, 20, 39])
def test_every_symbol_counts_for_the_kind(place):
    rows = torch.zeros(64, 40, dtype=torch.int64)
    rows[:, place] = torch.arange(64)
    assert 0 < is_test(rows).sum() < 32


def test_the_split_stays_where_results_have_it():
    bits = torch.tensor(list(itertools.product(range(2), repeat=4)))
    kept = ["".join(map(str, row)) for row in bits[is_test(bits)].tolist()]
    assert kept == ["0011", "0110", "1000", "1111"]


@given(SEEDS)
@settings(deadline=None, max_examples=20)
def test_all_questions_are_drawn_where_no_split_is_asked_for(seed):
    drawn = draw(Drawn(), 50, 9, torch.Generator().manual_seed(seed))
    sampled = Drawn().sample(50, 9, torch.Generator().manual_seed(seed))
    assert torch.equal(drawn.inputs, sampled.inputs)
    assert torch.equal(drawn.outputs, sampled.outputs)


@pytest.mark.parametrize("test", [False, True])
@pytest.mark.parametrize(("n_train", "n_test"), [(1, 1), (1, 3), (5, 1)])
def test_few_questions_are_enough(test, n_train, n_test):
    train, kept = by_kind()
    pairs = draw(Listed(train[:n_train] + kept[:n_test]), 128, 2, torch.Generator().manual_seed(0), test=test)
    assert rows_of(pairs) == set(map(tuple, kept[:n_test] if test else train[:n_train]))
    assert len(pairs.inputs) == 128


def test_a_length_without_questions_of_a_kind_is_refused():
    for questions, test, kind in zip(by_kind(), (True, False), ("test", "training"), strict=True):
        with pytest.raises(UserError, match=f"Listed has too few questions of length 2 to keep {kind} questions apart"):
            draw(Listed(questions[:3]), 4, 2, torch.Generator().manual_seed(0), test=test)


@pytest.mark.parametrize("test", [None, False, True])
def test_depth_reaches_the_task(test):
    pairs = draw(Deep(), 4, 9, torch.Generator().manual_seed(0), test=test, depth=0.3)
    assert pairs.outputs.tolist() == [[3]] * 4


# Layouts


@st.composite
def ragged(draw, equal=False):
    """Inputs (B, n), and answers of their own lengths, as lists."""
    rows, n, m = draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    symbol = st.integers(0, 2)
    inputs = [draw(st.lists(symbol, min_size=n, max_size=n)) for _ in range(rows)]
    answers = [draw(st.lists(symbol, min_size=m if equal else 0, max_size=m)) for _ in range(rows)]
    outputs = [answer + [IGNORE] * (m - len(answer)) for answer in answers]
    return Pairs(torch.tensor(inputs), torch.tensor(outputs)), inputs, answers, m


@settings(deadline=None)
@given(ragged())
def test_marked_layout(case):
    pairs, inputs, answers, m = case
    example, (sep, eos) = Drawn().example(pairs), (3, 4)
    for row, (question, answer) in enumerate(zip(inputs, answers, strict=True)):
        rest = m - len(answer)
        assert example.tokens[row].tolist() == [*question, sep, *answer] + [eos] * rest
        assert example.targets[row].tolist() == [IGNORE] * len(question) + [*answer, eos] + [IGNORE] * rest


@settings(deadline=None)
@given(ragged(equal=True))
def test_plain_layout(case):
    pairs, inputs, answers, _ = case
    example = Plain().example(pairs)
    for row, (question, answer) in enumerate(zip(inputs, answers, strict=True)):
        assert example.tokens[row].tolist() == (question + answer)[:-1]
        assert example.targets[row].tolist() == [IGNORE] * (len(question) - 1) + answer


@settings(deadline=None)
@given(ragged())
def test_inline_layout(case):
    inputs = case[0].inputs
    example = Inline().example(Pairs(inputs, inputs - 1))
    assert torch.equal(example.tokens, inputs)
    assert torch.equal(example.targets, inputs - 1)


@settings(deadline=None)
@given(ragged(), st.sampled_from([Drawn, Plain]))
def test_encoder_form(case, task):
    pairs, inputs, _, m = case
    example, empty = task().example(pairs, "encoder"), 5
    for row, question in enumerate(inputs):
        assert example.tokens[row].tolist() == question + [empty] * m
        assert example.targets[row].tolist() == [IGNORE] * len(question) + pairs.outputs[row].tolist()


@pytest.mark.parametrize(
    ("task", "form"), [(Drawn, "causal"), (Drawn, "encoder"), (Plain, "causal"), (Plain, "encoder"), (Inline, "causal")]
)
@pytest.mark.parametrize("n", [1, 7])
def test_the_number_of_tokens_is_known_beforehand(task, form, n):
    inputs = torch.zeros(2, n, dtype=torch.int64)
    pairs = Pairs(inputs, inputs if task is Inline else inputs[:, :1])
    assert task().example(pairs, form).tokens.shape == (2, task().n_tokens(n, form))


def test_marks_are_the_ids_after_the_symbols():
    task = Drawn()
    assert (task.sep, task.eos, task.empty, task.vocab_size) == (3, 4, 5, 6)


def test_a_form_that_a_task_lacks_is_refused():
    pairs = Pairs(torch.zeros(1, 2), torch.zeros(1, 2))
    with pytest.raises(UserError, match="Inline has no encoder form; form is one of causal"):
        Inline().example(pairs, "encoder")
