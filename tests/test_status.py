"""`pezoo status` and `pezoo clean`: where a study stands, and what it does not use any more."""

import json
import os
import socket
from pathlib import Path

import pytest

from helpers import run_cells
from pezoo.cli import main
from pezoo.errors import UserError
from pezoo.study import Study, status
from pezoo.study.collect import Failure
from pezoo.study.plan import VERSIONS
from pezoo.study.progress import make_progress
from pezoo.study.status import Status, read_status
from pezoo.study.study import holding
from pezoo.study.unused import find_unused


@pytest.fixture
def recipe(tmp_path):
    text = tmp_path / "words.txt"
    text.write_text("one two three four five six seven eight nine ten\n" * 60)
    return {
        "study": "mine",
        "schemes": ["nope", "alibi"],
        "data": {"corpus": "text", "path": str(text)},
        "model": {"d_model": 8, "n_layers": 1, "n_heads": 2},
        "train": {"length": 8, "steps": 2, "batch_size": 2, "warmup_steps": 1},
        "test": {"lengths": ["1x", "2x"], "windows": 2},
    }


@pytest.fixture
def study(recipe, tmp_path):
    made = Study.prepare(recipe, out=tmp_path / "out")
    made.out.mkdir()
    return made


def watched(study, done=()):
    estimate = study.estimate()
    return Status(study.out, study.plan, done, make_progress(0, len(study.plan.cells), estimate=estimate), estimate)


def test_what_is_queued_running_done_and_failed_is_told_while_the_study_runs(study, monkeypatch, capsys):
    monkeypatch.setattr(status, "WRITE_SECONDS", 0)
    first, second = [cell for cell in study.plan.cells.values() if cell.kind == "train"]
    with watched(study) as told:
        assert read_status(study.out)["queued"] == 4
        told.start(first)
        told.write_again = 0.0
        told.update(first, 1, 2, 3.25)
        found = read_status(study.out)
        assert (found["state"], found["queued"]) == ("running", 3)
        assert found["running"][first.key].items() >= {"done": 1, "total": 2, "loss": 3.25}.items()
        assert main(["status", str(study.out)]) == 0
        shown = capsys.readouterr().out
        assert all(words in shown for words in ("at work", "done 0 of 4 cells", "1 of 2", "3.250", first.title))
        told.finish(first, 1.0, None, {"status": "ok", "final_loss": 3.0})
        told.start(second)
        told.finish(second, 1.0, Failure("failed", "it broke"), None)
    found = read_status(study.out)
    assert (found["state"], found["done"], found["running"]) == ("ended", {"train": 1}, {})
    assert main(["status", str(study.out)]) == 0
    assert f"failed: {second.title}: it broke" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({}, "running"),
        ({"process": 2**22 + 1}, "killed"),
        ({"process_began": 1}, "killed" if Path("/proc/self/stat").exists() else "running"),
        ({"process_began": None}, "running"),
        ({"host": "elsewhere"}, "running"),
        ({"host": "elsewhere", "written": "2020-01-01T00:00:00+00:00"}, "silent"),
    ],
)
def test_a_run_that_was_killed_or_has_gone_silent_is_told(study, capsys, change, state):
    with watched(study):
        facts = json.loads((study.out / status.STATUS).read_text())
    assert (facts["host"], facts["process"]) == (socket.gethostname(), os.getpid())
    facts |= {"running": {"a1": {"title": "train rope", "began": facts["began"]}}}
    (study.out / status.STATUS).write_text(json.dumps(facts | {"state": "running"} | change))
    assert main(["status", str(study.out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["state"] == state
    assert len(told["running"]) == (state != "killed"), "nothing runs without its process"
    assert told["queued"] == sum(facts["cells"].values()) - len(told["running"])


def test_a_run_that_is_stopped_says_so_and_how_to_go_on(study, capsys):
    with pytest.raises(KeyboardInterrupt), watched(study):
        raise KeyboardInterrupt
    main(["status", str(study.out)])
    shown = capsys.readouterr().out
    assert "stopped" in shown
    assert f"to go on: pezoo run {study.out}" in shown


@pytest.mark.parametrize("content", [None, b"{", b"[]", b'{"state": 1}'])
def test_a_folder_without_a_status_or_with_a_damaged_one_is_one_message(study, content):
    if content is not None:
        (study.out / status.STATUS).write_bytes(content)
    with pytest.raises(UserError, match="damaged" if content else "no study was run there"):
        read_status(study.out)


def test_cells_that_a_changed_recipe_does_not_use_are_listed_and_removed_on_request(recipe, study, capsys):
    run_cells(study)
    study.run(progress=make_progress(0, 4))
    assert find_unused(study.out) == []
    fewer = Study.prepare(recipe, ["schemes=[nope]"], study.out)
    fewer.run(progress=make_progress(2, 2))
    (study.store.folder / "0123456789abcdef.state.pt").write_bytes(b"12")
    assert sorted(one.title for one in find_unused(study.out)) == [
        "curves of alibi/seed0",
        "evaluate alibi, seed 0",
        "state of a training that was stopped",
        "train alibi, seed 0",
    ]
    assert main(["clean", str(study.out)]) == 0
    assert "4 not used" in capsys.readouterr().out
    assert len(list(study.store.folder.iterdir())) == 5
    with holding(study.out):
        assert main(["clean", str(study.out), "--remove"]) == 2  # a run is at work
    assert main(["clean", str(study.out), "--remove"]) == 0
    assert {path.name for path in study.store.folder.iterdir()} == set(fewer.plan.cells)
    assert all(map(fewer.store.done, fewer.plan.cells))


@pytest.mark.parametrize("lrs", ["[]", "[0.001, 0.002]"])
def test_what_results_stand_on_is_used_where_the_recipe_asks_for_other_cells(
    recipe, tmp_path, monkeypatch, capsys, lrs
):
    """As on another device, or with other code."""
    run_cells(old := Study.prepare(recipe, ["schemes=[rope]"], tmp_path / "out"))
    made = Study.prepare(recipe | {"tune": {"steps": [0, 1], "warmup_steps": 0}}, [f"train.lrs={lrs}"], old.out)
    run_cells(made)
    made.run(progress=make_progress(0, 8))
    (made.store.folder / "0123456789abcdef.state.pt").write_bytes(b"12")
    monkeypatch.setitem(VERSIONS, "train", 99)
    assert main(["clean", str(made.out), "--remove"]) == 0
    shown = capsys.readouterr().out
    assert "4 cells of the results" in shown
    assert "2 not used" in shown
    kept = {*made.plan.cells, "0123456789abcdef.state.pt"}
    assert {path.name for path in made.store.folder.iterdir()} == kept
    made.results_path.write_text("")
    assert main(["clean", str(made.out), "--remove"]) == 0
    assert "no results say which it used; all are left" in capsys.readouterr().out
    assert {path.name for path in made.store.folder.iterdir()} == kept


def test_a_folder_that_is_not_there_is_said_to_be_so(tmp_path, capsys):
    assert main(["status", str(tmp_path / "nowhere")]) == 2
    assert "there is no folder" in capsys.readouterr().err
