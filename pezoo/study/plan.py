"""Recipe to plan: which cells a study consists of, and which of them depend on which.

A cell is a training, a choice among trainings, a tuning or an evaluation. Its name is the hash of its inputs, and its
inputs are all that the code that runs it gets to see, so two cells with one name give the same numbers:

- train: the scheme as it acts in training, the code of its members, model, data or task, settings and seed.
- choose: the trainings of a scheme at several learning rates, for all seeds, and the seed whose model it hands on.
- tune: the same for the scheme as it acts in tuning, and the trained parent. Each step count is a
  tuning of its own from that parent, not a stop on the way of the longest one: the learning rate
  comes down to its floor at each one's own last step, so that 50 steps are judged as somebody who
  can afford 50 would run them.
- evaluate: the trained or tuned parent, the whole scheme, protocol, lengths and windows or questions.

A recipe with parts is planned part by part; what two parts share is one cell.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pezoo.data import Corpus, crops, load, windows
from pezoo.data.material import TESTING, TRAINING, Material, Questions, Text
from pezoo.errors import UserError, brief, cut, suggest
from pezoo.escape import safe_names
from pezoo.model.transformer import ModelConfig, Transformer, TransformerConfig
from pezoo.results import LANGUAGE_MODELLING
from pezoo.scheme import MemberSpec, Spec
from pezoo.study.recipe import Recipe, Row
from pezoo.study.resolve import acting, matching, refuse_main, resolve_device, resolve_protocols, resolve_scheme
from pezoo.task import parse_task
from pezoo.training.config import TrainConfig
from pezoo.training.keys import from_stored, hashed, to_stored

VERSIONS = {"train": 4, "choose": 1, "tune": 4, "evaluate": 3}
"""Raised when the code of a kind of cell changes its numbers; older cells are then not reused. The code of members is
in the hash itself (`pezoo.sources`); for the rest `tests/test_fingerprint.py` fails if this is forgotten."""
GROUPS: dict[str, type] = {"model": ModelConfig, "settings": TrainConfig}
"""Groups of the recipe's keys among the inputs of cells."""


@dataclass(frozen=True)
class Cell:
    """One unit of work."""

    title: str
    """For people: "train rope, seed 0"."""
    inputs: dict[str, Any] = field(hash=False)
    """All that determines the cell's numbers, as plain data."""
    log: str = ""
    """Folder of the training curves, below the study's; no part of the hash."""

    @property
    def kind(self) -> str:
        """train, choose, tune or evaluate."""
        return self.inputs["kind"]

    @property
    def parent(self) -> str | None:
        """Key of the cell whose model this one starts from."""
        return self.inputs.get("parent")

    @property
    def parents(self) -> list[str]:
        """Keys of all cells that must be done before it."""
        if self.kind == "choose":
            return [key for keys in self.inputs["candidates"].values() for key in keys]
        return [] if self.parent is None else [self.parent]

    @property
    def members(self) -> list[str]:
        """Names of the members that it needs."""
        tasks = [self.inputs[name]["task"].partition(":")[0] for name in ("data", "tested") if name in self.inputs]
        return [*self.inputs["sources"], *(task for task in tasks if task != LANGUAGE_MODELLING)]

    @property
    def key(self) -> str:
        """Name of the cell: hash of its inputs, without what moves no number."""
        groups = {name: hashed(cls, self.inputs[name]) for name, cls in GROUPS.items() if name in self.inputs}
        return digest(self.inputs | groups)

    def model(self) -> Transformer:
        """The model that it works on, with fresh weights."""
        inputs = self.inputs
        config = TransformerConfig(
            **from_stored(ModelConfig, inputs["model"]),
            vocab_size=inputs["data"]["vocab_size"],
            causal=inputs["data"]["form"] == "causal",
            scheme=inputs["scheme"],
            train_length=inputs["train_length"],
            seed=inputs["seed"],
            backend=inputs["backend"],
        )
        return Transformer(config)


