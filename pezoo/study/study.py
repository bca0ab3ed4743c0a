"""A study: a recipe, planned, and the folder it runs in.

In the folder are `recipe.yaml`, the recipe in full and itself a recipe; `results.jsonl`; `cells/`,
with a folder for each finished cell, named by its key; `report/` and `tensorboard/`; `status.json`, where the
last run stands; and `logs/`, with what the workers had to say. All of it speaks of one study at any moment: what
people look at is removed before results change, and written when a run has ended, by whoever holds the folder.
"""

import contextlib
import errno
import inspect
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from pezoo.errors import UserError, cut
from pezoo.escape import in_terminal
from pezoo.files import remove, sweep
from pezoo.model.devices import check_devices, gpus
from pezoo.registry import ENTRY_POINTS, entry, load_plugin
from pezoo.results import Result, read, write
from pezoo.study.collect import Failure, collect
from pezoo.study.engines import find_engine, require_launcher
from pezoo.study.engines.commands import JOBS, end_leftover
from pezoo.study.estimate import Estimate, processes
from pezoo.study.folder import RESULTS, claim, folder_of, plugins_of, require_plugins, write_record
from pezoo.study.launcher import Launcher
from pezoo.study.places import places, seated
from pezoo.study.plan import Cell, Plan, make_plan
from pezoo.study.progress import Progress, make_progress
from pezoo.study.reading import find_recipe, load_recipe
from pezoo.study.recipe import Recipe
from pezoo.study.status import Status
from pezoo.study.store import Store

try:
    import fcntl
except ImportError:  # no POSIX system
    fcntl = None

NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
"""What a file system without locks says; some Lustre, NFS and FUSE mounts have none."""

NAMED = 3
"""Damaged cells that are named."""
EFFECTIVE = os.access in os.supports_effective_ids


