"""A cell's name changes when, and only when, its numbers do: numbers of small cells, recorded with what names them.

`fingerprint.json` holds a few numbers of every kind of cell, from trainings of six steps, and the `VERSIONS` that they
belong to. Where numbers move, cells need another name, or those of older code would be shown as new ones. So raise the
entry of `pezoo.study.plan.VERSIONS` that the failure names, and renew the file:

    python tests/test_fingerprint.py

which refuses as long as an entry is not raised. Code of members needs no entry: it is part of the name.
"""

import copy
import json
import math
import os
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from helpers import WORDS, write_words
from pezoo import attention, task
from pezoo.data import material
from pezoo.evaluation import answers
from pezoo.study import plan as planning
from pezoo.study.cells import run_cell
from pezoo.study.collect import collect
from pezoo.study.plan import GROUPS, Cell, digest, make_plan
from pezoo.study.reading import load_recipe
from pezoo.study.store import Store
from pezoo.training import batches
from pezoo.training import fit as lightning
from pezoo.training.keys import hashed

FILE = Path(__file__).with_suffix(".json").with_name("fingerprint.json")
TOLERANCE = 1e-4
"""Relative. Other processors and numbers of threads move these numbers by less than 1e-5."""
PARTS = {
    "text": {
        "schemes": ["alibi", "fire", {"scheme": "rope+yarn", "tune": [0, 3]}],
        "test": {"lengths": ["1x", "20x"], "protocols": ["prefix", "sliding:stride=64"], "windows": 2},
    },
    "body": {
        "schemes": ["rope"],
        "model": {"dropout": 0.2, "norm": "rmsnorm", "activation": "swiglu", "n_kv_heads": 1, "qk_norm": True},
        "train": {"schedule": "linear", "accumulate": 2, "weight_decay": 1.0},
    },
    "drawn": {
        "schemes": ["rope+random"],
        "train": {"lengths": "uniform"},
        "test": {"protocols": ["non_overlapping"], "companion": True},
    },
    "chosen": {"schemes": ["nope"], "train": {"lrs": [3e-3, 3e-2], "lengths": "curriculum"}},
    "task": {
        "tasks": ["reverse_string"],
        "schemes": ["rope"],
        "train": {"length": 4},
        "test": {"protocols": ["answers", "generation"], "windows": 40},
    },
    "encoder": {
        "tasks": ["missing_duplicate_string"],
        "form": "encoder",
        "schemes": ["t5"],
        "train": {"length": 6},
        "test": {"windows": 40},
    },
}
MOVED = "these numbers moved, and VERSIONS in pezoo/study/plan.py did not: raise its entries {kinds}, then type {renew}"
RENEW = f"python tests/{Path(__file__).name}"


def measure(folder, parts=tuple(PARTS)):
    """Run cells in this process; what they found, by title."""
    data = write_words(Path(folder) / "text", words=WORDS[:7])
    recipe = {
        "study": "fingerprint",
        "device": "cpu",
        "data": data,
        "model": {"d_model": 16, "n_layers": 2, "n_heads": 2},
        "train": {"length": 16, "steps": 6, "batch_size": 4, "lr": 1e-2, "warmup_steps": 2},
        "tune": {"length": "4x", "batch_size": 2, "lr": 3e-3, "warmup_steps": 1},
        "test": {"lengths": ["1x", "4x"], "windows": 4, "batch_tokens": 512},
        "parts": {name: PARTS[name] for name in parts},
    }
    made, store = make_plan(load_recipe(recipe)), Store(Path(folder) / "study")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for cell in made.cells.values():
            run_cell(cell, store, made.corpora, lambda *_: None)
    finally:
        torch.set_num_threads(threads)
    found = {}
    for key, cell in made.cells.items():
        after = [made.cells[k].title for k in made.ancestors(key)]
        found[cell.title] = {"kind": cell.kind, **named_by(cell), "after": sorted(set(after)), "numbers": {}}
        facts = store.facts(key)
        if cell.kind != "evaluate":
            numbers = {name: facts["fit"][name] for name in ("final_loss", "validation_loss")}
            found[cell.title]["numbers"] = {"learning_rate": facts["learning_rate"]} | numbers
    for r in collect(made, store):
        at = f"{r.metric} at {r.test_length}" + (f", depth {r.depth}" if r.depth is not None else "")
        found[made.cells[r.cell].title]["numbers"][at] = r.value if r.status == "ok" else r.status
    return {"versions": planning.VERSIONS, "mkl": torch.backends.mkl.is_available(), "cells": rounded(found)}


def named_by(cell: Cell) -> dict[str, str]:
    """What names a cell, without its version: the code of members, and all the rest but its parents."""
    inputs = {name: hashed(GROUPS[name], value) if name in GROUPS else value for name, value in cell.inputs.items()}
    inputs["data"] = dict(inputs["data"])
    code = [inputs.pop("sources"), inputs["data"].pop("source", "")]
    rest = {name: value for name, value in inputs.items() if name not in ("version", "parent", "candidates")}
    return {"code": digest(code), "rest": digest(rest), "dropout": inputs["model"]["dropout"]}


def rounded(data):
    if isinstance(data, dict):
        return {name: rounded(value) for name, value in data.items()}
    return float(f"{data:.6g}") if isinstance(data, float) else data


def alike(one, other):
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=1e-6)


