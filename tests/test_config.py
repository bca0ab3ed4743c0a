"""Recipes: what is read, in which order, and what comes of it."""

import pytest
import yaml

from pezoo.errors import UserError
from pezoo.study.reading import find_recipe, load_recipe, own_recipes
from pezoo.study.recipe import Recipe

RECIPES = sorted(own_recipes())


def recipe(**keys):
    return {"schemes": ["rope"]} | keys


def test_defaults_are_the_documented_ones():
    made = load_recipe(recipe())
    assert (made.model.d_model, made.train.length, made.train.steps) == (64, 64, 800)
    assert made.test_lengths == [64, 128, 256, 512, 1024]
    assert made.tuning(made.tune, 1).length == 512
    assert made.tasks == ["language_modelling"]
    assert made.data.corpus == "package"


def test_later_sources_win():
    keys = recipe(
        train={"steps": 1000, "lr": 0.1, "batch_size": 7},
        sizes={"small": {"train": {"steps": 200, "lr": 0.2}}},
    )
    made = load_recipe(keys, ["size=small", "train.lr=0.3"])
    assert (made.train.batch_size, made.train.steps, made.train.lr) == (7, 200, 0.3)
    assert load_recipe(keys).train.steps == 1000, "cpu is the recipe as it stands"


def test_a_size_replaces_lists_and_merges_groups():
    keys = recipe(seeds=[0, 1, 2], test={"windows": 5}, sizes={"cpu": {"seeds": [4], "test": {"last": 8}}})
    made = load_recipe(keys)
    assert made.seeds == [4]
    assert (made.test.windows, made.test.last) == (5, 8)


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("train.lr=1e-3", lambda r: r.train.lr == 1e-3),
        ("seeds=[3,4]", lambda r: r.seeds == [3, 4]),
        ("seeds.1=9", lambda r: r.seeds == [0, 9]),
        ("seeds[1]=9", lambda r: r.seeds == [0, 9]),
        ("train.betas.0=0.5", lambda r: r.train.betas == [0.5, 0.95]),
        ("schemes.0=alibi+random:max_length=2048", lambda r: r.rows[0].scheme.startswith("alibi+")),
        ("schemes=[rope,alibi+pi:factor=4]", lambda r: r.rows[1].scheme == "alibi+pi:factor=4"),
        (
            "schemes.0.tune=[0,50]",
            lambda r: (r.rows[0].scheme, r.rows[0].tune.steps) == ("rope", [0, 50]),
        ),
        ("schemes.1.tune=[0,50]", lambda r: (r.rows[1].tune.steps, r.rows[1].tune.length) == ([0, 50], "2x")),
        ("schemes.1.tune={length: 4x}", lambda r: (r.rows[1].tune.steps, r.rows[1].tune.length) == ([7], "4x")),
        ("schemes.3.tune.length=4x", lambda r: (r.rows[3].tune.steps, r.rows[3].tune.length) == ([0], "4x")),
        ("schemes.3.tune.steps=[50]", lambda r: (r.rows[3].tune.steps, r.rows[3].tune.length) == ([50], "8x")),
        ("schemes.0.tune.lr=5", lambda r: (r.rows[0].tune.lr, r.tune.lr) == (5, 1e-3)),
        ("schemes.1.label=mine", lambda r: (r.rows[1].scheme, r.rows[1].label) == ("nope", "mine")),
        ("schemes.2.label=mine", lambda r: r.rows[2].scheme == {"layers": ["rope", "nope"]}),
        ("test.last=null", lambda r: r.test.last is None),
        ("test={windows: 3}", lambda r: (r.test.windows, r.test.seed) == (3, 7)),
        ("test.lengths=[16x,1x,96]", lambda r: r.test_lengths == [64, 96, 1024]),
        ("test.lengths=[1.5x]", lambda r: r.test_lengths == [96]),
        ("description=a: b, c", lambda r: "a" in r.description),
    ],
)
def test_any_key_can_be_overridden(override, read):
    own = {"steps": [7], "length": "2x", "warmup_steps": 1}
    schemes = ["rope", {"scheme": "nope", "tune": own}, {"layers": ["rope", "nope"]}, {"scheme": "alibi", "tune": [0]}]
    if override.startswith("description"):
        override = "description='a: b, c'"
    made = load_recipe(recipe(schemes=schemes, seeds=[0, 1], test={"seed": 7}), [override])
    assert read(made)


