"""The Chomsky-hierarchy tasks, held against plain Python that reads each question as text."""

import re
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pezoo.registry import entry
from pezoo.task import IGNORE, draw

ALPHABETS = {
    "modular_arithmetic": "01234+-*",
    "modular_arithmetic_brackets": "01234+-*()",
    "solve_equation": "01234+-()x=",
    "stack_manipulation": "01pzo",
}
LENGTHS = [*range(1, 13), 40, 100, 500]


def parse(text):
    """The value modulo five of a whole expression in brackets; fails where the grammar is broken."""
    value, rest = _parse(text)
    assert not rest
    return value


def _parse(text):
    if leaf := re.match(r"(-?)(\d)|\((-?)(\d)\)", text):
        sign, digit = (leaf[1], leaf[2]) if leaf[2] else (leaf[3], leaf[4])
        return (-int(digit) if sign else int(digit)) % 5, text[leaf.end() :]
    assert text[0] == "("
    left, rest = _parse(text[1:])
    sign = rest[0]
    right, rest = _parse(rest[1:])
    assert rest[0] == ")"
    return {"+": left + right, "-": left - right, "*": left * right}[sign] % 5, rest[1:]


def assert_string(text, n, symbols):
    assert len(text) == n
    assert set(text) <= set(symbols)


def even_pairs(text, n):
    assert_string(text, n, "01")
    return str((text.count("01") + text.count("10")) % 2)


def parity_check(text, n):
    assert_string(text, n, "01")
    return str(text.count("1") % 2)


def cycle_navigation(text, n):
    assert_string(text, n, "012")
    return str((text.count("2") - text.count("0")) % 5)


def modular_arithmetic(text, n):
    assert len(text) == (n if n % 2 else n - 1)
    assert re.fullmatch(r"[0-4]([-+*][0-4])*", text)
    return str(eval(text) % 5)


def stack_manipulation(text, n):
    assert len(text) == n
    stack, actions = re.fullmatch("([01]+)([pzo]*)", text).groups()
    assert actions or n == 1
    for action in actions:
        stack = stack[:-1] if action == "p" else stack + {"z": "0", "o": "1"}[action]
    return stack[::-1] + "2"


def reverse_string(text, n):
    assert_string(text, n, "01")
    return text[::-1]


def modular_arithmetic_brackets(text, n):
    assert len(text) == n
    return str(parse(text))


def solve_equation(text, n):
    assert len(text) == n
    if n < 3:
        assert text == "0" * n
        return "0"
    left, right = text.split("=")
    assert left.count("x") == 1
    assert "*" not in left
    (solution,) = (digit for digit in "01234" if parse(left.replace("x", digit)) == int(right))
    return solution


def duplicate_string(text, n):
    assert_string(text, n, "01")
    return text + text


