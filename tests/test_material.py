"""What models are trained on: lengths of batches, batches by step and seed, and the facts that name cells."""

import dataclasses
from collections import Counter
from threading import current_thread, main_thread

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from pezoo.data import Corpus, Tokens, crops
from pezoo.data.material import TESTING, TRAINING, VALIDATION, Batches, Questions, Text, length_at
from pezoo.errors import UserError
from pezoo.registry import Entry
from pezoo.task import is_test
from pezoo.training.config import TrainConfig

SEEDS = st.integers(0, 2**32 - 1)
KINDS = ["text", "reverse_string", "addition", "encoder"]


def make_tokens(seed, n_tokens=900):
    ids = np.random.default_rng(seed).integers(0, 256, n_tokens).astype(np.uint8)
    return Tokens(ids, np.array([0, n_tokens // 3, n_tokens]), ["a", "b"])


@pytest.fixture(scope="module")
def corpus():
    splits = {name: make_tokens(i) for i, name in enumerate(("train", "validation", "test"))}
    return Corpus(**splits, vocab_size=256, name="random", hash="0123", digest="4567", tokenizer="bytes", bos=None)


@pytest.fixture(scope="module")
def material(corpus):
    """By kind; a task has its questions kept apart from length 6 on."""
    return lambda kind: (
        {
            "text": Text(corpus),
            "encoder": Questions("binary_addition", "encoder", 6),
        }.get(kind)
        or Questions(kind, "causal", 6)
    )


def with_lengths(lengths, **changes):
    return TrainConfig(**{"lengths": lengths, "batch_size": 4} | changes)


def lengths_of(count, longest, seed=0, **changes):
    return [length_at(step, count, longest, with_lengths(**changes), seed) for step in range(count)]


def assert_same(a, b):
    assert torch.equal(a.tokens, b.tokens)
    assert torch.equal(a.targets, b.targets)


# ---- lengths ------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 30), st.integers(1, 30), SEEDS)
def test_uniform_lengths_are_all_from_the_least_to_the_longest(least, span, seed):
    found = lengths_of(40 * span, least + span - 1, seed, lengths="uniform", min_length=least)
    assert set(found) == set(range(least, least + span))
    assert found == lengths_of(40 * span, least + span - 1, seed, lengths="uniform", min_length=least)


def test_uniform_lengths_are_as_likely_as_each_other_and_of_the_seed():
    found = lengths_of(3000, 12, lengths="uniform", min_length=3)
    assert chisquare(list(Counter(found).values())).pvalue > 1e-3
    other = lengths_of(3000, 12, 1, lengths="uniform", min_length=3)
    assert sum(a == b for a, b in zip(found, other, strict=True)) == pytest.approx(300, abs=80)
    assert found[:100] == lengths_of(100, 12, lengths="uniform", min_length=3), "whatever the number of steps"


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 120))
def test_a_curriculum_grows_from_the_least_to_the_longest_in_half_the_steps_and_stays(least, span, count):
    longest = least + span - 1
    found = lengths_of(count, longest, lengths="curriculum", min_length=least)
    half = (count + 1) // 2
    assert found[0] == least
    assert found == sorted(found)
    assert set(found[half:]) <= {longest}
    if count >= 2 * span:
        assert set(found) == set(range(least, longest + 1))
        most = max(Counter(found[:half]).values())
        assert most <= count // (2 * span) + 2, "none for much longer than the others"


@pytest.mark.parametrize("lengths", ["uniform", "curriculum"])
def test_without_a_least_length_batches_begin_at_one(lengths):
    assert min(lengths_of(400, 9, lengths=lengths)) == 1


def test_fixed_lengths_are_the_longest():
    assert set(lengths_of(50, 9, lengths="fixed", min_length=2)) == {9}


# ---- batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", ["fixed", "uniform", "curriculum"])
@pytest.mark.parametrize("kind", KINDS)
def test_batch_i_is_that_of_step_i_at_its_length(kind, lengths, material):
    train, chosen = material(kind).train, with_lengths(lengths, min_length=3)
    batches = Batches(train, chosen, 12, 20, seed=5)
    found = list(batches)
    assert len(batches) == len(found) == 20
    for step, batch in enumerate(found):
        length = length_at(step, 20, 12, chosen, 5)
        rows = 4 * 12 // length if kind == "text" else 4
        assert len(batch.tokens) == len(batch.targets) == rows
        assert_same(batch, train.batch(step, rows, length, 5))
    for one, other in zip(found, batches, strict=True):
        assert_same(one, other)


def test_batches_drawn_ahead_are_the_same_and_one_at_a_time(material):
    """By another thread, bit by bit; from where a training goes on, and when it stops early."""
    plain = Batches(material("text").train, TrainConfig(batch_size=4, lengths="uniform"), 12, 7, 3, first=2)
    ahead = dataclasses.replace(plain, ahead=True)
    for ours, theirs in zip(ahead, plain, strict=True):
        assert all(map(torch.equal, ours, theirs))
    drawn = []
    usual = type(plain.material).batch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(plain.material), "batch", lambda *a, **k: drawn.append(current_thread()) or usual(*a, **k))
        stopped = iter(ahead)
        next(stopped)
        stopped.close()
    assert len(drawn) == 2
    assert main_thread() not in drawn
    assert not any(thread.is_alive() for thread in drawn)


