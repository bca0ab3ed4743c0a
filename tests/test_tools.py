"""The programs in tools/, which are run from a checkout."""

import importlib.util
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

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
