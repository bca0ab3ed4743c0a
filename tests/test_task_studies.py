"""Studies of tasks: parts, grids, the choice of a learning rate, companions, and tasks for language models."""

import json
from collections import Counter

import pytest
import torch

from helpers import WORDS, run_cells, values, write_words
from pezoo.errors import UserError
from pezoo.registry import Entry, entry
from pezoo.results import read
from pezoo.study import Study, collect, make_plan
from pezoo.study.cells import choose_model
from pezoo.study.plan import Cell
from pezoo.study.reading import load_recipe
from pezoo.study.store import Store
from pezoo.training.checkpoint import load


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """The `data` of a recipe: twelve documents of words."""
    return write_words(tmp_path_factory.mktemp("text"), words=WORDS[:6])


def recipe(**keys):
    """A study of one task that takes a second."""
    return {
        "study": "tasks",
        "schemes": ["rope"],
        "tasks": ["reverse_string"],
        "model": {"d_model": 16, "n_layers": 1, "n_heads": 2},
        "train": {"length": 6, "steps": 4, "batch_size": 4, "warmup_steps": 1, "log_every": 1},
        "tune": {"length": "2x", "batch_size": 2, "warmup_steps": 0},
        "test": {"lengths": ["1x", "2x"], "windows": 4},
    } | keys


def plan(*overrides, **keys):
    return make_plan(load_recipe(recipe(**keys), overrides))


def run_here(study):
    """Run all cells in this process; returns the results."""
    run_cells(study)
    return study.run()


def kinds(made):
    return Counter(cell.kind for cell in made.cells.values())


def labels(made, part=None):
    return [e.label for e in made.evaluations if part in (None, e.trial.part)]


# ---- parts --------------------------------------------------------------------------------------


def test_parts_that_train_alike_share_a_training():
    made = plan(parts={"short": {}, "long": {"test": {"lengths": ["4x"]}}, "other": {"train": {"steps": 3}}})
    assert kinds(made) == {"train": 2, "evaluate": 3}
    assert [e.trial.part for e in made.evaluations] == ["short", "long", "other"]
    trained = [made.cells[e.cell].parent for e in made.evaluations]
    assert trained[0] == trained[1] != trained[2]


def test_what_parts_share_altogether_is_one_cell_with_results_in_each(tmp_path):
    study = Study.prepare(recipe(parts={"a": {}, "b": {}}), out=tmp_path)
    assert kinds(study.plan) == {"train": 1, "evaluate": 1}
    results = run_here(study)
    one, other = ([r for r in values(results) if r["part"] == part] for part in ("a", "b"))
    assert [r | {"part": ""} for r in one] == [r | {"part": ""} for r in other]
    assert len(one) + len(other) == len(results) > 0


def test_a_part_keeps_what_it_sets_and_has_the_rest_from_the_whole():
    parts = {"a": {"train": {"steps": 3}}, "b": {"schemes": ["alibi"], "form": "encoder", "test": {"windows": 2}}}
    one, other = (r for _, r in load_recipe(recipe(parts=parts), ["train.steps=5", "test.windows=9"]).split())
    assert (one.train.steps, one.test.windows, one.schemes, one.form) == (3, 9, ["rope"], "causal")
    assert (other.train.steps, other.test.windows, other.schemes, other.form) == (5, 2, ["alibi"], "encoder")
    assert one.train.length == other.train.length == 6
    changed = load_recipe(recipe(parts=parts), ["parts.a.train.steps=7"]).split()
    assert [r.train.steps for _, r in changed] == [7, 4]


