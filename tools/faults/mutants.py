"""Recipes, overrides, schemes, tasks and labels, changed at random: each is read or refused, and none takes long.

An input is named by its kind and number, so that it can be had again: `python tools/faults/mutants.py recipe 17`.
"""

import copy
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import yaml

import pezoo
from pezoo.errors import LONGEST, UserError
from pezoo.escape import in_figure, in_markdown, in_terminal, safe_names
from pezoo.study import make_plan
from pezoo.study.reading import load_recipe, own_recipes
from pezoo.task import make_task

SECONDS = 20
"""Most that one input may take, on a busy machine."""
BASE = {
    "schemes": ["rope", "rope+pi:factor=4", {"scheme": "alibi", "label": "a", "tune": [0, 2]}, {"layers": ["rope"]}],
    "tasks": ["parity", "mqar:n_pairs=2"],
    "seeds": [0, 1],
    "form": "causal",
    "size": "small",
    "sizes": {"small": {"train": {"steps": 4}}},
    "model": {"d_model": 8, "n_layers": 1, "n_heads": 2, "dropout": 0.1},
    "train": {"length": 16, "steps": 2, "warmup_steps": 1, "lrs": [1e-3, 2e-3], "betas": [0.9, 0.95]},
    "tune": {"warmup_steps": 1, "steps": [0], "length": "2x"},
    "test": {"lengths": [16, "2x"], "windows": 2, "protocols": ["answers"]},
    "parts": {
        "one": {"schemes": ["nope"]},
        "other": {"schemes": [], "grid": {"encodings": ["rope", "t5"], "extensions": ["pi"]}},
    },
}
ODD = [
    *[None, True, False, 0, -1, 1, 3, 2**31, 2**63, 10**21, -(10**400), 0.5, 1e400, float("nan"), "", " ", "x", "???"],
    *["${oc.env:HOME}", "\x1b[31m", "\n", "\0", "..", "a/b", "$x$", "|", "\ud800", "漢字", "1x", "9" * 400 + "x", "*"],
    *["rope", "rope+pi", "parity", "passkey", "prefix", "answers", "rope:base=1e999", "mqar:n_pairs=[1]"],
    *["+", ":", "=", "2020-13-45", "!!timestamp x", "&a [*a]", "{" * 100, "[" * 100, "a" * 3000],
    "{layers: [rope, {heads: {rope: 1}}]}",
    *[[], {}, [[]], [{}], {"a": {}}, {1: 2}, {"": ""}, [None], [0, 0], ["rope", ["rope"]], {"layers": [["rope"]]}],
    *[{"heads": {"rope": 10**30}}, {"heads": [["rope", 1], ["alibi"]]}, {"rope": {"base": [1]}}, {"scheme": None}],
]
PIECES = [
    *"+:=,.{}[]()\"'&*!#|>%@`~^\\ \n\t0123456789eE-_xaΩ漢",
    *["rope", "pi", "yarn", "alibi", "layers", "heads", "factor", "base", "1e999", "1e21", "999999999999999999999"],
    *["null", "true", "0x_", "2020-13-45", "!!int", "???", "${", "\x1b", "\ud800", "mqar", "parity", "lego", "passkey"],
]


def deep(rng: random.Random):
    """A list inside a list, many times."""
    value: object = "rope"
    for _ in range(rng.choice([3, 30, 300])):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


def odd(rng: random.Random):
    """Something that belongs nowhere."""
    return deep(rng) if rng.random() < 0.05 else copy.deepcopy(rng.choice(ODD))


