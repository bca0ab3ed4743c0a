"""Cells that heal: whole or made anew, failures tried again, and what computed them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pezoo.files
import pezoo.study.store
from helpers import damage, values, write_words
from pezoo.contract import Undefined
from pezoo.errors import UserError
from pezoo.files import sweep
from pezoo.model.transformer import Transformer
from pezoo.outcome import describe_end, outcome
from pezoo.results import read
from pezoo.study import Study, make_plan
from pezoo.study.cells import run_cell
from pezoo.study.collect import Failure
from pezoo.study.plan import Cell
from pezoo.study.reading import load_recipe

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A training, a tuning, and their two evaluations."""
    return {
        "study": "healing",
        "schemes": [{"scheme": "rope+pi", "tune": [0, 2]}],
        "data": write_words(tmp_path_factory.mktemp("text")),
        "model": {"d_model": 16, "n_layers": 1, "n_heads": 2},
        "train": {"length": 16, "steps": 3, "batch_size": 4, "warmup_steps": 2},
        "tune": {"length": "4x", "warmup_steps": 1},
        "test": {"lengths": ["1x", "4x"], "windows": 4},
    }


def run_here(study, hidden=Transformer.hidden):
    """Run what is not done in this process, with `hidden` in tests alone; return the titles of those cells."""
    study._begin()
    made = []
    for key, cell in study.plan.cells.items():
        if not study.store.done(key):
            with pytest.MonkeyPatch.context() as patch:
                if cell.kind == "evaluate":
                    patch.setattr(Transformer, "hidden", hidden)
                run_cell(cell, study.store, study.plan.corpora, lambda *_: None)
            made.append(cell.title)
    study._write()
    return made


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    study = Study.prepare(recipe, out=tmp_path_factory.mktemp("finished") / "study")
    assert len(run_here(study)) == 4
    return study


@pytest.fixture
def copy(finished, tmp_path):
    """The finished study somewhere else."""
    shutil.copytree(finished.out, tmp_path / "study")
    return Study(finished.plan, tmp_path / "study")


# ---- whole or made anew -------------------------------------------------------------------------


TRAIN, TUNE, EVALUATE = "train rope, seed 0", "tune rope+pi, 2 steps @ 4x, seed 0", "evaluate rope+pi, seed 0"
DAMAGES = [(way, EVALUATE) for way in ("empty", "zeros", "half", "flipped", "deleted", "a folder")]


@pytest.mark.parametrize(("way", "title"), [*DAMAGES, ("half", TRAIN), ("flipped", TRAIN), ("deleted", TUNE)])
def test_a_damaged_cell_is_made_anew_and_a_line_says_so(finished, copy, way, title, capsys):
    [key] = [key for key, cell in copy.plan.cells.items() if cell.title == title]
    for name in sorted(path.name for path in finished.store.path(key).iterdir()):
        damage(copy.store.path(key) / name, way)
        again = Study(finished.plan, copy.out)
        assert not again.store.done(key)
        assert run_here(again) == [title]
        assert values(read(copy.results_path)) == values(finished.results())
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith(f"damaged, and made anew: {title} ({name} ")
        assert {p.name for p in again.store.folder.iterdir()} == set(again.plan.cells)


def test_many_damaged_cells_are_one_line(finished, copy, capsys):
    for path in copy.store.folder.iterdir():
        (path / "done.json").write_text("{}")
    assert len(run_here(copy)) == 4
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith(" and 1 more")
    assert run_here(Study(finished.plan, copy.out)) == []
    assert capsys.readouterr().err == ""


def test_a_file_in_place_of_a_cell_is_replaced(finished, copy):
    key = list(copy.plan.cells)[-1]
    shutil.rmtree(copy.store.path(key))
    copy.store.path(key).touch()
    assert run_here(copy) == [copy.plan.cells[key].title]
    assert values(copy.results()) == values(finished.results())


def test_results_without_a_run_leave_out_what_is_damaged(finished, copy):
    damage(next(copy.store.folder.glob("*/losses_64.npz")), "flipped")
    assert len(copy.results()) == len(finished.results()) // 2


