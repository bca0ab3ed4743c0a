"""Names, facts, settings and plug-ins."""

import importlib.metadata
import inspect
import json
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import yaml

import pezoo
from pezoo import registry
from pezoo.contract import Encoding, Extension
from pezoo.errors import UserError, suggest
from pezoo.registry import describe, entries, entry, load_plugin, make_config, register, setting

PLUGIN = '''
"""Tests' own members."""

from dataclasses import dataclass
import pezoo

@pezoo.register("half_slope", title="ALiBi of half the slope", aliases={"half_slope_pi": ("half_slope+pi", "With PI")})
class HalfSlope(pezoo.Encoding):
    """A penalty."""

    @dataclass
    class Config:
        """Settings."""

        slope: float = pezoo.setting(0.5, "its slope", above=0)

    def distance_bias(self, distance):
        """-slope |distance|."""
        return -self.config.slope * distance.abs().expand(self.shape.n_heads, *distance.shape)
'''


@pytest.fixture(autouse=True)
def _restored(monkeypatch):
    """What a test registers is gone after it."""
    entries()
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    modules = set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def make(base=Encoding):
    class Member(base):
        """Does nothing. Really."""

    return Member


# Listing


def test_lists_are_in_natural_order():
    for name in ("zz10", "zz9", "zz"):
        register(name, title=name)(make())
    assert pezoo.list_encodings("zz*") == ["zz", "zz9", "zz10"]
    assert list(entries()) == sorted(entries(), key=registry._natural)


def test_lists_take_wildcards():
    assert {"rope", "rope_pi"} <= set(pezoo.list_encodings("ro*"))
    assert pezoo.list_encodings("ro[q-z]e") == []
    assert {"ntk", "dynamic_ntk", "ntk_by_parts"} <= set(pezoo.list_extensions("*ntk*"))
    assert pezoo.list_extensions("rope") == []
    assert pezoo.list_encodings("Rope") == []


def test_each_kind_has_its_list():
    register("some_task", title="Some task")(type("Task", (pezoo.Task,), {"__doc__": "A task."}))
    register("some_extension", title="Some extension")(make(Extension))
    register("some_layers", title="Some layers")(type("Layers", (pezoo.Schedule,), {"__doc__": "Layers."}))
    assert "some_task" in pezoo.list_tasks()
    assert "some_extension" in pezoo.list_extensions()
    assert "some_layers" in pezoo.list_schedules()
    listed = [*pezoo.list_encodings(), *pezoo.list_extensions(), *pezoo.list_schedules(), *pezoo.list_tasks()]
    assert sorted(listed) == sorted(entries())


def test_a_source_has_the_year_of_its_arxiv_id():
    """Literature names may have a source of their own; tasks state the year of the conference."""
    sources = [one for one in map(entry, entries()) if one.kind != "task" and one.arxiv]
    assert len(sources) > 50
    assert not [one.name for one in sources if one.year != 2000 + int(one.arxiv[:2])]
    assert pezoo.describe("p_rope")["arxiv"] == "2410.06205" != pezoo.describe("rope")["arxiv"]


def test_literature_names_are_listed_with_encodings():
    aliases = {"shape": "sinusoidal+shift", "rope_pi": "rope+pi", "randomized_rope": "rope+random"}
    for name, scheme in aliases.items():
        assert name in pezoo.list_encodings()
        assert (entry(name).kind, entry(name).scheme) == ("alias", scheme)


# Facts


def test_describe_gives_plain_facts():
    facts = describe("alibi")
    assert facts["title"] == "Attention with linear biases (ALiBi)"
    assert (facts["family"], facts["year"], facts["arxiv"]) == ("bias", 2021, "2108.12409")
    assert "Press" in facts["authors"]
    assert "m_h" in facts["equation"]
    assert facts["parameters"]["slopes"]["default"] == "fixed"
    assert facts["parameters"]["slopes"]["choices"] == ["fixed", "learned"]
    assert facts["traits"]["shift_invariant"] is True
    assert describe("yarn")["parameters"]["at"]["default"] == ["tune", "test"]


