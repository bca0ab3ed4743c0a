"""The programs in tools/, which are run from a checkout."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

from tools import release

ROOT = Path(__file__).parents[1]


@pytest.fixture
def gpu():
    spec = importlib.util.spec_from_file_location("gpu", ROOT / "tools" / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_unknown_stage_is_refused(gpu, capsys):
    with pytest.raises(SystemExit):
        gpu.main(["test", "--device", "cpu"])
    assert "no stage test; the stages are tests, bench, recipes" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_type(gpu, capsys):
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "make gpu DEVICE=cpu" in capsys.readouterr().err


def test_a_stage_that_fails_says_so_and_the_next_runs(gpu, tmp_path, monkeypatch, capsys):
    codes = {"bad": "raise SystemExit('broken')", "good": "print('fine')"}
    monkeypatch.setattr(gpu, "STAGES", {n: lambda d, o, n=n: [["-c", codes[n]]] for n in codes})
    assert gpu.main(["--device", "cpu", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "bad: FAILED" in printed
    assert "good: ok" in printed
    assert (tmp_path / "bad.txt").read_text() == "broken\n"
    assert [stage["ok"] for stage in json.loads((tmp_path / "summary.json").read_text()).values()] == [False, True]


@pytest.mark.slow
def test_make_gpu_without_one(tmp_path):
    """All stages on a CPU; what each leaves is there, and what was left before is not."""
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "quickstart" / "stale").touch()
    done = subprocess.run(
        [sys.executable, "tools/gpu.py", "--device", "cpu", "--out", str(tmp_path)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert list(summary) == ["tests", "bench", "recipes"]
    assert all(stage["ok"] and stage["torch"] == torch.__version__ for stage in summary.values())
    counts = ElementTree.parse(tmp_path / "tests.xml").getroot()[0].attrib
    assert int(counts["tests"]) > 400
    assert int(counts["skipped"]) < 20  # back-ends that refuse a scheme
    assert {row["scheme"] for row in json.loads((tmp_path / "bench.json").read_text())["encodings"]} >= {"alibi"}
    for recipe in ("quickstart", "recall", "randomized"):
        assert (tmp_path / recipe / "results.jsonl").stat().st_size
    assert not (tmp_path / "quickstart" / "stale").exists()


@pytest.fixture
def faults(monkeypatch):
    """The program and its table of faults, one of which ends as it should, one not, and one cannot be made."""
    monkeypatch.syspath_prepend(ROOT / "tools" / "faults")
    before = set(sys.modules)
    spec = importlib.util.spec_from_file_location("faults", ROOT / "tools" / "faults" / "__main__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    studies = sys.modules["studies"]

    def bad(rng):
        raise studies.Wrong("it went wrong")

    def impossible(rng):
        raise studies.Skipped("no disk")

    cases = {"good": lambda rng: f"{rng.random()}", "bad": bad, "impossible": impossible}
    made = {name: studies.Fault(name, "all is well", lambda *_, c=case: [c] * 3) for name, case in cases.items()}
    monkeypatch.setattr(module, "FAULTS", made)
    yield module
    for name in set(sys.modules) - before:
        if str(ROOT / "tools" / "faults") in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


def test_a_fault_that_ends_wrongly_fails_the_program(faults, tmp_path, capsys):
    assert faults.main(["--save", str(tmp_path / "page.md")]) == 1
    assert "WRONG bad, number 2: it went wrong" in capsys.readouterr().out
    page = (tmp_path / "page.md").read_text()
    assert "| bad | 3 | 0 | all is well |" in page
    assert "| impossible | 0 | 0 | all is well; skipped 3: no disk |" in page
    assert faults.main(["--only", "good", "--only", "impossible", "--save", str(tmp_path / "page.md")]) == 0
    assert "| bad | 3 | 0 | all is well |" in (tmp_path / "page.md").read_text(), "what was not made again is kept"


def test_a_fault_is_repeated_by_its_seed(faults, tmp_path):
    pages = []
    for seed in (1, 1, 2):
        faults.main(["--only", "good", "--seed", str(seed), "--save", str(tmp_path / "page.md")])
        pages.append(next(line for line in (tmp_path / "page.md").read_text().splitlines() if "| good" in line))
    assert pages[0] == pages[1] != pages[2]


def test_what_was_made_before_ctrl_c_counts(faults, tmp_path, monkeypatch):
    def interrupted(rng):
        raise KeyboardInterrupt

    good = faults.FAULTS["good"]
    monkeypatch.setitem(faults.FAULTS, "good", dataclasses.replace(good, cases=lambda *_: [*good.cases(), interrupted]))
    assert faults.main(["--save", str(tmp_path / "page.md")]) == 1
    page = (tmp_path / "page.md").read_text()
    assert "| good | 3 | 3 |" in page
    assert "| bad |" not in page


def test_a_fault_that_there_is_not_is_refused(faults, capsys):
    with pytest.raises(SystemExit):
        faults.main(["--only", "meteor"])
    assert "there are: good; bad; impossible" in capsys.readouterr().err


WORST = ("SIGKILL at any moment", "a file of a finished study", "a saved state", "two runs at once")
"""Faults that lose work; CI makes these, and `make test-all` all of them."""


@pytest.mark.slow
@pytest.mark.parametrize("names", [(), pytest.param(WORST, marks=pytest.mark.ci)], ids=["all", "worst"])
def test_a_few_of_each_fault_end_as_they_should(names, tmp_path):
    only = [word for name in names for word in ("--only", name)]
    done = subprocess.run(
        [sys.executable, "tools/faults", "--short", *only, "--jobs", "2", "--save", str(tmp_path / "page.md")],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    assert "| SIGKILL at any moment of a study | 3 | 3 |" in (tmp_path / "page.md").read_text()


def test_the_lowest_versions_are_those_of_setup_cfg():
    constraints = release.lowest().split()
    assert "numpy==2.2" in constraints
    assert all(line.count("==") == 1 and line.partition("==")[2] for line in constraints)


def test_an_environment_that_is_tried_again_takes_the_place_of_its_row(tmp_path, monkeypatch):
    monkeypatch.setattr(release, "TRIED", tmp_path / "release.json")
    suite = {"what": "default", "passed": 1200, "skipped": 3, "failed": ["a.b"]}
    row = {
        "python": "3.12.1",
        "versions": {"torch": "2.13.0"},
        "dependencies": "newest",
        "system": "Linux",
        "machine": "x86_64",
    }
    for python, more in (("3.12.1", {}), ("3.14.0", {}), ("3.12.9", {"suite": suite})):
        release.keep(row | {"python": python} | more)
    assert [line.split(" | ")[0] for line in release.table().splitlines()[2:]] == ["| 3.12.9", "| 3.14.0"]
    assert "1,200 passed, 3 skipped, 1 failed |" in release.table()
    assert "not run |" in release.table()