def test_a_size_changes_a_part_without_losing_the_rest_of_it():
    keys = {
        "parts": {"a": {"train": {"steps": 3, "lr": 0.5}}},
        "sizes": {"small": {"parts": {"a": {"train": {"steps": 2}}}}},
    }
    [(_, part)] = load_recipe(recipe(**keys), ["size=small"]).split()
    assert (part.train.steps, part.train.lr) == (2, 0.5)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (None, r"parts.mine must be a group of keys \(schemes, grid, .*\), got None"),
        ({"seeds": [1]}, "parts.mine cannot set 'seeds'. Did you mean 'schemes'?.* A part sets: schemes, grid, tasks"),
        ({"train": {"stepz": 3}}, "parts.mine: unknown key 'train.stepz'. Did you mean 'train.steps'"),
        ({"train": {"steps": "many"}}, "parts.mine: train.steps"),
        ({"train": {"steps": 0}}, "parts.mine: train.steps must be at least 1, got 0"),
        ({"test": {"lengths": [5]}}, "parts.mine: test.lengths holds 5"),
        ({"schemes": ["roppe"]}, "parts.mine: schemes.0: .*'roppe'. Did you mean 'rope'"),
        ({"tasks": ["revers_string"]}, "parts.mine: 'revers_string' is no task. Did you mean 'reverse_string'"),
        ({"tasks": ["mqar"], "form": "encoder"}, "parts.mine: mqar has no encoder form"),
        ({"tasks": ["mqar"]}, "parts.mine: mqar with .* needs a length of at least 16 tokens, got 6"),
        ({"test": {"protocols": ["prefix"]}}, "parts.mine: test.protocols: no protocol 'prefix' for tasks"),
        ({"grid": {"encodings": ["roppe"]}}, "parts.mine: grid.encodings: no encoding is called 'roppe'"),
        ({"tasks": ["lego"], "train": {"min_length": 1}}, "parts.mine: train.min_length=1 is too short for lego"),
    ],
)
def test_an_error_in_a_part_names_it(part, message):
    with pytest.raises(UserError, match=message):
        plan(parts={"fine": {}, "mine": part})


# ---- grid ---------------------------------------------------------------------------------------


def test_a_grid_is_each_encoding_alone_and_with_each_extension_that_it_takes():
    grid = {"encodings": ["rope", "alibi", "nope"], "extensions": ["pi", "ntk:factor=2", "window:size=4"]}
    made = plan(schemes=["t5"], grid=grid)
    assert labels(made) == [
        *("t5", "rope", "rope+pi", "rope+ntk:factor=2", "rope+window:size=4"),
        *("alibi", "alibi+pi", "alibi+window:size=4"),
        *("nope", "nope+window:size=4"),
    ]
    assert kinds(made) == {"train": 4, "evaluate": 10}


def test_a_pattern_stands_for_all_members_that_can_work():
    every = labels(plan(schemes=[], grid={"encodings": ["*"]}))
    assert {"rope", "alibi", "nope", "learned", "t5"} <= set(every)
    assert len(every) == len(set(every)) > 15
    assert labels(plan(grid={"encodings": ["al*"], "extensions": ["p*"]})) == [
        "rope",
        "alibi",
        "alibi+pi",
        "alibi+pose",
    ]


def test_a_scheme_that_misreads_a_task_is_refused_and_left_out_of_a_grid(monkeypatch):
    def only_bits(self, task):
        return None if task.n_symbols == 2 else f"it knows two symbols, not {task.n_symbols}"

    monkeypatch.setattr(entry("alibi").cls, "refuses_task", only_bits)
    plan(schemes=["alibi+window", {"heads": {"rope": 1, "alibi": 1}}])
    for scheme in ("alibi+window", {"heads": {"rope": 1, "alibi": 1}}):
        with pytest.raises(
            UserError, match=r"^schemes.1: alibi does not fit bucket_sort: it knows two symbols, not 5$"
        ):
            plan(tasks=["reverse_string", "bucket_sort"], schemes=["rope", scheme])
    assert labels(plan(tasks=["bucket_sort"], schemes=[], grid={"encodings": ["al*", "rope"]})) == ["rope"]


