"""Cells as jobs of Slurm, by submitit: those that are ready become an array of jobs.

Jobs work in the study's folder, which all machines must share, and write what they have to say into files there. A job
that nears its time limit, or that is told to go, saves the state of its training and is queued again. With
`slurm.local` the same jobs are processes of this machine.
"""

import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pezoo.errors import UserError, cut
from pezoo.files import remove, replacing
from pezoo.outcome import outcome
from pezoo.study.cells import run_cell
from pezoo.study.engines.commands import JOBS, running, tell
from pezoo.study.estimate import Estimate
from pezoo.study.launcher import SAVE_SECONDS, Message, environment_of, setup_of, told_of
from pezoo.study.plan import Cell, Plan
from pezoo.study.store import Store, wait_for

try:
    import submitit
    from submitit.core.utils import FailedJobError
except ImportError:
    raise UserError("launcher=slurm needs submitit; type: pip install 'pezoo[slurm]'") from None

from pezoo.study.engines.job import Work

LARGEST = 1000
"""Jobs of an array; Slurm's own default allows 1001."""
GATHER_SECONDS = 30
"""That cells which are ready wait for others, so that there are few arrays."""
LOOK_SECONDS = 1.0
"""Between two looks at the files of the jobs."""
ASK_SECONDS = 10.0
"""Between two questions to Slurm which jobs there are."""
LAG_SECONDS = 60
"""After which what a job has written must be seen here."""
GRACE_SECONDS = 5
"""For a job to end by itself."""
FULL = re.compile("MaxSubmit|GrpSubmit|job submit limit", re.IGNORECASE)
"""In what sbatch says where the user, the account or all together have as many jobs as they may."""


class _Full(UserError):
    """Slurm lets the user have no more jobs for now."""


