"""Plug-ins: a package with an entry point of group `pezoo.members`, installed beside pezoo."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pezoo.results import read

TESTS = Path(__file__).parent
pytestmark = [pytest.mark.slow, pytest.mark.ci]


@pytest.fixture(scope="module")
def pezoo(tmp_path_factory):
    """The command, in an environment that has the example package installed."""
    source, target = tmp_path_factory.mktemp("source") / "package", tmp_path_factory.mktemp("site")
    shutil.copytree(TESTS / "plugin_package", source)  # building leaves files in its folder
    install = ["install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--target", target, source]
    subprocess.run([sys.executable, "-m", "pip", *map(str, install)], check=True)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(target), str(TESTS.parent)))}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "pezoo", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_an_installed_member_is_listed(pezoo):
    (found,) = json.loads(pezoo("list", "example_*", "--json"))
    assert (found["name"], found["family"], found["title"]) == ("example_gaussian", "bias", "Gaussian window")
    assert "Gaussian window" in pezoo("list")


def test_an_installed_member_passes_the_kit(pezoo):
    statuses = {o["status"] for o in json.loads(pezoo("check", "example_gaussian", "--json"))}
    assert statuses == {"pass", "skip"}


def test_an_installed_member_trains(pezoo, tmp_path):
    schemes = "schemes=[example_gaussian,example_gaussian+pi]"
    pezoo("run", "quickstart", "size=test", schemes, "--out", str(tmp_path / "out"))
    results = [r for r in read(tmp_path / "out" / "results.jsonl") if r.metric == "perplexity"]
    assert {r.scheme for r in results} == {"example_gaussian", "example_gaussian+pi"}
    assert {r.status for r in results} == {"ok"}
