"""One run at a time in a folder, also where the file system or the system has no locks."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pezoo
from pezoo.errors import UserError
from pezoo.study import study
from pezoo.study.study import _locked

ROOT = Path(__file__).parents[1]


@pytest.fixture(params=[errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, None], ids=str)
def no_flock(request, monkeypatch):
    """A file system that refuses locks in one of the ways there are, or a system that has none."""

    def refuse(*_):
        raise OSError(request.param, os.strerror(request.param))

    if request.param is None:
        monkeypatch.setattr(study, "fcntl", None)
    else:
        monkeypatch.setattr(study.fcntl, "flock", refuse)


def test_a_folder_is_held_without_flock(no_flock, tmp_path):
    with _locked(tmp_path):
        mark = tmp_path / ".held"
        assert mark.read_text().split()[0] == str(os.getpid())
        other = "from pathlib import Path; from pezoo.study import study; study.fcntl = None\n"
        other += f"with study._locked(Path({str(tmp_path)!r})): print('held twice')"
        done = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 1
        assert f"another run (process {os.getpid()} on " in done.stderr
        assert str(mark) in done.stderr
    assert not mark.exists()
    with _locked(tmp_path):
        pass


def test_a_mark_of_a_process_that_has_ended_does_not_count(no_flock, tmp_path):
    code = "import os, sys; from pathlib import Path; from pezoo.study import study; study.fcntl = None\n"
    code += "with study._locked(Path(sys.argv[1])): os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT).returncode == 9
    assert (tmp_path / ".held").exists()
    with _locked(tmp_path):
        pass


def test_a_lock_that_fails_otherwise_names_the_folder(monkeypatch, tmp_path):
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(study.fcntl, "flock", fail)
    with (
        pytest.raises(UserError, match=f"cannot lock {tmp_path}: Input/output error; choose another --out"),
        _locked(tmp_path),
    ):
        pass


def test_with_flock_the_file_names_the_process(tmp_path):
    (tmp_path / ".lock").write_bytes(b"\xff\xfe left by a crash")
    with _locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())
        with pytest.raises(UserError, match=rf"another run \(process {os.getpid()}\) is at work"), _locked(tmp_path):
            pass
    assert not (tmp_path / ".held").exists()


def test_a_study_runs_where_there_is_no_fcntl(tmp_path):
    """The module hidden from everything that is imported."""
    code = "import sys; sys.modules['fcntl'] = None; from pezoo.cli import main; sys.exit(main(sys.argv[1:]))"
    given = ["run", "quickstart", "size=test", "schemes=[nope]", "seeds=[0]", "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "report" / "table.md").is_file()
    assert not (tmp_path / "out" / ".held").exists()
    assert pezoo.__version__