def test_what_goes_wrong_in_drawing_is_raised(material):
    class Broken:
        def rows(self, *_):
            raise UserError("no such batch")

    with pytest.raises(UserError, match="no such batch"):
        list(Batches(Broken(), TrainConfig(), 12, 7, 3, ahead=True))


@pytest.mark.parametrize("lengths", ["uniform", "curriculum"])
@pytest.mark.parametrize("kind", KINDS)
def test_fixed_batches_are_of_the_longest_whatever_the_settings_say(kind, lengths, material):
    train = material(kind).train
    found = Batches(train, with_lengths(lengths), 12, 9, seed=0, fixed=True)
    for one, other in zip(found, Batches(train, with_lengths("fixed"), 12, 9, seed=0), strict=True):
        assert_same(one, other)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 64), st.integers(1, 512), st.data())
def test_shorter_text_has_more_rows_so_that_tokens_stay_as_many(batch_size, longest, data):
    length = data.draw(st.integers(1, longest))
    rows = make_tokens(0).rows(batch_size, longest, length)
    assert 0 <= batch_size * longest - rows * length < length
    assert make_tokens(0).rows(batch_size, longest, longest) == batch_size


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 64), st.integers(1, 99), st.integers(1, 99))
def test_shorter_questions_stay_as_many(batch_size, longest, length):
    assert Questions("reverse_string", "causal", None).train.rows(batch_size, longest, length) == batch_size


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_a_function_of_seed_and_step_alone(kind, split, material, corpus):
    def batch(step, seed):
        return getattr(material(kind), split).batch(step, 8, 12, seed)

    first = batch(3, 1)
    state = torch.get_rng_state()
    batch(0, 0)
    assert torch.equal(torch.get_rng_state(), state), "no draw from the global generator"
    torch.manual_seed(123)
    assert_same(first, batch(3, 1))
    for step, seed in ((4, 1), (3, 2), (1, 3)):
        other = batch(step, seed).tokens
        assert other.shape != first.tokens.shape or not torch.equal(other, first.tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_validation_batches_are_others_than_those_of_training(kind, material):
    train, validation = (
        {tuple(row) for step in range(3) for row in split.batch(step, 8, 12, 0).tokens.tolist()}
        for split in (material(kind).train, material(kind).validation)
    )
    assert len(train | validation) > 1.5 * max(len(train), len(validation))


def test_text_is_asked_for_the_next_token_and_validated_on_its_own_split(corpus):
    text = Text(corpus)
    for batched, split in ((text.train, corpus.train), (text.validation, corpus.validation)):
        ids = crops(split, 12, 8, 3, 1)
        batch = batched.batch(3, 8, 12, 1)
        assert torch.equal(batch.tokens, ids[:, :-1])
        assert torch.equal(batch.targets, ids[:, 1:])


@pytest.mark.parametrize("name", ["reverse_string", "addition", "passkey"])
def test_training_validation_and_testing_draw_different_questions(name):
    questions = Questions(name, "causal", None)
    found = [questions.pairs(purpose, 2, 16, 20, 0).inputs for purpose in (TRAINING, VALIDATION, TESTING)]
    rows = [tuple(row) for inputs in found for row in inputs.tolist()]
    assert len(set(rows)) == 3 * 16


@settings(deadline=None, max_examples=20)
@given(SEEDS, st.integers(0, 10**6), st.integers(9, 30))
def test_test_questions_are_never_trained_or_validated_on_from_the_training_length_on(seed, step, length):
    questions = Questions("reverse_string", "causal", 9)
    for purpose, kept in ((TRAINING, False), (VALIDATION, False), (TESTING, True)):
        assert set(is_test(questions.pairs(purpose, step, 16, length, seed).inputs).tolist()) == {kept}
    shorter = questions.pairs(TRAINING, step, 200, 8, seed)
    assert set(is_test(shorter.inputs).tolist()) == {True, False}, "below it nothing is kept"


def test_depth_reaches_the_questions():
    questions = Questions("passkey", "causal", 20)
    near, far = (questions.pairs(TESTING, 0, 8, 40, 0, depth=depth).inputs for depth in (1.0, 0.0))
    key = questions.task.key
    assert set((near == key).nonzero()[:, 1].tolist()) == {40 - 2 - 1 - 4}
    assert set((far == key).nonzero()[:, 1].tolist()) == {0}


# ---- facts --------------------------------------------------------------------------------------


def test_facts_change_with_all_that_changes_the_questions(monkeypatch):
    base = Questions("copy", "causal", 8)
    others = [
        Questions("copy:symbols=9", "causal", 8),
        Questions("copy:variant=repeat", "causal", 8),
        Questions("copy", "encoder", 8),
        Questions("copy", "causal", 9),
        Questions("copy", "causal", None),
        Questions("reverse", "causal", 8),
    ]
    facts = [repr(q.facts()) for q in (base, *others)]
    assert len(set(facts)) == len(facts)
    assert Questions("copy:symbols=100", "causal", 8).facts() == base.facts(), "a default, written out"
    monkeypatch.setattr(Entry, "source_hash", property(lambda entry: "edited"))
    assert base.facts()["source"] == "edited"


def test_facts_change_with_the_text(corpus):
    facts = Text(corpus).facts()
    assert facts["task"] == "language_modelling"
    for change in ({"hash": "4567"}, {"tokenizer": "other"}, {"vocab_size": 300}):
        assert Text(dataclasses.replace(corpus, **change)).facts() != facts
    assert Text(dataclasses.replace(corpus, name="renamed")).facts() == facts


def test_material_says_what_it_is(corpus):
    text, questions = Text(corpus), Questions("copy:symbols=9", "encoder", 8)
    assert (text.name, text.source, text.vocab_size, text.causal, text.n_tokens(12)) == (
        *("language_modelling", "random", 256, True, 12),
    )
    assert (questions.name, questions.source) == ("copy:symbols=9", "copy:symbols=9, encoder form")
    assert (questions.vocab_size, questions.causal, questions.n_tokens(12)) == (12, False, 24)
    assert Questions("copy", "causal", 8).n_tokens(12) == 25


@pytest.mark.parametrize(
    ("name", "form", "message"),
    [
        ("coppy", "causal", "'coppy' is no task. Did you mean 'copy'?"),
        ("rope", "causal", "'rope' is no task"),
        ("copy:symbol=3", "causal", "copy has no setting 'symbol'. Did you mean 'symbols'?"),
        ("mqar:n_pairs=2", "encoder", "mqar:n_pairs=2 has no encoder form; form is one of causal"),
        ("passkey", "encoder", "passkey has no encoder form; form is one of causal"),
    ],
)
def test_what_is_no_task_or_has_no_such_form_is_refused(name, form, message):
    with pytest.raises(UserError, match=message):
        Questions(name, form, 40)
