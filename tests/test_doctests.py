"""Examples in docstrings, of modules imported by the name that users import them by."""

import doctest
import importlib
import importlib.util
import pkgutil
from pathlib import Path

import pytest

import pezoo
import pezoo.encodings

NAMES = {
    module.name
    for package in (pezoo, pezoo.encodings)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
}
WITH_EXAMPLES = [n for n in sorted(NAMES) if ">>> " in Path(importlib.util.find_spec(n).origin).read_text()]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_are_true(name):
    failed, attempted = doctest.testmod(importlib.import_module(name))
    assert attempted > 0
    assert failed == 0


def test_the_search_finds_members():
    assert {"pezoo.encodings.bias.alibi", "pezoo.encodings.bias.t5"} <= set(WITH_EXAMPLES)