@pytest.mark.parametrize("name", entries())
def test_every_member_has_its_facts(name):
    facts = describe(name)
    json.dumps(facts)
    assert facts["title"]
    assert facts["summary"]
    assert all(p["help"] for p in facts["parameters"].values())
    if facts["kind"] == "alias":
        pezoo.parse(name)
    else:
        assert inspect.getmodule(entry(name).cls).__doc__


def test_family_is_the_folder_and_summary_the_first_line():
    @register("no_home", title="No home")
    class NoHome(Encoding):
        """Lives nowhere.

        At all.
        """

        __module__ = "no_home"

    assert (entry("no_home").family, entry("no_home").summary) == ("custom", "Lives nowhere.")
    assert entry("rope").family == "relative"


# Refusals


@pytest.mark.parametrize("name", ["rope", "rope_pi"])
def test_a_name_is_given_once(name):
    with pytest.raises(UserError, match=rf"'{name}' is taken .*(rope\.py|alias of rope\+pi).*choose another"):
        register(name, title="Mine")(make())
    with pytest.raises(UserError, match=rf"'{name}' is taken"):
        register("mine", title="Mine", aliases={name: ("mine+pi", "Mine too")})(make())


@pytest.mark.parametrize("name", ["Rope", "my-rope", "1rope", "", "röpe", "rope pi"])
def test_a_malformed_name_is_refused(name):
    with pytest.raises(UserError, match="use a-z, 0-9 and _, such as 'my_rope'"):
        register(name, title="Mine")(make())


@pytest.mark.parametrize(("given", "meant"), [("rop", "rope"), ("alibli", "alibi"), ("Yarn", "yarn")])
def test_an_unknown_name_gets_near_matches(given, meant):
    with pytest.raises(UserError, match=rf"'{given}'\. Did you mean .*'{meant}'.* All: pezoo list"):
        entry(given)


def test_a_name_like_no_other_is_told_where_all_are():
    with pytest.raises(UserError, match=r"'qqqqq'\. All: pezoo list$"):
        entry("qqqqq")
    assert suggest("qqqqq", entries()) == ""


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("pi", {"facto": 2}, r"pi has no setting 'facto'\. Did you mean 'factor'\? Its settings: factor, at"),
        ("nope", {"base": 2}, r"nope has no setting 'base'\. Its settings: none"),
        ("rope", {"at": "test"}, "rope has no setting 'at'"),
        ("pi", {"factor": "four"}, "pi:factor must be a number, got 'four'"),
        ("window", {"size": 3.5}, "window:size must be a whole number, got '3.5'"),
        ("alibi", {"slopes": "stolen"}, r"alibi:slopes must be fixed or learned, got 'stolen'"),
        ("pi", {"factor": 0.5}, "pi:factor must be at least 1, got 0.5"),
        ("pi", {"factor": float("nan")}, "pi:factor must be a finite number, got nan"),
        ("pi", {"factor": float("inf")}, "pi:factor must be a finite number, got inf"),
        ("pi", {"factor": "inf"}, "pi:factor must be a finite number, got inf"),
        ("pi", {"factor": np.float32("nan")}, "pi:factor must be a finite number, got nan"),
        ("pi", {"factor": torch.tensor(torch.inf)}, "pi:factor must be a finite number, got inf"),
        ("longrope", {"long": np.array([1, np.nan])}, "longrope:long must be a finite number, got nan"),
        ("longrope", {"long": torch.tensor([1, -1])}, "longrope:long must be above 0, got -1"),
        ("pi", {"factor": torch.tensor([2.0, 3.0])}, r"pi:factor must be a number, got '\[2.0, 3.0\]'"),
        ("window", {"size": np.float64(3.5)}, "window:size must be a whole number, got '3.5'"),
        ("window", {"size": np.True_}, "window:size must be a whole number, got"),
        ("rope", {"base": 1}, "rope:base must be above 1, got 1"),
        ("rope", {"fraction": 1.5}, "rope:fraction must be at most 1, got 1.5"),
        ("window", {"size": -1}, "window:size must be at least 1, got -1"),
        ("yarn", {"beta_fast": 0.5}, "beta_fast = 0.5 must exceed beta_slow = 1"),
        ("pi", {"at": "never"}, "pi:at must name some of train, tune, test, got 'never'; type pi:at=train,test"),
        ("pi", {"at": []}, "pi:at must name some of"),
    ],
)
def test_settings_are_checked(name, settings, message):
    with pytest.raises(UserError, match=message):
        make_config(name, settings)


