"""Recipes, overrides, schemes, tasks and labels, changed at random: each is read or refused, and none takes long.

`python tools/faults --only mutated` reads thousands of them.
"""

import importlib.util
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "tools" / "faults" / "mutants.py"
spec = importlib.util.spec_from_file_location("mutants", FILE)
mutants = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mutants)


@pytest.mark.parametrize("kind", mutants.KINDS)
def test_mutated(kind):
    found = mutants.read_many(kind, range({"label": 5, "scheme": 40}.get(kind, 12)))
    assert found["read"], "some are good"
    assert "refused" in found or kind == "label"
