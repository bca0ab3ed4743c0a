"""The simulated schedule of a study, on invented cells."""

from dataclasses import dataclass

import pytest

from pezoo.study.schedule import ends, expected, simulate


@dataclass
class Fake:
    kind: str
    parents: tuple[str, ...] = ()


def grid(n):
    """n trainings of 10 s, each with a test of 1 s."""
    cells = {f"train{i}": Fake("train") for i in range(n)}
    cells |= {f"test{i}": Fake("evaluate", (f"train{i}",)) for i in range(n)}
    return cells, {key: 10.0 if cell.kind == "train" else 1.0 for key, cell in cells.items()}


def test_without_failures_workers_share_what_is_ready():
    cells, seconds = grid(4)
    assert simulate(cells, seconds, 1) == 44
    assert simulate(cells, seconds, 4) == 11
    assert simulate(cells, seconds, 100) == 11  # no more than a chain can be shared
    assert simulate(cells, seconds, 2) == 22  # ready tests go first: 10 + 1 + 10 + 1


def test_what_is_done_is_waited_for_by_nobody():
    cells, seconds = grid(2)
    del seconds["train0"]
    assert simulate(cells, seconds, 2) == 11
    assert simulate(cells, {"test0": 1.0}, 2) == 1
    assert simulate(cells, {}, 2) == 0


def test_a_chain_is_followed_from_its_first_cell():
    cells = {
        "a": Fake("train"),
        "b": Fake("tune", ("a",)),
        "c": Fake("evaluate", ("b",)),
        "d": Fake("evaluate", ("a",)),
    }
    assert simulate(cells, {"a": 5.0, "b": 3.0, "c": 2.0, "d": 9.0}, 2) == 14


def test_failures_cost_what_was_not_saved():
    cells, seconds = {"a": Fake("train")}, {"a": 1000.0}
    fails = {"failure_seconds": 300.0, "back_seconds": 0.0}
    kept = [simulate(cells, seconds, 1, save_seconds=1.0, seed=s, **fails) for s in range(200)]
    lost = [simulate(cells, seconds, 1, save_seconds=1e9, seed=s, **fails) for s in range(200)]
    assert all(1000 <= k <= 1000 + 40 for k in kept)  # at most a second a failure
    # Starting anew until a run without failure: (e^(T/m) - 1) m on average.
    assert sum(lost) / 200 == pytest.approx((2.718281828 ** (1000 / 300) - 1) * 300, rel=0.2)


def test_each_cell_is_done_at_its_time():
    cells, seconds = grid(4)
    assert ends(cells, seconds, 2) == {
        **{"train0": 10, "train1": 10, "test0": 11, "test1": 11},
        **{"train2": 21, "train3": 21, "test2": 22, "test3": 22},
    }


def test_the_expected_end_grows_with_failures_and_is_the_same_each_time():
    cells, seconds = grid(50)
    never, rare, often = (expected(cells, seconds, 5, failure) for failure in (1e12, 500.0, 50.0))
    assert never == simulate(cells, seconds, 5)
    assert never < rare < often
    assert often == expected(cells, seconds, 5, 50.0)
