"""Neighbours of a plug-in are found, and a change in them renames cells; what a hash covers."""

import hashlib
import importlib
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import pezoo
from pezoo import sources
from pezoo.errors import UserError
from pezoo.registry import entry, load_plugin
from pezoo.study import Study, make_plan
from pezoo.study.reading import load_recipe

ROOT = Path(__file__).parents[1]

MEMBER = '''
from pezoo import Encoding, Traits, register
{imports}

@register("{name}", title="Constant penalty")
class Member(Encoding):
    """A penalty a token."""

    traits = Traits(shift_invariant=True, bidirectional=False)

    def distance_bias(self, distance):
        {inside}
        return (-{rate} * distance.abs()).expand(self.shape.n_heads, *distance.shape)
'''


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text))


def member(name, imports="", rate="RATE", inside=""):
    return MEMBER.format(name=name, imports=imports, rate=rate, inside=inside)


def rate_of(name):
    """What the member makes of RATE, as the model sees it."""
    made = pezoo.create(name, d_model=8, n_heads=1, n_layers=1, train_length=4)
    return -made.members[0].distance_bias(torch.tensor([1])).item()


# ---- neighbours ---------------------------------------------------------------------------------

WAYS = {
    "from": ("from rate_of_decay import RATE", "RATE", ""),
    "renamed": ("import rate_of_decay as r", "r.RATE", ""),
    "plain": ("import rate_of_decay", "rate_of_decay.RATE", ""),
    "star": ("from rate_of_decay import *", "RATE", ""),
    "relative": ("from .rate_of_decay import RATE", "RATE", ""),
    "relative module": ("from . import rate_of_decay", "rate_of_decay.RATE", ""),
    "inside": ("", "RATE", "from rate_of_decay import RATE"),
    "by way of another": ("from between import RATE", "RATE", ""),
    "below": ("import below.deep.rates", "below.deep.rates.RATE", ""),
    "below, renamed": ("import below.deep.rates as r", "r.RATE", ""),
    "below, from": ("from below.deep import rates", "rates.RATE", ""),
    "package": ("from package import RATE", "RATE", ""),
}
FILES = {
    "rate_of_decay.py": "RATE = 0.25\n",
    "between.py": "from rate_of_decay import RATE\n",
    "below/deep/rates.py": "from rate_of_decay import RATE\n",  # no __init__.py
    "package/__init__.py": "from .inner import RATE\n",
    "package/inner.py": "from rate_of_decay import RATE\n",
}


@pytest.mark.parametrize("way", WAYS)
def test_a_neighbour_is_found_and_a_change_in_it_changes_the_hash(way, tmp_path):
    imports, rate, inside = WAYS[way]
    name = "near_" + "".join(c for c in way if c.isalpha())
    write(tmp_path, FILES | {"two_files.py": member(name, imports, rate, inside), "stranger.py": "RATE = 1\n"})
    load_plugin(tmp_path / "two_files.py")
    assert rate_of(name) == 0.25
    assert entry(name).family == "custom"
    before = entry(name).source_hash
    write(tmp_path, {"stranger.py": "RATE = 2\n"})
    assert entry(name).source_hash == before
    write(tmp_path, {"rate_of_decay.py": "RATE = 0.5\n"})
    assert entry(name).source_hash != before
    write(tmp_path, {"rate_of_decay.py": "# a quarter\nRATE = (0.25)\n"})
    assert entry(name).source_hash == before


def test_two_plugins_have_neighbours_of_the_same_name(tmp_path):
    for name, rate in (("one", 0.25), ("other", 0.5)):
        plugin = member(f"same_{name}", "import utils", "utils.RATE")
        write(tmp_path / name, {"utils.py": f"RATE = {rate}\n", "plugin.py": plugin})
        load_plugin(tmp_path / name / "plugin.py")
    assert (rate_of("same_one"), rate_of("same_other")) == (0.25, 0.5)
    assert "utils" not in sys.modules
    before = entry("same_one").source_hash, entry("same_other").source_hash
    assert before[0] != before[1]
    write(tmp_path / "other", {"utils.py": "RATE = 1\n"})
    assert entry("same_one").source_hash == before[0]
    assert entry("same_other").source_hash != before[1]


