"""The length-generalisation set of Kazemnejad et al.: every generator against a solver of its own, in plain Python."""

from collections import Counter
from functools import cache, reduce
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import make_task
from pezoo.errors import UserError
from pezoo.task import IGNORE, Pairs, Task

COPIES = ("random", "random_twice", "repeat", "repeat_twice", "replace")
REVERSES = ("once", "twice", "back")
SPECS = [
    *(("copy", {"variant": variant}) for variant in COPIES),
    *(("reverse", {"variant": variant}) for variant in REVERSES),
    ("addition", {}),
    ("polynomial", {}),
    ("sorting", {"variant": "token"}),
    ("sorting", {"variant": "multi_digit"}),
    ("summation", {}),
    ("parity", {}),
    ("lego", {"order": "chain"}),
    ("lego", {"order": "shuffled"}),
    ("scan", {}),
    ("scan", {"phrases": 4}),
]
LEAST = {"lego": 2}
MOST = {"lego": 100, "scan": 48}


def with_tasks(*without: str):
    """Run a test for each task and variant."""
    specs = [spec for spec in SPECS if spec[0] not in without]
    ids = ["-".join(map(str, (name, *own.values()))) for name, own in specs]
    return pytest.mark.parametrize(("name", "own"), specs, ids=ids)


lengths, seeds = st.integers(1, 80), st.integers(0, 2**32 - 1)
DIGITS = "0123456789"


def sample(task: Task, batch_size: int, length: int, seed: int) -> Pairs:
    return task.sample(batch_size, length, torch.Generator().manual_seed(seed))


def rows(task: Task, length: int, seed: int, batch_size: int = 3) -> list[tuple[list[int], list[int]]]:
    """Questions and answers as lists, answers without their padding."""
    pairs = sample(task, batch_size, length, seed)
    answers = [[t for t in row if t != IGNORE] for row in pairs.outputs.tolist()]
    return list(zip(pairs.inputs.tolist(), answers, strict=True))


# All


@with_tasks("scan")
def test_the_declared_sizes_are_reached(name, own):
    task = make_task(name, **own)
    for length in (3, 8):
        found = [sample(task, 1, length, seed) for seed in range(100)]
        inputs = max(pairs.inputs.shape[1] for pairs in found)
        if own.get("variant") == "multi_digit":  # longest when no number has fewer than four digits
            assert 0.95 * task.input_length(length) < inputs <= task.input_length(length)
            continue
        assert inputs == task.input_length(length)
        assert max(pairs.outputs.shape[1] for pairs in found) == task.output_length(length)


@with_tasks()
def test_a_length_below_the_least_is_refused(name, own):
    task, least = make_task(name, **own), LEAST.get(name, 1)
    sample(task, 2, least, 0)
    for length in (least - 1, -1):
        message = (
            f"^{name} has no questions of length {length}; its shortest have length {least}: .*min_length={least}$"
        )
        with pytest.raises(UserError, match=message):
            sample(task, 2, length, 0)


@pytest.mark.parametrize(("name", "remedy"), [("lego", "type lego:variables=101"), ("scan", "type scan:phrases=4")])
def test_a_length_beyond_the_longest_is_refused_with_its_remedy(name, remedy):
    task, most = make_task(name), MOST[name]
    sample(task, 2, most, 0)
    if name == "lego":
        with pytest.raises(UserError, match=f"longest have length {most}: {remedy}"):
            sample(task, 2, most + 1, 0)
        return
    for ask in (lambda: sample(task, 2, most + 1, 0), lambda: task.input_length(most + 1)):
        with pytest.raises(UserError, match=f"longest have length {most}: {remedy}"):
            ask()


# Copy and reverse


@settings(deadline=None, max_examples=60)
@given(variant=st.sampled_from(COPIES), symbols=st.integers(2, 30), length=lengths, seed=seeds)
def test_copies_are_right(variant, symbols, length, seed):
    for question, answer in rows(make_task("copy", variant=variant, symbols=symbols), length, seed):
        assert set(question) <= set(range(symbols))
        if variant == "replace":
            source, target, *word = question
            assert source != target
            assert word == [source] * length
            assert answer == [target if token == source else token for token in word]
            continue
        assert len(question) == length
        assert variant.startswith("random") or len(set(question)) == 1
        twice = [*question, *([symbols] if variant == "random_twice" else []), *question]
        assert answer == (twice if variant.endswith("twice") else question)


