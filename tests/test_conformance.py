"""Every member of the zoo, every layer schedule and every task, held to every property of the conformance kit."""

import pytest

from pezoo import testing
from pezoo.registry import list_schedules, list_tasks
from pezoo.testing.properties import CHECKS

SLOW = [name for name, check in CHECKS.items() if check.slow]
LONG = [
    "back_ends_equal_eager",
    "builds_at_any_size",
    "declared_lengths_by_row",
    "decodes_like_the_full_pass",
    "decodes_padded_and_packed_rows",
    "distinct_far_positions",
    "every_parameter_learns",
    "every_row_learns",
    "every_setting_matters",
    "growing_generation_as_declared",
    "length_order_does_not_matter",
    "low_precision_leaves_no_trace",
    "memory_is_linear",
    "packed_documents_do_not_leak",
    "padding_does_not_leak",
    "rounding_decides_nothing",
    "same_numbers_in_any_precision",
    "stands_beside_any_encoding",
]
"""What takes half of the time of all checks, over all members."""
QUICK = [name for name in CHECKS if name not in (*SLOW, *LONG)]
VARIANTS = (
    *(f"copy:variant={variant}" for variant in ("random_twice", "repeat", "repeat_twice", "replace")),
    *(f"reverse:variant={variant}" for variant in ("twice", "back")),
    *(f"word_problem:group={group}" for group in ("S5", "A4xZ5", "Z60")),
    *(
        "sorting:variant=multi_digit",
        "lego:order=shuffled",
        "scan:phrases=4",
        "mqar:vocabulary=32:n_pairs=8",
        "addition:order=lowest_first",
        "chain_sum:largest=1",
        "facts:hops=2",
        "aggregate:ask=most",
        "no_overlap:direct=true",
    ),
)


@testing.parametrize(checks=QUICK)
def test_conformance(conformance):
    conformance()


@pytest.mark.slow
@pytest.mark.ci(one_in=14)
@testing.parametrize(checks=LONG)
def test_long_conformance(conformance):
    conformance()


@pytest.mark.slow
@pytest.mark.ci
@testing.parametrize(*list_schedules())
def test_conformance_of_schedules(conformance):
    conformance()


@testing.parametrize(*list_tasks(), *VARIANTS)
def test_task_conformance(conformance):
    conformance()


@pytest.mark.slow
@testing.parametrize(checks=SLOW)
def test_slow_conformance(conformance):
    conformance()
