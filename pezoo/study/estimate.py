"""How long the rest of a study takes: told before it begins, and corrected as it goes on.

A cell's time is its work, counted in floating-point operations, times the time of an operation. This comes from cells
that are done or running, else from a little of the work that was tried before, corrected by how far such trials have
been wrong. Cells with the same scheme count first, then those with another, then any. None of it gets into results.
"""

import dataclasses
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pezoo.model.devices import is_here
from pezoo.registry import entry
from pezoo.sources import PLUGIN
from pezoo.study import memory
from pezoo.study.places import Place
from pezoo.study.plan import Cell, digest
from pezoo.training.weights import ALL

T = TypeVar("T")
SETTLED = 5.0
"""Seconds after which a running cell tells how fast its kind is."""


@dataclasses.dataclass
class Running:
    """A cell at work."""

    since: float
    """When it began, or first said how far it is."""
    first: float = 0.0
    """The share that was done then."""
    share: float = 0.0
    """The share that is done."""


class Estimate:
    """What is left of a study.

    Args:
        cells: all cells of the plan by key, parents before children.
        todo: keys of those that are not done.
        workers: how many run at a time.
        clock: seconds.
        places: the devices of each worker, where they are known.
        share: GPUs that a cell has, or its threads on a CPU.
        here: whether cells run on this machine.
    """

    def __init__(
        self,
        cells: Mapping[str, Cell],
        todo: Iterable[str],
        workers: int,
        clock: Callable[[], float] = time.monotonic,
        places: Sequence[Place] = (),
        share: float = 1.0,
        here: bool = True,
    ) -> None:
        self.cells, self.workers, self.clock = cells, workers, clock
        self.places, self.share, self.here = places, share, here
        self.todo = dict.fromkeys(todo)
        self.levels = {key: levels_of(cell) for key, cell in cells.items()}
        self.units = {key: units(cell) for key, cell in cells.items()}
        alike = {self.levels[key][1]: cell for key, cell in cells.items() if self.units[key]}
        each = {level: operations(cell) for level, cell in alike.items()}
        self.work = {key: n and n * each[self.levels[key][1]] for key, n in self.units.items()}
        """By key, floating-point operations."""
        self.tried: dict[str, float] = {}
        """Seconds of an operation by the first level of a cell, where it was tried."""
        self.took: dict[str, tuple[float, float]] = {}
        """By key, the work that has been done and its seconds."""
        self.running: dict[str, Running] = {}
        self.memory: int | None = None
        """Bytes of one process at its peak."""
        self.elsewhere = not all(map(is_here, {cell.inputs["device"] for cell in cells.values()}))
        """Whether this machine lacks the GPU that cells want; they are tried on its CPU."""

    @property
    def tokens(self) -> int:
        """Tokens that are left to train on."""
        fits = [key for key in self.todo if self.cells[key].kind in ("train", "tune")]
        rows: Counter[str] = Counter()
        for key in fits:
            rows[self.levels[key][1]] += self.units[key]
        alike = {self.levels[key][1]: self.cells[key] for key in fits}
        return sum(n * row_tokens(alike[level]) for level, n in rows.items())

    def recall(self, key: str, facts: Mapping[str, Any]) -> None:
        """Learn from what a finished cell wrote down."""
        if self.cells[key].kind == "evaluate":
            seconds = sum({at["seconds"] or 0.0 for at in facts["lengths"]})  # one pass may give several lengths
            peaks = [at["peak_memory_bytes"] for at in facts["lengths"]]
        elif self.cells[key].kind == "choose" or facts["fit"]["status"] != "ok":
            return
        else:
            seconds, peaks = facts["fit"]["train_seconds"], [facts["fit"]["peak_memory_bytes"]]
        self._need(peaks)
        if seconds:
            self.took[key] = (self.work[key], seconds)

    def expect(self, key: str, unit_seconds: float, memory: int | None = None) -> None:
        """Take what was tried as the time of a unit of such cells, and as a process's memory in bytes."""
        self.tried[self.levels[key][0]] = unit_seconds / operations(self.cells[key])
        self._need([memory])

    def _need(self, peaks: Iterable[int | None]) -> None:
        self.memory = max((peak for peak in (*peaks, self.memory) if peak is not None), default=None)

    def start(self, key: str) -> None:
        """A cell begins."""
        self.running[key] = Running(self.clock())

    def update(self, key: str, share: float) -> None:
        """So much of a cell is done, from 0 to 1."""
        at = self.running[key]
        if not at.share:  # what it took to get ready, and what was done in an earlier run, do not count
            self.running[key] = Running(self.clock(), share, share)
            return
        at.share, passed = share, self.clock() - at.since
        if passed >= SETTLED and share > at.first:
            self.took[key] = (self.work[key] * (share - at.first), passed)

    def finish(self, key: str, seconds: float, failed: bool = False) -> None:
        """A cell has ended after so many seconds; if it failed, what builds on it is not run."""
        self.todo.pop(key, None)
        self.running.pop(key, None)
        if not failed:
            if self.work[key]:  # a choice has none, and says nothing of other cells
                self.took.setdefault(key, (self.work[key], seconds))
            return
        self.took.pop(key, None)
        lost = {key}
        for child in list(self.todo):
            if lost.intersection(self.cells[child].parents):
                lost.add(child)
                del self.todo[child]

    def left(self) -> float | None:
        """Seconds to the end, or None if that is unknown: as many cells as there are workers, at most, run together."""
        rests = self.rests()
        if rests is None:
            return None
        ends: dict[str, float] = {}
        for key, cell in self.cells.items():
            ends[key] = max((ends[parent] for parent in cell.parents), default=0.0) + rests.get(key, 0.0)
        return max(sum(rests.values()) / self.workers, *ends.values()) if ends else 0.0

    def hours(self) -> float | None:
        """Hours of all GPUs, or threads on CPUs, together to the end, or None if that is unknown."""
        rests = self.rests()
        if rests is None:
            return None
        return self.share * sum(rest * processes(self.cells[key]) for key, rest in rests.items()) / 3600

    def disk(self) -> int:
        """Bytes of the models that are still to be made, roughly; adapters and pictures are small."""
        makes = [self.cells[key] for key in self.todo if self.cells[key].kind != "evaluate"]
        return memory.NUMBER * sum(sum(_sizes(cell.inputs)) for cell in makes)

    def rests(self) -> dict[str, float] | None:
        """By key, the seconds that are left of cells, 0 for a choice; None if that is unknown."""
        rates, rests = _Rates(self), dict.fromkeys(self.todo, 0.0)
        for key in self.todo:
            if self.work[key]:
                if (rate := rates[key]) is None:
                    return None
                rests[key] = self._rest(key, rate * self.work[key])
        return rests

    def _rest(self, key: str, whole: float) -> float:
        at = self.running.get(key)
        if at is None:
            return whole
        return whole * (1 - at.share) if at.share else max(0.0, whole - (self.clock() - at.since))

    def say(self) -> str:
        """What is left, for people."""
        facts = [duration(self.left())]
        if tokens := self.tokens:
            facts.append(f"{amount(tokens)} tokens to train on")
        device = next((self.cells[key].inputs["device"] for key in self.todo), "cpu")
        if (hours := self.hours()) is not None and hours >= 1:
            shown = f"{hours:.3g}" if hours < 100 else f"{hours:,.0f}"
            facts.append(f"{shown} {'CPU' if device == 'cpu' else 'GPU'} hours in all")
        least = [bytes_ for key in self.todo if (bytes_ := memory.least(self.cells[key])) is not None]
        if peak := max([*least, self.memory or 0]):
            n = min(self.workers, max(1, len(self.todo)))
            crowd = Counter(place for worker in self.places[:n] for place in worker) or Counter({device: n})
            needed = {place: count * peak for place, count in crowd.items()}
            what = "memory" if device == "cpu" else "GPU memory"
            if len(needed) > 1:
                facts.append(f"{amount(max(needed.values()))}B of {what} on each of {len(needed)} GPUs")
            else:
                facts.append(f"{amount(max(needed.values()))}B of {what}" + (f" for {n} workers" if n > 1 else ""))
            if self.here and (least or device != "cpu") and (more := memory.remark(needed)):
                facts.append(more)
        if (disk := self.disk()) >= 2**20:
            facts.append(f"{amount(disk)}B on disk")
        return "; ".join(facts)

    def basis(self) -> str:
        """Where the time comes from, for people."""
        if self.left() is None:
            work = sum(self.work[key] for key in self.todo)
            return (
                "the time is known once some cells are done, one scheme, say: this is too large to be tried here, or a "
                f"plug-in's. It is {amount(work)} operations; at 10 T a second, {work / 1e13 / 3600:,.0f} hours in all"
            )
        sources = []
        if n := sum(key not in self.todo for key in self.took):
            sources.append(f"{n:,} finished cell{'s' * (n > 1)}")
        if n := len(self.tried):
            where = "'s CPU, for want of a GPU" if self.elsewhere else ""
            sources.append(f"{n:,} kind{'s' * (n > 1)} of cells, of which a little was tried on this machine{where}")
        more = "; once a few cells are done on one, they count" if self.tried and self.elsewhere else ""
        return f"the time comes from {', and from '.join(sources)}{more}" if sources else ""