def moved(old, new):
    """Titles of the cells whose numbers moved, and what they were and are."""
    found = {}
    for title, cell in new["cells"].items():
        was = old["cells"].get(title)
        if was is None or (cell["dropout"] and old["mkl"] != new["mkl"]):  # whose random numbers are others without MKL
            continue
        pairs = {name: (was["numbers"].get(name), value) for name, value in cell["numbers"].items()}
        pairs = {name: pair for name, pair in pairs.items() if pair[0] is None or not alike(*pair)}
        if pairs:
            found[title] = pairs
    return found


def unnamed(old, new):
    """Of the cells whose numbers moved, those that have their old name, by kind: nothing before them moved."""
    everything, kinds = moved(old, new), {}
    for title in everything:
        cell, was = new["cells"][title], old["cells"][title]
        raised = old["versions"][cell["kind"]] != new["versions"][cell["kind"]]
        if not raised and cell["code"] == was["code"] and not everything.keys() & set(cell["after"]):
            kinds.setdefault(cell["kind"], []).append(title)
    return kinds


def shown(old, new, titles):
    lines = [f"{t}: {n} was {a}, is {b}" for t in titles for n, (a, b) in moved(old, new)[t].items()]
    return "\n".join(lines[:12])


@pytest.fixture(scope="module")
def recorded():
    return json.loads(FILE.read_text())


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    return measure(tmp_path_factory.mktemp("fingerprint") / "all")


def test_numbers_do_not_move_without_a_new_name(recorded, measured):
    kinds = unnamed(recorded, measured)
    titles = [title for found in kinds.values() for title in found]
    message = MOVED.format(kinds=", ".join(kinds), renew=RENEW)
    assert not kinds, f"{message}\n{shown(recorded, measured, titles)}"


def test_the_file_is_of_these_versions_and_these_cells(recorded, measured):
    stale = f"tests/{FILE.name} is out of date; type {RENEW}"
    assert recorded["versions"] == measured["versions"], stale
    assert recorded["cells"].keys() == measured["cells"].keys(), stale
    assert not moved(recorded, measured), stale


def test_names_do_not_change_without_the_numbers(recorded, measured):
    pairs = [(title, cell, measured["cells"].get(title)) for title, cell in recorded["cells"].items()]
    renamed = [title for title, was, now in pairs if now is not None and was["rest"] != now["rest"]]
    assert not renamed, (
        f"cells have new names, and what was trained is trained anew: {', '.join(renamed)}. "
        f"pezoo/training/keys.py says how they keep theirs when a key is new or has another name; "
        f"if they must not, type {RENEW}"
    )


# ---- the fingerprint itself ---------------------------------------------------------------------


def test_what_is_said_of_numbers_that_move(recorded):
    title = "train alibi on text, seed 0"
    tested = "evaluate alibi (prefix) on text, seed 0"
    assert title in recorded["cells"][tested]["after"]
    new = copy.deepcopy(recorded)
    for name in (title, tested):
        numbers = new["cells"][name]["numbers"]
        numbers |= {n: v * (1 + 3 * TOLERANCE) for n, v in numbers.items()}
    assert unnamed(recorded, new) == {"train": [title]}, "the test follows from the training"
    assert "final_loss was" in shown(recorded, new, [title])
    new["cells"][title]["code"] = "another"
    assert unnamed(recorded, new) == {}, "a change of a member's code names itself"
    new["cells"][title]["code"] = recorded["cells"][title]["code"]
    new["versions"]["train"] += 1
    assert unnamed(recorded, new) == {}
    assert moved(recorded, new).keys() == {title, tested}


def larger_step(step, settings, usual=lightning.learning_rate):
    return 1.001 * usual(step, settings)


CHANGES = {
    "validation batches": ("text", batches, "VALIDATION_BATCHES", 9, "train"),
    "validation seed": ("text", batches, "VALIDATION_SEED", 1, "train"),
    "learning rate": ("body", lightning, "learning_rate", larger_step, "train"),
    "share of the questions for testing": ("task", task, "SHARE", 4, "train"),
    "questions drawn together": ("task", answers, "DRAWN", 16, "evaluate"),
    "questions to an encoder": ("encoder", answers, "DRAWN", 16, "evaluate"),
    "lengths of batches": ("drawn", material, "length_at", lambda step, count, longest, *_: longest, "train"),
    "lengths that grow": ("chosen", material, "length_at", lambda step, count, longest, *_: longest, "train"),
}


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_core_moves_the_fingerprint(change, recorded, tmp_path, monkeypatch):
    part, module, name, value, kind = CHANGES[change]
    monkeypatch.setattr(module, name, value)
    assert unnamed(recorded, measure(tmp_path / "study", [part])).keys() == {kind}


@pytest.mark.slow
@pytest.mark.ci
def test_a_change_of_the_way_moves_rounding_alone(recorded, tmp_path, monkeypatch):
    """From `DENSE_LIMIT` keys on attention is computed in chunks. The same numbers, in another order of sums."""
    monkeypatch.setattr(attention, "DENSE_LIMIT", 8)
    assert not moved(recorded, measure(tmp_path / "study", ["text"]))


def renew():
    """Write the file anew, if names are as they must be."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PEZOO_CACHE"] = f"{folder}/cache"
        new = measure(Path(folder) / "study")
    if FILE.exists():
        old = json.loads(FILE.read_text())
        if kinds := unnamed(old, new):
            titles = [title for found in kinds.values() for title in found]
            sys.exit(f"{MOVED.format(kinds=', '.join(kinds), renew=RENEW)}\n{shown(old, new, titles)}")
    FILE.write_text(json.dumps(new, indent=1) + "\n")


if __name__ == "__main__":
    renew()
