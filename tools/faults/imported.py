"""All that a study imports, and what a process does that is forked from the one that has imported it; see `forked`."""

import gc
import os
import signal
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import IO, Any

import matplotlib
import pandas  # noqa: F401
import torch
import torch.utils.tensorboard

import pezoo.report.write
import pezoo.study.cells  # noqa: F401
from pezoo import cli, registry
from pezoo.study import worker
from pezoo.study.engines import local

registry.entries()
gc.freeze()


def run(arguments: list[str], environment: dict[str, str], streams: list[str]) -> None:
    """Do what the command `pezoo ARGUMENTS` does, in this process.

    Args:
        arguments: of the command.
        environment: its variables.
        streams: files for its standard output and error.
    """
    os.setsid()
    for number, path in enumerate(streams, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # it was found in another environment
    torch.set_num_threads(1)
    matplotlib.use("Agg")
    local.CAN_FORK = False  # here each worker is
    local.subprocess = types.SimpleNamespace(
        Popen=_ForkedWorker, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired
    )
    code = cli.main(arguments)
    sys.stdout.flush()
    os._exit(code)


class _ForkedWorker:
    """What the launcher needs of `subprocess.Popen`."""

    def __init__(self, command: list[str], *, stderr: IO[str], env: dict[str, str], **_: Any) -> None:
        inside, self.stdin = _pipe()
        self.stdout, outside = _pipe()
        study, self._code = command[-1], None
        self.pid = os.fork()
        if not self.pid:
            try:
                _work(study, inside.fileno(), outside.fileno(), stderr.fileno(), env)
            finally:
                os._exit(1)
        inside.close()
        outside.close()

    def poll(self) -> int | None:
        if self._code is None:
            number, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if number else None
        return self._code

    def wait(self, timeout: float = 1e9) -> int:
        until = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("worker", timeout)
            time.sleep(0.005)
        return self._code

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def _send(self, sign: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sign)


def _pipe() -> tuple[IO[bytes], IO[bytes]]:
    reading, writing = os.pipe()
    return os.fdopen(reading, "rb"), os.fdopen(writing, "wb")


def _work(study: str, inside: int, outside: int, log: int, environment: dict[str, str]) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number, stream in enumerate((inside, outside, log)):
        os.dup2(stream, number)
    os.closerange(3, 4096)  # what a new program would not have, such as the study's lock
    with Path(f"{study}.workers").open("a") as file:
        file.write(f"{os.getpid()}\n")
    sys.stdin, sys.stdout, sys.stderr = (open(i, mode, closefd=False) for i, mode in enumerate("rww"))  # noqa: SIM115
    sys.argv = ["-c", study]
    os.environ.update(environment)
    worker.main()