@settings(deadline=None, max_examples=40)
@given(variant=st.sampled_from(REVERSES), symbols=st.integers(2, 30), length=lengths, seed=seeds)
def test_reverses_are_right(variant, symbols, length, seed):
    for question, answer in rows(make_task("reverse", variant=variant, symbols=symbols), length, seed):
        assert len(question) == length
        assert set(question) <= set(range(symbols))
        turned = list(reversed(question))
        assert (
            answer
            == {"once": turned, "twice": [*turned, symbols, *turned], "back": [*turned, symbols, *question]}[variant]
        )


@pytest.mark.parametrize(("name", "variant"), [("copy", v) for v in COPIES] + [("reverse", v) for v in REVERSES])
def test_every_token_is_drawn(name, variant):
    pairs = sample(make_task(name, variant=variant, symbols=20), 500, 10, 0)
    assert set(pairs.inputs.flatten().tolist()) == set(range(20))
    if variant == "replace":
        assert len({tuple(rule) for rule in pairs.inputs[:, :2].tolist()}) > 250, "most of the 380 rules"


# Addition, polynomial, summation, parity


def read_sum(question: list[int]) -> tuple[str, str]:
    a, b = "".join((DIGITS + "+")[token] for token in question).split("+")
    return a, b


@settings(deadline=None, max_examples=80)
@given(length=lengths, seed=seeds)
def test_sums_of_two_numbers_are_right(length, seed):
    for question, answer in rows(make_task("addition"), length, seed):
        a, b = read_sum(question)
        assert max(len(a), len(b)) == length
        for number in (a, b):
            assert number == str(int(number)), "no leading zeros"
        assert "".join(DIGITS[token] for token in answer) == str(int(a) + int(b))
    for question, answer in rows(make_task("addition", order="lowest_first"), length, seed):
        a, b = (number[::-1] for number in read_sum(question))
        assert max(len(a), len(b)) == length
        assert (a, b) == (str(int(a)), str(int(b)))
        assert "".join(DIGITS[token] for token in answer)[::-1] == str(int(a) + int(b))


def test_digit_counts_are_uniform_among_pairs_with_the_longer_as_long_as_asked():
    task = make_task("addition")
    counts = Counter(tuple(map(len, read_sum(rows(task, 3, seed, 1)[0][0]))) for seed in range(1000))
    assert set(counts) == {(3, 1), (3, 2), (3, 3), (1, 3), (2, 3)}
    assert all(137 < n < 263 for n in counts.values())  # 200 +- 5 standard deviations


def test_numbers_to_add_are_uniform():
    digits = Counter(read_sum(question)[0] for question, _ in rows(make_task("addition"), 1, 0, 5000))
    assert set(digits) == set(DIGITS)
    assert all(390 < n < 610 for n in digits.values())
    leads = Counter(read_sum(question)[0][0] for question, _ in rows(make_task("addition"), 2, 1, 4500))
    assert len(leads) >= 9
    assert all(390 < leads[digit] < 610 for digit in DIGITS[1:])


def read_polynomial(question: list[int]) -> tuple[str, str]:
    """The value of x, and an expression in x that Python can evaluate."""
    words = [(*DIGITS, "+", "-", "*(x)**0", "*(x)**1", "*(x)**2", "*(x)**3")[token] for token in question]
    signs, digits, powers = words[2::3], words[3::3], words[4::3]
    assert {words[0], *signs} <= {"+", "-"}
    assert int(words[1]) <= 2
    assert all(int(digit) <= 3 for digit in digits)
    assert "-0" not in map("".join, pairwise(words)), "zero has one form"
    assert all(power.startswith("*") for power in powers)
    return words[0] + words[1], "".join(map("".join, zip(signs, digits, powers, strict=True)))


