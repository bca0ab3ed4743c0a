"""What is generated is current, and the grid of pairs is what running them gives."""

import re

import pytest
import torch

from pezoo import docs
from pezoo.checks import CheckFailed
from pezoo.registry import entry

FAST = ("alibi", "learned", "nope", "rope")
NAMES = [e.name for e in docs.members("encoding")]
RENEW = "run: python -m pezoo.docs"


def page(path):
    return path.read_text(encoding="utf-8")


def test_readme_is_current():
    assert docs.renewed(page(docs.README)) == page(docs.README), RENEW
    assert "<!-- members -->" in page(docs.README)


def test_zoo_is_current():
    assert docs.zoo() == page(docs.ZOO), RENEW


def test_every_link_leads_somewhere():
    headings = set(re.findall(r"^### (\S+)$", page(docs.ZOO), re.MULTILINE))
    for path in (docs.README, docs.ZOO, docs.GRID):
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page(path)):
            file, _, anchor = target.partition("#")
            if file.startswith("experiments/"):
                continue  # published with the results
            assert (path.parent / file).exists(), target
            assert not anchor or anchor in headings, target


def test_every_member_has_a_small_picture_and_none_is_left_over():
    files = {path.stem: path for path in docs.PICTURES.iterdir()}
    assert set(files) == {e.name for e in docs.members("encoding", "extension")}, RENEW
    sizes = [path.stat().st_size for path in files.values()]
    assert max(sizes) < 40_000
    assert sum(sizes) < 2_000_000
    assert not any("<dc:date>" in page(path) for path in files.values())


def test_grid_is_whole_and_reads_back():
    columns = docs.read_grid(page(docs.GRID))
    assert docs.grid(columns) == page(docs.GRID), RENEW
    assert list(columns) == NAMES, RENEW
    extensions = [e.name for e in docs.members("extension")]
    assert all(list(column) == extensions for column in columns.values()), RENEW


slow = (pytest.mark.slow, pytest.mark.ci)


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FAST else slow) for name in NAMES])
def test_grid_is_what_running_the_pairs_gives(name):
    assert docs.column(name) == docs.read_grid(page(docs.GRID))[name], RENEW


def test_a_refusal_that_names_a_setting_is_tried_with_it():
    came = docs.pair("sinusoidal", "clex")
    assert came.sign == docs.WORKS
    assert "type clex:n_frequencies=12" in came.reason


def test_signs():
    assert docs.pair("alibi", "ntk") == docs.Pair(docs.REFUSED, "needs frequencies")
    assert docs.pair("learned", "window") == docs.Pair(docs.SHORT)
    assert docs.pair("learned", "pi") == docs.Pair(docs.WORKS)
    assert docs.pair("alibi", "shift") == docs.Pair(docs.IDLE)


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
        docs.pair("rope", extension)


def test_pictures_of_members_that_are_gone_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(docs, "PICTURES", tmp_path)
    (tmp_path / "gone.svg").touch()
    docs.draw(["window"])
    assert [path.name for path in tmp_path.iterdir()] == ["window.svg"]
