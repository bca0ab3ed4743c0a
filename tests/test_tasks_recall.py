"""Recall tasks: what they ask, read again by plain Python that scans the tokens."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from helpers import make_task
from pezoo.errors import UserError
from pezoo.evaluation.retrieval import k_max
from pezoo.task import IGNORE, draw


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(pairs):
    return list(zip(pairs.inputs.tolist(), pairs.outputs.tolist(), strict=True))


# Readers: the answer, from a row's tokens and the settings alone; each checks the row's form on its way


def read_mqar(x, n_pairs, vocabulary, a):
    half = vocabulary // 2
    keys, values = x[: 2 * n_pairs : 2], x[1 : 2 * n_pairs : 2]
    assert len(set(keys)) == len(set(values)) == n_pairs
    assert all(1 <= key < half for key in keys)
    assert all(half <= value < vocabulary for value in values)
    asked = [IGNORE] * len(x)
    for key, value in zip(keys, values, strict=True):
        first, again = (i for i, token in enumerate(x) if token == key)
        assert first < 2 * n_pairs <= again
        assert again % 2 == 0
        asked[again] = value
    return asked


def read_induction(x, vocabulary):
    first, last = (i for i, token in enumerate(x) if token == vocabulary)
    assert last == len(x) - 1
    return [x[first + 1]]


def read_repeat_copy(x, vocabulary):
    period = -(-len(x) // 2)
    assert all(token == x[i - period] for i, token in enumerate(x) if i >= period)
    doubled = x[:period] * 2
    return [doubled[i + 1] if period <= i < 2 * period - 1 else IGNORE for i in range(len(x))]


def read_passkey(x, n_digits, n_filler):
    key, query = 10 + n_filler, 11 + n_filler
    assert x.count(key) == x.count(query) == 1
    assert x[-1] == query
    place = x.index(key)
    rest = x[:place] + x[place + 1 + n_digits : -1]
    assert all(10 <= token < 10 + n_filler for token in rest)
    return x[place + 1 : place + 1 + n_digits]


def read_passkey_text(x):
    text = bytes(x).decode()
    told = text.split("The pass key is ")[1][:5]
    assert 10000 <= int(told) <= 99999
    assert text.count(told) == 2
    before, after = text.split(f"The pass key is {told}. Remember it. {told} is the pass key.")
    task, first = before[:-1].split("there.\n")
    second, question = after[1:].rsplit("\n", 1)
    sentences = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
    assert task == (
        "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
        "I will quiz you about the important information "
    )
    assert first == " ".join([sentences] * 20)[: len(first)]
    assert second == " ".join([sentences] * 20)[: len(second)]
    assert question == "What is the pass key? The pass key is "
    return list(told.encode())


def read_multi_key(x, n_keys, n_digits, n_names, n_filler):
    query = 10 + n_names + n_filler
    assert x[-2] == query
    told = {}
    for i, token in enumerate(x[:-2]):
        if 10 <= token < 10 + n_names:
            assert token not in told
            told[token] = x[i + 1 : i + 1 + n_digits]
    assert len(told) == n_keys
    assert sum(token < 10 for token in x) == n_keys * n_digits
    assert query not in x[:-2]
    return told[x[-1]]


def read_multi_value(x, n_values, n_filler):
    key, query = 10 + n_filler, 11 + n_filler
    assert x[-1] == query
    assert query not in x[:-1]
    told = [after for token, after in pairwise(x) if token == key]
    assert sorted(told) == sorted(token for token in x if token < 10)
    assert len(set(told)) == n_values
    return told


def read_variable_tracking(x, n_chains, n_hops, n_names, n_filler):
    equals, query = n_names + 10 + n_filler, n_names + 11 + n_filler
    assert x[-2] == query
    assert query not in x[:-2]
    value_of, found = {}, []
    for i, token in enumerate(x[:-2]):
        if token == equals:
            variable, source = x[i - 1], x[i + 1]
            assert variable not in value_of
            value_of[variable] = value_of.get(source, source)  # a source stands before who uses it
            if value_of[variable] == x[-1]:
                found.append(variable)
    assert len(value_of) == n_chains * (n_hops + 1)
    assert all(variable < n_names <= value < n_names + 10 for variable, value in value_of.items())
    assert set(Counter(value_of.values()).values()) == {n_hops + 1}
    assert len(set(value_of.values())) == n_chains
    return found


n_filler = st.integers(1, 30)
CASES = {
    "mqar": (
        read_mqar,
        st.integers(1, 8).flatmap(
            lambda k: st.fixed_dictionaries(
                {"n_pairs": st.just(k), "vocabulary": st.integers(2 * k + 2, 80), "a": st.floats(0.01, 3)}
            )
        ),
    ),
    "induction": (read_induction, st.fixed_dictionaries({"vocabulary": st.integers(2, 64)})),
    "repeat_copy": (read_repeat_copy, st.fixed_dictionaries({"vocabulary": st.integers(2, 64)})),
    "passkey": (read_passkey, st.fixed_dictionaries({"n_digits": st.integers(1, 6), "n_filler": n_filler})),
    "passkey_text": (read_passkey_text, st.just({})),
    "multi_key": (
        read_multi_key,
        st.integers(1, 8).flatmap(
            lambda k: st.fixed_dictionaries(
                {
                    "n_keys": st.just(k),
                    "n_digits": st.integers(1, 3),
                    "n_names": st.integers(k, 30),
                    "n_filler": n_filler,
                }
            )
        ),
    ),
    "multi_value": (read_multi_value, st.fixed_dictionaries({"n_values": st.integers(1, 10), "n_filler": n_filler})),
    "variable_tracking": (
        read_variable_tracking,
        st.tuples(st.integers(1, 4), st.integers(1, 5)).flatmap(
            lambda size: st.fixed_dictionaries(
                {
                    "n_chains": st.just(size[0]),
                    "n_hops": st.just(size[1]),
                    "n_names": st.integers(size[0] * (size[1] + 1), 40),
                    "n_filler": n_filler,
                }
            )
        ),
    ),
}
every_task = pytest.mark.parametrize("name", CASES)
with_depths = pytest.mark.parametrize("name", ["passkey", "passkey_text", "multi_key"])


@every_task
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_the_answer_is_what_a_reader_finds(name, data):
    reader, wanted = CASES[name]
    wanted = data.draw(wanted)
    task = make_task(name, **wanted)
    length = task.least_length + data.draw(st.integers(0, 70))
    place = {"depth": data.draw(st.none() | st.floats(0, 1))} if task.depths else {}
    pairs = task.sample(3, length, generator(data.draw(st.integers(0, 2**32))), **place)
    assert pairs.inputs.shape == (3, task.input_length(length))
    assert pairs.outputs.shape == (3, task.output_length(length))
    example = task.example(pairs)
    assert task.n_tokens(length) == length
    assert example.tokens.shape == example.targets.shape == (3, length)
    assert example.tokens.dtype == example.targets.dtype == torch.int64
    assert example.tokens.min() >= 0
    assert example.tokens.max() < task.vocab_size
    for x, y in rows(pairs):
        assert reader(x, **wanted) == y


@every_task
def test_a_length_without_room_is_refused_and_the_least_is_named(name):
    task = make_task(name)
    for length in (0, task.least_length - 1):
        with pytest.raises(UserError, match=rf"at least {task.least_length} tokens, got {length}$"):
            task.sample(2, length, generator())


def test_least_lengths():
    least = {name: make_task(name).least_length for name in CASES}
    assert least == {
        "mqar": 16,  # four pairs, four slots
        "induction": 3,  # S x S
        "repeat_copy": 3,
        "passkey": 7,  # KEY, 3 digits, QUERY; 2 digits of the answer are read
        "passkey_text": 252,
        "multi_key": 4 * 2 + 2,
        "multi_value": 4 * 2 + 1 + 3,
        "variable_tracking": 10 * 3 + 2 + 4,
    }


@every_task
def test_every_task_is_causal_without_marks(name):
    task = make_task(name)
    assert task.vocab_size == task.n_symbols
    with pytest.raises(UserError, match="no encoder form"):
        task.example(task.sample(1, task.least_length, generator()), "encoder")


def test_text_has_the_bytes_as_its_vocabulary():
    assert make_task("passkey_text").vocab_size == 256


@pytest.mark.parametrize(
    ("name", "wanted", "message"),
    [
        ("mqar", {"n_pairs": 40}, "at least 82, got 64; type mqar:n_pairs=40:vocabulary=82"),
        ("multi_key", {"n_keys": 30}, "n_keys=30 keys need as many names, got n_names=26"),
        ("multi_value", {"n_values": 11}, "n_values must be at most 10, got 11"),
        ("variable_tracking", {"n_hops": 13}, "n_names of at least 28, got 26"),
        ("passkey", {"n_digits": 0}, "n_digits must be at least 1, got 0"),
    ],
)
def test_impossible_settings_are_refused(name, wanted, message):
    with pytest.raises(UserError, match=message):
        make_task(name, **wanted)


# Depth


def start_of_needle(name, x):
    """The place of the asked needle's first token, under default settings."""
    if name == "passkey":
        return x.index(30)
    if name == "passkey_text":
        return bytes(x).index(b"\nThe pass key is")
    return x.index(x[-1])