@settings(deadline=None, max_examples=60)
@given(length=lengths, seed=seeds)
def test_polynomials_are_evaluated(length, seed):
    for question, answer in rows(make_task("polynomial"), length, seed):
        x, polynomial = read_polynomial(question)
        assert polynomial.count("x") == length
        assert answer == [eval(polynomial, {"x": int(x)}) % 10]


def test_all_values_coefficients_and_powers_occur():
    questions = [question for question, _ in rows(make_task("polynomial"), 5, 0, 2000)]
    xs = Counter(int(read_polynomial(question)[0]) for question in questions)
    assert set(xs) == {-2, -1, 0, 1, 2}
    assert all(300 < n < 500 for n in xs.values())
    terms = Counter(tuple(question[i : i + 3]) for question in questions for i in range(2, 17, 3))
    assert len(terms) == 7 * 4
    assert all(250 < n < 470 for n in terms.values())  # 357


@settings(deadline=None, max_examples=30)
@given(length=lengths, seed=seeds)
def test_sums_of_digits_are_right(length, seed):
    for question, answer in rows(make_task("summation"), length, seed):
        assert len(question) == length
        assert all(1 <= digit <= 9 for digit in question)
        assert answer == [int(str(sum(question))[-1])]


@settings(deadline=None, max_examples=30)
@given(length=lengths, seed=seeds)
def test_even_counts_of_ones_are_answered_by_yes(length, seed):
    for question, answer in rows(make_task("parity"), length, seed):
        assert len(question) == length
        assert set(question) <= {0, 1}
        assert answer == [2 if question.count(1) in range(0, length + 1, 2) else 3]


# Sorting


@settings(deadline=None, max_examples=30)
@given(symbols=st.integers(2, 60), length=lengths, seed=seeds)
def test_tokens_are_sorted(symbols, length, seed):
    for question, answer in rows(make_task("sorting", symbols=symbols), length, seed):
        assert len(question) == length
        assert set(question) <= set(range(symbols))
        assert answer == sorted(question)


def read_list(tokens: list[int]) -> list[int]:
    numbers = "".join((DIGITS + ",")[token] for token in tokens).split(",")
    assert all(number == str(int(number)) for number in numbers), "no leading zeros"
    return list(map(int, numbers))


@settings(deadline=None, max_examples=60)
@given(length=lengths, seed=seeds)
def test_numbers_are_sorted(length, seed):
    for question, answer in rows(make_task("sorting", variant="multi_digit"), length, seed):
        numbers = read_list(question)
        assert len(numbers) == length
        assert all(10 <= number <= 9999 for number in numbers)
        assert read_list(answer) == sorted(numbers)