def to_try(estimate: Estimate) -> Iterator[Cell]:
    """A cell of each scheme whose time is unknown: first one of each kind of work, from the middle of its schemes.

    What a plug-in brings is not tried: whatever ends the process that tries it ends the study.
    """
    known = {estimate.levels[key][0] for key in estimate.took}
    waiting: dict[str, dict[str, str]] = defaultdict(dict)
    for key in estimate.todo:
        own, sort, *_ = estimate.levels[key]
        modules = (entry(name).cls.__module__ for name in estimate.cells[key].members)
        if estimate.work[key] and own not in known and not any(module.startswith(PLUGIN) for module in modules):
            waiting[sort].setdefault(own, key)
    queues = [list(keys.values()) for keys in waiting.values()]
    queues = [queue[len(queue) // 2 :] + queue[: len(queue) // 2] for queue in queues]
    while queues:
        yield from (estimate.cells[queue.pop(0)] for queue in queues)
        queues = [queue for queue in queues if queue]


class _Rates:
    """Seconds of an operation, by all that is known at a moment: of cells that are alike first, then more widely."""

    def __init__(self, estimate: Estimate) -> None:
        self.levels = estimate.levels
        tried: dict[str, list[float]] = defaultdict(list)
        for levels in set(estimate.levels.values()):
            if levels[0] in estimate.tried:
                for level in levels:
                    tried[level].append(estimate.tried[levels[0]])
        self.tried = {level: sum(rates) / len(rates) for level, rates in tried.items()}
        self.took: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        """Operations, and the seconds that they took."""
        self.wrong: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        """Seconds that were expected by what was tried, and those that it took."""
        for key, (work, seconds) in estimate.took.items():
            expected = self._first(self.tried, key)
            for level in self.levels[key]:
                _add(self.took[level], work, seconds)
                if expected is not None:
                    _add(self.wrong[level], work * expected, seconds)

    def __getitem__(self, key: str) -> float | None:
        """Those of a cell; None where nothing is known at all."""
        if (own := self.levels[key][0]) in self.took:
            return _ratio(self.took[own])
        if (expected := self._first(self.tried, key)) is not None:
            wrong = self._first(self.wrong, key)
            return expected * (_ratio(wrong) if wrong else 1.0)
        took = self._first(self.took, key)
        return _ratio(took) if took else None

    def _first(self, known: Mapping[str, T], key: str) -> T | None:
        return next((known[level] for level in self.levels[key] if level in known), None)


def _add(pair: list[float], first: float, second: float) -> None:
    pair[0] += first
    pair[1] += second


def _ratio(pair: list[float]) -> float:
    return pair[1] / pair[0]


def units(cell: Cell) -> int:
    """Rows of batches, windows or questions of a cell; a choice has none."""
    if cell.kind == "choose":
        return 0
    if cell.kind == "evaluate":
        return cell.inputs["windows"]["count"]
    settings = cell.settings()
    return settings.steps * settings.accumulate * settings.batch_size


def processes(cell: Cell) -> int:
    """Processes that work at a cell."""
    return cell.settings().processes if cell.kind in ("train", "tune") else 1


def row_tokens(cell: Cell) -> int:
    """Tokens of the longest rows that a training or tuning reads."""
    length = cell.settings().length
    return cell.material({}).n_tokens(length) if "train_length" in cell.inputs["data"] else length


def operations(cell: Cell) -> int:
    """Floating-point operations of a unit, roughly: those with the matrices of the model."""
    blocks, head = _sizes(cell.inputs)
    if cell.kind == "evaluate":
        return 2 * (blocks + head) * sum(cell.inputs["lengths"])
    passes = 6 if cell.weights() == ALL else 4  # frozen matrices have no gradients
    return (passes * (blocks + head) + 2 * cell.settings().checkpointing * blocks) * row_tokens(cell)


def _sizes(inputs: Mapping[str, Any]) -> tuple[int, int]:
    """Numbers in the matrices that each token is multiplied with, roughly: of the blocks, and of the output layer."""
    if "body" in inputs:
        return inputs["body"]["sizes"]["parameters"], 0
    model, data = inputs["model"], inputs["data"]
    return 12 * model["n_layers"] * model["d_model"] ** 2, data["vocab_size"] * model["d_model"]


def levels_of(cell: Cell) -> tuple[str, ...]:
    """Names of all that a cell is alike to in the time of an operation, the nearest first: the last is any cell."""
    names = "model body train_length data tested backend device threads protocol lengths batch_tokens precision weights"
    facts = {name: cell.inputs.get(name) for name in names.split()}
    if "settings" in cell.inputs:
        settings = cell.settings()
        facts["settings"] = [settings.length, settings.batch_size, settings.precision, settings.checkpointing]
        facts["processes"] = [settings.devices, settings.num_nodes, settings.strategy]
    work = {"kind": cell.kind} | facts
    alike = digest(work)
    return f"{alike} {cell.inputs.get('scheme')}", alike, cell.kind, ""


# ---- for people ---------------------------------------------------------------------------------


def duration(seconds: float | None) -> str:
    """A time to come, for people.

    >>> [duration(s) for s in (None, 20, 400, 10_000, 400_000)]
    ['time unknown', 'less than a minute', 'about 7 min', 'about 2.8 h', 'about 4.6 days']
    """
    if seconds is None:
        return "time unknown"
    if seconds < 45:
        return "less than a minute"
    if seconds < 100 * 60:
        return f"about {max(1, round(seconds / 60))} min"
    hours = seconds / 3600
    return f"about {hours:.1f} h" if hours < 48 else f"about {hours / 24:.1f} days"


def amount(number: float) -> str:
    """A number with two or three digits and k, M, G, T, P or E.

    >>> [amount(n) for n in (950, 14_745_600, 1.4e9)]
    ['950', '14.7 M', '1.4 G']
    """
    for unit in ("", " k", " M", " G", " T", " P", " E"):
        if number < 1000 or unit == " E":
            return f"{number:.3g}{unit}"
        number /= 1000
    raise AssertionError
