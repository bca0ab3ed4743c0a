"""What people type wrongly: one message that is no longer than a screen, whatever it is."""

import sys

import pytest
import yaml

import pezoo
from pezoo.errors import LONGEST, UserError, brief, cut, suggest
from pezoo.study import make_plan
from pezoo.study.reading import load_recipe
from pezoo.task import make_task, parse_task
from pezoo.typed import DEEPEST, check_items, check_plain, read_yaml

TINY = {
    "schemes": ["rope"],
    "tasks": ["parity"],
    "model": {"d_model": 8, "n_layers": 1, "n_heads": 2},
    "train": {"length": 16, "steps": 2, "warmup_steps": 1},
    "tune": {"warmup_steps": 1},
    "test": {"lengths": [16, 32], "windows": 2},
}
LONG = 10**21


def refused(make, *given) -> str:
    with pytest.raises(UserError) as caught:
        make(*given)
    message = str(caught.value)
    assert len(message) <= LONGEST
    return message


def plan(*overrides):
    return make_plan(load_recipe(TINY, overrides))


OVERRIDES = {
    # items of lists
    "seeds=[[0]]": r"seeds.0 must be a whole number, got [0]",
    "seeds=[{a: 1}]": "seeds.0 must be a whole number",
    "seeds=[1.5]": "seeds.0 must be a whole number, got 1.5",
    "seeds=[true]": "seeds.0 must be a whole number, got True",
    "seeds=[null]": "seeds.0 must be a whole number, got None",
    "tune.steps=[[0]]": "tune.steps.0 must be a whole number",
    "train.lrs=[[1e-3]]": "train.lrs.0 must be a number",
    "train.betas.1={a: b}": "train.betas.1 must be a number",
    "tasks=[[mqar]]": "tasks.0 must be a text, got ['mqar']",
    "tasks=[3]": "tasks.0 must be a text",
    "grid.encodings=[{scheme: rope}]": "grid.encodings.0 must be a text",
    "test.protocols=[[0]]": "test.protocols.0 must be a text",
    "test.tasks=[[0]]": "test.tasks.0 must be a text",
    "schemes=[{longrope: {short: [[1]]}}]": "longrope:short.0 must be a number",
    # what is missing, or of another kind
    "schemes.0=???": "schemes.0: a recipe cannot hold ???",
    "seeds=['???']": "seeds.0: a recipe cannot hold ???",
    "parts.x.train=[[[rope]]]": "train must be a group of keys",
    "parts={'': {}}": "parts must be named",
    "schemes=[{scheme: rope, label: ' '}]": "schemes.0.label must be a text",
    # tasks that are none
    "tasks=[addition+reverse_string]": "list them, as in 'tasks=[addition, reverse_string]'",
    "tasks=[rope+pi]": "'rope+pi' is no task",
    # depth
    f"description={'[' * 50}{']' * 50}": f"nested more than {DEEPEST} deep",
    f"description={'[' * 2000}{']' * 2000}": f"nested more than {DEEPEST} deep",
    f"schemes=['{'{' * 1000}']": f"nested more than {DEEPEST} deep",
    "schemes=['{layers: [&a rope, *a]}']": "stands for another place",
    "test.lengths=[&a 16, *a]": "stands for another place",
    # numbers
    f"schemes=[shaw:clip={LONG}]": "is too large",
    f"tasks=[lego:variables={10**18}]": "lego:variables must be at most",
    f"seeds=[{LONG}]": "seeds.0: 1000000000000000000000 is too large",
    f"seeds=[1{'0' * 5000}]": "cannot read the value",
    f"seeds=[0x{'f' * 5000}]": "is too large",
    f"test.lengths=[{'9' * 400}x]": "test.lengths.0 must be a number of tokens",
    "test.lengths=[100000000]": "test.lengths.0 must be at most",
    f"train.batch_size={10**18}": "train.batch_size must be at most",
    "schemes=[{heads: {rope: 99999999999999999999}}]": "is too large",
    "schemes.²=rope": "schemes has items 0 to 0",
    # what PyYAML's constructors stumble over
    "schemes=['{rope: {base: 2020-13-45}}']": "it is no YAML: month must be in",
    "schemes=['{layers: !!timestamp x}']": "it is no YAML",
    "schemes=['{rope: {base: !!int x}}']": "it is no YAML",
    "schemes=['rope:base=2020-13-45']": "rope:base",
    "seeds=[0x_]": "cannot read the value",
    # long
    f"schemes=[{'a' * 11000}]": "no member is called 'aaa",
    f"{'x' * 5000}=3": "unknown key 'xxx",
    f"study={'a' * 300}": "at most 200 bytes",
    'study="a\\e[31mb"': "that can be printed",
    f"seeds={list(range(-1, 500))}": "seeds must be different whole numbers",
    # keys that stand elsewhere
    "steps=100": "unknown key 'steps'. Did you mean 'train.steps' or 'tune.steps'?",
    "step=100": "Did you mean 'train.steps' or 'tune.steps'?",
    "windows=2": "Did you mean 'test.windows'?",
    "train.windows=2": "Did you mean 'test.windows'?",
    "trian.steps=3": "Did you mean 'train'",
}