@dataclass
class Study:
    """A recipe, planned, and the folder it runs in."""

    plan: Plan
    out: Path
    plugins: list[str] = field(default_factory=list)
    """Files that register members, as absolute paths."""
    replace: bool = False
    """Whether another study in the folder may be replaced."""
    failures: dict[str, Failure] = field(default_factory=dict)
    """By key, the cells that failed in this run."""

    def __post_init__(self) -> None:
        self.store = Store(self.out)
        self._write_again = 0.0

    @classmethod
    def prepare(
        cls,
        recipe: str | Path | Mapping[str, Any],
        overrides: Iterable[str] = (),
        out: str | Path | None = None,
        plugins: Iterable[str | Path] = (),
        replace: bool = False,
    ) -> "Study":
        """Read, check and plan a study; nothing is written but the cache of tokenised text.

        Args:
            recipe: path, bare name, folder of a study to go on with, or the keys themselves.
            overrides: `key=value` texts.
            out: folder of the study; default: that of the study to go on with, else runs/<study>, or
                runs/<study>-<size> for another size than cpu.
            plugins: Python files that register members.
            replace: whether another study in the folder may be replaced.

        Raises:
            UserError: for whatever is wrong with any of it.
        """
        plugins = [str(Path(plugin).resolve()) for plugin in plugins]
        for plugin in plugins:
            load_plugin(plugin)
        own = folder_of(recipe, out)
        checked = load_recipe(recipe, overrides)
        where = Path() if isinstance(recipe, Mapping) else find_recipe(recipe).parent
        require_plugins(plugins_of(checked, where), plugins, f"the study in {own}" if own else str(checked.study))
        checked.plugins = []  # what is written down are those that were named
        name = checked.study if checked.size == "cpu" else f"{checked.study}-{checked.size}"
        folder = Path(out) if out is not None else own or Path("runs", name)
        if not folder.is_dir():  # what is there may be looked at where nothing can be written
            _check_folder(folder)
        claim(folder, checked, plugins, replace)
        return cls(make_plan(checked), folder, plugins, replace)

    @property
    def recipe(self) -> Recipe:
        """The recipe in full."""
        return self.plan.recipe

    @property
    def results_path(self) -> Path:
        """Where the results are."""
        return self.out / RESULTS

    def results(self) -> list[Result]:
        """Results of all evaluations that are finished, in the recipe's order."""
        return collect(self.plan, self.store, self.failures)

    def changes(self) -> str:
        """One line that says how the folder's study differs from this one, or nothing.

        Raises:
            UserError: if it is another study, which may not be replaced.
        """
        return claim(self.out, self.recipe, self.plugins, self.replace)[0]

    def estimate(self) -> Estimate:
        """What is left of the study, as far as finished cells tell."""
        done = {key: self.store.done(key) for key in self.plan.cells}
        recipe, todo = self.recipe, [key for key, whole in done.items() if not whole]
        share = {"local": 1.0, "ray": recipe.ray.num_gpus, "slurm": recipe.slurm.gpus}[recipe.launcher]
        if all(cell.inputs["device"] == "cpu" for cell in self.plan.cells.values()):
            share = recipe.threads
        here = recipe.launcher == "local"
        estimate = Estimate(self.plan.cells, todo, recipe.workers, places=places(recipe), share=share, here=here)
        for key in (key for key, whole in done.items() if whole):
            estimate.recall(key, self.store.facts(key))
        return estimate

    def try_some(self, estimate: Estimate) -> None:
        """Try, for about two seconds, what finished cells do not tell."""
        from pezoo.study.trials import try_some  # it imports what trains

        try_some(estimate, self.plan.corpora, self.recipe.threads, device=(places(self.recipe) or [("cpu",)])[0][0])

    def seats(self, todo: Iterable[str]) -> str:
        """How many workers sit on which GPUs, for people; nothing where they do not.

        Raises:
            UserError: if a training that is to be done needs more GPUs than there are.
        """
        taken = places(self.recipe)
        if not (line := seated(taken)):
            return ""
        for key in todo:
            check_devices(processes(self.plan.cells[key]), len(gpus()))
        return line

    def run(
        self,
        progress: Progress | None = None,
        report: Callable[["Study", list[Result]], object] | None = None,
        *,
        try_first: bool = False,
    ) -> list[Result]:
        """Run what is not done, and return the results; the file is renewed as cells finish.

        Args:
            progress: is told what happens; default: shown on standard error.
            report: writes what people look at from the results, when the run has ended and the folder is still held.
            try_first: whether to try a little of the work, for two seconds, so that the time that it takes is told
                before it begins. A GPU is left to the workers.

        Raises:
            UserError: if the folder cannot be written to, another run is at work in it, it holds another study, or a
                member is registered by a module that the study's processes would not load; if the launcher's package
                is not installed, or its cluster does not answer.
            ChildProcessError: if a worker process cannot start.
        """
        _check_folder(self.out)
        self._refuse_strangers()
        if not all(map(self.store.done, self.plan.cells)):
            require_launcher(self.recipe)
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make {self.out}: {error.strerror}; choose another --out") from None
        with holding(self.out):
            self._begin()
            estimate = self.estimate()
            seats = self.seats(estimate.todo)
            done = [key for key in self.plan.cells if key not in estimate.todo]
            told = progress or make_progress(len(done), len(self.plan.cells), estimate=estimate)
            try:
                with Status(self.out, self.plan, done, told, estimate) as shown:
                    if estimate.todo:
                        shown.note(f"{self.recipe.study} in {self.out}: {self.plan.summary(estimate.todo)}")
                        if seats:
                            shown.note(seats)
                        try_first &= self.recipe.launcher == "local"  # elsewhere it takes another time
                        try_first &= all(cell.inputs["device"] == "cpu" for cell in self.plan.cells.values())
                        if not try_first:
                            shown.note(estimate.say())
                    kind = find_engine(self.recipe.launcher if estimate.todo else "local")  # else none is needed
                    engine = kind(self.plan, self.store, self.plugins, estimate if try_first else None)
                    launcher = Launcher(self.plan, self.store, engine, shown, self._finished)
                    self.failures = launcher.failures
                    launcher.run()
            finally:
                self.store.clean()
                with contextlib.suppress(OSError):  # it is not empty: a worker had something to say
                    (self.out / "logs").rmdir()
                results = self._write()
            if report is not None:
                report(self, results)
        return results

    def _refuse_strangers(self) -> None:
        """Refuse members that this process has and the workers, which load plug-ins alone, would not have."""
        installed = {point.module.partition(".")[0] for point in entry_points(group=ENTRY_POINTS)}
        given = {name for plugin in self.plugins for name in load_plugin(plugin)}
        for name in dict.fromkeys(name for cell in self.plan.cells.values() for name in cell.members):
            module = entry(name).cls.__module__
            known = module.partition(".")[0] in {"pezoo", *installed} or name in given
            if not known and (not self.plugins or module.startswith("pezoo_plugin_")):  # else one may import it
                file = inspect.getfile(entry(name).cls)
                raise UserError(
                    f"{name} was registered by {file}, which the processes of a study do not load; "
                    f'pass plugins=["{file}"], or --plugin {shlex.quote(file)}'
                )

    def _begin(self) -> None:
        line, replaced = claim(self.out, self.recipe, self.plugins, self.replace)
        if line:
            print(in_terminal(line, sys.stderr.encoding or "utf-8"), file=sys.stderr)
        if (self.out / JOBS).exists():
            end_leftover(self.out)
        remove(self.out / "logs")
        self.store.clean()
        for folder in (self.out, self.out / "report"):
            sweep(folder)
        if damaged := self.store.heal(self.plan.cells):
            named = [f"{self.plan.cells[key].title} ({why})" for key, why in damaged.items()]
            more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
            print(f"damaged, and made anew: {', '.join(named[:NAMED])}{more}", file=sys.stderr)
        same = not replaced and self._written() == self.results()
        if replaced or not same or not all(map(self.store.done, self.plan.cells)):
            remove(self.out / "report")
            for view in ("test", "hparams"):
                remove(self.out / "tensorboard" / view)
        if replaced:
            remove(self.out / "tensorboard")
        if not same:
            self.results_path.unlink(missing_ok=True)
        write_record(self.out, self.recipe, self.plugins)
        self._write()

    def _written(self) -> list[Result] | None:
        """The results in the file, if it is there and whole."""
        with contextlib.suppress(UserError):
            return read(self.results_path)
        return None

    def _write(self) -> list[Result]:
        results = self.results()
        write(self.results_path, results)
        return results

    def _finished(self, cell: Cell) -> None:
        """Renew the results, in large studies not so often that it takes time from the cells."""
        began = time.monotonic()
        if began >= self._write_again and (cell.kind == "evaluate" or cell.key in self.failures):
            self._write()
            now = time.monotonic()
            self._write_again = now + 20 * (now - began)


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Hold a study folder; the system lets go of it when this process ends, in whatever way.

    Where the file system has no such locks, a file marks the folder as held.
    """
    with (folder / ".lock").open("a+", errors="replace") as file, contextlib.ExitStack() as held:
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            who = cut(file.read().strip())
            raise UserError(
                f"another run (process {who}) is at work in {folder}; wait for it, or choose another --out"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise UserError(f"cannot lock {folder}: {error.strerror}; choose another --out") from None
            held.enter_context(_marked(folder))
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextlib.contextmanager
def _marked(folder: Path) -> Iterator[None]:
    """Hold a study folder by a file that names this process; one whose process has ended here does not count."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that there are no locks, which is why it is used
        from filelock import SoftFileLock, Timeout
    mark = folder / ".held"
    lock = SoftFileLock(mark, timeout=3)  # long enough to find that a process has ended
    try:
        lock.acquire()
    except Timeout:
        who = ""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            who = f" (process {' on '.join(mark.read_text().split()[:2])})"
        raise UserError(
            f"another run{who} is at work in {folder}; wait for it, or choose another --out. "
            f"If it has ended, remove {mark}"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be made or written to, without making it."""
    nearest = next(p for p in (folder, *folder.absolute().parents) if os.path.lexists(p))
    problem = None
    if not nearest.is_dir():
        problem = f"{nearest} is a file"
    elif not os.access(nearest, os.W_OK | os.X_OK, effective_ids=EFFECTIVE):
        problem = f"no permission to write to {nearest}"
    if problem:
        raise UserError(f"cannot use {folder} for the study: {problem}; choose another --out")
