"""What is generated is current, the grid of pairs is what running them gives, and what documents show works."""

import dataclasses
import re
import shlex

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import run_cells
from pezoo import create, list_schedules
from pezoo.errors import UserError
from pezoo.evaluation.answers import ANSWER_PROTOCOLS
from pezoo.evaluation.protocols import PROTOCOLS
from pezoo.registry import entry, list_tasks
from pezoo.report.finished import load
from pezoo.results import LANGUAGE_MODELLING, write
from pezoo.results.losses import Losses, losses_of, write_losses
from pezoo.study import Study
from pezoo.study.reading import _parse_override, load_recipe, own_recipes
from pezoo.study.recipe import Recipe
from pezoo.study.trees import typed_name
from pezoo.task import make_task
from pezoo.testing.subject import CheckFailed
from tools import catalogue, docs, grid, published, survey, why
from tools.paths import DOCS, PICTURES, ROOT

FAST = ("alibi", "nope")
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md")])
NAMES = [e.name for e in catalogue.members("encoding")]
RENEW = "run: python -m tools.docs"


def page(path):
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", docs.pages(), ids=lambda path: path.stem)
def test_blocks_are_current(path):
    assert docs.renewed(page(path)) == page(path), RENEW


@pytest.mark.parametrize("name", why.FIGURES)
def test_figures_of_published_numbers_are_current(name):
    shown = why.FIGURES[name]
    numbers = shown.numbers(shown.kept(published.studies()))
    assert why.drawn_from(PICTURES / "why" / f"{name}.svg") == why.digest(numbers), RENEW


def test_every_block_has_its_place():
    found = [name for path in PAGES for name in re.findall(r"^<!-- (\w+) -->$", page(path), re.MULTILINE)]
    assert sorted(found) == sorted(docs.BLOCKS)


def test_the_command_renews_every_page_and_figure(monkeypatch):
    drawn, before = [], {path: page(path) for path in PAGES}
    monkeypatch.setattr(grid, "page", lambda columns: before[DOCS / "grid.md"])
    monkeypatch.setattr(grid, "column", lambda name: {})
    monkeypatch.setattr(published, "tables", dict)
    monkeypatch.setattr(docs, "draw", lambda names: drawn.extend(names))
    monkeypatch.setattr(why, "draw", lambda folder, studies: drawn.append(len(studies)))
    assert docs.main() == 0
    assert {path: page(path) for path in PAGES} == before
    assert drawn[-1] > 10
    assert "rope" in drawn


def test_zoo_is_current():
    assert catalogue.zoo() == page(DOCS / "zoo.md"), RENEW


def test_the_survey_is_current():
    assert survey.page() == page(DOCS / "survey.md"), RENEW


TABLE_1 = [row for groups in survey.TABLE_1.values() for rows in groups.values() for row in rows]
SMALL = {"d_model": 16, "n_heads": 2, "n_layers": 2, "train_length": 8}


def test_the_survey_s_table_has_its_fourteen_rows():
    assert [row.name.split(" (")[0] for row in TABLE_1] == [
        *("Sinusoidal", "SHAPE", "CAPE", "Complex", "FLOATER", "Shaw et al."),
        *("T5 bias", "ALiBi", "KERPLE", "Sandwich", "FIRE", "CAPE", "RoPE", "xPos"),
    ]


@pytest.mark.parametrize("row", TABLE_1, ids=lambda row: row.scheme)
def test_a_row_of_the_survey_says_what_its_member_does(row):
    """Seen from outside: what changes at the input, what is added where there is nothing, what has parameters."""
    scheme = create(row.scheme, **SMALL)
    parameters = [p for p in scheme.parameters() if p.numel()]
    assert row.learnable == bool(parameters)
    for p in parameters:  # none is hidden by a zero that it starts from
        p.data += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    scheme.eval()
    prepared = scheme.prepare(scheme.positions(1, 6, phase="test", rows=[0]))
    x = torch.ones(1, 6, 16)
    assert (row.layer == "initial") == (not torch.equal(prepared.embed(x), x))
    nothing, q = torch.zeros(1, 2, 6, 8), torch.ones(1, 2, 6, 8)
    seen = torch.ones(6, 6).tril().bool()
    alone = prepared.logits(1, q, nothing)[..., seen]
    adds = prepared.embed(0 * x).any() if row.layer == "initial" else alone.any()
    assert (row.integration == "add") == bool(adds)
    if row.layer == "every":
        doubled = prepared.logits(1, 2 * q, nothing)[..., seen]
        assert (row.manifestation == "bias") == (bool(alone.any()) and torch.equal(alone, doubled))