def test_a_neighbour_shadows_no_library(tmp_path):
    names = ("random.py", "copy.py", "pezoo.py", "torch.py", "wave.py")
    write(tmp_path, dict.fromkeys(names, "raise RuntimeError('not meant')\n") | {"einops.py": "RATE = 0.25\n"})
    plugin = member("beside_random", "import random, wave\nfrom .einops import RATE", "RATE * random.choice([1])")
    write(tmp_path, {"plugin.py": plugin})
    load_plugin(tmp_path / "plugin.py")
    assert rate_of("beside_random") == 0.25
    before = entry("beside_random").source_hash
    write(tmp_path, {"random.py": "x = 1\n"})
    assert entry("beside_random").source_hash == before
    assert str(tmp_path) not in sys.path


def test_a_neighbour_goes_before_an_installed_package_of_its_name(tmp_path):
    write(tmp_path, {"tqdm.py": "RATE = 0.25\n", "plugin.py": member("beside_tqdm", "from tqdm import RATE")})
    load_plugin(tmp_path / "plugin.py")
    assert rate_of("beside_tqdm") == 0.25
    assert hasattr(__import__("tqdm"), "tqdm"), "for others it is what it was"


def test_a_folder_of_an_installed_package_s_name_is_no_neighbour(tmp_path):
    (tmp_path / "tqdm").mkdir()  # as `wandb` leaves one
    write(tmp_path, {"plugin.py": member("beside_folder", "from tqdm import tqdm", "0.25")})
    load_plugin(tmp_path / "plugin.py")
    assert rate_of("beside_folder") == 0.25


