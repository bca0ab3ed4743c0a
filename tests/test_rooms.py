"""The order of rooms in DESIGN.md holds for every import, those inside functions too, and no modules form a circle."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_MODULES = 15
"""At the top of `pezoo/`; the door and the way in by `python -m` are none."""
MOST_LINES = 400
CORE = ("attention", "compose")
"""Folders of the core."""
MEMBERS = ("pezoo.encodings", "pezoo.data.tasks")
"""What the registry looks for members in, by name; members themselves import the core."""


@cache
def modules() -> dict[str, Path]:
    """The package's modules by name."""
    found = {}
    for path in sorted(ROOT.glob("pezoo/**/*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(name: str) -> set[str]:
    """The package's modules that a module imports, wherever it does; the package itself, for its version, is none."""
    found = set()
    for node in ast.walk(ast.parse(modules()[name].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{name} imports relatively"
            wanted = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {one if one in modules() else node.module for one in wanted}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    known = {one for one in found if one in modules()} - {"pezoo", name}
    return known - set(MEMBERS) if name == "pezoo.registry" else known


def room(name: str) -> str:
    """The folder of a module below `pezoo/`; a module at the top is core, unless it is a room of its own."""
    first, *more = name.split(".")[1:]
    rooms = {room for rooms in order() for room in rooms}
    return first if first in rooms or (more and first not in CORE) else "core"


@cache
def order() -> list[list[str]]:
    """The rooms as DESIGN.md orders them; those between the same two signs do not know each other."""
    (line,) = re.findall(r"^    (core < .* < cli)$", (ROOT / "DESIGN.md").read_text(), re.MULTILINE)
    return [[room.strip() for room in step.split(",")] for step in line.split("<")]


def test_every_room_has_a_place_in_the_order():
    ordered = {room for rooms in order() for room in rooms}
    inside = {room(name) for name in modules() if name not in ("pezoo", "pezoo.__main__")}
    assert inside == ordered


@pytest.mark.parametrize("name", [n for n in modules() if n not in ("pezoo", "pezoo.__main__")])
def test_imports_go_down(name):
    places = {room: place for place, rooms in enumerate(order()) for room in rooms}
    here = room(name)
    for one in imports(name):
        allowed = room(one) == here or places[room(one)] < places[here]
        assert allowed, f"{name} ({here}) imports {one} ({room(one)})"


def test_no_circle():
    graph = {name: imports(name) for name in modules() if name != "pezoo"}
    while leaves := [name for name, below in graph.items() if not below & graph.keys()]:
        for name in leaves:
            del graph[name]
    # What is left are circles, and what stands on them; take away what nothing in a circle needs.
    while roofs := [name for name in graph if not any(name in below for below in graph.values())]:
        for name in roofs:
            del graph[name]
    assert not graph


def test_few_doors_and_short_files():
    top = [path.stem for path in ROOT.glob("pezoo/*.py") if path.stem not in ("__init__", "__main__")]
    assert len(top) <= MOST_MODULES, sorted(top)
    for path in [*ROOT.glob("pezoo/**/*.py"), *ROOT.glob("encodings/**/*.py")]:
        lines = len(path.read_text().splitlines())
        assert lines <= MOST_LINES, f"{path.relative_to(ROOT)} has {lines} lines"
