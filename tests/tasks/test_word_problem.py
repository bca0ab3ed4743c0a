"""The word problem: its groups by their axioms, and products by moving things about."""

from collections import Counter
from itertools import product

import pytest
import torch
from scipy.stats import chisquare

from helpers import make_task
from pezoo.task import draw

GROUPS = {"A5": 60, "S5": 120, "A4xZ5": 60, "Z60": 60}
every_group = pytest.mark.parametrize("group", GROUPS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def act(name, things):
    """Apply an element, by its name, to things in a row and a place on a cycle."""
    (row, place), (order, _, steps) = things, name.partition("+")
    if name.isdigit() and len(row) == 1:
        order, steps = "1", name
    moved = list(row)
    for thing, target in zip(row, order, strict=True):
        moved[int(target) - 1] = thing
    return "".join(moved), place + int(steps or 0)


def walk(group, names):
    """Where things are after each of the elements."""
    cycle, row = {"A4xZ5": (5, "abcd"), "Z60": (60, "a")}.get(group, (1, "abcde"))
    here, seen = (row, 0), []
    for name in names:
        here = act(name, here)
        here = here[0], here[1] % cycle
        seen.append(here)
    return seen


@every_group
def test_products_move_things_as_their_elements_do_one_after_another(group):
    task = make_task("word_problem", group=group)
    pairs = task.sample(4, 30, generator())
    for question, answer in zip(pairs.inputs.tolist(), pairs.outputs.tolist(), strict=True):
        names, products = ([task.symbols[i] for i in ids] for ids in (question, answer))
        assert [walk(group, [name])[0] for name in products] == walk(group, names)


@every_group
def test_elements_are_a_group(group):
    task = make_task("word_problem", group=group)
    n = task.n_symbols
    assert n == GROUPS[group] == len(set(task.symbols))
    pairs = torch.tensor(list(product(range(n), repeat=2)))
    table = task.answer(pairs)[:, 1].view(n, n)
    for line in (*table, *table.T):
        assert line.sort().values.tolist() == list(range(n))  # each equation has one solution
    g, h, k = torch.randint(n, (3, 500), generator=generator())
    assert torch.equal(table[table[g, h], k], table[g, table[h, k]])
    assert torch.equal(table[0], torch.arange(n))  # the first is one
    assert bool(torch.equal(table, table.T)) == (group == "Z60")
    powers, orders = torch.arange(n), Counter()
    for order in range(1, 61):
        orders[order] = int((powers == 0).sum()) - sum(orders[d] for d in range(1, order) if order % d == 0)
        powers = table[powers, torch.arange(n)]
    assert orders[5] == {"A5": 24, "S5": 24, "A4xZ5": 4, "Z60": 4}[group]  # elements of order five


def test_permutations_of_a5_are_even():
    evens = set(make_task("word_problem", group="A5").symbols)
    every = set(make_task("word_problem", group="S5").symbols)
    assert evens < every
    swaps = {name: sum(a > b for i, a in enumerate(name) for b in name[i:]) for name in every}
    assert evens == {name for name, n in swaps.items() if n % 2 == 0}


def test_products_are_uniform_wherever_they_stand():
    outputs = make_task("word_problem").sample(6000, 40, generator()).outputs
    for place in (0, 1, 39):
        assert chisquare(outputs[:, place].bincount(minlength=60).tolist()).pvalue > 0.001


def test_long_rows_and_those_kept_for_testing_can_be_drawn():
    task = make_task("word_problem")
    assert draw(task, 64, 40, generator(), test=True).inputs.shape == (64, 40)
    assert task.n_tokens(500) == 500