def test_the_rows_of_a_grid_are_tuned_as_the_recipe_says():
    made = plan(
        schemes=[],
        grid={"encodings": ["rope"], "extensions": ["pi"]},
        tune={"steps": [0, 2], "length": "2x", "warmup_steps": 0},
    )
    assert labels(made) == ["rope", "rope, 2 steps @ 2x", "rope+pi", "rope+pi, 2 steps @ 2x"]
    assert kinds(made) == {"train": 1, "tune": 2, "evaluate": 4}


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"encodings": ["roppe"]}, "grid.encodings: no encoding is called 'roppe'. Did you mean 'rope'"),
        ({"encodings": ["pi"]}, "grid.encodings: no encoding is called 'pi'"),
        ({"encodings": ["zz*"]}, r"grid.encodings: no encoding is called 'zz\*'"),
        ({"encodings": ["rope"], "extensions": ["windoow"]}, "grid.extensions: no extension .* Did you mean 'window'"),
        ({"encodings": ["rope"], "extensions": ["alibi"]}, "grid.extensions: no extension is called 'alibi'"),
        ({"encodings": ["rope:bas=3"]}, "grid.encodings: rope has no setting 'bas'. Did you mean 'base'"),
        ({"encodings": ["rope"], "extensions": ["pi:facto=4"]}, "grid.extensions: pi has no setting 'facto'"),
        ({"encodings": ["rope"], "extensions": ["window:size=0"]}, "grid.extensions: window:size must be at least 1"),
        ({"encodings": ["alibi", "rope"]}, "'rope' and 'rope' are the same scheme"),
    ],
)
def test_what_a_grid_cannot_mean_is_refused(grid, message):
    with pytest.raises(UserError, match=message):
        plan(grid=grid)


# ---- the choice of a learning rate --------------------------------------------------------------

RATES = {"seeds": [0, 1], "train": recipe()["train"] | {"lrs": [1e30, 1e-5, 3e-2, 0.0123456789]}}


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    """A study that chooses among a rate that diverges, one that is too low, and two good ones."""
    keys = RATES | {
        "schemes": ["rope", {"scheme": "rope+pi", "tune": [0, 2]}],
        "test": recipe()["test"] | {"companion": True},
    }
    study = Study.prepare(recipe(**keys), out=tmp_path_factory.mktemp("chosen"))
    run_here(study)
    return study


def of_kind(study, kind):
    return [study.store.facts(key) | {"key": key} for key, cell in study.plan.cells.items() if cell.kind == kind]


def test_each_rate_is_trained_once_for_each_seed_and_the_choice_is_shared(chosen):
    assert kinds(chosen.plan) == {"train": 4 * 2, "choose": 2, "tune": 2, "evaluate": 2 * 6}
    seen = set()
    for key, cell in chosen.plan.cells.items():
        assert seen.issuperset(cell.parents)
        seen.add(key)
    assert all(chosen.plan.cells[f["inputs"]["parent"]].kind == "choose" for f in of_kind(chosen, "tune"))


def test_the_rate_with_the_lowest_mean_validation_loss_is_chosen_for_all_seeds(chosen):
    fits = {(f["inputs"]["settings"]["lr"], f["inputs"]["seed"]): f for f in of_kind(chosen, "train")}
    assert {f["fit"]["status"] for (lr, _), f in fits.items() if lr == 1e30} == {"diverged"}
    mean = {
        lr: sum(fits[lr, seed]["fit"]["validation_loss"] for seed in (0, 1)) / 2 for lr in (1e-5, 3e-2, 0.0123456789)
    }
    best = min(mean, key=mean.get)
    assert mean[best] < mean[1e-5]
    for facts in of_kind(chosen, "choose"):
        assert facts["learning_rate"] == best
        losses = {float(lr): loss for lr, loss in facts["validation_losses"].items()}
        assert losses == pytest.approx(mean | {1e30: None})
        trained = fits[best, facts["inputs"]["seed"]]
        assert facts["fit"] == trained["fit"]
        model, original = (chosen.store.path(f["key"]) / "model.pt" for f in (facts, trained))
        assert model.samefile(original), "a hard link: no copy"
        for one, other in zip(load(model)[0].parameters(), load(original)[0].parameters(), strict=True):
            assert torch.equal(one, other)
    for r in chosen.results():
        assert (r.learning_rate, r.status) == (best, "ok")
        assert r.rate_is == ""  # one that diverged is above it


@pytest.mark.parametrize(("rate", "end"), [(1e-3, "lowest"), (2e-3, ""), (1e-2, "highest"), (4e-3, "")])
def test_results_say_at_which_end_of_those_tried_a_rate_stands(rate, end):
    """As text sorts, 0.01 stands before 0.002."""
    tried = dict.fromkeys(("0.002", "0.01", "0.001"), 1.0)
    assert collect._end({"learning_rate": rate, "validation_losses": tried}) == end
    assert collect._end({"learning_rate": rate}) == ""
    assert collect._end({"learning_rate": rate, "validation_losses": {str(rate): 1.0}}) == ""


