"""How `pezoo bench` measures: ratios within a round, CPU time, memory of a fresh process.

All candidates of a round run one after the other in this process, so a busy machine slows them alike. Each ratio is
taken inside a round; what is told of them is the median over rounds, with the least and the greatest. On a CPU the time
is that of the process, so what others do in the meantime does not count; on a GPU it is wall time.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pezoo.cli.bench import child

Candidates = Mapping[str, Callable[[], Any]]


@dataclass(frozen=True)
class Spread:
    """The median of several measurements, with the least and the greatest."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """That of some values, at least one."""
        values = sorted(values)
        return cls(statistics.median(values), values[0], values[-1])

    def __str__(self) -> str:
        digits = 0 if abs(self.median) >= 100 else 2
        if self.least == self.most:
            return f"{self.median:.{digits}f}"
        return f"{self.median:.{digits}f} ({self.least:.{digits}f}-{self.most:.{digits}f})"


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    forward: int = 2048
    """Tokens of a forward that is timed."""
    memory: int = 8192
    """Tokens of a forward whose memory is measured."""
    long: int = 16384
    """The same, of a bias of distance alone."""
    curve: int = 4096
    """Tokens of the longest test length."""
    steps: int = 30
    """Training steps through Lightning."""
    repeats: int = 5
    """How often each is measured."""
    most: int | None = None
    """Tokens of the longest text of a goal, where it asks for more; None: no limit."""
    batch: int = 4096
    """Tokens of a training batch."""
    processes: int = 3
    """How often a fresh process is measured."""
    workers: int = 4
    """Of the study that tells what a worker's start costs."""
    study: Sequence[str] = ("train.steps=60",)
    """Changes to the quickstart, whose CPU time is told apart."""
    losses: int = 3
    """Seeds whose losses are compared."""
    seeds: int = 8
    """Seeds that are trained on one device."""
    encodings: Sequence[str] | None = None
    """None: all."""
    extensions: Sequence[str] | None = None

    def length(self, wanted: int) -> int:
        """Tokens of a text of a goal."""
        return wanted if self.most is None else min(wanted, self.most)


QUICK = Extent(
    forward=256,
    memory=512,
    long=1024,
    curve=512,
    steps=5,
    repeats=1,
    most=64,
    batch=128,
    processes=1,
    workers=2,
    study=("size=test", "schemes=[rope]"),
    losses=2,
    seeds=2,
    encodings=("nope", "alibi"),
    extensions=("yarn", "window"),
)
"""Whether it runs, not how fast it is."""


def rounds(candidates: Candidates, repeats: int, device: str = "cpu", warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of each candidate, all of them run in turn `repeats` times."""
    on_gpu = device.startswith("cuda")
    clock = time.perf_counter if on_gpu else time.process_time
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(warm_up + repeats):
        for name, run in candidates.items():
            start = clock()
            run()
            if on_gpu:
                torch.cuda.synchronize()
            if repeat >= warm_up:
                times[name].append(clock() - start)
    return times


def over(base: str, times: Mapping[str, Sequence[float]]) -> dict[str, Spread]:
    """Each candidate's seconds over those of one of them, round by round."""
    pairs = {name: zip(seconds, times[base], strict=True) for name, seconds in times.items()}
    return {name: Spread.of(a / max(b, 1e-9) for a, b in both) for name, both in pairs.items()}


def child_seconds(command: Sequence[str], **variables: str) -> float:
    """CPU seconds of a command, with all processes that it starts.

    Raises:
        RuntimeError: if it fails, with the last line of what it said.
    """
    with tempfile.NamedTemporaryFile("r") as found:
        variables = {"PYTHONDONTWRITEBYTECODE": ""} | variables  # else each process compiles what it imports
        helper = [sys.executable, "-I", str(Path(child.__file__)), found.name, json.dumps(variables), *command]
        done = subprocess.run(helper, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {(done.stderr.strip() or 'it failed').splitlines()[-1]}")
        return float(found.read())