def test_the_files_of_a_cell_are_read_once_in_a_run(copy, monkeypatch):
    reads, whole = [], pezoo.files.hashlib.file_digest
    monkeypatch.setattr(pezoo.files, "_digests", {})
    monkeypatch.setattr(pezoo.files.hashlib, "file_digest", lambda f, *a: reads.append(f.name) or whole(f, *a))
    run_here(copy)
    copy.results()
    assert len(reads) == len(set(reads)) == 2 + 2 * 2  # two models, and losses at two lengths of each


def test_temporary_files_of_killed_runs_are_swept(copy):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    alive = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    report = copy.out / "report"
    report.mkdir()
    left = [
        folder / f".{name}.{dead.pid}.tmp" for folder in (copy.out, report) for name in ("results.jsonl", "a b.png")
    ]
    kept = [report / f".report.md.{alive.pid}.tmp", copy.out / ".mine.tmp", report / "report.md"]
    for path in (*left, *kept):
        path.touch()
    try:
        run_here(copy)
        assert not any(path.exists() for path in left)
        assert all(path.exists() for path in kept)
    finally:
        alive.communicate()
    sweep(report)
    assert not kept[0].exists()


# ---- a failure is no result ---------------------------------------------------------------------


def out_of_memory(self, tokens, positions=None, cache=None, inner=Transformer.hidden):
    if tokens.shape[1] > 16:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return inner(self, tokens, positions, cache)


def test_a_length_without_enough_memory_is_told_and_tried_again(finished, recipe, tmp_path):
    study = Study.prepare(recipe, out=tmp_path)
    assert len(run_here(study, out_of_memory)) == 4
    found = read(study.results_path)
    by = {(r.label, r.test_length): r for r in found if r.metric == "loss"}
    assert {r.test_length: r.status for r in found} == {16: "ok", 64: "out_of_memory"}
    assert by["rope+pi", 64].reason == "CUDA out of memory"
    titles = [c.title for key, c in study.plan.cells.items() if not study.store.done(key)]
    assert [title.split()[0] for title in titles] == ["evaluate", "evaluate"]

    again = Study.prepare(recipe, out=tmp_path)
    again._begin()
    assert len(read(again.results_path)) == len(found), "what was found stays until it is found again"
    assert run_here(again) == titles
    assert values(again.results()) == values(finished.results())


def test_a_failure_takes_the_place_of_an_earlier_lack_of_memory(recipe, tmp_path):
    study = Study.prepare(recipe, out=tmp_path)
    run_here(study, out_of_memory)
    key = next(e.cell for e in study.plan.evaluations if e.label == "rope+pi")
    study.failures[key] = Failure("failed", "ValueError: a bug")
    found = [r for r in study.results() if r.label == "rope+pi"]
    assert {(r.status, r.reason) for r in found} == {("failed", "evaluate rope+pi, seed 0: ValueError: a bug")}


def test_a_training_without_enough_memory_is_not_stored(recipe, tmp_path, monkeypatch):
    def hidden(*_, **__):
        raise MemoryError

    study = Study.prepare(recipe, out=tmp_path)
    train = next(iter(study.plan.cells.values()))
    monkeypatch.setattr(Transformer, "hidden", hidden)
    with pytest.raises(MemoryError, match="not enough memory"):
        run_cell(train, study.store, study.plan.corpora, lambda *_: None)
    assert list(study.store.folder.iterdir()) == []


def test_a_model_that_cannot_be_built_is_not_built_to_tell_that(recipe, tmp_path, monkeypatch):
    def model(cell):
        raise MemoryError

    study = Study.prepare(recipe, out=tmp_path)
    monkeypatch.setattr(Cell, "model", model)
    study.failures[next(iter(study.plan.cells))] = Failure("out_of_memory", "too large")
    found = study.results()
    assert {(r.status, r.reason, r.params) for r in found} == {
        ("out_of_memory", "train rope, seed 0: too large", None),
    }
    assert {r.test_length for r in found} == {16, 64}


