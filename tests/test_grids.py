"""A grid is planned by trying one encoding of each kind: what is refused is what trying every pair would refuse."""

import pytest

from pezoo import Encoding, Extension, UserError, register, registry
from pezoo.compose.prepared import Prepared
from pezoo.scheme import parse
from pezoo.study import resolve
from pezoo.study.plan import make_plan
from pezoo.study.reading import load_recipe

SMALL = {
    "grid": {"encodings": ["sinusoidal", "learned", "alibi", "kerple", "t5", "shaw", "rope", "xpos", "cope"]},
    "tasks": ["copy"],
    "model": {"d_model": 8, "n_layers": 1, "n_heads": 2},
    "train": {"length": 8, "steps": 2, "warmup_steps": 0},
    "test": {"lengths": ["1x"]},
}
SMALL["grid"]["extensions"] = ["pi", "ntk", "window", "rerope", "self_extend", "logn", "sink_logits"]


def planned(recipe, overrides, monkeypatch, *, by_kind):
    """Labels and cells of a grid, and how many layers were tried; a refusal as text."""
    tried = []

    def attend(self, *args, inner=Prepared.attend, **options):
        tried.append(args)
        return inner(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Prepared, "attend", attend)
        if not by_kind:
            patch.setattr(resolve, "_kinds", lambda spec: set())
        try:
            plan = make_plan(load_recipe(recipe, overrides))
        except UserError as error:
            return str(error), len(tried)
        return [(e.label, e.cell) for e in plan.evaluations], len(tried)


@pytest.mark.parametrize("backend", ["auto", "sdpa"])
def test_the_same_pairs_are_refused_as_by_trying_each(backend, monkeypatch):
    overrides = [f"backend={backend}"]
    found, tried = planned(SMALL, overrides, monkeypatch, by_kind=True)
    expected, each = planned(SMALL, overrides, monkeypatch, by_kind=False)
    assert found == expected
    assert tried < 0.8 * each


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["auto", "eager", "sdpa", "chunked", "flex"])
@pytest.mark.parametrize("form", ["causal", "encoder"])
def test_the_same_pairs_of_the_whole_zoo_are_refused(backend, form, monkeypatch):
    recipe = SMALL | {"grid": {"encodings": ["*"], "extensions": ["*"]}, "form": form}
    found, tried = planned(recipe, [f"backend={backend}"], monkeypatch, by_kind=True)
    expected, each = planned(recipe, [f"backend={backend}"], monkeypatch, by_kind=False)
    assert found == expected
    assert isinstance(found, str) or tried < 0.6 * each


def test_each_scheme_is_hashed_by_sources_that_are_read_once(monkeypatch):
    read = []
    usual = registry.source_hash
    monkeypatch.setattr(registry, "source_hash", lambda module: read.append(module) or usual(module))
    make_plan(load_recipe(SMALL))
    assert read
    assert all(read.count(module) == 1 for module in read if "encodings" in module)


@pytest.mark.parametrize("error", [UserError("not here"), ZeroDivisionError("a slip")])
def test_a_pair_that_is_refused_is_left_out_and_one_that_crashes_is_told(monkeypatch, error):
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))

    @register("breaks_off", title="Fails")
    class BreaksOff(Extension):
        def scale(self, positions):
            raise error

    recipe = SMALL | {"grid": {"encodings": ["alibi"], "extensions": ["breaks_off"]}}
    found, _ = planned(recipe, [], monkeypatch, by_kind=True)
    if isinstance(error, UserError):
        assert [label for label, _ in found] == ["alibi"]
    else:
        assert found.startswith("grid: alibi+breaks_off fails with ZeroDivisionError: a slip (")


def test_what_a_plugin_brings_is_tried_in_every_pair(monkeypatch):
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))

    @register("half_distance", title="A penalty", family="bias")
    class HalfDistance(Encoding):
        def distance_bias(self, distance):
            return -0.5 * distance.abs().expand(self.shape.n_heads, *distance.shape)

    assert resolve._kinds(parse("half_distance")) == set()
    assert resolve._kinds(parse("half_distance+window")) == set()
    assert len(resolve._kinds(parse("alibi"))) == 1
    assert resolve._kinds(parse("alibi+window")) & resolve._kinds(parse("kerple+window"))
    assert not resolve._kinds(parse("alibi+window")) & resolve._kinds(parse("kerple+window:size=3"))
    assert not resolve._kinds(parse("alibi+window")) & resolve._kinds(parse("rope+window"))
    assert resolve._kinds(parse("rope+pi+window")) == set()
    assert resolve._kinds(parse("{layers: [rope, nope]}")) == set()
