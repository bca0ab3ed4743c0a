"""Random numbers by counter: known answers, and sets that are drawn as they should be."""

from collections import Counter
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from pezoo.philox import philox, subset, uniform, whole, words

ALL = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ALL, ALL, ALL, ALL), (ALL, ALL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_the_generators_own_known_answers(counter, key, expected):
    """Of Random123, the authors' library: philox4x32, 10 rounds."""
    assert tuple(int(w) for w in philox(tuple(torch.tensor(c) for c in counter), key)) == expected


def test_words_depend_on_row_layer_name_and_place_alone():
    rows = torch.tensor([5, 2**40 + 5, 7])
    found = words(10, rows, 0, "a")
    assert found.shape == (3, 10)
    assert found.min() >= 0
    assert found.max() <= ALL
    assert len(found.flatten().unique()) == 30
    assert torch.equal(words(6, rows[2:], 0, "a"), found[2:, :6])
    for other in (words(10, rows, 1, "a"), words(10, rows, 0, "b")):
        assert not (other == found).any()


def test_uniform_numbers_are_uniform():
    numbers = uniform(words(50_000, torch.tensor([1]), 0, "u"))[0]
    assert numbers.dtype == torch.float32
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert kstest(numbers.double().numpy(), "uniform").pvalue > 0.001


def test_whole_numbers_reach_both_ends_alike():
    counts = torch.bincount(whole(words(60_000, torch.tensor([1]), 0, "w"), 3, 8)[0])
    assert counts[:3].sum() == 0
    assert len(counts) == 9
    assert chisquare(counts[3:].numpy()).pvalue > 0.001
    assert whole(torch.tensor([7, ALL]), 4, 2).tolist() == [4, 4]  # none to choose from


@pytest.mark.parametrize(("size", "total"), [(1, 5), (2, 4), (3, 6), (4, 5), (5, 5)])
def test_all_subsets_are_equally_likely(size, total):
    rows = 2000 * len(list(combinations(range(total), size)))
    drawn = subset(words(size, torch.arange(rows), 0, "s"), size, total)
    counts = Counter(map(tuple, drawn.tolist()))
    assert set(counts) == set(combinations(range(total), size))
    assert len(counts) == 1 or chisquare(list(counts.values())).pvalue > 0.001


def floyd(numbers, size, total):
    """Floyd's method, a step after the other; `numbers[c]` is drawn from {0 ... total - size + c}."""
    taken = set()
    for j, number in zip(range(total - size, total), numbers, strict=True):
        taken.add(j if number in taken else number)
    return sorted(taken)


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_all_steps_at_once_are_one_after_the_other(data):
    total = data.draw(st.integers(1, 40))
    size = data.draw(st.integers(1, total))
    rows = torch.arange(3) + data.draw(st.integers(0, 1000))
    bits = words(size, rows, 0, "f")
    drawn = subset(bits, size, total)
    for row in range(3):
        numbers = [int(bits[row, c]) * (total - size + c + 1) >> 32 for c in range(size)]
        assert drawn[row].tolist() == floyd(numbers, size, total)


def test_rows_have_sizes_and_totals_of_their_own():
    rows, sizes, totals = torch.arange(3), torch.tensor([[3], [8], [1]]), torch.tensor([[9], [8], [2]])
    together = subset(words(8, rows, 0, "r"), sizes, totals)
    for row, (size, total) in enumerate(zip(sizes[:, 0].tolist(), totals[:, 0].tolist(), strict=True)):
        alone = subset(words(size, rows[row : row + 1], 0, "r"), size, total)
        assert torch.equal(together[row : row + 1, :size], alone)