@pytest.mark.parametrize("row", [row for row in survey.rows() if row.scheme], ids=lambda row: row.scheme)
def test_what_the_survey_names_is_a_scheme_here(row):
    assert create(row.scheme, **SMALL)


def anchors(text):
    """Names of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_link_leads_somewhere(path):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page(path)):
        file, _, anchor = target.partition("#")
        if file.startswith("experiments/results/"):
            continue  # published with the results
        there = path.parent / file if file else path
        assert there.exists(), target
        assert not anchor or anchor in anchors(page(there)), target


def test_every_task_is_in_the_tables():
    tasks = [name for name in list_tasks() if entry(name).cls.__module__.startswith("pezoo.")]
    assert tasks == sorted(re.findall(r"^\| \[`(\w+)`\]", page(DOCS / "tasks.md"), re.MULTILINE), key=tasks.index)


def test_protocols_are_told_with_their_metrics_and_settings():
    text = page(DOCS / "protocols.md")
    assert set(re.findall(r"^### (\w+)$", text, re.MULTILINE)) == {*PROTOCOLS, *ANSWER_PROTOCOLS}
    named = set(re.findall(r"`([\w:]+)(?:=\w+)?`", text))
    for name, protocol in PROTOCOLS.items():
        metrics = {metric for metric in protocol.METRICS if "_at_" not in metric}
        assert named >= {f"{name}:{f.name}" for f in dataclasses.fields(protocol.Settings)} | metrics
    assert named >= {metric for metrics in ANSWER_PROTOCOLS.values() for metric in metrics}


def test_every_key_is_in_the_tables():
    keys = set(re.findall(r"^\| `([\w.]+)` \|", page(DOCS / "recipes.md"), re.MULTILINE))
    every = {".".join(map(typed_name, path)) for path in paths(dataclasses.asdict(Recipe()))}
    assert keys == every


def paths(tree, above=()):
    """Keys of a tree of dictionaries; an empty one is a value."""
    for key, value in tree.items():
        yield from paths(value, (*above, key)) if isinstance(value, dict) and value else [(*above, key)]


def commands():
    """What documents show as `pezoo run RECIPE key=value ...`, of recipes that come with pezoo."""
    shipped = own_recipes()
    for path in PAGES:
        for line in re.findall(r"pezoo run [^`\n]+", page(path)):
            recipe, *rest = shlex.split(line.replace("--launcher ", "launcher="), comments=True)[2:]
            if recipe in shipped:
                yield pytest.param(recipe, [x for x in rest if re.match(r"[\w.]+=", x)], id=f"{path.stem}: {line}")


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize(("name", "overrides"), list(commands()))
def test_commands_do_what_they_say(name, overrides):
    parts = dict(load_recipe(name, overrides).split())
    for key, value in map(_parse_override, overrides):
        found = []
        for part, one in parts.items():
            for step in key.removeprefix(f"parts.{part}.").split("."):
                one = getattr(one, step, getattr(one, f"{step}_", None))
            found.append(one)
        assert value in found, f"{key} has no effect: a part sets it"
    for task in {task for part in parts.values() for task in part.tasks} - {LANGUAGE_MODELLING, "NAME"}:
        make_task(task)


@pytest.mark.slow
@pytest.mark.ci
def test_the_recipe_of_ones_own_runs(tmp_path):
    blocks = (re.findall(rf"```{kind}\n(.*?)```", page(DOCS / "recipes.md"), re.DOTALL) for kind in ("yaml", "python"))
    (recipe,), (task,) = blocks
    (tmp_path / "my_study.yaml").write_text(recipe)
    (tmp_path / "majority.py").write_text(task)
    plugins = [tmp_path / "majority.py"]
    study = Study.prepare(tmp_path / "my_study.yaml", ["size=test"], tmp_path / "out", plugins)
    run_cells(study)
    results = study.results()
    assert {r.status for r in results} == {"ok"}
    assert {(r.part, r.task) for r in results} == {("counting", "majority"), ("reading", "language_modelling")}
    labels = {r.label for r in results}
    assert {"nope", "alibi+random", "tuned YaRN, 100 steps @ 8x", "rope+random | windowed"} <= labels


@pytest.mark.slow
@pytest.mark.ci
def test_published_tables_are_what_their_results_give():
    found = published.tables()
    assert {path.parent.name for path in found} >= {"quickstart", "interpolation"}
    assert [path.parent.name for path, text in found.items() if text != page(path)] == [], RENEW


def test_the_scorecard_is_what_published_results_give():
    assert published.scorecard_page() == page(DOCS / "scorecard.md"), RENEW


def test_a_finished_study_can_be_published(tmp_path, monkeypatch):
    monkeypatch.setattr(published, "PUBLISHED", tmp_path / "published")
    finished = tmp_path / "mine-gpu"
    survey = load(ROOT / "experiments" / "results" / "quickstart")
    cell = survey.results[0].cell
    facts = {"edges": [0, 2, 4], "documents": ["a", "b"], "test_length": 64, "protocol": "prefix"}
    losses = Losses(loss_sum=[[1.0, 2.5], [0.1, 3.0]], tokens=[[1, 2], [0, 3]], **facts)
    write(finished / "results.jsonl", survey.results)
    write_losses(finished / "cells" / cell / "losses_64.npz", losses)
    (finished / "recipe.yaml").write_text("study: mine\n")
    (finished / "report").mkdir()
    for name in ("a.png", "curves.png"):
        Image.new("RGB", (8, 8), "white").save(finished / "report" / name)
    (tmp_path / "published" / "mine-gpu").mkdir(parents=True)
    (tmp_path / "published" / "mine-gpu" / "of_old.png").touch()
    folder = published.publish(finished)
    assert folder == tmp_path / "published" / "mine-gpu"
    assert {p.name for p in folder.iterdir()} == {"recipe.yaml", "results.jsonl.gz", "losses.npz", "curves.png"}
    kept = load(folder)
    assert kept.results == survey.results
    (kept,) = losses_of(kept.losses, [cell])[cell]
    assert kept.documents == losses.documents
    np.testing.assert_allclose(kept.document_loss, [3.5, 3.1], rtol=1e-6)
    np.testing.assert_allclose(kept.position_loss, [1.1, 5.5], rtol=1e-6)
    np.testing.assert_array_equal(kept.document_tokens, [3, 3])
    np.testing.assert_array_equal(kept.position_tokens, [1, 5])
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert {p.name: p.read_bytes() for p in published.publish(finished).iterdir()} == before
    with pytest.raises(UserError, match=r"cells is no finished study: it lacks recipe\.yaml, results\.jsonl"):
        published.publish(finished / "cells")


def test_every_member_has_a_small_picture_and_none_is_left_over():
    files = {path.stem: path for path in PICTURES.glob("*.*")}
    assert set(files) == {e.name for e in catalogue.members(*catalogue.DRAWN)}, RENEW
    sizes = {name: path.stat().st_size for name, path in files.items()}
    schedules = set(list_schedules())  # they show the panels of several schemes
    assert max(size for name, size in sizes.items() if name not in schedules) < 45_000
    assert max(sizes.values()) < 80_000
    assert sum(sizes.values()) < 2_000_000
    assert not any("<dc:date>" in page(path) for path in files.values())


def test_grid_is_whole_and_reads_back():
    columns = grid.read(page(DOCS / "grid.md"))
    assert grid.page(columns) == page(DOCS / "grid.md"), RENEW
    assert list(columns) == NAMES, RENEW
    extensions = [e.name for e in catalogue.members("extension")]
    assert all(list(column) == extensions for column in columns.values()), RENEW


slow = (pytest.mark.slow, pytest.mark.ci(one_in=12))


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FAST else slow) for name in NAMES])
def test_grid_is_what_running_the_pairs_gives(name):
    assert grid.column(name) == grid.read(page(DOCS / "grid.md"))[name], RENEW


@pytest.mark.slow
@pytest.mark.ci
def test_a_refusal_that_names_a_setting_is_tried_with_it():
    came = grid.pair("sinusoidal", "clex")
    assert came.sign == grid.WORKS
    assert "type clex:n_frequencies=12" in came.reason


def test_signs():
    assert grid.pair("alibi", "ntk") == grid.Pair(grid.REFUSED, "needs frequencies")
    assert grid.pair("learned", "window") == grid.Pair(grid.SHORT)
    assert grid.pair("learned", "pi") == grid.Pair(grid.WORKS)
    assert grid.pair("alibi", "shift") == grid.Pair(grid.IDLE)


@pytest.mark.parametrize(
    ("extension", "hook", "broken", "what"),
    [
        ("logn", "scale", lambda self, positions: torch.nan, "finite"),
        ("pi", "coordinates", lambda self, p: p.scaled(1 / p.query.shape[1]), "decoded"),
    ],
)
def test_a_pair_that_fails_is_no_sign_but_an_error(extension, hook, broken, what, monkeypatch):
    monkeypatch.setattr(entry(extension).cls, hook, broken)
    with pytest.raises(CheckFailed, match=rf"rope\+{extension} .*{what}"):
        grid.pair("rope", extension)


def test_pictures_of_members_that_are_gone_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(docs, "PICTURES", tmp_path)
    (tmp_path / "gone.svg").touch()
    docs.draw(["window"])
    assert [path.name for path in tmp_path.iterdir()] == ["window.svg"]