REFUSES = """
import os
import sys

from pezoo import Encoding, register


@register("refuses", title="Ends the process that loads it, unless that is the one of the test")
class Refuses(Encoding):
    pass


if os.getpid() != THE_TEST:
    LEAVE(5)
"""
REASONS = {
    "raises": ("failed", "ValueError: a bug"),
    "mistaken": ("failed", "UserError: my mistake"),
    "leaves": ("failed", "SystemExit: 3"),
    "gone": ("failed", "its process ended with exit code 7"),
    "hungry": ("out_of_memory", "no room"),
}


@pytest.mark.slow
@pytest.mark.ci
def test_failed_cells_are_told_with_their_reason_and_tried_again(recipe, tmp_path, capsys):
    shutil.copy(ROOT / "tools" / "faults" / "failing.py", tmp_path / "plugin.py")
    (tmp_path / "bad").touch()
    plan = recipe | {"parts": {"huge": {"schemes": ["nope"], "model": {"d_model": 2_000_000}}, "small": {}}}
    plan |= {"schemes": [*REASONS, "nope"]}
    out, plugins = tmp_path / "out", [tmp_path / "plugin.py"]
    study = Study.prepare(plan, out=out, plugins=plugins)
    study.run()
    told = capsys.readouterr()
    assert "Traceback" not in told.out + told.err
    assert sorted(study.plan.cells[key].title for key in study.failures) == [
        *(f"evaluate {name} on small, seed 0" for name in sorted(REASONS)),
        "train nope on huge, seed 0",
    ]
    by = {(r.part, r.label, r.test_length): r for r in read(out / "results.jsonl") if r.metric == "loss"}
    assert by["small", "nope", 64].status == "ok"
    huge = by["huge", "nope", 16]
    assert (huge.status, huge.params) == ("out_of_memory", None)
    for name, (status, reason) in REASONS.items():
        found = by["small", name, 64]
        assert (found.status, found.reason.endswith(reason)) == (status, True), found.reason
        assert f"evaluate {name} on small, seed 0: {status}: " in told.err
    assert by["small", "hungry", 16].status == "ok"
    logs = "".join(path.read_text() for path in (out / "logs").iterdir())
    assert all(text in logs for text in ("Traceback", "ValueError: a bug", "UserError: my mistake", "SystemExit: 3"))

    (tmp_path / "bad").unlink()
    again = Study.prepare(plan, ["parts.huge.model.d_model=16"], out, plugins)
    again.run()
    assert not again.failures
    assert {r.status for r in read(out / "results.jsonl")} == {"ok"}
    assert "train raises" not in capsys.readouterr().err, "its training was kept"


SLEEPY = """
import time

from pezoo import Encoding, register


@register("sleepy", title="Never returns from a long test")
class Sleepy(Encoding):
    def embed(self, x, positions):
        while x.shape[1] > 16:
            time.sleep(1)
        return x
"""


@pytest.mark.slow
def test_a_cell_that_takes_too_long_is_ended_and_the_others_run(recipe, tmp_path):
    (tmp_path / "plugin.py").write_text(SLEEPY)
    overrides = ["schemes=[sleepy, nope]", "cell_minutes=0.25"]
    study = Study.prepare(recipe, overrides, tmp_path / "out", [tmp_path / "plugin.py"])
    by = {(r.label, r.test_length): r for r in study.run()}
    assert [study.plan.cells[key].title for key in study.failures] == ["evaluate sleepy, seed 0"]
    assert by["sleepy", 16].reason == "evaluate sleepy, seed 0: it took longer than cell_minutes=0.25"
    assert by["nope", 64].status == "ok"


@pytest.mark.parametrize("minutes", [0, -1, "inf", "nan", "long"])
def test_a_limit_is_a_number_of_minutes(recipe, minutes):
    with pytest.raises(UserError, match="cell_minutes"):
        load_recipe(recipe, [f"cell_minutes={minutes}"])