def test_what_is_tested_is_the_model_that_was_chosen(chosen, tmp_path):
    """As if its rate had been the only one."""
    best = of_kind(chosen, "choose")[0]["learning_rate"]
    train = RATES["train"] | {"lrs": [], "lr": best}
    alone = run_here(Study.prepare(recipe(**RATES | {"train": train}), out=tmp_path))
    found = [r for r in chosen.results() if r.label == "rope"]
    assert [(r.seed, r.test_length, r.metric, r.value) for r in found] == [
        (r.seed, r.test_length, r.metric, r.value) for r in alone
    ]
    assert {r.learning_rate for r in alone} == {best}


def test_a_rate_at_which_one_seed_diverged_is_never_chosen(tmp_path):
    """Nor if its loss had been low on the way."""
    store = Store(tmp_path)
    fits = {
        "a0": ("ok", 0.1),
        "a1": ("diverged", 0.1),
        "b0": ("ok", 0.9),
        "b1": ("ok", 0.8),
        "c0": ("undefined", None),
        "c1": ("ok", 0.1),
    }
    for key, (status, loss) in fits.items():
        store._facts[key] = {"fit": {"status": status, "validation_loss": loss}, "inputs": {"seed": int(key[1])}}
    candidates = {"0.1": ["a0", "a1"], "0.2": ["b0", "b1"], "0.3": ["c0", "c1"]}
    cell = Cell("", {"kind": "choose", "candidates": candidates, "seed": 1})
    found = choose_model(cell, store, {}, tmp_path, lambda *_: None)
    assert found["learning_rate"] == 0.2
    assert found["fit"] == store.facts("b1")["fit"]
    assert found["validation_losses"] == {"0.1": None, "0.2": pytest.approx(0.85), "0.3": None}


def test_where_every_rate_diverges_so_does_the_scheme(tmp_path):
    results = run_here(Study.prepare(recipe(train=RATES["train"] | {"lrs": [1e30, 2e30]}), out=tmp_path))
    assert {r.status for r in results} == {"diverged"}
    assert all("not finite" in r.reason for r in results)


# ---- companions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["causal", "encoder"])
def test_a_companion_is_the_scheme_with_a_window_of_the_training_length_in_testing(form):
    tokens = {"causal": 13, "encoder": 12}[form]
    explicit = f"rope+pi+window:size={tokens}:at=test"
    made = plan(
        form=form,
        parts={
            "companion": {"schemes": [{"scheme": "rope+pi", "tune": [0]}], "test": {"companion": True}},
            "explicit": {"schemes": ["rope+pi", explicit]},
        },
    )
    assert labels(made, "companion") == ["rope+pi", "rope+pi | windowed"]
    assert labels(made, "explicit") == ["rope+pi", explicit]
    assert kinds(made) == {"train": 1, "evaluate": 2}
    cells = {part: [e.cell for e in made.evaluations if e.trial.part == part] for part in ("companion", "explicit")}
    assert cells["companion"] == cells["explicit"]
    assert [str(e.spec) for e in made.evaluations][1] == explicit


def test_another_test_length_tests_all_of_them_again_and_trains_nothing():
    schemes = ["rope"]
    one, more = (plan(f"test.lengths={lengths}", schemes=schemes).cells for lengths in ("[1x, 2x]", "[1x, 2x, 4x]"))
    assert [one[key].kind for key in one.keys() & more.keys()] == ["train"]


def test_after_tuning_a_companion_has_the_tuned_factor():
    made = plan("test.companion=true", schemes=[{"scheme": "rope+pi", "tune": [2]}])
    assert labels(made) == ["rope+pi, 2 steps @ 2x", "rope+pi, 2 steps @ 2x | windowed"]
    assert kinds(made) == {"train": 1, "tune": 1, "evaluate": 2}
    factor = f"{25 / 13:.4g}"
    assert all(str(e.spec).startswith(f"rope+pi:factor={factor[:5]}") for e in made.evaluations)