def places(tree, path=()):
    """Every key and item of a tree."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for name, child in list(pairs):
        yield (*path, name)
        yield from places(child, (*path, name))


def mutate_recipe(rng: random.Random):
    """A recipe with one to three changes."""
    tree = copy.deepcopy(BASE)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        *above, last = rng.choice(list(places(tree)))
        node = tree
        for name in above:
            node = node[name]
        what = rng.random()
        if what < 0.6:
            node[last] = odd(rng)
        elif what < 0.7:
            del node[last]
        elif isinstance(node, dict):
            node[rng.choice(["", "x", "schemes", "train", "stepz", 3, None, "\x1b", "y" * 500])] = odd(rng)
        else:
            node.append(odd(rng))
    return tree


def mutate_text(rng: random.Random, text: str) -> str:
    """A text with some pieces put in and some characters taken out."""
    for _ in range(rng.choice([1, 1, 2, 4, 8])):
        at = rng.randint(0, len(text))
        text = text[:at] + rng.choice(["", rng.choice(PIECES)]) + text[at + rng.choice([0, 0, 1, 3]) :]
    return text if rng.random() < 0.98 else text * 500


def recipe(rng: random.Random) -> None:
    """Plan a mutated recipe."""
    make_plan(load_recipe(mutate_recipe(rng)))


def file(rng: random.Random, path: Path) -> None:
    """Read the mutated file of a recipe."""
    text = rng.choice([*own_recipes().values()]).read_text() if rng.random() < 0.5 else yaml.safe_dump(BASE)
    path.write_text(mutate_text(rng, text).encode("utf-8", "replace").decode())
    load_recipe(path, rng.choice([[], ["size=test"]]))


def override(rng: random.Random) -> None:
    """Read a recipe with a mutated override."""
    key = ".".join(map(str, rng.choice(list(places(BASE)))))
    key = key if rng.random() < 0.7 else mutate_text(rng, key)
    value = rng.choice(["", "rope", "[rope]", "{a: 1}", "3", "[1, 2]"])
    value = mutate_text(rng, value) if rng.random() < 0.5 else str(odd(rng))[:5000]
    load_recipe(BASE, [f"{key}={value}"])


def scheme(rng: random.Random) -> None:
    """Parse a mutated scheme, and what it is written as."""
    texts = ["rope", "rope+yarn:factor=8:beta_fast=32", "alibi+window:size=8:at=test", "{layers: [rope, nope]}"]
    texts += ["{heads: {rope: 2, 'alibi+pi:factor=2': 2}}", "longrope:short=1,2,3", "shaw:clip=16", "rope_pi:factor=2"]
    texts += [rng.choice(pezoo.list_encodings()) + "+" + rng.choice(pezoo.list_extensions())]
    given = mutate_text(rng, rng.choice(texts)) if rng.random() < 0.8 else odd(rng)
    spec = pezoo.parse(given)
    assert pezoo.parse(str(spec)) == spec
    hash(spec)


def task(rng: random.Random) -> None:
    """Make a mutated task."""
    name = rng.choice(pezoo.list_tasks())
    settings = list(pezoo.describe(name)["parameters"])
    text = name if not settings else f"{name}:{rng.choice(settings)}={rng.choice([1, 2, 'x', 10**18, '1e400', '[1]'])}"
    make_task(mutate_text(rng, text) if rng.random() < 0.7 else rng.choice([text, odd(rng)]))


def label(rng: random.Random) -> None:
    """Show mutated labels everywhere, and plan a recipe with them."""
    labels = list(dict.fromkeys(str(mutate_text(rng, rng.choice(["rope", "..", "a/b", "L" * 200]))) for _ in range(5)))
    names = safe_names(labels)
    assert len({name.casefold() for name in names.values()}) == len(labels)
    assert all(0 < len(n.encode()) < 200 and not set(n) & set("/\\:\0") and n.strip(" .") for n in names.values())
    for text in labels:
        assert "\x1b" not in in_terminal(text) + in_figure(text)
        assert "<" not in in_markdown(text)
        in_terminal(text, "ascii").encode("ascii")
    schemes = [{"scheme": "rope", "label": labels[0]}]
    make_plan(load_recipe(BASE | {"schemes": schemes, "parts": {labels[-1]: {}}}))


KINDS = {"recipe": recipe, "file": file, "override": override, "scheme": scheme, "task": task, "label": label}


def read(kind: str, number: int, folder: Path) -> str:
    """Read one input; return the message that refuses it, or nothing.

    Args:
        kind: of the input.
        number: of the input.
        folder: for a file.

    Raises:
        AssertionError: if it ends in another exception, in a message longer than a screen, or takes long.
    """
    rng, began, message = random.Random(f"{kind} {number}"), time.process_time(), ""
    try:
        KINDS[kind](rng, *([folder / "mine.yaml"] if kind == "file" else []))
    except UserError as error:
        message = str(error)
        assert message, f"{kind} {number} is refused without a word"
    except Exception as error:
        raise AssertionError(f"{kind} {number} ends in {type(error).__name__}: {error}") from error
    assert len(message) <= LONGEST, f"{kind} {number} has a message of {len(message)} characters"
    assert time.process_time() - began < SECONDS, f"{kind} {number} takes long"
    return message


def read_many(kind: str, numbers: range) -> dict[str, int]:
    """Read inputs of a kind; return how many were read and how many were refused."""
    with tempfile.TemporaryDirectory() as folder:
        return dict(Counter("refused" if read(kind, number, Path(folder)) else "read" for number in numbers))


if __name__ == "__main__":
    first, last = int(sys.argv[2]), int(sys.argv[-1])
    print(json.dumps(read_many(sys.argv[1], range(first, last + 1))))
