"""Worker processes that are forked from one that has imported what they need, so that they start at once.

The server is a process of the study's own. It has the paths, variables and number of threads of a worker, imports what
one imports, and does nothing else: no cell runs in it, no generator is drawn from, no GPU is touched. So what is forked
from it is what a new process would be. It ends when the study does, in whatever way.
"""

import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

CAN_FORK = sys.platform == "linux"
"""Elsewhere a process that is forked and starts no program may not use the system's libraries."""
SERVE = "import sys; sys.path[:] = {path!r}; from pezoo.study.forks import serve; serve()"
NUMBER = struct.Struct("i")


class Server:
    """The process that workers are forked from.

    Args:
        study: the folder of the study, which its command line names.
        environment: its variables, and those of workers.
    """

    def __init__(self, study: Path, environment: Mapping[str, str]) -> None:
        self._asked, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", SERVE.format(path=sys.path), str(study)],
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # what is wrong, a worker that is a new process says
                env=dict(environment),
                start_new_session=True,
            )

    def fork(self, log: IO[str]) -> "Forked | None":
        """A new worker, whose standard error is `log`; None if the server has ended."""
        pipes = [os.pipe() for _ in range(3)]
        (read_in, write_in), (read_out, write_out), (read_state, write_state) = pipes
        theirs = [read_in, write_out, log.fileno(), write_state]
        try:
            socket.send_fds(self._asked, [b"+"], theirs)
        except OSError:
            for file in (write_in, read_out, read_state):
                os.close(file)
            return None
        finally:
            for file in (read_in, write_out, write_state):
                os.close(file)
        return Forked(self, os.fdopen(write_in, "wb"), os.fdopen(read_out, "rb"), read_state)

    def stop(self) -> None:
        """End it; what was forked from it goes on."""
        self._asked.close()
        self.process.kill()
        self.process.wait()


class Forked:
    """A worker that was forked, with what the launcher needs of `subprocess.Popen`."""

    def __init__(self, server: Server, stdin: IO[bytes], stdout: IO[bytes], state: int) -> None:
        self._server, self.stdin, self.stdout, self._state = server, stdin, stdout, state
        self.pid: int | None = None
        """None before it is there."""
        self.lost = False
        """Whether the server has ended, so that nobody tells how this process does."""
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, if it has ended and the server could tell."""
        self._hear(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        """The exit code, once it has ended; None if the server has ended before.

        Raises:
            subprocess.TimeoutExpired: if it has not ended after so many seconds.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while self.returncode is None and not self.lost:
            left = None if until is None else until - time.monotonic()
            if left is not None and left < 0:
                raise subprocess.TimeoutExpired("worker", timeout or 0)
            self._hear(left)
        return self.returncode

    def kill(self) -> None:
        """End it at once."""
        self._send(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end."""
        self._send(signal.SIGTERM)

    def _send(self, sign: int) -> None:
        if self.poll() is None and self.pid is None and not self.lost:
            self._server.process.kill()  # it still imports: what is not there needs no signal
            while self.pid is None and not self.lost:
                self._hear(None)
        if self.returncode is None and self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, sign)

    def _hear(self, seconds: float | None) -> None:
        """Read what the server tells, for at most so long: first the process's id, then its exit code."""
        while self.returncode is None and not self.lost and select.select([self._state], [], [], seconds)[0]:
            told = os.read(self._state, NUMBER.size)
            if not told:
                self.lost = True
            elif self.pid is None:
                [self.pid] = NUMBER.unpack(told)
            else:
                [self.returncode] = NUMBER.unpack(told)
            seconds = 0
        if (self.lost or self.returncode is not None) and self._state >= 0:
            os.close(self._state)
            self._state = -1


def serve() -> None:
    """Import what workers need, and fork one whenever that is asked for, until nobody is left who could ask."""
    from pezoo.study import worker

    worker.get_ready()
    if threading.active_count() > 1:
        sys.exit("a thread runs; what it holds would be lost in a fork")
    woken, wake = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, int] = {}
    with socket.socket(fileno=os.dup(0)) as asked:
        while True:
            heard, _, _ = select.select([asked, woken], [], [])
            if woken in heard:
                os.read(woken, 1 << 10)
                _bury(running)
            if asked in heard:
                message, files, _, _ = socket.recv_fds(asked, 1, 4)
                if not message:
                    return
                *streams, state = files
                if not (pid := os.fork()):
                    _become_worker(streams, [*files, *running.values(), asked.detach(), woken, wake])
                for file in streams:
                    os.close(file)
                running[pid] = state
                _tell(state, pid)


def _bury(running: dict[int, int]) -> None:
    """Tell how processes ended that did."""
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            state = running.pop(found[0])
            _tell(state, os.waitstatus_to_exitcode(found[1]))
            os.close(state)


def _tell(state: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody wants to know
        os.write(state, NUMBER.pack(number))


def _become_worker(streams: list[int], others: list[int]) -> None:
    """What a process does that has been forked; it does not return."""
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        for file in others:
            os.close(file)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115, as long as the process lives

        from pezoo.study import worker

        worker.draw_anew()
        worker.main()
    finally:
        os._exit(1)