def test_mixtures_and_schemes_with_a_window_have_no_companion():
    mixture = {"label": "mixed", "scheme": {"heads": {"rope": 1, "nope": 1}}}
    made = plan("test.companion=true", schemes=["alibi", "rope+window:size=3", mixture])
    assert labels(made) == ["alibi", "alibi | windowed", "rope+window:size=3", "mixed"]


# ---- tasks --------------------------------------------------------------------------------------


def test_step_counts_of_tuning_share_one_training():
    made = plan(schemes=[{"scheme": "rope", "tune": [0, 2, 3]}, {"scheme": "rope+pi", "tune": [2]}])
    assert kinds(made) == {"train": 1, "tune": 3, "evaluate": 4}
    assert len({cell.parent for cell in made.cells.values() if cell.kind == "tune"}) == 1


def test_each_task_and_form_is_trained_by_itself():
    made = plan(
        tasks=["reverse_string", "copy:symbols=4", "copy:symbols=100", "copy"],
        parts={"a": {}, "b": {"form": "encoder"}},
    )
    assert kinds(made) == {"train": 6, "evaluate": 6}
    assert [e.test.material.name for e in made.evaluations if e.trial.part == "a"] == [
        "reverse_string",
        "copy:symbols=4",
        "copy",
    ]


def test_what_is_written_twice_is_tested_once(text):
    made = plan("test.protocols=[answers,answers]", tasks=["copy:variant=random", "copy"])
    assert kinds(made) == {"train": 1, "evaluate": 1}
    test = {"lengths": ["1x"], "protocols": ["sliding", "prefix", "sliding"]}
    assert kinds(plan(tasks=["language_modelling"], data=text, test=test)) == {"train": 1, "evaluate": 2}


def test_a_tuning_length_without_questions_is_refused():
    tuned = [{"scheme": "rope", "tune": [2]}]
    assert plan(tasks=["lego:variables=12"], schemes=tuned)
    with pytest.raises(UserError, match="lego has no questions of length 18; its longest have length 12"):
        plan("tune.length=3x", tasks=["lego:variables=12"], schemes=tuned)
    assert plan("tune.length=3x", tasks=["lego:variables=12"]), "nothing is tuned"


