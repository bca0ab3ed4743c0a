"""Workers that are forked: the process they come from, what they are handed, and how their end is told."""

import os
import signal
import subprocess
import sys
import time

import pytest

from pezoo.study import forks
from pezoo.study.engines import local
from pezoo.study.forks import Server

pytestmark = pytest.mark.skipif(not forks.CAN_FORK, reason="no worker is forked on this system")
FAKE = """
import sys
sys.path[:] = {path!r}
from pezoo.study import forks, worker
worker.get_ready = worker.draw_anew = lambda: None
worker.main = lambda: exec(sys.stdin.readline())
forks.serve()
"""
"""A server that imports nothing, and whose workers do what they are told."""


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(forks, "SERVE", FAKE)
    made = Server(tmp_path, os.environ | {"OF_A_WORKER": "7"})
    yield made
    made.stop()


def begin(server, folder, code, name="log"):
    with (folder / name).open("a") as log:
        made = server.fork(log)
    made.stdin.write(f"import os, sys, time; {code}\n".encode())
    made.stdin.flush()
    return made


def ask_after(pid):
    """Look for a process for ten seconds, or until it is gone."""
    for _ in range(200):
        os.kill(pid, 0)
        time.sleep(0.05)


def close(*workers):
    for one in workers:
        one.kill()
        one.wait(10)
        one.stdin.close()
        one.stdout.close()


@pytest.mark.parametrize(
    ("code", "how"), [("os._exit(0)", 0), ("os._exit(5)", 5), ("os.kill(os.getpid(), 9)", -9), ("raise ValueError", 1)]
)
def test_how_it_ended_is_told(code, how, server, tmp_path):
    one = begin(server, tmp_path, code)
    assert one.wait(10) == how
    assert one.poll() == how
    assert one.stdout.read() == b""
    close(one)


def test_it_has_streams_a_session_variables_and_arguments_of_its_own(server, tmp_path):
    facts = "os.getpid(), os.getsid(0), os.environ['OF_A_WORKER'], sys.argv[1]"
    code = f"print({facts}, flush=True); print('said', file=sys.stderr)"
    one, other = begin(server, tmp_path, code, "a"), begin(server, tmp_path, code, "b")
    for worker, log in ((one, "a"), (other, "b")):
        pid, session, variable, study = worker.stdout.read().decode().split()
        worker.wait(10)
        assert int(pid) == int(session) == worker.pid
        assert (variable, study) == ("7", str(tmp_path))
        assert "said" in (tmp_path / log).read_text()
    assert one.pid != other.pid
    close(one, other)


def test_the_end_of_the_input_is_heard_while_others_live(server, tmp_path):
    """A worker that had a copy of another's pipe would keep it alive when the study is gone."""
    one = begin(server, tmp_path, "sys.stdin.read(); os._exit(3)")
    other = begin(server, tmp_path, "time.sleep(60)")
    one.stdin.close()
    assert one.wait(10) == 3
    assert other.poll() is None
    close(other)
    assert other.returncode == -signal.SIGKILL
    one.stdout.close()


def test_it_is_asked_to_end(server, tmp_path):
    one = begin(server, tmp_path, "print('here', flush=True); time.sleep(60)")
    one.stdout.read(4)
    with pytest.raises(subprocess.TimeoutExpired):
        one.wait(0.01)
    one.terminate()
    assert one.wait(10) == -signal.SIGTERM
    close(one)


def test_what_is_ended_before_it_is_there_never_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(forks, "SERVE", "import time; time.sleep(60)")
    server = Server(tmp_path, os.environ)
    one = begin(server, tmp_path, "pass")
    began = time.monotonic()
    one.kill()
    assert one.wait() is None
    assert (one.pid, one.lost) == (None, True)
    assert time.monotonic() - began < 10
    close(one)
    server.stop()


def test_without_the_server_workers_go_on_and_no_new_one_is_there(server, tmp_path):
    one = begin(server, tmp_path, "print('here', flush=True); print(sys.stdin.readline(), flush=True); time.sleep(60)")
    one.stdout.read(4)
    server.process.kill()
    server.process.wait()
    with (tmp_path / "log").open("a") as log:
        assert server.fork(log) is None
    one.stdin.write(b"go on\n")
    one.stdin.flush()
    assert b"go on" in one.stdout.read(8)
    one.kill()
    assert one.wait() is None  # nobody tells how it ended
    assert one.lost
    assert one.stdout.read().strip() == b""
    close(one)


def test_nothing_is_left_when_the_one_who_asks_is_gone(server, tmp_path):
    one = begin(server, tmp_path, "sys.stdin.read(); os._exit(0)")
    while one.pid is None:
        one.poll()
    server._asked.close()
    one.stdin.close()
    assert server.process.wait(10) == 0
    one.stdout.close()
    with pytest.raises(ProcessLookupError):
        ask_after(one.pid)


@pytest.mark.slow
@pytest.mark.ci
def test_the_server_has_imported_what_trains_and_done_nothing_else():
    code = """
import gc, sys, threading
from pezoo.study import worker
worker.get_ready()
import numpy as np
import torch
assert {"pytorch_lightning", "torch.utils.tensorboard", "pezoo.encodings.relative.rope"} <= set(sys.modules)
assert not {"pezoo.report", "pezoo.cli"} & set(sys.modules)
assert threading.active_count() == 1
assert not torch.cuda.is_initialized()
drawn = [torch.initial_seed(), np.random.rand()]
worker.draw_anew()
assert not {*drawn} & {torch.initial_seed(), np.random.rand()}
assert gc.isenabled() and gc.get_freeze_count() > 100_000
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert not done.returncode, done.stderr


class Plan:
    def __init__(self, *devices):
        cells = [type("Cell", (), {"inputs": {"device": device}}) for device in devices]
        self.cells = dict(enumerate(cells))


def test_where_a_gpu_could_be_at_work_every_worker_is_a_new_process(monkeypatch):
    assert local.can_fork(Plan("cpu", "cpu"))
    assert not local.can_fork(Plan("cpu", "cuda"))
    assert not local.can_fork(Plan("mps"))
    monkeypatch.setattr(local, "CAN_FORK", False)
    assert not local.can_fork(Plan("cpu"))