def test_a_limit_renames_no_cell(recipe, finished):
    assert make_plan(load_recipe(recipe, ["cell_minutes=5"])).cells == finished.plan.cells


def test_a_baseline_is_the_label_of_a_row_and_renames_no_cell(recipe, finished):
    label = "rope+pi, 2 steps @ 4x"
    assert make_plan(load_recipe(recipe, [f"baseline='{label}'"])).cells == finished.plan.cells
    with pytest.raises(UserError, match=r"baseline must be the label of one .* got 'rope'\. Did you mean"):
        make_plan(load_recipe(recipe, ["baseline=rope"]))
    with pytest.raises(UserError, match=r"got 'x'\. They are 'rope\+pi', 'rope\+pi, 2 steps @ 4x'"):
        make_plan(load_recipe(recipe, ["baseline=x"]))


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize(
    ("leave", "code", "said"),
    [("sys.exit", 1, r"SystemExit: 5 \(.*plugin\.py, line \d+\)"), ("os._exit", 5, None)],
    ids=["by an error", "at once"],
)
def test_a_worker_that_ends_at_its_start_is_told_by_its_own_exit_code(leave, code, said, recipe, tmp_path):
    code_of_it = (
        REFUSES.replace("THE_TEST", str(os.getpid())).replace("LEAVE", leave).replace("refuses", f"leaves_{code}")
    )
    (tmp_path / "plugin.py").write_text(code_of_it)
    study = Study.prepare(recipe, out=tmp_path / "out", plugins=[tmp_path / "plugin.py"])
    log = tmp_path / "out" / "logs" / "worker0.log"
    where = ", and said nothing" if said is None else f"; see {log}"
    with pytest.raises(ChildProcessError, match=re.escape(f"could not start: it ended with exit code {code}{where}")):
        study.run()
    assert log.exists() == (said is not None)
    assert said is None or re.search(said, log.read_text())


@pytest.mark.parametrize(
    ("code", "how"),
    [
        (0, "ended with exit code 0"),
        (-9, "was killed by signal 9 (SIGKILL), as happens when memory runs out"),
        (-11, "was killed by signal 11 (SIGSEGV): a crash in compiled code"),
        (-15, "was killed by signal 15 (SIGTERM)"),
        (-63, "was killed by signal 63"),
        (None, "closed its output"),
    ],
)
def test_how_a_process_ended_is_told_by_its_exit_code(code, how):
    assert describe_end(code) == how


@pytest.mark.parametrize("error", [Undefined(), Undefined(" \n"), MemoryError(), ValueError()])
def test_every_end_has_a_reason(error):
    """A result without a value must have one."""
    assert outcome(error)[1]


# ---- what computed it ---------------------------------------------------------------------------


def test_results_name_what_trained_and_what_tested(recipe, tmp_path, monkeypatch):
    recipe = recipe | {"train": recipe["train"] | {"lrs": [0.01, 0.001]}}
    study, machines = Study.prepare(recipe, out=tmp_path), {}
    for cell in study.plan.cells.values():
        kind = cell.kind
        machines[kind] = {"device": f"GPU {kind}", "machine": f"M {kind}", "versions": {"torch": kind}}
        monkeypatch.setattr(pezoo.study.store, "provenance", lambda device, kind=kind: machines[kind])
        run_cell(cell, study.store, study.plan.corpora, lambda *_: None)
    assert machines.keys() == {"train", "choose", "tune", "evaluate"}
    found = study.results()
    assert {(r.device, r.machine, r.versions["torch"]) for r in found} == {("GPU evaluate", "M evaluate", "evaluate")}
    assert {(r.train_device, r.train_machine, r.train_versions["torch"]) for r in found} == {
        ("GPU train", "M train", "train")
    }


def test_what_computes_is_named(finished):
    for r in finished.results():
        assert r.machine == r.train_machine != ""
        assert (r.device, r.train_device) == ("cpu", "cpu")
        assert r.versions == r.train_versions
        assert r.versions["torch"] == torch.__version__