CHANGES = {
    "train.lengths=uniform": (True, True),
    "train.length=7": (True, True),
    "tasks=[odds_first]": (True, True),
    "form=encoder": (True, True),
    "test.windows=3": (False, True),
    "test.protocols=[generation]": (False, True),
    "test.companion=true": (False, True),
    "train.lrs=[2e-3]": (False, True),
    "test.lengths=[1x]": (False, True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_cell_of_a_task_is_named_by_what_determines_it(change):
    base, other = plan().cells, plan(change).cells
    new = tuple(any(c.kind == kind for key, c in other.items() if key not in base) for kind in ("train", "evaluate"))
    assert new == CHANGES[change]


def test_editing_the_source_of_a_task_renames_its_cells_and_no_others(text, monkeypatch):
    def planned():
        made = plan("test.lengths=[1x]", tasks=["language_modelling", "reverse_string"], data=text)
        return {e.test.material.name: {e.cell, *made.ancestors(e.cell)} for e in made.evaluations}

    before, original = planned(), Entry.source_hash.fget
    edited = property(lambda entry: "edited" if entry.name == "reverse_string" else original(entry))
    monkeypatch.setattr(Entry, "source_hash", edited)
    after = planned()
    assert before["language_modelling"] == after["language_modelling"]
    assert not before["reverse_string"] & after["reverse_string"]
    assert len(after["reverse_string"]) == 2


@pytest.fixture(scope="module")
def whole():
    """Parts with a choice, a companion and tunings, in both forms."""
    return recipe(
        parts={
            "chosen": {"train": {"lrs": [1e-3, 1e-2]}, "test": {"companion": True}},
            "tuned": {
                "form": "encoder",
                "tasks": ["missing_duplicate_string"],
                "schemes": ["learned", {"scheme": "rope+pi", "tune": [0, 2]}],
                "train": {"lengths": "uniform", "min_length": 4},
            },
            "answers": {
                "tasks": ["multi_key:n_keys=1"],
                "train": {"length": 8},
                "test": {"protocols": ["answers", "generation"]},
            },
        }
    )


@pytest.mark.slow
@pytest.mark.ci
def test_a_worker_gives_the_numbers_of_this_process_and_finished_parts_are_kept(whole, tmp_path):
    here = Study.prepare(whole, out=tmp_path / "here")
    results = run_here(here)
    first = Study.prepare(whole | {"parts": {"tuned": whole["parts"]["tuned"]}}, out=tmp_path / "worker")
    run_here(first)
    finished = {key: (first.store.path(key) / "done.json").read_bytes() for key in first.plan.cells}

    study = Study.prepare(whole, out=tmp_path / "worker")
    assert kinds(study.plan) == {"train": 5, "choose": 1, "tune": 1, "evaluate": 7}
    assert values(study.run()) == values(results)
    assert {key: (study.store.path(key) / "done.json").read_bytes() for key in finished} == finished
    assert read(study.results_path) == study.results()

    by = {(r.part, r.label, r.protocol, r.test_length, r.metric, r.depth): r for r in results}
    assert len(by) == len(results)
    assert by["tuned", "learned", "answers", 12, "exact_match", None].status == "undefined"
    assert {r.status for r in results} == {"ok", "undefined"}
    tuned = by["tuned", "rope+pi, 2 steps @ 2x", "answers", 12, "exact_match", None]
    assert (tuned.train_length, tuned.length_ratio, tuned.finetune_length) == (6, 2, 12)
    assert tuned.corpus == "missing_duplicate_string, encoder form"
    assert tuned.scale_factor == pytest.approx(13 / 7), "in tokens"
    for protocol in ("answers", "generation"):
        depths = {r.depth for r in results if (r.part, r.protocol) == ("answers", protocol)}
        assert depths == {None, *(i / 10 for i in range(11))}
        assert by["answers", "rope", protocol, 16, "k_max", None].task == "multi_key:n_keys=1"
    assert {r.protocol for r in results if r.metric == "loss"} == {"answers"}


# ---- tasks for language models ------------------------------------------------------------------


def test_a_language_model_is_tested_on_tasks_of_its_vocabulary(text, tmp_path):
    keys = {"data": text, "tasks": ["language_modelling"], "train": recipe()["train"] | {"length": 32}}
    test = {"lengths": [32, 300], "windows": 2, "tasks": ["passkey_text"]}
    study = Study.prepare(recipe(test=test, **keys), out=tmp_path)
    assert kinds(study.plan) == {"train": 1, "evaluate": 2}
    results = run_here(study)
    assert {(r.task, r.protocol, r.corpus) for r in results} == {
        ("language_modelling", "prefix", study.plan.evaluations[0].test.material.source),
        ("passkey_text", "answers", "passkey_text, causal form"),
    }
    asked = [r for r in results if r.task == "passkey_text"]
    assert {r.depth for r in asked if r.test_length == 300} == {None, *(i / 10 for i in range(11))}
    assert all(r.status == "ok" for r in asked if r.test_length == 300)
    short = [r for r in asked if r.test_length == 32]
    assert {r.status for r in short} == {"undefined"}
    assert all("needs a length of at least" in r.reason for r in short)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (["passkey"], "test.tasks: passkey has a vocabulary of 32, the text of data one of 256"),
        (["passkey_txt"], "'passkey_txt' is no task. Did you mean 'passkey_text'"),
    ],
)
def test_a_task_that_a_language_model_cannot_read_is_refused(tasks, message, text):
    test = {"lengths": ["1x"], "tasks": tasks}
    with pytest.raises(UserError, match=message):
        plan(tasks=["language_modelling"], data=text, test=test)


def test_a_plan_survives_being_written_down(whole):
    """What workers get is JSON, and the recipe beside the results makes the same cells."""
    made = make_plan(load_recipe(whole))
    for key, cell in made.cells.items():
        assert Cell("", json.loads(json.dumps(cell.inputs))).key == key
    assert make_plan(load_recipe(load_recipe(whole).to_dict())).cells.keys() == made.cells.keys()
