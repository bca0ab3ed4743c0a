"""One run at a time in a folder, also where the file system or the system has no locks."""

import errno
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from pezoo.errors import UserError
from pezoo.study import study
from pezoo.study.study import holding

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


def in_another_process(act):
    """Run a function in a process that is forked from this one, and return how it ended."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child starts no thread and needs none
        number = os.fork()
    if not number:
        try:
            act()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def test_a_folder_is_held_without_flock(no_flock, tmp_path):
    def try_it():
        try:
            with holding(tmp_path):
                os._exit(3)
        except UserError as error:
            (tmp_path / "said").write_text(str(error))

    with holding(tmp_path):
        mark = tmp_path / ".held"
        assert mark.read_text().split()[0] == str(os.getpid())
        assert in_another_process(try_it) == 0
        said = (tmp_path / "said").read_text()
        assert f"another run (process {os.getpid()} on " in said
        assert str(mark) in said
    assert not mark.exists()
    assert in_another_process(try_it) == 3


def test_a_mark_of_a_process_that_has_ended_does_not_count(no_flock, tmp_path):
    def end_suddenly():
        with holding(tmp_path):
            os._exit(9)

    assert in_another_process(end_suddenly) == 9
    assert (tmp_path / ".held").exists()
    with holding(tmp_path):
        pass


def test_a_lock_that_fails_otherwise_names_the_folder(monkeypatch, tmp_path):
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(study.fcntl, "flock", fail)
    with (
        pytest.raises(UserError, match=f"cannot lock {tmp_path}: Input/output error; choose another --out"),
        holding(tmp_path),
    ):
        pass


def test_with_flock_the_file_names_the_process(tmp_path):
    (tmp_path / ".lock").write_bytes(b"\xff\xfe left by a crash")
    with holding(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())
        with pytest.raises(UserError, match=rf"another run \(process {os.getpid()}\) is at work"), holding(tmp_path):
            pass
    assert not (tmp_path / ".held").exists()


@pytest.mark.slow
@pytest.mark.ci
def test_a_study_runs_where_there_is_no_fcntl(tmp_path):
    """The module hidden from everything that is imported."""
    code = "import sys; sys.modules['fcntl'] = None; from pezoo.cli import main; sys.exit(main(sys.argv[1:]))"
    given = ["run", "quickstart", "size=test", "schemes=[nope]", "seeds=[0]", "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "report" / "report.md").is_file()
    assert not (tmp_path / "out" / ".held").exists()
