"""Studies to break: real ones, run by `python -m pezoo run`, and compared with one that nothing happened to."""

import contextlib
import functools
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forked
import yaml

ROOT = Path(__file__).parents[2]
MAY_DIFFER = ("date", "train_seconds", "train_cpu_seconds", "eval_seconds", "tokens_per_second", "peak_memory_bytes")
"""What may differ between the results of two runs of a recipe."""
LEFTOVERS = ("**/.*.tmp", "**/.unfinished-*", "**/*.state.pt", "**/.building-*", "**/.held")
"""What no run leaves behind, in a study or in the cache."""
HANG_SECONDS = 600
"""A run that takes longer hangs; on two quiet cores each takes less than a minute."""
SAVE_SECONDS = 0.3
"""Between two savings of a training's state."""
STUDY = "PEZOO_FAULTS_STUDY"
"""Variable that names the study's folder to all processes of a run, those of Ray and of jobs too."""
LAUNCHERS = {"local": [], "ray": ["--launcher", "ray"], "slurm": ["--launcher", "slurm", "slurm.local=true"]}
"""What is typed for each launcher."""
AT_WORK = {"ray": b"ray::_work", "slurm": b"submitit.core._submit"}
"""What the command line of a process holds that is at a cell."""


class Wrong(Exception):
    """An outcome that is not as it should be; the message says what it was."""


class Skipped(Exception):
    """A fault that cannot be made here; the message says why."""


Case = Callable[[random.Random], str | None]
"""Makes a fault once, and raises `Wrong` if the outcome is not as it should be; may return what it measured."""


@dataclass(frozen=True)
class Fault:
    """A kind of fault."""

    name: str
    outcome: str
    """What should happen."""
    cases: Callable[["Place", bool], Iterator[Case]]
    """Given the place and whether the form is short."""
    everywhere: bool = False
    """Whether it can be made with each launcher."""


FAULTS: dict[str, Fault] = {}


def fault(name: str, outcome: str, *, everywhere: bool = False) -> Callable[..., Any]:
    """Register a generator of cases under a name, with what should happen."""

    def register(cases: Callable[["Place", bool], Iterator[Case]]) -> Callable[["Place", bool], Iterator[Case]]:
        FAULTS[name] = Fault(name, outcome, cases, everywhere)
        return cases

    return register


def expect(holds: object, otherwise: str) -> None:
    """Raise `Wrong` unless something holds."""
    if not holds:
        raise Wrong(otherwise.strip())


@dataclass(frozen=True)
class Done:
    """How a run ended."""

    code: int
    output: str
    errors: str

    def expect(self, *codes: int) -> "Done":
        """Raise `Wrong` if there was a traceback, or another exit code than these."""
        expect("Traceback" not in self.errors, f"a traceback: ... {self.errors[-800:]}")
        expect(self.code in codes, f"exit code {self.code}: ... {self.errors[-800:]}")
        return self