def test_numbers_to_sort_are_uniform_and_of_all_digit_counts():
    found = [
        number
        for seed in range(200)
        for q, _ in rows(make_task("sorting", variant="multi_digit"), 20, seed)
        for number in read_list(q)
    ]
    of_digits = Counter(len(str(number)) for number in found)
    assert set(of_digits) == {2, 3, 4}
    for digits, share in ((2, 90 / 9990), (3, 900 / 9990), (4, 9000 / 9990)):
        assert of_digits[digits] / len(found) == pytest.approx(share, abs=0.016)
        own = sorted(number for number in found if len(str(number)) == digits)
        middle = (11 * 10 ** (digits - 1) - 1) / 2
        assert own[len(own) // 2] == pytest.approx(middle, rel=0.2)


def test_digit_counts_stand_in_another_order_in_each_row():
    task = make_task("sorting", variant="multi_digit")
    orders = {tuple(len(str(number)) for number in read_list(question)) for question, _ in rows(task, 80, 3, 50)}
    assert len({tuple(sorted(order)) for order in orders}) == 1
    assert len(orders) > 10


# LEGO


def read_lego(question: list[int]) -> tuple[list[tuple[int, int, int | None]], int]:
    """Clauses as (variable, sign, variable before it or None), and the variable asked for."""
    *flat, asked = question
    clauses = list(zip(flat[0::3], flat[1::3], flat[2::3], strict=True))
    assert all(sign in (0, 1) for _, sign, _ in clauses)
    return [(name, -1 if sign else 1, None if before == 2 else before) for name, sign, before in clauses], asked


@settings(deadline=None, max_examples=80)
@given(order=st.sampled_from(["chain", "shuffled"]), length=st.integers(2, 80), seed=seeds)
def test_chains_lead_to_the_answer(order, length, seed):
    for question, answer in rows(make_task("lego", order=order), length, seed):
        clauses, asked = read_lego(question)
        names = [name for name, _, _ in clauses]
        assert len(set(names)) == len(names) == length
        assert min(names) >= 3
        [start] = [clause for clause in clauses if clause[2] is None]
        after = {before: (name, sign) for name, sign, before in clauses if before is not None}
        name, value, chain = start[0], start[1], [start[0]]
        while name != asked:
            name, sign = after[name]
            value *= sign
            chain.append(name)
        assert 2 * (len(chain) - 1) >= length, "the second half"
        assert answer == [0 if value == 1 else 1]
        if order == "chain":
            assert [before for _, _, before in clauses] == [None, *names[:-1]]


@pytest.mark.parametrize(("length", "places"), [(2, {1}), (3, {2}), (7, {4, 5, 6}), (8, {4, 5, 6, 7})])
def test_every_variable_of_the_second_half_is_asked_for(length, places):
    found = Counter()
    for question, _ in rows(make_task("lego"), length, 0, 1000):
        clauses, asked = read_lego(question)
        found[[name for name, _, _ in clauses].index(asked)] += 1
    assert set(found) == places
    assert all(n > 0.8 * 1000 / len(places) for n in found.values())


def test_clauses_are_shuffled_and_all_names_drawn():
    questions = [
        read_lego(question)[0] for question, _ in rows(make_task("lego", order="shuffled", variables=30), 10, 0, 300)
    ]
    starts = Counter([before for _, _, before in clauses].index(None) for clauses in questions)
    assert set(starts) == set(range(10))
    assert {name for clauses in questions for name, _, _ in clauses} == set(range(3, 33))


# SCAN

WORDS = [
    "walk",
    "look",
    "run",
    "jump",
    "turn",
    "left",
    "right",
    "opposite",
    "around",
    "twice",
    "thrice",
    "and",
    "after",
]
ACTIONS = ["WALK", "LOOK", "RUN", "JUMP", "LTURN", "RTURN"]


def obey(words: list[str]) -> list[str]:
    """What a command means; the last conjunction binds the loosest. Fails for what is no command."""
    places = [i for i, word in enumerate(words) if word in ("and", "after")]
    if places:
        first, second = obey(words[: places[-1]]), obey_phrase(words[places[-1] + 1 :])
        return first + second if words[places[-1]] == "and" else second + first
    return obey_phrase(words)


def obey_phrase(words: list[str]) -> list[str]:
    if words[-1] in ("twice", "thrice"):
        return obey_motion(words[:-1]) * {"twice": 2, "thrice": 3}[words[-1]]
    return obey_motion(words)


def obey_motion(words: list[str]) -> list[str]:
    verb, *rest = words
    act = {"walk": ["WALK"], "look": ["LOOK"], "run": ["RUN"], "jump": ["JUMP"], "turn": []}[verb]
    if not rest:
        assert act, "turn needs a side"
        return act
    turn = {"left": ["LTURN"], "right": ["RTURN"]}[rest.pop()]
    if not rest:
        return turn + act
    [manner] = rest
    return {"opposite": turn + turn + act, "around": 4 * (turn + act)}[manner]


@cache
def all_commands() -> dict[str, list[str]]:
    """The data set: every command and its actions."""
    sides = [f"{manner}{side}" for manner in ("", "opposite ", "around ") for side in ("left", "right")]
    motions = WORDS[:4] + [f"{verb} {side}" for verb in WORDS[:5] for side in sides]
    phrases = [f"{motion}{times}" for motion in motions for times in ("", " twice", " thrice")]
    joined = [f"{x} {word} {y}" for x, word, y in product(phrases, ("and", "after"), phrases)]
    return {command: obey(command.split()) for command in phrases + joined}


def read_scan(task: Task, length: int, seed: int, batch_size: int = 3) -> list[tuple[str, list[str]]]:
    found = []
    for question, answer in rows(task, length, seed, batch_size):
        actions = [ACTIONS[token - len(WORDS)] for token in answer]
        found.append((" ".join(WORDS[token] for token in question), actions))
    return found


@pytest.mark.parametrize(
    ("command", "actions"),
    [
        ("jump", "JUMP"),
        ("jump left", "LTURN JUMP"),
        ("jump around right", "RTURN JUMP RTURN JUMP RTURN JUMP RTURN JUMP"),
        ("turn left twice", "LTURN LTURN"),
        ("turn opposite right thrice", "RTURN RTURN RTURN RTURN RTURN RTURN"),
        ("jump opposite left and walk thrice", "LTURN LTURN JUMP WALK WALK WALK"),
        ("jump opposite left after walk around left", "LTURN WALK LTURN WALK LTURN WALK LTURN WALK LTURN LTURN JUMP"),
        ("walk after run and look after jump", "JUMP RUN WALK LOOK"),
    ],
)
def test_the_interpreter_agrees_with_known_commands(command, actions):
    assert obey(command.split()) == actions.split()


@settings(deadline=None, max_examples=60)
@given(length=st.integers(1, 48), seed=seeds)
def test_commands_of_the_data_set_are_obeyed(length, seed):
    known = max(n for n in map(len, all_commands().values()) if n <= length)
    for command, actions in read_scan(make_task("scan"), length, seed):
        assert actions == all_commands()[command]
        assert len(actions) == known == make_task("scan").output_length(length)


@settings(deadline=None, max_examples=60)
@given(phrases=st.integers(1, 8), length=lengths, seed=seeds)
def test_longer_commands_are_obeyed(phrases, length, seed):
    task, length = make_task("scan", phrases=phrases), min(length, 24 * phrases)
    for command, actions in read_scan(task, length, seed):
        words = command.split()
        assert actions == obey(words)
        assert words.count("and") + words.count("after") < phrases
        assert len(actions) == task.output_length(length)


def test_the_data_set_has_its_size_and_chance():
    assert len(all_commands()) == 20_910
    shares = reduce(lambda total, actions: total + Counter(actions), all_commands().values(), Counter())
    assert make_task("scan").chance == pytest.approx(max(shares.values()) / shares.total(), rel=1e-12)
    assert make_task("scan", phrases=5).chance == make_task("scan").chance


@pytest.mark.parametrize("length", [1, 2, 18, 48])
def test_commands_of_a_length_are_equally_likely(length):
    known = [command for command, actions in all_commands().items() if len(actions) == length]
    task = make_task("scan")
    n = 2000
    found = Counter(read_scan(task, length, seed, 1)[0][0] for seed in range(n))
    expected = n / len(known)
    assert set(found) <= set(known)
    surplus = sum((found[command] - expected) ** 2 / expected for command in known)  # chi-squared
    assert abs(surplus - (len(known) - 1)) < 5 * (2 * len(known)) ** 0.5


def test_words_are_as_many_in_all_rows_and_vary_between_calls():
    task = make_task("scan")
    for length in (1, 2, 12):
        widths = {sample(task, 64, length, seed).inputs.shape[1] for seed in range(100)}
        wanted = {len(command.split()) for command, actions in all_commands().items() if len(actions) == length}
        assert len(widths) > 1
        assert widths <= wanted
        assert max(wanted) == task.input_length(length)


def test_lengths_without_commands_mean_the_next_smaller():
    task = make_task("scan")
    gaps = [n for n in range(1, 49) if task.output_length(n) != n]
    assert gaps == sorted(set(range(1, 49)) - set(map(len, all_commands().values())))
    assert all(b > a for a, b in pairwise(gaps))
    assert torch.equal(sample(task, 8, 23, 0).outputs, sample(task, 8, 22, 0).outputs)