def test_what_the_session_imported_already_is_not_imported_twice(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    write(tmp_path, {"shared_base.py": member("in_shared_base", "from shared_rate import RATE")})
    write(tmp_path, {"shared_rate.py": "RATE = 0.25\n"})
    write(tmp_path, {"plugin.py": member("on_shared_base", "import shared_base", "0.5")})
    base = importlib.import_module("shared_base")
    try:
        assert load_plugin(tmp_path / "plugin.py") == ["on_shared_base"]
        assert entry("in_shared_base").cls is base.Member
        assert load_plugin(tmp_path / "shared_base.py") == ["in_shared_base"]
        before = entry("in_shared_base").source_hash, entry("on_shared_base").source_hash
        write(tmp_path, {"shared_rate.py": "RATE = 1\n"})
        assert entry("in_shared_base").source_hash != before[0]
        assert entry("on_shared_base").source_hash != before[1]
    finally:
        for name in ("shared_base", "shared_rate"):
            sys.modules.pop(name, None)


def test_members_of_neighbours_belong_to_the_plugin_that_imports_them(tmp_path):
    write(tmp_path, {"first.py": member("of_first", rate="0.25"), "kept/second.py": member("of_second", rate="0.5")})
    write(tmp_path, {"all.py": "import first\nfrom kept import second\n"})
    for _ in range(2):
        assert load_plugin(tmp_path / "all.py") == ["of_first", "of_second"]
    assert load_plugin(tmp_path / "first.py") == ["of_first"]
    assert (entry("of_first").family, entry("of_second").family) == ("custom", "kept")


def test_a_plugin_may_be_the_init_of_a_folder_or_have_a_dot_in_its_name(tmp_path):
    write(tmp_path / "folder", {"__init__.py": member("of_init", "from .rates import RATE")})
    write(tmp_path / "folder", {"rates.py": "RATE = 0.25\n"})
    write(tmp_path, {"my.plugin.py": member("of_dotted", "from rates import RATE"), "rates.py": "RATE = 0.5\n"})
    for file, name, rate in (("folder/__init__.py", "of_init", 0.25), ("my.plugin.py", "of_dotted", 0.5)):
        load_plugin(tmp_path / file)
        assert rate_of(name) == rate
        before = entry(name).source_hash
        write((tmp_path / file).parent, {"rates.py": "RATE = 1\n"})
        assert entry(name).source_hash != before


def test_a_plugin_in_a_package_may_import_that_by_its_name(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    imports = "from my_lab.rates import RATE"
    write(
        tmp_path / "my_lab", {"__init__.py": "", "inner/__init__.py": "", "rates.py": "from .inner.deep import RATE\n"}
    )
    write(tmp_path / "my_lab/inner", {"deep.py": "RATE = 0.25\n", "plugin.py": member("of_my_lab", imports)})
    load_plugin(tmp_path / "my_lab/inner/plugin.py")
    assert rate_of("of_my_lab") == 0.25
    before = entry("of_my_lab").source_hash
    write(tmp_path / "my_lab/inner", {"deep.py": "RATE = 1\n"})
    assert entry("of_my_lab").source_hash != before
    for name in [name for name in sys.modules if name.startswith("my_lab")]:
        del sys.modules[name]


def test_among_installed_packages_neighbours_are_strangers(tmp_path, monkeypatch):
    """Else `import torch` of a plug-in in `site-packages` would be all of PyTorch."""
    (tmp_path / "large-1.0.dist-info").mkdir()
    write(tmp_path, {"large.py": "RATE = 0.25\n", "plugin.py": member("in_site", "from large import RATE")})
    load_plugin(tmp_path / "plugin.py")
    before = entry("in_site").source_hash
    write(tmp_path, {"large.py": "RATE = 1\n"})
    assert entry("in_site").source_hash == before
    write(tmp_path, {"plugin.py": member("in_site", "from large import RATE", "2 * RATE")})
    assert entry("in_site").source_hash != before


def test_a_neighbour_that_fails_leaves_nothing(tmp_path):
    write(tmp_path, {"good.py": "import bad\nRATE = 1\n", "bad.py": "1 / 0\n"})
    write(tmp_path, {"plugin.py": member("healed", "from good import RATE")})
    modules = set(sys.modules)
    for _ in range(2):
        with pytest.raises(UserError, match=r"plug-in .*plugin\.py: ZeroDivisionError"):
            load_plugin(tmp_path / "plugin.py")
    assert {name for name in set(sys.modules) - modules if name.startswith(sources.PLUGIN)} == set()
    write(tmp_path, {"bad.py": ""})
    assert load_plugin(tmp_path / "plugin.py") == ["healed"]


def test_a_neighbour_is_never_read_from_a_cache_of_bytecode(tmp_path):
    """One edited within a second, to the same size, would be taken for the old one; and others would run our code."""
    write(tmp_path, {"rates.py": "RATE = 0.25\n", "plugin.py": member("uncached", "import rates", "rates.RATE")})
    load_plugin(tmp_path / "plugin.py")
    assert not (tmp_path / "__pycache__").exists()


@pytest.mark.slow
@pytest.mark.ci
def test_processes_of_a_study_find_the_neighbours_and_a_change_in_one_renames_its_cells_alone(tmp_path):
    write(tmp_path, {"rates.py": "RATE = 0.25\n", "plugin.py": member("in_a_study", inside="from rates import RATE")})
    recipe = {
        "study": "near",
        "schemes": ["in_a_study", "alibi"],
        "tasks": ["reverse_string"],
        "model": {"d_model": 8, "n_layers": 1, "n_heads": 1},
        "train": {"length": 4, "steps": 2, "batch_size": 2, "warmup_steps": 1},
        "test": {"lengths": ["1x"], "windows": 2},
    }
    study = Study.prepare(recipe, out=tmp_path / "out", plugins=[tmp_path / "plugin.py"])
    assert {r.status for r in study.run()} == {"ok"}
    write(tmp_path, {"rates.py": "RATE = 5\n"})
    again = make_plan(load_recipe(recipe))
    old, new = ({cell.title: key for key, cell in plan.cells.items()} for plan in (study.plan, again))
    assert {title for title in old if old[title] != new[title]} == {t for t in old if "in_a_study" in t}


def test_helpers_of_an_installed_plugin_are_covered(tmp_path, monkeypatch):
    """A package with relative imports, absolute imports of itself, and a module beside it that is another package's."""
    monkeypatch.syspath_prepend(str(tmp_path))
    imports = "from .deep import RATE\nimport their_package.other\nimport their_stranger"
    files = {
        "their_package/__init__.py": "VERSION = 1\n",
        "their_package/members.py": member("theirs", imports),
        "their_package/deep/__init__.py": "from ..rates import RATE\n",
        "their_package/rates.py": "RATE = 0.25\n",
        "their_package/other.py": "",
        "their_package/unused.py": "",
        "their_stranger.py": "",
    }
    write(tmp_path, files)
    importlib.import_module("their_package.members")
    try:
        before, renamed = entry("theirs").source_hash, []
        for name, text in files.items():
            write(tmp_path, {name: text + "EDITED = 1\n"})
            renamed.append(entry("theirs").source_hash != before)
            write(tmp_path, {name: text})
        assert renamed == [True] * 5 + [False] * 2
        assert entry("theirs").source_hash == before
    finally:
        for name in [name for name in sys.modules if name.startswith("their_")]:
            del sys.modules[name]


# ---- what a hash covers -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("member", "file", "covered"),
    [
        ("rope", "encodings/relative/rope.py", True),
        ("rope", "encodings/relative/_rotary.py", True),
        ("rope", "encodings/bias/alibi.py", False),
        ("alibi", "encodings/relative/_rotary.py", False),
        ("rope", "pezoo/contract.py", False),
        ("copy", "pezoo/data/tasks/copy.py", True),
        ("copy", "pezoo/data/tasks/addition.py", False),
        ("mqar", "pezoo/data/tasks/_recall.py", True),
    ],
)
def test_a_member_of_the_zoo_is_its_file_and_its_helpers(member, file, covered, monkeypatch):
    before, read = entry(member).source_hash, Path.read_bytes
    assert len(before) == len(hashlib.sha256().hexdigest())
    edit = b"\nEDITED = 1\n"
    monkeypatch.setattr(Path, "read_bytes", lambda self: read(self) + (edit if self == ROOT / file else b""))
    assert (entry(member).source_hash != before) == covered
    monkeypatch.setattr(Path, "read_bytes", lambda self: b"# edited\n" + read(self) + b"\n# edited")
    assert entry(member).source_hash == before


SOURCE = '''
"""What it is."""
import torch
from pezoo import register, setting

SCALE = {"a": 1, **{"b": 2.0}}
"""What it means."""


@register("it", title="It", year=2020, aliases={"that": ("it+pi", "That")})
class It:
    """It."""

    rate: float = setting(0.5, "how much", above=0)

    def f(self, x: int) -> str:  # a comment
        """Return it."""
        if x > 1:
            ...
        return f"{x + 1:>{self.rate}} and 'so' on" + 'abc'

    def empty(self):
        """Nothing."""

    @classmethod
    def made(cls):
        """Return one."""
        made = cls()
        return made

    @cache
    def kept(self, y: int):
        """Return another."""
        return y
'''


def hash_of(text):
    return sources._read(text.encode())[0]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""What it is."""', ""),
        ('"""What it means."""', '"""What else it means."""'),
        ('"""Return it."""', "# no docstring"),
        ("  # a comment", ""),
        ("x > 1:\n", "(\n            x\n            > 1\n        ):\n"),
        ("'abc'", '"abc"'),
        ("'abc'", '"a" "bc"'),
        ('{"a": 1, **{"b": 2.0}}', '{\n    "a": 0x1,\n    **{"b": 2.00},\n}'),
        ("            ...", "            pass"),
        ('title="It", year=2020', 'title="That it is", year=2021, arxiv="2020.12345"'),
        ('"how much"', 'help="how much of it"'),
        ('        """Nothing."""', "        pass"),
        ("x: int", "x"),
        ("x: int", 'x: "float | None"'),
        (" -> str:", ":"),
        ("empty(self):", "empty(self) -> None:"),
        ("made(cls):", 'made(cls) -> "It":'),
        ("made = cls()", "made: It = cls()"),
        ("made = cls()", "made: It\n        made = cls()"),
        ("SCALE = ", "SCALE: dict[str, float] = "),
    ],
)
def test_what_moves_no_number_is_not_hashed(old, new):
    assert SOURCE.count(old) == 1
    assert hash_of(SOURCE.replace(old, new)) == hash_of(SOURCE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("setting(0.5", "setting(0.25"),
        ("above=0", "above=1"),
        ("x > 1", "x >= 1"),
        ("x + 1", "x - 1"),
        ("x + 1", "x + True"),
        ('"b": 2.0', '"b": 2'),
        ("**{", '"c": {'),
        ("'abc'", "b'abc'"),
        (":>{", ":<{"),
        ("x: int", "*, x: int"),
        ('"a": 1', "None: 1"),
        ("import torch", "import math as torch"),
        ("from pezoo import", "from pezoo.registry import"),
        ("from pezoo import register, setting", "from mine import register, setting"),
        ("rate: float", "rate: int"),
        ("y: int", "y: float"),
        ("made = cls()", "made: It"),
        ("import torch", "import torch\nfrom typing import Any"),
    ],
)
def test_what_may_move_a_number_is_hashed(old, new):
    assert SOURCE.count(old) == 1
    assert hash_of(SOURCE.replace(old, new)) != hash_of(SOURCE)


@pytest.mark.parametrize("annotation", ["Any", '"Any | None"', "typing.Any"])
def test_an_import_that_serves_annotations_alone_is_not_hashed(annotation):
    imports = {"typing.Any": "import typing"}.get(annotation, "from typing import Any")
    typed = SOURCE.replace("x: int", f"x: {annotation}").replace("import torch", f"import torch\n{imports}")
    assert hash_of(typed) == hash_of(SOURCE)
    assert hash_of(typed + "print(Any, typing)\n") != hash_of(SOURCE + "print(Any, typing)\n")


def test_the_words_of_others_are_hashed():
    theirs = SOURCE.replace("from pezoo import register, setting", "from mine import register, setting")
    assert hash_of(theirs.replace("2020", "2021")) != hash_of(theirs)
    assert hash_of(theirs.replace("how much", "how little")) != hash_of(theirs)


def test_the_hash_of_a_file_is_the_same_under_every_python():
    """Recorded once; CPython 3.11, 3.12 and 3.13 agree on it, and on their own libraries' files."""
    assert hash_of(SOURCE)[:16] == "b1569f4de7e7a144"


def test_helpers_that_change_places_are_noticed(tmp_path):
    """What is hashed is not a mere set of contents."""
    plugin = member("swapped", "from left import RATE as A\nfrom right import RATE as B", "A")
    write(tmp_path, {"plugin.py": plugin, "left.py": "RATE = 1\n", "right.py": "RATE = 2\n"})
    load_plugin(tmp_path / "plugin.py")
    before = entry("swapped").source_hash
    write(tmp_path, {"left.py": "RATE = 2\n", "right.py": "RATE = 1\n"})
    assert entry("swapped").source_hash != before


def test_a_deep_expression_and_a_file_that_cannot_be_read_have_a_hash():
    deep = "x = " + " + ".join(["1"] * 900)
    assert hash_of(deep) == hash_of(deep.replace(" + ", "  +  ")) != hash_of(deep.replace("1", "2"))
    assert hash_of("def f(:") != hash_of("def g(:")
