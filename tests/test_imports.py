"""What is imported when: a command that needs no PyTorch does not wait for it, nor a list of names for what trains."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import pezoo

INIT = Path(pezoo.__file__)


def loaded_after(*commands):
    """Names of the modules of a fresh process that has run these command lines."""
    code = (
        "import contextlib, io, json, sys\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n"
        "    from pezoo.cli import main\n"
        f"    for command in {commands!r}:\n"
        "        with contextlib.suppress(SystemExit): main(command.split())\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(done.stdout)}


def test_what_is_said_at_once_needs_no_library():
    helps = [f"{name} --help" for name in ("list", "show", "run", "evaluate", "report", "export", "generate", "new")]
    loaded = loaded_after("--help", "--version", "lsit", "list --exten", *helps)
    strangers = loaded - set(sys.stdlib_module_names) - {"pezoo", "__main__", "sitecustomize", "_distutils_hack"}
    assert not {name for name in strangers if not name.startswith("__editable__")}


@pytest.mark.slow
@pytest.mark.ci
def test_names_and_facts_need_nothing_that_trains_or_draws():
    loaded = loaded_after("list", "list --tasks", "show rope")
    assert "torch" in loaded
    assert not loaded & {"matplotlib", "omegaconf", "pandas", "pytorch_lightning", "scipy", "yaml"}


def test_the_door_opens_to_what_is_declared():
    """What type checkers read, what is imported when asked for, and what is public are the same names."""
    declared = set()
    for node in ast.parse(INIT.read_text()).body:
        if isinstance(node, ast.If):
            declared |= {(a.asname or a.name) for one in node.body for a in getattr(one, "names", [])}
        elif isinstance(node, ast.FunctionDef):
            declared.add(node.name)
    assert set(pezoo.__all__) <= declared
    assert set(pezoo.__all__) <= set(dir(pezoo))
    for name in pezoo.__all__:
        assert getattr(pezoo, name) is not None
    assert pezoo.Scheme.__module__ == "pezoo.compose.scheme"
    assert pezoo.attend.__name__ == "attend_with"


def test_modules_are_found_behind_the_door(monkeypatch):
    for name in ("registry", "scheme", "task"):
        monkeypatch.delattr(pezoo, name)
        assert getattr(pezoo, name) is sys.modules[f"pezoo.{name}"]
    with pytest.raises(AttributeError, match="no attribute 'ropes'"):
        pezoo.ropes  # noqa: B018


@pytest.mark.parametrize("name", ["Corpus", "DataConfig", "Tokens", "Windows", "crops", "load", "windows"])
def test_the_room_of_data_opens_too(name):
    from pezoo import data

    assert getattr(data, name).__name__ == name
    assert name in data.__all__
