"""Facts in a text: answers by a reader that follows the sentences word by word."""

import re
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from helpers import make_task
from pezoo.errors import UserError
from pezoo.task import draw

MOVES = {"went", "moved", "journeyed", "travelled"}
TAKES = {"got", "took", "grabbed", "picked"}
PEOPLE = {"Mary", "John", "Daniel", "Sandra"}


def sample(task, rows, length, seed=0):
    return task.sample(rows, length, torch.Generator().manual_seed(seed))


def texts(task, rows, length, seed=0):
    """Questions and answers as text."""
    pairs = sample(task, rows, length, seed)
    sides = (pairs.inputs, pairs.outputs)
    return list(zip(*([bytes(row).decode() for row in side.tolist()] for side in sides), strict=True))


def facts(text):
    """The sentences that tell of a person, as words."""
    sentences = [sentence.split() for sentence in text.split("\n")[0].split(".")]
    return [words for words in sentences if words and words[0] in PEOPLE]


def read(text):
    """The place that is asked for."""
    where, carried = {}, {}
    for who, verb, *_, what in facts(text):
        if verb in MOVES:
            where[who] = what
        else:
            assert verb in TAKES
            carried[what] = who
    asked = re.fullmatch(r"Where is (?:the )?(\w+)\? ", text.split("\n")[1])[1]
    return where[carried.get(asked, asked)]


@settings(deadline=None, max_examples=20)
@given(hops=st.integers(1, 2), more=st.integers(0, 5), extra=st.integers(0, 300), seed=st.integers(0, 2**32))
def test_the_answer_is_what_a_reader_finds(hops, more, extra, seed):
    n_facts = more + (4 if hops == 2 else 1)
    task = make_task("facts", hops=hops, n_facts=n_facts)
    length = task.least_length + extra
    assert task.n_tokens(length) == length
    for text, answer in texts(task, 3, length, seed):
        assert len(text) == task.input_length(length)
        assert len(facts(text)) == n_facts
        assert ("Where is the" in text) == (hops == 2)
        assert answer == read(text)
        assert len(answer) == 7


def test_who_went_on_after_taking_and_before():
    task = make_task("facts", hops=2)
    told = "Mary went to the kitchen. Mary took the milk. John got the apple. The sea was calm. "
    assert task.answer(told + "\nWhere is the milk? ") == "kitchen"
    assert task.answer(told + "Mary went back to the nursery. \nWhere is the milk? ") == "nursery"
    assert task.answer(told + "John moved to the hallway. \nWhere is the apple? ") == "hallway"
    assert task.answer(told + "John moved to the hallway. \nWhere is Mary? ") == "kitchen"
    long = told.replace("The sea", "The sea" * 40)
    for strange in (told, told + "\nWhere is John? ", told + "\nWhere is the football? ", long + "\nWhere is Mary?"):
        with pytest.raises(UserError, match="is no question of facts"):
            task.answer(strange)


@pytest.mark.parametrize(("hops", "share"), [(1, 0.48), (2, 0.59)])
def test_answers_are_uniform_and_the_last_place_is_no_better_than_stated(hops, share):
    task = make_task("facts", hops=hops)
    found = texts(task, 1500, task.least_length + 60)
    assert chisquare(list(Counter(answer for _, answer in found).values())).pvalue > 0.001
    last = sum(re.findall("|".join({a for _, a in found}), text)[-1] == answer for text, answer in found)
    assert last / len(found) == pytest.approx(share, abs=0.05)
    assert task.chance == pytest.approx(1 / 6)


def test_facts_stand_anywhere_between_sentences():
    task = make_task("facts", n_facts=1)
    starts = []
    for text, _ in texts(task, 400, task.least_length + 400):
        place = next(text.index(f"{who} ") for who in PEOPLE if f"{who} " in text)
        assert place == 0 or text[place - 2 : place] == ". " or text[place - 1] == " "
        starts.append(place)
    tenths = torch.tensor(starts).float().quantile(torch.tensor([0.1, 0.5, 0.9])).tolist()
    assert tenths[0] < 60
    assert tenths[1] == pytest.approx(200, abs=40)
    assert tenths[2] > 330


def test_impossible_wishes_are_refused():
    task = make_task("facts")
    with pytest.raises(UserError, match=rf"needs a length of at least {task.least_length} tokens, got 100$"):
        sample(task, 2, 100)
    with pytest.raises(UserError, match="facts:hops=2 needs four facts, got n_facts=3; type facts:hops=2:n_facts=4"):
        make_task("facts", hops=2, n_facts=3)
    draw(task, 50, task.least_length + 40, torch.Generator().manual_seed(0), test=True)
