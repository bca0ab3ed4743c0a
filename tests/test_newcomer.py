"""The path of somebody new, in six commands: from a clean checkout to an encoding of their own beside a baseline.

Everything runs as it is typed. Alone the packages that pezoo needs are not fetched: the checkout's environment borrows
those that run this test.
"""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from pezoo.results import read

ROOT = Path(__file__).parents[1]


@pytest.fixture
def checkout(tmp_path):
    """A clean clone, with this working tree's files, whose environment is made and has pezoo in it."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    folder = tmp_path / "pezoo"
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
    changed = subprocess.run(["git", "diff", "--binary", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
    if changed:
        subprocess.run(["git", "apply"], input=changed, cwd=folder, check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / ".venv"], check=True)
    (library,) = folder.glob(".venv/lib/python*/site-packages")
    (library / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", folder / ".venv" / "bin" / "python", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--editable", folder], check=True)
    for stamp in (".created", ".installed"):  # what make writes when it has done the same
        (folder / ".venv" / stamp).touch()
    return folder


@pytest.fixture
def typed(checkout):
    """Run a command as it is typed in the checkout; return what it prints."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"COLUMNS": "200"}

    def run(command):
        done = subprocess.run(command, shell=True, cwd=checkout, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


@pytest.mark.slow
def test_from_a_clone_to_an_encoding_beside_a_baseline(checkout, typed):
    demo = typed("make demo SIZE=test")
    pezoo = re.search(r"^To go on: +(\S+) list$", demo, re.MULTILINE)[1]
    assert f"source {Path(pezoo).with_name('activate')}" in demo

    assert "alibi" in typed(f"{pezoo} report runs/quickstart-test")
    assert (checkout / "runs/quickstart-test/report/table.md").stat().st_size > 500

    said = typed(f"{pezoo} new mine").splitlines()
    check, run = (line.strip().removeprefix("pezoo ") for line in said[1:3])
    assert " 0 failed" in typed(f"{pezoo} {check}")

    run = re.sub(r"'schemes=.*?'", "'schemes=[alibi,mine]'", run)
    compared = typed(f"{pezoo} {run} size=test baseline=alibi --out runs/mine")
    values = {r.label for r in read(checkout / "runs/mine/results.jsonl") if r.status == "ok"}
    assert values == {"alibi", "mine"}
    assert "ratio to alibi, the study's baseline" in compared

    assert "ratio to alibi" in typed(f"{pezoo} report runs/mine")