def missing_duplicate_string(text, n):
    assert len(text) == n
    if n == 1:
        assert text == "1"
        return "1"
    text = text[:-1] if n % 2 and text[-1] == "3" else text
    (solution,) = (bit for bit in "01" if text.replace("2", bit)[: n // 2] * 2 == text.replace("2", bit))
    assert text.count("2") == 1
    return solution


def odds_first(text, n):
    assert_string(text, n, "01")
    return "".join(text[i] for i in range(n) if i % 2) + "".join(text[i] for i in range(n) if not i % 2)


def two_numbers(text, n):
    assert len(text) == n
    a, b = (sum(2**i for i, digit in enumerate(digits) if digit == "1") for digits in text.split("2"))
    assert a >= 1
    assert b >= 1
    return a, b


def one_number(text, n):
    assert_string(text, n, "01")
    assert text != "1" * n
    return int(text[::-1], 2)


def binary_addition(text, n):
    total = one_number(text, n) if n < 3 else sum(two_numbers(text, n))
    return bin(total)[:1:-1] + "2"


def binary_multiplication(text, n):
    if n < 3:
        one_number(text, n)
        return "02"[2 - n :]
    a, b = two_numbers(text, n)
    return bin(a * b)[:1:-1] + "2"


def compute_sqrt(text, n):
    assert_string(text, n, "01")
    square, root = int(text, 2), 0
    assert square > 0
    for bit in range(n, -1, -1):
        if (root + 2**bit) ** 2 <= square:
            root += 2**bit
    return bin(root)[2:].rjust(-(-n // 2), "0")


def bucket_sort(text, n):
    assert_string(text, n, "01234")
    return "".join(sorted(text))


CHECKS = [
    even_pairs, modular_arithmetic, parity_check, cycle_navigation, stack_manipulation, reverse_string,
    modular_arithmetic_brackets, solve_equation, duplicate_string, missing_duplicate_string, odds_first,
    binary_addition, binary_multiplication, compute_sqrt, bucket_sort,
]  # fmt: skip
WIDTHS = {
    "stack_manipulation": lambda n: n + 1,
    "reverse_string": lambda n: n,
    "duplicate_string": lambda n: 2 * n,
    "odds_first": lambda n: n,
    "binary_addition": lambda n: n + 1,
    "binary_multiplication": lambda n: n,
    "compute_sqrt": lambda n: -(-n // 2),
    "bucket_sort": lambda n: n,
}
every_task = pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)


def sample(check, batch_size, length, seed=0):
    task = entry(check.__name__).cls()
    return task, task.sample(batch_size, length, torch.Generator().manual_seed(seed))


def read(check, row):
    alphabet = ALPHABETS.get(check.__name__, "01234")
    return "".join(alphabet[symbol] for symbol in row)


def questions(check, batch_size, length):
    return Counter(read(check, row) for row in sample(check, batch_size, length)[1].inputs.tolist())


def hold(check, length, seed):
    task, pairs = sample(check, 3, length, seed)
    inputs, outputs = pairs.inputs, pairs.outputs
    assert inputs.dtype == outputs.dtype == torch.int64
    assert inputs.shape == (3, task.input_length(length))
    assert outputs.shape == (3, task.output_length(length)) == (3, WIDTHS.get(check.__name__, lambda n: 1)(length))
    assert inputs.min() >= 0
    assert max(inputs.max(), outputs.max()) < task.n_symbols
    for question, answer in zip(inputs.tolist(), outputs.tolist(), strict=True):
        right = check(read(check, question), length)
        assert answer == [int(symbol) for symbol in right] + [IGNORE] * (len(answer) - len(right))


@every_task
@pytest.mark.parametrize("length", LENGTHS)
def test_answers_are_those_of_a_brute_force(check, length):
    hold(check, length, seed=length)


@every_task
@settings(deadline=None, max_examples=30)
@given(length=st.integers(1, 70), seed=st.integers(0, 2**32 - 1))
def test_answers_are_right_at_any_length_and_seed(check, length, seed):
    hold(check, length, seed)


@every_task
@pytest.mark.parametrize("length", range(1, 13))
def test_any_length_can_be_trained_on(check, length):
    pairs = draw(entry(check.__name__).cls(), 128, length, torch.Generator().manual_seed(0), test=False)
    assert len(pairs.inputs) == len(pairs.outputs) == 128


@every_task
@settings(deadline=None, max_examples=10)
@given(length=st.integers(1, 30), seed=st.integers(0, 2**32 - 1))
def test_layouts(check, length, seed):
    task, pairs = sample(check, 4, length, seed)
    assert task.layout == "marked"
    assert task.forms == ("causal", "encoder")
    causal, encoder = task.example(pairs, "causal"), task.example(pairs, "encoder")
    for form, example in (("causal", causal), ("encoder", encoder)):
        assert example.tokens.shape == example.targets.shape == (4, task.n_tokens(length, form))
        assert 0 <= example.tokens.min() <= example.tokens.max() < task.vocab_size
    for row in range(4):
        question, outputs = pairs.inputs[row].tolist(), pairs.outputs[row].tolist()
        answer, rest = [y for y in outputs if y != IGNORE], outputs.count(IGNORE)
        silent = [IGNORE] * len(question)
        shown = [*question, task.sep, *answer]
        assert causal.tokens[row, : len(shown)].tolist() == shown
        assert causal.targets[row].tolist() == [*silent, *answer, task.eos] + [IGNORE] * rest
        assert encoder.tokens[row].tolist() == question + [task.empty] * len(outputs)
        assert encoder.targets[row].tolist() == silent + outputs


# What is drawn, beyond being right


@pytest.mark.parametrize("check", [modular_arithmetic_brackets, solve_equation])
def test_all_expressions_of_a_length_occur(check):
    signs = "+-*" if check is modular_arithmetic_brackets else "+-"
    forms = [form.replace("o", sign) for form in ("(ao-b)", "(-aob)") for sign in signs]
    every = {form.replace("a", a).replace("b", b) for form in forms for a in "01234" for b in "01234"}
    if check is solve_equation:
        places = [(text, i) for text in every for i in range(6) if text[i].isdigit()]
        every = {f"{text[:i]}x{text[i + 1 :]}={parse(text)}" for text, i in places}
    assert set(questions(check, 6000, len(min(every)))) == every


def test_the_digit_to_find_is_the_first_from_a_uniform_place_on():
    places = Counter(text.index("x") for text in questions(solve_equation, 4000, 7).elements())  # in (a+b)
    assert places[1] + places[3] == 4000
    assert places[1] / 4000 == pytest.approx(3 / 5, abs=0.03)


def test_splits_of_expressions_are_uniform():
    sizes = Counter()
    for text in questions(modular_arithmetic_brackets, 6000, 10).elements():
        sizes[10 - 3 - len(_parse(text[1:])[1][1:-1])] += 1
    assert set(sizes) == set(range(1, 7))
    assert all(count == pytest.approx(1000, abs=150) for count in sizes.values())


@pytest.mark.parametrize("check", [binary_addition, binary_multiplication])
def test_operands_have_all_widths_alike_and_all_values(check):
    found = questions(check, 3000, 5)
    numbers = [[f"{x:0{width}b}"[::-1] for x in range(1, 2**width)] for width in range(4)]
    every = {f"{a}2{b}" for width in (1, 2, 3) for a in numbers[width] for b in numbers[4 - width]}
    assert set(found) == every
    widths = Counter(text.index("2") for text in found.elements())
    assert all(widths[width] == pytest.approx(1000, abs=120) for width in (1, 2, 3))


def test_all_numbers_but_zero_have_their_root_asked():
    assert set(questions(compute_sqrt, 1000, 4)) == {f"{x:04b}" for x in range(1, 16)}


def test_first_stacks_have_all_sizes_alike():
    sizes = Counter(len(text.rstrip("pzo")) for text in questions(stack_manipulation, 4000, 5).elements())
    assert set(sizes) == {1, 2, 3, 4}
    assert all(count == pytest.approx(1000, abs=120) for count in sizes.values())


@pytest.mark.parametrize("length", [8, 9])
def test_any_place_but_the_padding_is_masked(length):
    places = Counter(text.index("2") for text in questions(missing_duplicate_string, 4000, length).elements())
    assert set(places) == set(range(8))
    assert all(count == pytest.approx(500, abs=90) for count in places.values())


def test_expressions_of_any_length_need_no_recursion():
    _, pairs = sample(modular_arithmetic_brackets, 1, 20_000)
    assert pairs.inputs.shape == (1, 20_000)