def test_settings_in_range_make_a_config():
    config, at = make_config("window", {"size": "3", "at": "test,train"})
    assert (config.size, at) == (3, ("train", "test"))
    assert make_config("window", {"at": ["tune"]})[1] == ("tune",)
    assert make_config("alibi", {})[1] is None


FOUR = (
    np.float64(4),
    np.float32(4),
    np.int64(4),
    np.array(4),
    torch.tensor(4.0),
    torch.tensor(4),
    torch.tensor(4).half(),
)


@pytest.mark.parametrize("four", FOUR, ids=lambda four: f"{type(four).__name__}-{four.dtype}")
def test_numpy_and_torch_numbers_are_settings(four):
    spec = pezoo.parse({"rope": None, "pi": {"factor": four}})
    written = pezoo.parse("rope+pi:factor=4")
    assert spec == written
    assert hash(spec) == hash(written)
    assert str(spec) == "rope+pi:factor=4"
    assert spec.canonical == written.canonical
    assert type(spec.members[1].full["factor"]) is float
    assert pezoo.parse(yaml.safe_load(yaml.safe_dump(spec.data))) == spec


@pytest.mark.parametrize("tenth", [np.float32(0.1), np.float16(0.1), torch.tensor(0.1), torch.tensor(0.1).half()])
def test_a_short_float_is_the_decimal_number_that_it_stands_for(tenth):
    assert str(pezoo.parse({"rope": {"fraction": tenth}})) == "rope:fraction=0.1"


def test_a_bfloat16_number_is_a_setting():
    spec = pezoo.parse({"rope": {"fraction": torch.tensor(0.75, dtype=torch.bfloat16, requires_grad=True)}})
    assert str(spec) == "rope:fraction=0.75"


def test_numpy_and_torch_values_of_every_type_are_settings():
    for size in (np.int32(8), np.uint8(8), torch.tensor(8), torch.tensor([8])[0]):
        config, _ = make_config("window", {"size": size})
        assert (config.size, type(config.size)) == (8, int)
    for on in (np.True_, torch.tensor(True)):
        config, _ = make_config("fire", {"shared": on})
        assert config.shared is True
    assert make_config("alibi", {"slopes": np.str_("learned")})[0].slopes == "learned"
    assert make_config("pi", {"at": np.array(["test", "train"])})[1] == ("train", "test")


@pytest.mark.parametrize(
    "kind", [np.array, torch.tensor, tuple, lambda x: [np.float64(v) for v in x], lambda x: [*map(torch.tensor, x)]]
)
def test_numpy_and_torch_lists_are_settings(kind):
    factors = [1.0, 1.5, 2.0, 4.0]
    scheme = pezoo.create(
        {"rope": None, "longrope": {"long": kind(factors)}}, d_model=16, n_heads=2, n_layers=1, train_length=8
    )
    assert str(scheme.spec) == "rope+longrope:long=1,1.5,2,4"
    config, _ = make_config("longrope", {"long": kind(factors)})
    assert config.long == factors
    assert {type(f) for f in config.long} == {float}


def test_a_list_of_one_number_reads_back():
    spec = pezoo.parse({"rope": None, "longrope": {"long": np.array([3.0])}})
    assert spec.members[1].full["long"] == [3.0]
    assert pezoo.parse(str(spec)) == spec


def test_numbers_of_heads_may_be_numpys():
    assert pezoo.parse({"heads": {"rope": np.int64(2), "alibi": torch.tensor(1)}}) == pezoo.parse(
        {"heads": {"rope": 2, "alibi": 1}}
    )


def test_limits_hold_for_each_number_of_a_list():
    class WithList(Encoding):
        """With a list."""

        @dataclass
        class Config:
            """Settings."""

            shares: list[float] = setting([1.0], "some shares", at_least=0, at_most=2)  # noqa: RUF009
            plain: bool = True

    register("with_list", title="With a list")(WithList)
    assert make_config("with_list", {"shares": [0, 2]})[0].shares == [0.0, 2.0]
    with pytest.raises(UserError, match="with_list:shares must be at most 2, got 3"):
        make_config("with_list", {"shares": [0, 3]})
    first, second = (make_config("with_list", {})[0] for _ in range(2))
    assert first.shares is not second.shares
    assert describe("with_list")["parameters"]["plain"]["help"] == ""