@with_depths
@pytest.mark.parametrize("extra", [0, 1, 57, 400])
def test_depth_is_the_share_of_the_room_before_the_needle(name, extra):
    task = make_task(name, **({"n_keys": 1} if name == "multi_key" else {}))
    length = task.least_length + extra
    head = 149 if name == "passkey_text" else 0
    for depth in (*task.depths, 0.333):
        found = {start_of_needle(name, x) - head for x, _ in rows(task.sample(8, length, generator(), depth=depth))}
        assert len(found) == 1
        (place,) = found
        assert abs(place - depth * extra) <= 0.5
        assert task.distance(length, depth) == task.input_length(length) - head - place


def test_depths_of_one_among_several_keys():
    task = make_task("multi_key")
    length = task.least_length + 90
    for depth in task.depths:
        starts = [start_of_needle("multi_key", x) for x, _ in rows(task.sample(500, length, generator(), depth=depth))]
        mean = sum(starts) / len(starts)
        assert abs(length - task.distance(length, depth) - mean) < 0.7
        assert max(starts) - min(starts) <= 3  # how many of the other three stand in front
    assert task.distance(length, 0) == length
    assert task.distance(length, 1) == 4


@with_depths
def test_without_depth_all_places_are_as_likely(name):
    task = make_task(name, **({"n_keys": 1} if name == "multi_key" else {}))
    pairs = task.sample(4000, task.least_length + 19, generator())
    head = 149 if name == "passkey_text" else 0
    counts = Counter(start_of_needle(name, x) - head for x, _ in rows(pairs))
    assert sorted(counts) == list(range(20))
    assert chisquare(list(counts.values())).pvalue > 0.01