@dataclass(frozen=True)
class Evaluation:
    """A use of an evaluation cell by the recipe: which row of which table its numbers go to."""

    part: str
    recipe: Recipe
    """That of the part."""
    label: str
    spec: Spec
    seed: int
    protocol: str
    tune_steps: int
    tested: Material
    cell: str


@dataclass(frozen=True)
class Plan:
    """The cells of a study, parents before children, and what the recipe wants of them."""

    recipe: Recipe
    corpora: dict[str, Corpus]
    """The text that cells read, by hash."""
    cells: dict[str, Cell]
    evaluations: list[Evaluation]
    """Ordered by part, task, the recipe's schemes, then seed."""

    def ancestors(self, key: str) -> Iterator[str]:
        """Keys of the cells that a cell is built on, nearest first."""
        waiting = self.cells[key].parents
        while waiting:
            yield from waiting
            waiting = list(dict.fromkeys(p for key in waiting for p in self.cells[key].parents))

    def line(self, key: str) -> Iterator[str]:
        """Keys of the cells whose model it is handed, nearest first: ancestors, without what was not chosen."""
        while (parent := self.cells[key].parent) is not None:
            yield parent
            key = parent


def digest(data: Any) -> str:
    """First 16 hexadecimal digits of the SHA-256 of plain data, whatever the order of its keys."""
    text = json.dumps(data, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def count_parameters(model: Transformer) -> int:
    """Parameters of a model, each once."""
    return sum(p.numel() for p in model.parameters())


def load_corpora(recipe: Recipe) -> dict[str, Corpus]:
    """The corpora that a recipe's parts read, by hash; none is loaded for tasks alone."""
    parts = [one for _, one in recipe.split() if LANGUAGE_MODELLING in one.tasks]
    configs = {repr(one.data): one.data for one in parts}
    return {corpus.hash: corpus for corpus in map(load, configs.values())}


def make_plan(recipe: Recipe) -> Plan:
    """Plan a study; its text is tokenised, if it has not been.

    Raises:
        UserError: if a scheme is malformed, cannot work in this model, or occurs twice; for an
            unknown task or protocol, a device that is not there or cannot do what is asked, and a
            corpus with too little text.
    """
    plan = Plan(recipe, load_corpora(recipe), {}, [])
    logs: dict[str, list[str]] = {}
    for name, part in recipe.split():
        try:
            for task in dict.fromkeys(t if t == LANGUAGE_MODELLING else str(parse_task(t)) for t in part.tasks):
                _Planner(plan, name, part, task, logs).add_all()
        except UserError as error:
            raise UserError(f"parts.{cut(name)}: {error}" if name else str(error)) from None
    _check_baseline(plan)
    names = safe_names(dict.fromkeys(name for place in logs.values() for name in place))
    for key, place in logs.items():
        cell = plan.cells[key]
        log = "/".join(["tensorboard/train", *(names[name] for name in place), f"seed{cell.inputs['seed']}"])
        plan.cells[key] = dataclasses.replace(cell, log=log)
    return plan


class _Planner:
    """Adds to a plan what a part of the recipe wants for one task."""

    def __init__(self, plan: Plan, part: str, recipe: Recipe, task: str, logs: dict[str, list[str]]) -> None:
        self.plan, self.part, self.recipe = plan, part, recipe
        self.logs = logs
        """By key of a training or tuning, what tells its training curves from others: part, task, row."""
        device = resolve_device(recipe)
        if task == LANGUAGE_MODELLING:
            self.material: Material = Text(plan.corpora[load(recipe.data).hash])
            self._check_text()
        else:
            refuse_main(parse_task(task).name)
            self.material = Questions(task, recipe.form, recipe.train.length)
            self._check_lengths()
        self.protocols = resolve_protocols(self.material, recipe)
        self.train_tokens = self.material.n_tokens(recipe.train.length)
        self.common = {
            "model": to_stored(recipe.model),
            "train_length": self.train_tokens,
            "data": self.material.facts(),
            "backend": recipe.backend,
            "device": device,
            "threads": recipe.threads,
        }
        self.place = [x for x in (part, "" if task == LANGUAGE_MODELLING else self.material.name) if x]
        """What tells this part and task from others, for people."""

    def _check_text(self) -> None:
        """Refuse a corpus that has not enough text for crops and windows."""
        corpus, recipe = self.material.corpus, self.recipe
        crops(corpus.train, recipe.train.length, 1, 0, 0)
        if self._tunes:
            crops(corpus.train, recipe.tune_length, 1, 0, 0)
        windows(corpus.test, max(recipe.test_lengths), recipe.test.windows, recipe.test.seed)

    @property
    def _tunes(self) -> bool:
        """Whether any model is tuned."""
        recipe = self.recipe
        counts = [steps for row in recipe.rows for steps in row.tune]
        return any(counts + (recipe.tune.steps if recipe.grid.encodings else []))

    def _check_lengths(self) -> None:
        """Refuse lengths for which the task has no questions, in training, tuning or testing."""
        train, least = self.recipe.train, self.material.task.least_length
        if (given := train.min_length or least) < least:
            raise UserError(
                f"train.min_length={given} is too short for {self.material.name}; type train.min_length={least}"
            )
        self.recipe = dataclasses.replace(self.recipe, train=dataclasses.replace(train, min_length=given))
        lengths = [(TRAINING, length) for length in [train.length] + [self.recipe.tune_length] * self._tunes]
        for split, length in [*lengths, *((TESTING, length) for length in self.recipe.test_lengths)]:
            try:
                self.material.pairs(split, 0, 1, length, 0)
            except UserError:
                raise
            except Exception as error:  # in somebody's plug-in, or of numbers that are too large
                what = f"{type(error).__name__}: {cut(str(error), 300)}"
                raise UserError(f"{self.material.name}, length {length}, fails with {what}") from error

    def add_all(self) -> None:
        """Add cells and evaluations, ordered by scheme, then seed."""
        recipe, rows = self.recipe, []
        for i, row in enumerate(recipe.rows):
            spec = resolve_scheme(recipe, row, f"schemes.{i}", self.material, self.train_tokens)
            rows.append((row.label or (row.scheme if isinstance(row.scheme, str) else str(spec)), row.tune, spec))
        rows += self._grid()
        found = [e for seed in recipe.seeds for name, tune, spec in rows for e in self._row(name, tune, spec, seed)]
        _refuse_repeats(found)
        place = {label: i for i, label in enumerate(dict.fromkeys(e.label for e in found))}
        self.plan.evaluations.extend(sorted(found, key=lambda e: (place[e.label], recipe.seeds.index(e.seed))))

    def _grid(self) -> Iterator[tuple[str, tuple[int, ...], Spec]]:
        """Rows of the grid, without pairs that are refused."""
        recipe = self.recipe
        encodings = matching("grid.encodings", recipe.grid.encodings, "encoding")
        extensions = matching("grid.extensions", recipe.grid.extensions, "extension")
        for scheme in (f"{e}+{x}" if x else e for e in encodings for x in ("", *extensions)):
            row = Row(scheme, tuple(dict.fromkeys(recipe.tune.steps)), None)
            try:
                spec = resolve_scheme(recipe, row, "grid", self.material, self.train_tokens)
            except UserError:
                if "+" not in scheme and scheme in recipe.grid.encodings:
                    raise
                continue
            yield scheme, row.tune, spec

    def _row(self, name: str, tune: tuple[int, ...], spec: Spec, seed: int) -> Iterator[Evaluation]:
        """The cells of one scheme and seed; its evaluations."""
        recipe, trained = self.recipe, self._train(name, spec, seed)
        for steps in tune:
            parent, tested, label = trained, spec, name
            if steps:
                label = f"{name}, {steps} steps @ {recipe.tune_length / recipe.train.length:g}x"
                parent = self._fit("tune", name, label, spec, recipe.tuning(steps), seed, parent=trained)
                tested = spec.fixed(self.material.n_tokens(recipe.tune_length), self.train_tokens)
            for what, protocol in self.protocols:
                yield self._evaluate(label, tested, seed, parent, steps, what, protocol)
            windowed = self._windowed(tested)
            if windowed is not None:
                for what, protocol in self.protocols:
                    yield self._evaluate(f"{label} | windowed", windowed, seed, parent, steps, what, protocol)

    def _train(self, name: str, spec: Spec, seed: int) -> str:
        """The training cell, or that which chooses among several learning rates."""
        settings = dataclasses.replace(self.recipe.train, lrs=[])
        if not self.recipe.train.lrs:
            return self._fit("train", name, name, spec, settings, seed)
        candidates = {}
        for lr in self.recipe.train.lrs:
            label, at_lr = f"{name}, lr {lr}", dataclasses.replace(settings, lr=lr)
            candidates[str(lr)] = [self._fit("train", name, label, spec, at_lr, s) for s in self.recipe.seeds]
        return self._add("choose", name, acting(spec, "train"), candidates=candidates, seed=seed)

    def _fit(
        self, kind: str, name: str, label: str, spec: Spec, settings: TrainConfig, seed: int, **inputs: Any
    ) -> str:
        reduced = acting(spec, kind)
        shown = label if reduced == spec else label.replace(name, str(reduced), 1)
        key = self._add(kind, shown, reduced, settings=to_stored(settings), seed=seed, **inputs)
        self.logs.setdefault(key, [*self.place, shown])
        return key

    def _evaluate(
        self, label: str, spec: Spec, seed: int, parent: str, steps: int, tested: Material, protocol: str
    ) -> Evaluation:
        recipe, what = self.recipe, label
        if len(self.protocols) > 1:
            what = f"{label} ({protocol if tested is self.material else f'{tested.name}, {protocol}'})"
        facts = {
            "protocol": protocol,
            "lengths": recipe.test_lengths,
            "windows": {"count": recipe.test.windows, "seed": recipe.test.seed},
            "batch_tokens": recipe.test.batch_tokens,
            "precision": recipe.test.precision,
        }
        if isinstance(tested, Text):
            facts["last"] = recipe.test.last or recipe.train.length
        elif tested is not self.material:
            facts["tested"] = tested.facts()
        cell = self._add("evaluate", what, spec, seed=seed, parent=parent, **facts)
        return Evaluation(self.part, recipe, label, spec, seed, protocol, steps, tested, cell)

    def _windowed(self, spec: Spec) -> Spec | None:
        """The scheme with a window of L in testing, where the recipe wants it and the scheme takes one."""
        if not self.recipe.test.companion or not spec.members or "window" in spec.extensions:
            return None
        window = MemberSpec.make("window", {"size": self.train_tokens, "at": ["test"]})
        return Spec((*spec.members, window))

    def _add(self, kind: str, name: str, spec: Spec, **inputs: Any) -> str:
        scheme = {"scheme": str(spec), "scheme_settings": spec.data, "sources": spec.sources()}
        title = " ".join([kind, name, *([f"on {', '.join(self.place)}"] if self.place else [])])
        all_inputs = {"kind": kind, "version": VERSIONS[kind]} | scheme | self.common | inputs
        cell = Cell(f"{title}, seed {inputs['seed']}", all_inputs)
        return self.plan.cells.setdefault(cell.key, cell).key


def _check_baseline(plan: Plan) -> None:
    """Refuse a baseline that is no row of any table."""
    labels, baseline = dict.fromkeys(e.label for e in plan.evaluations), plan.recipe.baseline
    if baseline and baseline not in labels:
        near = suggest(baseline, labels) or f" They are {', '.join(map(repr, labels))}"
        raise UserError(f"baseline must be the label of one of the schemes, got {brief(baseline)}.{cut(near, 500)}")


def _refuse_repeats(evaluations: list[Evaluation]) -> None:
    cells: dict[str, str] = {}
    labels: dict[tuple[Any, ...], str] = {}
    for e in evaluations:
        if e.cell in cells:
            raise UserError(
                f"schemes: {cells[e.cell]!r} and {e.label!r} are the same scheme, {e.spec}; keep one of them"
            )
        row = (e.label, e.seed, e.protocol, e.tested.name)
        if row in labels:
            raise UserError(f"schemes: two rows are called {e.label!r}; give one of them another label")
        cells[e.cell], labels[row] = e.label, e.cell