class Running:
    """A run that has begun, in a session of its own."""

    def __init__(
        self, command: list[str], environment: dict[str, str], folder: Path, real: bool, launcher: str = "local"
    ) -> None:
        self.folder, self.launcher = folder, launcher
        self.files = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115, a pipe could be full
        output, errors = self.files
        if real:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, env=environment, start_new_session=True
            )
        else:
            self.process = forked.ForkedRun(command[command.index("pezoo") + 1 :], environment, output, errors)

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self.process.poll() is not None

    def workers(self) -> list[int]:
        """Ids of its worker processes, which may be forked from a server of theirs."""
        if self.launcher != "local":
            return [number for number in processes(self.folder) if AT_WORK[self.launcher] in _command(number)]
        found = []
        for child in children(self.process.pid):
            found += children(child) if _is_server(child) else [child]
        return found

    def wait_for(self, holds: Callable[[], object]) -> bool:
        """Wait until something holds; return whether it did before the run ended."""
        began = time.monotonic()
        while not self.ended:
            if holds():
                return True
            expect(time.monotonic() - began < HANG_SECONDS, "it hangs")
            time.sleep(0.002)
        return bool(holds())

    def kill(self, sign: int, whom: str) -> None:
        """Send a signal to the run's own process (study), to one of its workers (worker), or to all at once (all)."""
        workers = self.workers()
        every = [self.process.pid, *children(self.process.pid), *workers]
        every += processes(self.folder) if self.launcher != "local" else []
        targets = {"study": every[:1], "worker": workers[:1], "all": list(dict.fromkeys(every))}[whom]
        for number in targets:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, sign)

    def finish(self, jobs_stay: bool = False) -> Done:
        """Wait for its end, and for that of its workers; jobs of Slurm may stay when their study is killed."""
        try:
            code = self.process.wait(HANG_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill(signal.SIGKILL, "all")
            self.process.wait()
            raise Wrong(f"no end after {HANG_SECONDS} s") from None
        began = time.monotonic()
        # Those that still import hear of their parent's end after that.
        while left := [] if jobs_stay else processes(self.folder):
            if time.monotonic() - began > 120:
                for number in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(number, signal.SIGKILL)
                raise Wrong(f"{len(left)} processes were left behind")
            time.sleep(0.05)
        texts = []
        for file in self.files:
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
            file.close()
        return Done(code, *texts)


def children(number: int) -> list[int]:
    """Ids of the processes that one has started."""
    try:
        return [int(child) for child in Path(f"/proc/{number}/task/{number}/children").read_text().split()]
    except OSError:
        return []


def _is_server(number: int) -> bool:
    return b"pezoo.study.forks" in _command(number)


def _command(number: int) -> bytes:
    """The command line of a process; nothing if it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{number}/cmdline").read_bytes()
    return b""


def processes(folder: Path) -> list[int]:
    """Ids of the processes that were told of a folder."""
    found, told = forked.workers(folder), f"{STUDY}={folder}\0".encode()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in _command(int(path.name)) or told in (path / "environ").read_bytes():
                found.append(int(path.name))
    return list(dict.fromkeys(found))


class Place:
    """Where studies are broken: a scratch folder with a text, recipes, a cache, and unbroken studies to compare with.

    Args:
        scratch: an empty folder.
        real: whether each run is a new program, as a command is; else most are forked, see `forked`.
        launcher: where the cells of what is broken run; an unbroken study's run in processes of this machine.
    """

    def __init__(self, scratch: Path, real: bool = False, launcher: str = "local") -> None:
        self.scratch, self.cache, self.real, self.launcher = scratch, scratch / "cache", real, launcher
        text, draw = scratch / "text", random.Random(0)
        text.mkdir()
        words = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
        for i in range(12):
            (text / f"{i}.txt").write_text(" ".join(draw.choices(words, k=300)))
        data = {"corpus": "text", "path": str(text)}
        for name, keys in RECIPES.items():
            self.recipe(name).write_text(yaml.safe_dump(COMMON | {"data": data} | keys))
        self.seconds: dict[tuple[str, str], float] = {}
        """How long an unbroken run takes, by recipe and launcher."""
        self._wholes: dict[str, Path] = {}
        self._lock = threading.RLock()  # faults may be made at the same time

    def recipe(self, name: str) -> Path:
        """The file of a recipe."""
        return self.scratch / f"{name}.yaml"

    def fresh(self) -> Path:
        """A new folder."""
        return Path(tempfile.mkdtemp(dir=self.scratch))

    def times(self, short: bool, few: int, many: int) -> int:
        """How often a fault is made: few times in the short form, three times as often with another launcher."""
        return few if short else many if self.launcher == "local" else 3 * few

    def whole(self, name: str) -> Path:
        """The folder of an unbroken run of a recipe, in processes of this machine."""
        with self._lock:
            if name not in self._wholes:
                began, out = time.monotonic(), self.fresh() / "out"
                self.start(name, out, launcher="local").finish().expect(0)
                self.seconds[name, "local"] = time.monotonic() - began
                self._wholes[name] = out
            return self._wholes[name]

    def usual(self, name: str) -> float:
        """Seconds of an unbroken run of a recipe; it ends like one in processes of this machine."""
        self.whole(name)
        with self._lock:
            if (name, self.launcher) not in self.seconds:
                began = time.monotonic()
                self.heals(name, self.fresh() / "out")
                self.seconds[name, self.launcher] = time.monotonic() - began
            return self.seconds[name, self.launcher]

    def copy(self, name: str) -> Path:
        """A finished study somewhere else."""
        out = self.fresh() / "out"
        shutil.copytree(self.whole(name), out)
        return out

    def start(
        self,
        name: str,
        out: Path,
        *more: str,
        shell: str = "",
        environment: dict[str, str | None] | None = None,
        real: bool = False,
        launcher: str | None = None,
    ) -> Running:
        """Begin to run a recipe.

        Args:
            name: of the recipe.
            out: folder of the study.
            more: overrides and options.
            shell: what a shell does before and after it, with `"$@"` for the command.
            environment: variables to change, or with None to unset.
            real: whether it is a new program, as a command is; else it is forked from one that has imported all.
            launcher: where cells run; default: the place's.
        """
        launcher = launcher or self.launcher
        more = (*more, *LAUNCHERS[launcher])
        command = [sys.executable, "-m", "pezoo", "run", str(self.recipe(name)), *more, "--out", str(out)]
        if shell:
            command = ["sh", "-c", shell, "sh", *command]
        wanted = {"PYTHONPATH": str(ROOT), "PEZOO_CACHE": str(self.cache), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
        wanted |= {"HF_HUB_OFFLINE": "1", "COLUMNS": "120", STUDY: str(out), **(environment or {})}
        variables = {key: value for key, value in (os.environ | wanted).items() if value is not None}
        real = real or self.real or bool(shell) or bool({*(environment or ())} - {"PEZOO_CACHE"})
        return Running(command, variables, out, real, launcher)

    def run(self, name: str, out: Path, *more: str, **options: Any) -> Done:
        """Run a recipe to its end; see `start`."""
        return self.start(name, out, *more, **options).finish()

    def heals(self, name: str, out: Path, *more: str, tree: bool = True, **options: Any) -> Done:
        """Run a recipe once more; it must end as the unbroken run did.

        Args:
            name: of the recipe.
            out: folder of the study.
            more: overrides and options.
            tree: whether the files must be the same ones too.
            options: see `start`.
        """
        done = self.run(name, out, *more, **options).expect(0)
        self.compare(name, out, tree=tree)
        return done

    def compare(self, name: str, out: Path, *, tree: bool = True) -> None:
        """Raise `Wrong` if a study did not end as the unbroken run did: results, weights, files."""
        whole = self.whole(name)
        ours, theirs = results(out), results(whole)
        expect(len(ours) == len(theirs), f"{len(ours)} results instead of {len(theirs)}")
        for one, other in zip(ours, theirs, strict=True):
            changed = [key for key in other if one.get(key) != other[key]]
            expect(not changed, f"{one['label']}, {one['metric']}: another {', '.join(changed)}")
        expect(weights(out) == weights(whole), "other weights")
        left = [path.name for folder in (out, self.cache) for path in leftovers(folder)]
        expect(not left, f"left behind: {', '.join(left)}")
        if tree:
            lost, more = files(whole) - files(out), files(out) - files(whole)
            expect(not lost and not more, f"files missing: {sorted(lost)}, new: {sorted(more)}")


def results(out: Path) -> list[dict[str, Any]]:
    """What `results.jsonl` holds, without what may differ."""
    try:
        lines = (out / "results.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise Wrong(f"results.jsonl cannot be read: {error}") from None
    return [{key: value for key, value in one.items() if key not in MAY_DIFFER} for one in found]


def weights(out: Path) -> dict[str, str]:
    """Digests of all weights, by the name of the cell."""
    return {path.parent.name: _weights(path, path.stat().st_mtime_ns) for path in out.glob("cells/*/model.pt")}


@functools.cache
def _weights(path: Path, changed: int) -> str:
    import torch

    whole = hashlib.sha256()
    for name, weight in torch.load(path, weights_only=True)["weights"].items():
        whole.update(name.encode() + weight.numpy().tobytes())
    return whole.hexdigest()


def leftovers(folder: Path) -> list[Path]:
    """What no run should leave behind."""
    return [path for pattern in LEFTOVERS for path in folder.glob(pattern)]


def files(out: Path) -> set[str]:
    """Files of a study, but for logs; those of TensorBoard are named after the moment, and may be several."""
    names = (str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    return {re.sub(r"events\.out\..*", "events", name) for name in names if not name.startswith("logs/")}


COMMON = {
    "workers": 2,
    "device": "cpu",
    "save_minutes": SAVE_SECONDS / 60,
    "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "dropout": 0.1},
    "train": {"length": 16, "steps": 120, "batch_size": 4, "warmup_steps": 2},
    "tune": {"length": "4x", "warmup_steps": 1},
    "test": {"lengths": ["1x", "4x"], "windows": 4},
}
LONG = {"length": 16, "batch_size": 2, "warmup_steps": 2}
DRAWN = {"lengths": "uniform", "accumulate": 2}
RECIPES: dict[str, dict[str, Any]] = {
    # Every kind of cell: trainings at two rates, the choice of one, a tuning, a task, evaluations.
    "everything": {
        "parts": {
            "text": {"schemes": [{"scheme": "rope+pi", "tune": [0, 60]}], "train": {"lrs": [0.01, 0.003]}},
            "task": {"schemes": ["alibi"], "tasks": ["parity"], "form": "causal", "train": {"lengths": "uniform"}},
        },
    },
    # One training and its evaluation.
    "small": {"schemes": ["rope"], "train": COMMON["train"] | {"steps": 4}},
    # Trainings of some seconds, with all that could make a second half another one.
    "dropout": {"schemes": ["rope"], "train": LONG | {"steps": 1500}},
    "random positions": {"schemes": ["rope+random"], "train": LONG | {"steps": 1200}},
    "uniform lengths": {"schemes": ["t5+random"], "train": LONG | DRAWN | {"steps": 1000}},
    "tuning": {"schemes": [{"scheme": "rope+pi", "tune": [1500]}], "train": LONG | {"steps": 4}},
}  # fmt: skip