@with_depths
def test_a_depth_outside_is_refused(name):
    task = make_task(name)
    for depth in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match=r"depth must lie in 0 \.\.\. 1"):
            task.sample(2, task.least_length + 5, generator(), depth=depth)


@with_depths
def test_tested_questions_are_not_trained_on_at_any_depth(name):
    task = make_task(name)
    length = task.least_length + 20
    train = {tuple(x) for x, _ in rows(draw(task, 200, length, generator(), test=False))}
    test = {tuple(x) for d in task.depths for x, _ in rows(draw(task, 20, length, generator(), test=True, depth=d))}
    assert len(test) > 200
    assert not train & test


# Distributions


@pytest.mark.parametrize("a", [0.01, 1.0, 2.0])
def test_gaps_of_mqar_follow_the_power_law(a):
    task = make_task("mqar", n_pairs=1, a=a)
    n_slots, n_rows = 31, 20_000
    asked = task.sample(n_rows, 64, generator()).outputs != IGNORE
    counts = asked.sum(0)[2:].view(n_slots, 2)
    assert counts[:, 1].sum() == 0
    law = [(g + 1) ** (a - 1) for g in range(n_slots)]
    expected = [n_rows * weight / sum(law) for weight in law]
    assert chisquare(counts[:, 0].tolist(), expected).pvalue > 0.01