@pytest.mark.parametrize("override", OVERRIDES, ids=lambda text: text[:40])
def test_an_override_that_is_wrong(override):
    assert OVERRIDES[override] in refused(plan, override)


def test_a_recipe_in_a_file_is_read_as_carefully(tmp_path):
    path = tmp_path / "mine.yaml"
    texts = {
        f"description: {'[' * 300}{']' * 300}": f"nested more than {DEEPEST} deep",
        "description: !!timestamp x": "is not a YAML recipe",
        'schemes: ["\\ud800"]': "invalid Unicode",
        "study: ???": "study: a recipe cannot hold ???",
    }
    for text, message in texts.items():
        path.write_text(text)
        assert message in refused(load_recipe, path)
    assert "no text in UTF-8" in refused(load_recipe, {"schemes": ["\ud800"]})
    path.write_text("schemes: &all [rope]\nparts: {a: {schemes: *all}}")
    assert load_recipe(path).split()[0][1].schemes == ["rope"], "a recipe may have aliases"
    told = refused(load_recipe, "a" * 5000)
    assert "File name too long" in told or "no recipe" in told  # from Python 3.14 on such a file is just not there


def test_a_key_that_is_a_list_and_a_group_is_refused():
    sizes = {"small": {"parts": {"x": {"train": {"steps": 3}}}}}
    message = refused(load_recipe, TINY | {"sizes": sizes, "parts": {"x": {"train": [1]}}}, ["size=small"])
    assert "a list in one place of the recipe, and a group of keys in another" in message


@pytest.mark.parametrize("scheme", [["rope"], 3, None, {3: 4, "layers": 5}, {1: {}}, {"rope": {2: 3}}, {"rope": 3}, {}])
def test_a_scheme_of_another_kind(scheme):
    refused(pezoo.parse, scheme)


def test_a_scheme_that_holds_itself():
    scheme: dict = {}
    scheme["layers"] = [scheme]
    assert "nested too deeply" in refused(pezoo.parse, scheme)
    assert "nested more than" in refused(load_recipe, {"schemes": [scheme]})


def test_settings_read_no_environment(monkeypatch):
    monkeypatch.setenv("SECRET", "secret")
    message = refused(pezoo.parse, {"rope": {"pairing": "${oc.env:SECRET}"}})
    assert "rope:pairing: a recipe cannot hold ${...}" in message


@pytest.mark.parametrize("task", [["mqar"], None, "", "addition+", "rope", "mqar:n_pairs=[[1]]", "mqar:n_pairs=1e400"])
def test_a_task_that_is_none(task):
    refused(make_task, task)
    assert parse_task("mqar:n_pairs=8").name == "mqar"


def test_a_task_that_fails_says_how(monkeypatch):
    task = type(make_task("parity"))
    monkeypatch.setattr(task, "sample", lambda *_, **__: 1 / 0)
    assert "parity, length 16, fails with ZeroDivisionError" in refused(plan)


@pytest.mark.parametrize(
    ("name", "meant"), [("ROPE", "'rope'"), ("RoPE", "'rope'"), ("rotary", "'rope'"), ("Alibi", "'alibi'")]
)
def test_a_name_as_papers_write_it_is_understood(name, meant):
    message = refused(pezoo.parse, name)
    assert f"Did you mean {meant}" in message
    assert message.endswith("All: pezoo list")
    assert len(message) < 120, "no list of all names"


def test_messages_have_an_end():
    assert len(str(UserError("a" * 5000 + "type this"))) == LONGEST
    assert str(UserError("a" * 5000 + "type this")).endswith("type this")
    assert cut("abc", 3) == "abc"
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    for value in (deep, "x" * 10**6, list(range(10**6)), 10**6000, {i: i for i in range(10**5)}):
        assert len(brief(value)) <= 80
    assert brief([1, "a"]) == "[1, 'a']"
    assert suggest("TRAIN", ["train", "test"]) == " Did you mean 'train'?"


def test_lists_are_read_by_their_type():
    check_items("a", [1, "2"], list[int])
    check_items("a", [1, 2.5, "1e-3"], list[float] | None)
    check_items("a", [object()], list)
    check_items("a", [object()], int)
    for items, hint in (([None], list[int]), (["x"], list[float]), ([True], list[int]), ([1], list[str])):
        with pytest.raises(UserError, match=r"a\.0 must be "):
            check_items("a", items, hint)
    check_plain({"a": [1, "b", None, 2.5]})
    with pytest.raises(UserError, match="63 bits"):
        check_plain({"a": [2**63]})


def test_yaml_laughs_at_nobody():
    laughs = "{a: &a [x, x], b: &b [*a, *a], c: [*b, *b]}"
    with pytest.raises(UserError, match="write out"):
        read_yaml(laughs)
    assert read_yaml("{rope: {base: 1}}") == yaml.safe_load("{rope: {base: 1}}")


def test_windows_is_told_where_studies_run(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(UserError, match=r"run on Linux and macOS.*WSL"):
        pezoo.run(TINY, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