def test_rows_take_the_recipes_tuning_unless_they_have_their_own():
    schemes = ["rope", {"scheme": "rope+pi", "tune": [0, 200, 200], "label": "PI"}]
    rows = load_recipe(recipe(schemes=schemes, tune={"steps": [50]})).rows
    assert [row.tune.steps for row in rows] == [[50], [0, 200]]
    assert [row.label for row in rows] == [None, "PI"]


def test_a_key_of_tune_that_every_scheme_sets_is_refused_as_an_override():
    own = [{"scheme": "rope", "tune": {"steps": [20], "length": "2x"}}, {"scheme": "nope", "tune": [20]}]
    assert load_recipe(recipe(schemes=own), ["tune.length=4x"]).rows[1].tune.length == "4x"
    with pytest.raises(UserError, match=r"tune.steps is set by every scheme .* type schemes.0.tune.steps="):
        load_recipe(recipe(schemes=own), ["tune.steps=[0]"])
    with pytest.raises(UserError, match=r"tune.length is set by every scheme"):
        load_recipe(recipe(schemes=own[:1]), ["tune.length=4x"])


@pytest.mark.parametrize(
    ("top", "of_a", "where"), [([], True, "parts.b."), (["nope"], False, ""), (["nope"], True, "parts.b.")]
)
def test_what_to_type_instead_works_where_schemes_stand_in_parts(top, of_a, where):
    schemes = [{"scheme": "rope", "tune": [20]}]
    parts = {"b": {"schemes": schemes}, "a": {"schemes": schemes} if of_a else {"train": {"steps": 60}}}
    given = recipe(schemes=top and schemes, parts=parts)
    with pytest.raises(UserError) as error:
        load_recipe(given, ["tune.steps=[30]"])
    _, _, typed = str(error.value).partition("; type ")
    assert typed == f"{where}schemes.0.tune.steps=..."
    load_recipe(given, [typed.replace("...", "[30]")])
    with pytest.raises(UserError, match=r"schemes is an empty list; type 'schemes=\[\.\.\.\]'"):
        load_recipe(recipe(schemes=[], parts=parts), ["schemes.0=rope"])


def test_tuning_takes_its_own_keys_and_the_rest_from_training():
    made = load_recipe(recipe(train={"betas": [0.8, 0.9]}, tune={"lr": 0.5, "length": "4x"}))
    settings = made.tuning(made.tune, 120)
    assert (settings.steps, settings.length, settings.lr) == (120, 256, 0.5)
    assert settings.betas == [0.8, 0.9]
    assert made.train.lr != 0.5


def test_the_written_recipe_is_the_same_study(tmp_path):
    keys = recipe(sizes={"small": {"train": {"steps": 200}}}, schemes=[{"layers": ["rope", "nope"]}])
    made = load_recipe(keys, ["size=small", "train.steps=150", "study=mine"])
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(made.to_dict()))
    again = load_recipe(path)
    assert again.to_dict() == made.to_dict()
    assert (again.train.steps, again.size, again.study) == (150, "small", "mine")


def test_a_recipe_is_found_by_path_and_by_bare_name(tmp_path, monkeypatch):
    path = tmp_path / "mine.yaml"
    path.write_text("schemes: [rope]")
    assert load_recipe(path).study == "mine"
    monkeypatch.chdir(tmp_path)
    assert load_recipe("quickstart").study == "quickstart"
    (tmp_path / "quickstart").mkdir()
    assert find_recipe("quickstart").name == "quickstart.yaml", "a folder of the name is no recipe"