def test_slots_of_mqar_are_drawn_one_after_another_without_replacement():
    task = make_task("mqar", n_pairs=2, a=0.01)
    n_rows = 20_000
    pairs = task.sample(n_rows, 16, generator())
    law = [(g + 1) ** -0.99 for g in range(6)]
    law = [weight / sum(law) for weight in law]
    first, second = Counter(), Counter()
    for x, y in rows(pairs):
        first[(y.index(x[1]) - 4) // 2] += 1
        second[(y.index(x[3]) - 4) // 2] += 1
    then = [sum(law[i] * law[g] / (1 - law[i]) for i in range(6) if i != g) for g in range(6)]
    assert chisquare([first[g] for g in range(6)], [n_rows * p for p in law]).pvalue > 0.01
    assert chisquare([second[g] for g in range(6)], [n_rows * p for p in then]).pvalue > 0.01


def test_other_tokens_of_mqar_are_all_ids_but_the_keys():
    task = make_task("mqar", n_pairs=2, vocabulary=8)
    seen = {}
    for x, y in rows(task.sample(2000, 40, generator())):
        others = {token for token, asked in zip(x[4:], y[4:], strict=True) if asked == IGNORE}
        seen.setdefault(frozenset((x[0], x[2])), set()).update(others)
    assert len(seen) == 3  # two of the keys 1, 2, 3
    for keys, others in seen.items():
        assert others == set(range(8)) - keys


@pytest.mark.parametrize(("name", "vocabulary"), [("induction", 16), ("repeat_copy", 256)])
def test_tokens_are_uniform(name, vocabulary):
    x = make_task(name).sample(2000, 50, generator()).inputs[:, :25]
    counts = x[x < vocabulary].bincount(minlength=vocabulary)
    assert chisquare(counts.tolist()).pvalue > 0.01


def test_the_first_place_of_induction_is_uniform():
    x = make_task("induction").sample(6000, 22, generator()).inputs
    counts = (x[:, :-1] == 16).sum(0)
    assert counts[-1] == 0
    assert chisquare(counts[:-1].tolist()).pvalue > 0.01


def test_chains_of_variables_stand_among_each_other():
    task = make_task("variable_tracking", n_hops=1)
    first_assignments = set()
    for x, y in rows(task.sample(200, task.least_length + 5, generator())):
        equals = [i for i, token in enumerate(x) if token == 56]
        first_assignments.add(tuple(x[i - 1] in y for i in equals))
    assert len(first_assignments) == 6  # all ways of merging two chains of two


# The effective window


def test_k_max():
    assert k_max({100: 1.0, 10: 0.2, 50: 0.19}) == 10
    assert k_max({100: 1.0, 10: 0.2, 50: 0.19}, threshold=0.1) == 100
    assert k_max({10: 0.0, 20: 1.0}) == 0


@settings(deadline=None)
@given(st.dictionaries(st.integers(1, 100), st.floats(0, 1)), st.floats(0, 1))
def test_k_max_is_the_largest_without_a_gap_below(success, threshold):
    good = [k for k in success if all(success[j] >= threshold for j in success if j <= k)]
    assert k_max(success, threshold=threshold) == max(good, default=0)