class OnSlurm:
    """Jobs of Slurm, `recipe.workers` of an array at a time.

    Args:
        plan: the study's.
        store: where cells are kept.
        plugins: files that register members.
        estimate: is not asked.
    """

    def __init__(self, plan: Plan, store: Store, plugins: list[str], estimate: Estimate | None = None) -> None:
        self.plan, self.store, self.asked = plan, store, plan.recipe.slurm
        self.folder = store.study.resolve() / "logs" / "slurm"
        self.study = setup_of(plan, plugins) | {"folder": str(store.study.resolve())}
        self.jobs: dict[str, _Running] = {}
        """By key, the jobs that have not had their last word."""
        self.ending: list[_Running] = []
        """Processes of this machine that have, and may not have ended."""
        self.news: list[tuple[Cell | None, Message]] = []
        self.waiting_since = self.look_again = self.ask_again = 0.0
        self.failed = self.full = False
        self.largest = LARGEST
        """Jobs of the next array: fewer where Slurm has refused more."""

    def __enter__(self) -> Self:
        asked, workers = self.asked, self.plan.recipe.workers
        executor = submitit.LocalExecutor if asked.local else submitit.SlurmExecutor
        self.executor = executor(self.folder, max_num_timeout=asked.requeues)
        common = {"signal_delay_s": asked.signal_seconds, "gpus_per_node": asked.gpus or None}
        memory = asked.memory_gb and f"{round(1024 * asked.memory_gb)}M"
        more = {
            "time": asked.minutes,
            "partition": asked.partition,
            "account": asked.account,
            "cpus_per_task": asked.cpus,
            "mem": memory,
            "array_parallelism": workers,
        }
        given = common | ({"timeout_min": asked.minutes} if asked.local else more)
        self.executor.update_parameters(**{name: value for name, value in given.items() if value is not None})
        where = "processes of this machine, as Slurm would run them" if asked.local else "jobs of Slurm"
        self.news.append((None, {"event": "note", "line": f"{where}; {workers} at a time (workers={workers})"}))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the jobs, and remove their files if none has failed."""
        self._tell_to_go(self.jobs.values())
        self._await_end([*self.jobs.values(), *self.ending], GRACE_SECONDS)
        self._record([])
        if not self.failed and self.folder.is_dir():
            remove(self.folder)

    def take(self, ready: Sequence[Cell]) -> list[Cell]:
        """Submit what is ready, an array for each kind of cells; a choice among models is made here."""
        taken = []
        for cell in (cell for cell in ready if cell.kind == "choose"):
            self.news.append((cell, self._choose(cell)))
            taken.append(cell)
        rest = [cell for cell in ready if cell.kind != "choose"]
        if self.asked.local:
            rest = rest[: self.plan.recipe.workers - len(self.jobs)]
        elif self.jobs and rest:
            self.waiting_since = self.waiting_since or time.monotonic()
            if time.monotonic() - self.waiting_since < GATHER_SECONDS:
                return taken
        self.waiting_since = 0.0
        for (kind, *shape), cells in groupby(rest, key=_shape):
            array = list(cells)
            taken += (submitted := self._submit_most(kind, *shape, array))
            if len(submitted) < len(array):
                break
        return taken

    def hear(self, seconds: float) -> Iterator[tuple[Cell | None, Message]]:
        """What jobs have written, and those that have ended without a word."""
        while self.news:
            yield self.news.pop(0)
        time.sleep(seconds)
        began = time.monotonic()
        if began < self.look_again:
            return
        for key, job in list(self.jobs.items()):
            for message in job.read():
                if message["event"] == "begun" and job.begun is not None:
                    line = f"{job.cell.title}: begins again, on {message['host']}"
                    yield job.cell, {"event": "note", "line": line}
                if message["event"] == "begun":
                    job.begun = message
                if message["event"] == "done" and not wait_for(self.store.path(key), LAG_SECONDS):
                    why = f"what it made is not in {self.study['folder']}: is that the same folder on all machines?"
                    message = {"event": "failed", "status": "failed", "reason": why}
                if message["event"] in ("done", "failed"):
                    self._forget(key, message["event"] == "failed")
                yield job.cell, message
        yield from self._silent()
        self.look_again = time.monotonic() + max(LOOK_SECONDS, 20 * (time.monotonic() - began))

    def _silent(self) -> Iterator[tuple[Cell, Message]]:
        """Jobs that ended so long ago that what they had to say would be here."""
        now = time.monotonic()
        if now >= self.ask_again:
            gone = self._gone(self.jobs.values())
            for job in self.jobs.values():
                job.ended = (job.ended or now) if job in gone else 0.0
            self.ask_again = now + (LOOK_SECONDS if self.asked.local else ASK_SECONDS)
        lag = 2 * LOOK_SECONDS if self.asked.local else LAG_SECONDS
        for key, job in list(self.jobs.items()):
            if job.ended and now - job.ended > lag:
                self._forget(key, failed=True)
                why = f"its job {job.job.job_id} has ended without a word"
                why += "" if job.begun else f"; is {self.study['folder']} the same folder on all machines?"
                yield job.cell, {"event": "failed", "status": "failed", "reason": why}

    def _gone(self, jobs: Iterable["_Running"]) -> list["_Running"]:
        """Those of these jobs that have ended."""
        jobs = list(jobs)
        if self.asked.local:
            return [job for job in jobs if job.job.done()]
        there = running([job.job.job_id for job in jobs], local=False)
        return [job for job in jobs if job.job.job_id not in there]

    def cancel(self, cell: Cell) -> None:
        """End the job of a cell; a training saves its state."""
        job = self.jobs[cell.key]
        self._tell_to_go([job])
        self._await_end([job], GRACE_SECONDS)
        self._forget(cell.key, failed=True)

    def stop(self) -> None:
        """Let trainings save their state, and end all jobs."""
        self._tell_to_go(self.jobs.values())
        self._await_end(self.jobs.values(), SAVE_SECONDS)

    def _choose(self, cell: Cell) -> Message:
        """Choose among models, and say how that ends."""
        try:
            facts = run_cell(cell, self.store, {}, lambda *_: None)
        except Exception as error:
            return {"event": "failed", "status": "failed", "reason": outcome(error)[1]}
        return {"event": "done", "fit": facts["fit"]}

    def _submit_most(self, kind: str, machines: int, tasks: int, cells: Sequence[Cell]) -> list[Cell]:
        """Submit arrays of cells until Slurm takes no more; return those that it took, the others wait."""
        taken: list[Cell] = []
        while array := cells[len(taken) :][: self.largest]:
            try:
                self._submit(kind, machines, tasks, array)
            except _Full as error:
                if len(array) > 1:
                    self.largest = len(array) // 2
                    continue
                if not self.jobs:
                    raise
                if not self.full:
                    self.news.append((None, {"event": "note", "line": f"{error}; the others wait for those that run"}))
                self.full = True
                return taken
            taken += array
            self.largest = min(LARGEST, 2 * self.largest)
        return taken

    def _submit(self, kind: str, machines: int, tasks: int, cells: Sequence[Cell]) -> None:
        if not self.asked.local:
            self.executor.update_parameters(job_name=f"pezoo-{kind}", nodes=machines, ntasks_per_node=tasks)
        works = []
        for cell in cells:
            works.append(Work(self.study, told_of(cell), str(self.folder / cell.key)))
        try:
            quiet = contextlib.redirect_stderr(io.StringIO())  # submitit prints what it raises as well
            with quiet, _environment(environment_of(self.plan)), _without_ctrl_c(), self.executor.batch():
                jobs = [self.executor.submit(work) for work in works]
        except (FailedJobError, OSError, subprocess.CalledProcessError) as error:
            refusal = _Full if FULL.search(str(error)) else UserError
            raise refusal(f"Slurm refuses the jobs: {cut(' '.join(str(error).split()), 500)}") from None
        for cell, job, work in zip(cells, jobs, works, strict=True):
            self.jobs[cell.key] = _Running(cell, job, work.files)
        self._record(self.jobs.values())

    def _forget(self, key: str, failed: bool) -> None:
        job = self.jobs.pop(key)
        self.failed |= failed
        if self.asked.local:
            self.ending = [one for one in (*self.ending, job) if not one.job.done()]

    def _record(self, jobs: Iterable["_Running"]) -> None:
        """Write down which jobs there are, for a run that comes after one that was killed."""
        path, numbers = self.store.study / JOBS, [job.job.job_id for job in jobs]
        if not numbers:
            path.unlink(missing_ok=True)
            return
        with replacing(path) as file:
            file.write(json.dumps({"local": self.asked.local, "host": socket.gethostname(), "jobs": numbers}).encode())

    def _tell_to_go(self, jobs: Iterable["_Running"]) -> None:
        jobs = list(jobs)
        for job in jobs:
            job.path("stop").touch()
        tell([job.job.job_id for job in jobs], self.asked.local)

    def _await_end(self, jobs: Iterable["_Running"], seconds: float) -> None:
        """Wait for jobs to end; a process of this machine is killed then."""
        waiting, until = list(jobs), time.monotonic() + seconds
        while waiting and time.monotonic() < until:
            gone = self._gone(waiting)
            waiting = [job for job in waiting if job not in gone]
            time.sleep((0.1 if self.asked.local else 2.0) if waiting else 0.0)
        for job in waiting if self.asked.local else ():
            for number in (int(job.job.job_id), *([job.begun["process"]] if job.begun else [])):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            while not job.job.done():
                time.sleep(0.01)


def _shape(cell: Cell) -> tuple[str, int, int]:
    """Kind of a cell, machines of its job, and processes that Slurm starts on each.

    On one machine a training starts its other processes itself.
    """
    settings = cell.settings() if cell.kind in ("train", "tune") else None
    if settings is None or settings.num_nodes == 1:
        return cell.kind, 1, 1
    return cell.kind, settings.num_nodes, settings.devices


class _Running:
    """A job and what it has said so far."""

    def __init__(self, cell: Cell, job: Any, files: str) -> None:
        self.cell, self.job, self.files = cell, job, files
        self.begun: Message | None = None
        self.place = 0
        self.ended = 0.0
        """When it was first seen that it has ended."""

    def path(self, what: str) -> Path:
        """One of its files: messages, or stop."""
        return Path(f"{self.files}.{what}")

    def read(self) -> list[Message]:
        """What is new in its file."""
        try:
            with self.path("messages").open("rb") as file:
                file.seek(self.place)
                new = file.read()
        except FileNotFoundError:
            return []
        whole = new[: new.rfind(b"\n") + 1]
        self.place += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


@contextlib.contextmanager
def _environment(more: Mapping[str, str]) -> Iterator[None]:
    """Variables that jobs get: what libraries read when they are imported, and where Python finds modules."""
    path = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    given = dict(more) | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    usual = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in usual.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Processes that begin here do not hear Ctrl-C, which is for the study; it tells them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
