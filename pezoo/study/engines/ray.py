"""Cells as tasks of Ray, on a cluster that runs already, or on one that is started here for the time of the run.

A machine that sees the study's folder works in it. Any other gets what a cell builds on through Ray's object store, and
sends back what it made. Ray runs a task again elsewhere when its machine or its process dies.
"""

import contextlib
import functools
import json
import os
import signal
import socket
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pezoo.errors import UserError, cut
from pezoo.files import Damaged
from pezoo.study.estimate import Estimate
from pezoo.study.launcher import SAVE_SECONDS, Message, environment_of, setup_of, told_of
from pezoo.study.plan import Cell, Plan
from pezoo.study.process import Process, Stopped, begun, stopped_by
from pezoo.study.store import Store, versions, wait_for

try:
    import ray
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError:
    raise UserError("launcher=ray needs Ray; type: pip install 'pezoo[ray]'") from None

GRACE_SECONDS = 5
"""For a task to end by itself."""
PROGRESS_SECONDS = 1.0
"""Between two messages of progress."""
ANSWER_SECONDS = 5
"""For a cluster to answer."""
LAG_SECONDS = 30
"""After which what a machine has written must be seen here."""
MARK = ".here"
"""File in the study's folder: a machine that reads the same in it sees the folder."""


class OnRay:
    """Tasks of Ray, `recipe.workers` at a time.

    Args:
        plan: the study's.
        store: where cells are kept.
        plugins: files that register members; they must stand at the same place on all machines.
        estimate: is not asked.
    """

    def __init__(self, plan: Plan, store: Store, plugins: list[str], estimate: Estimate | None = None) -> None:
        self.plan, self.store, self.asked = plan, store, plan.recipe.ray
        self.study = setup_of(plan, plugins) | {
            "folder": str(store.study.resolve()),
            "mark": uuid.uuid4().hex,
            "pezoo": versions()["pezoo"],
        }
        self.cells: dict[Any, Cell] = {}
        """By reference to the result, the cells that Ray has."""
        self.began: set[str] = set()
        """Keys of those of them that have begun."""
        self.stopped: Counter[str] = Counter()
        """By key, how often somebody else has told a cell to stop."""
        self.news: list[tuple[Cell | None, Message]] = []
        self.shared = True
        """Whether all machines that were heard of see the study's folder."""
        self.log = store.study / "logs" / "ray.log"

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_connected(self.asked.address))
            mark = self.store.study / MARK
            mark.write_text(self.study["mark"])
            stack.callback(mark.unlink, missing_ok=True)
            self._say_where()
            # On this machine and no other: what was said must not die with one that runs cells.
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            self.queue = Queue(actor_options={"num_cpus": 0, "max_restarts": -1, "scheduling_strategy": here})
            self.told = ray.put(self.study)
            self.task = ray.remote(_work).options(
                num_cpus=self.asked.num_cpus,
                num_gpus=self.asked.num_gpus,
                max_retries=self.asked.max_retries,
                runtime_env={"env_vars": environment_of(self.plan)},
            )
            self.stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the tasks, and the cluster if it was started here."""
        with self.stack, contextlib.suppress(Exception):  # a cluster that is gone needs no cancelling
            for reference in self.cells:
                ray.cancel(reference, force=True)

    def take(self, ready: Sequence[Cell]) -> list[Cell]:
        """Hand tasks to Ray, as many as there are workers."""
        taken = list(ready[: max(0, self.plan.recipe.workers - len(self.cells))])
        for cell in taken:
            self._begin(cell)
        return taken

    def hear(self, seconds: float) -> Iterator[tuple[Cell | None, Message]]:
        """What tasks have said, and how they have ended."""
        while self.news:
            yield self.news.pop(0)
        ended: list[Any] = []
        if self.cells:
            ended, _ = ray.wait([*self.cells], num_returns=len(self.cells), timeout=seconds)
        else:
            time.sleep(seconds)
        by_key = {cell.key: cell for cell in self.cells.values()}
        for key, message in self._heard():
            if key not in by_key:
                continue
            if message["event"] == "begun":
                if key in self.began:
                    line = f"{by_key[key].title}: begins again, on {message['host']}"
                    yield by_key[key], {"event": "note", "line": line}
                self.began.add(key)
            yield by_key[key], message
        for reference in ended:
            cell = self.cells.pop(reference)
            self.began.discard(cell.key)
            message = self._result(cell, reference)
            if message["event"] == "elsewhere":
                self._begin_elsewhere(cell, message["host"])
            elif message["event"] == "stopped" and self.stopped[cell.key] < self.asked.max_retries:
                self.stopped[cell.key] += 1
                self._begin(cell)
            elif message["event"] == "stopped":
                yield cell, {"event": "failed", "status": "failed", "reason": "its process was told to stop"}
            else:
                yield cell, message

    def cancel(self, cell: Cell) -> None:
        """End the task of a cell; a training saves its state."""
        (reference,) = [reference for reference, one in self.cells.items() if one is cell]
        ray.cancel(reference)
        if not ray.wait([reference], timeout=GRACE_SECONDS)[0]:
            ray.cancel(reference, force=True)
        self._end([reference])

    def stop(self) -> None:
        """Let trainings save their state; what a machine saves that does not see the folder comes back."""
        for reference in self.cells:
            ray.cancel(reference)
        if self.cells:
            self._end(ray.wait([*self.cells], num_returns=len(self.cells), timeout=SAVE_SECONDS)[0])

    def _end(self, references: Iterable[Any]) -> None:
        """Take what tasks have left that were told to end."""
        for reference in references:
            self._result(self.cells.pop(reference), reference)

    def _begin(self, cell: Cell) -> None:
        files = None if self.shared else ray.put(self._needs(cell))
        self.cells[self.task.remote(self.told, told_of(cell), files and [files], self.queue.actor)] = cell

    def _begin_elsewhere(self, cell: Cell, host: str) -> None:
        """A machine does not see the folder: from now on what cells need is sent along."""
        if self.shared:
            line = f"{host} does not see {self.study['folder']}: what cells need and make goes through Ray"
            self.news.append((None, {"event": "note", "line": line}))
        self.shared = False
        self._begin(cell)

    def _needs(self, cell: Cell) -> dict[str, bytes]:
        """Files that a cell reads: the cells that it builds on, and the state that it goes on from."""
        return self.store.pack([*cell.parents, cell.key])

    def _heard(self) -> list[tuple[str, Message]]:
        """What has been said since; the actor that keeps it may be starting anew."""
        with contextlib.suppress(ray.exceptions.RayError):
            number = ray.get(self.queue.actor.qsize.remote(), timeout=ANSWER_SECONDS)
            return ray.get(self.queue.actor.get_nowait_batch.remote(number), timeout=ANSWER_SECONDS)
        return []

    def _result(self, cell: Cell, reference: Any) -> Message:
        """The last message of a task, when what it made is here."""
        try:
            message: Message = ray.get(reference)
        except ray.exceptions.RayError as error:
            lacking = isinstance(error, ray.exceptions.OutOfMemoryError)
            why = f"{type(error).__name__}: {cut(str(error).strip().partition(chr(10))[0], 300)}"
            self._write(f"{cell.title} ({cell.key}) failed:\n{error}")
            return {"event": "failed", "status": "out_of_memory" if lacking else "failed", "reason": why}
        self._write(message.pop("log", ""))
        try:
            self.store.unpack(message.pop("files", {}))
        except (OSError, Damaged) as error:
            return {"event": "failed", "status": "failed", "reason": f"what it made did not arrive whole: {error}"}
        if message["event"] == "done" and not wait_for(self.store.path(cell.key), LAG_SECONDS):
            why = f"what it made is not in {self.study['folder']}: is that the same folder on all machines?"
            return {"event": "failed", "status": "failed", "reason": why}
        return message

    def _write(self, text: str) -> None:
        if text:
            self.log.parent.mkdir(exist_ok=True)
            with self.log.open("a") as file:
                file.write(text + "\n")

    def _say_where(self) -> None:
        """Say what the cluster has; refuse a cell that no machine has room for, unless others may join it."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus, gpus = (sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU"))
        place = "started here" if self.asked.address is None else f"at {self.asked.address}"
        line = f"Ray {place}: {cpus:g} CPUs and {gpus:g} GPUs on {len(nodes)} machine{'s' * (len(nodes) > 1)}"
        need = {"CPU": self.asked.num_cpus, "GPU": self.asked.num_gpus}
        if not any(all(node.get(name, 0) >= n for name, n in need.items()) for node in nodes):
            lacks = f"no machine has ray.num_cpus={need['CPU']:g} and ray.num_gpus={need['GPU']:g}"
            if self.asked.address is None:
                raise UserError(f"{line}; {lacks}")
            line += f"; {lacks}, so cells wait until one joins"
        self.news.append((None, {"event": "note", "line": line}))


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Connect to a cluster, or start one, unless this process has done so; its own connection is ended again.

    Raises:
        UserError: if nobody answers.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told of a study
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    own = {"include_dashboard": False} if address is None else {}
    try:
        if address not in (None, "auto"):
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
        with _usual_signals():
            ray.init(address or "local", log_to_driver=False, configure_logging=False, **own)
    except (OSError, ValueError, RuntimeError) as error:
        ray.shutdown()
        if address is None:
            raise UserError(f"Ray does not start here: {error}") from error
        what = "on this machine" if address == "auto" else f"at {address}"
        raise UserError(
            f"no cluster of Ray answers {what} ({cut(str(error).partition(chr(10))[0], 200)}); "
            f"start one with `ray start --head`, or type ray.address=null to have one started for this run"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _usual_signals() -> Iterator[None]:
    """Put back what Ray does with SIGTERM, which is for the launcher."""
    usual = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # not the main thread, in which Ray has changed nothing
            signal.signal(signal.SIGTERM, usual)


# ---- on the machines of the cluster -------------------------------------------------------------


def _work(study: dict[str, Any], told: dict[str, Any], files: list[Any] | None, actor: Any) -> Message:
    """A cell; returns its last message, with what it made where the study's folder is not seen."""
    cell, lines = Cell(**told), []
    folder, host = Path(study["folder"]), socket.gethostname()
    with contextlib.suppress(Stopped), stopped_by(signal.SIGINT, signal.SIGTERM), contextlib.ExitStack() as stack:
        shared = _sees(folder, study["mark"])
        if not shared and files is None:
            return {"event": "elsewhere", "host": host}

        def tell(message: Message) -> None:
            actor.put_nowait.remote((cell.key, message))

        tell(begun())
        try:
            process = _ready(json.dumps(study))
        except UserError as error:
            return {"event": "failed", "status": "failed", "reason": f"{host} is not ready for the study: {error}"}
        if not shared:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pezoo-")))
            Store(folder).unpack(ray.get(files)[0])
        store = Store(folder)
        if store.done(cell.key):  # by a machine that died before it could say so
            return {"event": "done", "fit": store.facts(cell.key).get("fit")}
        message: Message = {"event": "stopped"}
        with contextlib.suppress(Stopped):
            message = process.run(cell, store, tell, lines.append, PROGRESS_SECONDS)
        if not shared:
            message["files"] = store.pack([cell.key], *([cell.log] if cell.log else []))
        return message | {"log": "\n".join(lines)}
    return {"event": "stopped"}


def _sees(folder: Path, mark: str) -> bool:
    """Whether this machine sees the study's folder."""
    wait_for(folder / MARK, 2 if folder.is_dir() else 0)
    with contextlib.suppress(OSError):
        return (folder / MARK).read_text() == mark
    return False


@functools.lru_cache(1)
def _ready(study: str) -> Process:
    """This process, ready for a study; Ray gives it one task after the other."""
    told = json.loads(study)
    if (here := versions()["pezoo"]) != told["pezoo"]:
        raise UserError(f"it has pezoo {here}, and the study was planned by {told['pezoo']}")
    return Process(told)