def test_nothing_in_a_recipe_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PEZOO_SECRET", "secret")
    for text in ("description: ${oc.env:PEZOO_SECRET}", "data: {path: '${train.steps}'}"):
        with pytest.raises(UserError, match=r"cannot hold \$\{"):
            load_recipe(yaml.safe_load(text) | recipe())
    path = tmp_path / "tagged.yaml"
    path.write_text(f"schemes: [rope]\nstudy: !!python/object/apply:os.mkdir ['{tmp_path}/made']")
    with pytest.raises(UserError, match="not a YAML recipe"):
        load_recipe(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_a_small_size_for_tests(name):
    recipe = load_recipe(name, ["size=test"])
    assert recipe.description
    assert all(part.train.steps <= 50 for _, part in recipe.split())


GROUPS = ("model", "train", "tune", "test", "ray", "slurm")


@pytest.mark.parametrize("cls", [Recipe, *(type(getattr(Recipe(), name)) for name in GROUPS)])
def test_every_key_is_explained(cls):
    import ast
    import inspect
    import textwrap

    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
    pairs = zip(body, [*body[1:], None], strict=True)
    bare = [
        node.target.id
        for node, after in pairs
        if isinstance(node, ast.AnnAssign)
        and not isinstance(after, ast.Expr)
        and node.target.id not in ("data", *GROUPS)
    ]
    assert not bare


PARTS = {
    "train": {"steps": 100},
    "parts": {"a": {"train": {"length": 32}}, "b": {"train": {"length": 16, "steps": 60}, "schemes": ["alibi"]}},
}


def test_parts_differ_in_what_they_set_and_share_the_rest():
    made = dict(load_recipe(recipe(**PARTS), ["train.lr=0.5"]).split())
    assert [(part.train.length, part.train.steps, part.train.lr) for part in made.values()] == [
        (32, 100, 0.5),
        (16, 60, 0.5),
    ]
    assert [part.schemes for part in made.values()] == [["rope"], ["alibi"]]
    assert all(not part.parts for part in made.values())


def test_an_override_that_every_part_would_undo_is_refused():
    with pytest.raises(UserError, match=r"train.length is set by every part .*a, b.*type parts.a.train.length=..."):
        load_recipe(recipe(**PARTS), ["train.length=8"])
    assert load_recipe(recipe(**PARTS), ["parts.a.train.length=8"]).split()[0][1].train.length == 8


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"grid": {"extensions": ["pi"]}}, r"grid.extensions=\['pi'\] has nothing to extend; type 'grid.encodings="),
        ({"tasks": ["parity"], "test": {"tasks": ["passkey_text"]}}, r"test.tasks=\['passkey_text'\] .*trains none"),
    ],
)
def test_what_no_part_uses_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        load_recipe(recipe(**given))
    used = {"grid": {"encodings": ["rope"]}, "tasks": ["language_modelling"]}
    load_recipe(recipe(**given, parts={"one": {}, "other": used}))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"a": 3}, r"parts.a must be a group of keys \(schemes, grid, tasks"),
        ({"a": {"seeds": [1]}}, "parts.a cannot set 'seeds'"),
        ({"a": {"tran": {}}}, "parts.a cannot set 'tran'. Did you mean 'train'"),
        ({"a": {"train": {"step": 1}}}, "parts.a: unknown key 'train.step'. Did you mean"),
        ({"a": {"train": {"steps": 5}}}, "parts.a: train.warmup_steps=50 must be less"),
        ({"a": {"train": {"min_length": 65}}}, "parts.a: train.min_length must be at most train.length=64"),
    ],
)
def test_errors_in_a_part_name_it(parts, message):
    with pytest.raises(UserError, match=message):
        load_recipe(recipe(parts=parts))
