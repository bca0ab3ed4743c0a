"""Every member of the zoo, held to every property of the conformance kit."""

import pytest

from pezoo import testing
from pezoo.checks import CHECKS

SLOW = [name for name, check in CHECKS.items() if check.slow]


@testing.parametrize()
def test_conformance(conformance):
    conformance()


@pytest.mark.slow
@testing.parametrize(checks=SLOW)
def test_slow_conformance(conformance):
    conformance()