# Plug-ins


def test_a_plugin_file_adds_its_members(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN)
    assert load_plugin(path) == ["half_slope", "half_slope_pi"]
    assert describe("half_slope")["family"] == "custom"
    assert str(pezoo.parse("half_slope_pi:slope=0.25:factor=2")) == "half_slope:slope=0.25+pi:factor=2"
    model = pezoo.Transformer({"scheme": "half_slope+pi", "d_model": 8, "n_heads": 2}).eval()
    assert model(torch.zeros(1, 3, dtype=torch.int64)).shape == (1, 3, 256)
    assert entry("half_slope").source_hash != entry("alibi").source_hash


def test_loading_a_plugin_again_changes_nothing(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN)
    load_plugin(path)
    cls = entry("half_slope").cls
    load_plugin(str(path))
    assert entry("half_slope").cls is cls


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (PLUGIN + "\n1 / 0\n", "ZeroDivisionError: division by zero"),
        (PLUGIN.replace("half_slope", "rope", 1), "UserError: the name 'rope' is taken"),
        ("def f(:\n", "SyntaxError"),
        ("x = 1\n", r"registers nothing: decorate a class with @pezoo.register\(...\)"),
    ],
)
def test_a_plugin_that_fails_leaves_nothing(tmp_path, source, message):
    path = tmp_path / "mine.py"
    path.write_text(source)
    before = dict(registry._entries)
    for _ in range(2):  # the second time as the first
        with pytest.raises(UserError, match=rf"plug-in {path}.*{message}"):
            load_plugin(path)
    assert registry._entries == before


@pytest.mark.parametrize("name", ["missing.py", "folder", "notes.txt"])
def test_a_plugin_is_a_python_file(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.txt").write_text(PLUGIN)
    with pytest.raises(UserError, match="no such Python file"):
        load_plugin(tmp_path / name)


class Point:
    """An entry point of an installed package."""

    name, value = "theirs", "their_package.members"

    def __init__(self, error=None):
        self.error = error

    def load(self):
        if self.error:
            raise self.error
        register("theirs", title="Theirs")(make())


@pytest.fixture
def install(monkeypatch):
    def installed(*points):
        found = {registry.ENTRY_POINTS: points}
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: found[group])
        monkeypatch.setattr(registry, "_load_zoo", registry.cache(registry._load_zoo.__wrapped__))

    return installed


def test_installed_plugins_are_loaded_at_the_first_look_up(install):
    install(Point())
    assert "theirs" not in registry._entries
    assert "theirs" in pezoo.list_encodings()
    assert entry("theirs").title == "Theirs"


def test_an_installed_plugin_that_fails_is_named(install):
    install(Point(ImportError("no module named sand")))
    message = r"installed plug-in theirs \(their_package.members\): ImportError: no module named sand"
    with pytest.raises(UserError, match=message):
        pezoo.list_encodings()


def test_members_know_what_they_are_registered_as():
    cls = register("well_named", title="Well named")(make(Encoding))
    assert (cls.name, make(cls).name) == ("well_named", make(cls).__name__)
    for name, found in entries().items():
        assert found.cls is None or found.cls.name == name


@pytest.mark.parametrize("base", [object, torch.nn.Module])
def test_what_extends_nothing_of_the_contract_is_not_registered(base):
    with pytest.raises(UserError, match="neither Encoding, nor Extension, nor Schedule, nor Task"):
        register("stranger", title="Stranger")(type("Stranger", (base,), {"__doc__": "No member."}))
    assert "stranger" not in entries()


def test_a_literature_name_has_no_settings_of_its_own():
    with pytest.raises(UserError, match=r"randomized_rope stands for rope\+random: its settings are those of the mem"):
        make_config("randomized_rope", {})
    with pytest.raises(UserError, match=r"randomized_rope is an alias of rope\+random, not an encoding or an exten"):
        _ = entry("randomized_rope").member
