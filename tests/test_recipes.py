"""Every recipe that comes with pezoo: it loads at every size, is planned, and runs to its end at the smallest."""

import re
from itertools import product

import numpy as np
import pytest
import yaml

import pezoo
from helpers import run_cells
from pezoo.evaluation import parse_protocol
from pezoo.registry import entries, list_schedules
from pezoo.results import LANGUAGE_MODELLING, read
from pezoo.study import Study, make_plan
from pezoo.study.reading import load_recipe, own_recipes
from pezoo.task import parse_task

RECIPES = {name: yaml.safe_load(path.read_text()) for name, path in own_recipes().items()}
QUICK = ("quickstart",)
"""Run in the default suite as well."""
IN_CI = (*tuple(RECIPES)[::3], "randomized")
"""Run in CI; `make test-all` runs all."""
MARKS = {n: [pytest.mark.slow, *([pytest.mark.ci] if n in IN_CI else [])] for n in RECIPES if n not in QUICK}
each_recipe = pytest.mark.parametrize("name", [pytest.param(n, marks=MARKS.get(n, ())) for n in RECIPES])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A recipe's study at size=test, all cells run in this process rather than in workers."""
    made = {}

    def get(name):
        if name not in made:
            study = made[name] = Study.prepare(name, ["size=test"], tmp_path_factory.mktemp(name))
            run_cells(study)
            study.run()
        return made[name]

    return get


def asked_for(recipe):
    """What a recipe asks for, read from its keys: (part, task, label, seed, protocol, test length)."""
    return {
        (part, *tested, seed, protocol, length)
        for part, one in recipe.split()
        for task, (name, tune), seed, length in product(one.tasks, rows(one), one.seeds, one.test_lengths)
        for label in labels(one, name, tune)
        for *tested, protocol in what_is_tested(one, task, label)
    }


def what_is_tested(one, task, label):
    """What a row is tested on, and how, by the names that results have."""
    if task != LANGUAGE_MODELLING:
        return [(str(parse_task(task)), label, protocol) for protocol in one.test.protocols or ["answers"]]
    text = [(task, label, str(parse_protocol(protocol))) for protocol in one.test.protocols or ["prefix"]]
    return text + [(str(parse_task(other)), label, "answers") for other in one.test.tasks]


def rows(one):
    """Names of schemes and their tuning steps; of the grid, the pairs that a model can be made of."""
    for row in one.rows:
        yield row.label or row.scheme, row.tune
    grid = [matching(kind, getattr(one.grid, f"{kind}s")) for kind in ("encoding", "extension")]
    for name in [f"{e}{x}" for e in grid[0] for x in ("", *(f"+{x}" for x in grid[1]))]:
        try:
            pezoo.create(name, d_model=16, n_heads=2, n_layers=2, train_length=16)
        except pezoo.UserError:
            continue
        yield name, one.tune


def matching(kind, given):
    return [n for n, e in entries().items() if e.kind == kind] if given == ["*"] else given


def labels(one, name, tune):
    for steps in tune.steps:
        ratio = one.tuning(tune, steps).length / one.train.length
        label = f"{name}, {steps} steps @ {ratio:g}x" if steps else name
        yield label
        mixed = name.startswith("layers") or name.partition(":")[0] in list_schedules()
        if one.test.companion and not mixed and "+window" not in name:
            yield f"{label} | windowed"


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_the_same_four_sizes(name):
    assert set(RECIPES[name]["sizes"]) | {"cpu"} == {"test", "cpu", "gpu", "paper"}


HERE = [n for n in RECIPES if "hub" not in str(RECIPES[n]["sizes"]["gpu"])]
"""Those whose size gpu needs no download."""


@pytest.mark.slow
@pytest.mark.ci(one_in=3)
@pytest.mark.parametrize("size", ["gpu", "paper"])
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_loads_at_its_large_sizes(name, size):
    recipe = load_recipe(name, [f"size={size}"])
    assert (recipe.study, recipe.size) == (name, size)
    assert all(part.rows or part.grid.encodings for _, part in recipe.split())


@pytest.mark.slow
@pytest.mark.ci(one_in=3)
@pytest.mark.parametrize(
    ("name", "size"),
    [pytest.param(n, "cpu") for n in RECIPES]
    + [pytest.param(n, "gpu", marks=(pytest.mark.slow, pytest.mark.ci)) for n in HERE],
)
def test_every_recipe_is_planned_at_the_sizes_that_need_no_download(name, size):
    recipe = load_recipe(name, [f"size={size}"])
    assert (recipe.study, recipe.size) == (name, size)
    found = {
        (e.trial.part, e.test.material.name, e.label, e.seed, str(e.test.protocol), length)
        for e in make_plan(recipe).evaluations
        for length in e.trial.test_lengths
    }
    assert found == asked_for(recipe)


@each_recipe
def test_every_recipe_gives_the_results_that_it_asks_for(name, finished):
    study = finished(name)
    results = read(study.results_path)
    assert results == study.results()
    found = {(r.part, r.task, r.label, r.seed, r.protocol, r.test_length) for r in results}
    assert found == asked_for(load_recipe(name, ["size=test"]))
    assert {r.status for r in results} <= {"ok", "undefined"}
    assert {r.study for r in results} == {name}
    assert {r.metric for r in results} & {"perplexity", "exact_match"}


@each_recipe
def test_every_recipe_has_a_report(name, finished):
    study = finished(name)
    pezoo.run(name, ["size=test"], out=study.out)
    table = (study.out / "report" / "report.md").read_text()
    assert all(r.label.replace("|", "\\|") in table or r.label in table for r in study.results())
    drawn = {suffix: {p.stem for p in study.out.glob(f"report/*.{suffix}")} for suffix in ("svg", "png")}
    assert drawn["svg"] == drawn["png"] != set()
    assert list((study.out / "tensorboard").rglob("events.out.tfevents.*"))


def similar_scores_higher(base, width, length):
    """Whether sum_k cos(m base^(-2k/d)) >= 0 at all m = 0 ... L: the property that bounds the base from below."""
    frequencies = float(base) ** (-np.arange(0, width, 2) / width)
    return bool((np.cos(np.outer(np.arange(length + 1), frequencies)).sum(1) >= 0).all())


@pytest.mark.parametrize(("size", "place"), [("cpu", 0), ("gpu", 1)])
def test_the_bounds_on_the_base_are_those_of_the_paper_s_rule(size, place):
    text = own_recipes()["base_bound"].read_text().split("at gpu:")[place]
    told = re.findall(r"^#   (\w+) +d = (\d+) +L = (\d+) +([\d,]+)   (\d.*)$", text, re.MULTILINE)
    parts = dict(load_recipe("base_bound", [f"size={size}"]).split())
    assert [row[0] for row in told] == list(parts)
    for name, width, length, bound, below in told:
        part, bound = parts[name], int(bound.replace(",", ""))
        assert (part.model.d_model // part.model.n_heads, part.train.length) == (int(width), int(length))
        bases = [int(row.scheme.removeprefix("rope:base=")) for row in part.rows]
        good = [similar_scores_higher(base, int(width), int(length)) for base in [*bases, bound, bound - 1]]
        assert good == [*(base >= bound for base in bases), True, False]
        assert [f"{base:,}" for base in bases if base < bound] == below.split(", ")
