"""Recipe to plan: which cells a study consists of, and which of them depend on which.

A cell is a training, a choice among trainings, a tuning or an evaluation. Its name is the hash of its inputs, and its
inputs are all that the code that runs it gets to see, so two cells with one name give the same numbers:

- train: the scheme as it acts in training, the source files of its members, model, data or task, settings and seed.
- choose: the trainings of a scheme at several learning rates, for all seeds, and the seed whose model it hands on.
- tune: the same for the scheme as it acts in tuning, and the trained parent. Each step count is a
  tuning of its own from that parent, not a stop on the way of the longest one: the learning rate
  comes down to its floor at each one's own last step, so that 50 steps are judged as somebody who
  can afford 50 would run them.
- evaluate: the trained or tuned parent, the whole scheme, protocol, lengths and windows or questions.

A recipe with parts is planned part by part; what two parts share is one cell.
"""

import dataclasses
import fnmatch
import hashlib
import json
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from pezoo.compose import build
from pezoo.config import LANGUAGE_MODELLING, Recipe, Row, TrainConfig
from pezoo.contract import Shape, Undefined
from pezoo.data import Corpus, crops, load, windows
from pezoo.data.material import TESTING, TRAINING, Material, Questions, Text
from pezoo.devices import check_testing, check_training, find_device
from pezoo.errors import UserError, brief, cut, suggest
from pezoo.escape import safe_names
from pezoo.evaluation import parse_protocol
from pezoo.evaluation.answers import check_answer_protocol
from pezoo.registry import entries, entry
from pezoo.scheme import MemberSpec, Spec, parse, read_members
from pezoo.task import parse_task
from pezoo.transformer import Transformer, TransformerConfig

VERSIONS = {"train": 4, "choose": 1, "tune": 4, "evaluate": 3}
"""Raised when the code of a kind of cell changes its numbers; older cells are then not reused."""


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
        """Name of the cell: hash of its inputs."""
        return digest(self.inputs)

    def model(self) -> Transformer:
        """The model that it works on, with fresh weights."""
        inputs = self.inputs
        config = TransformerConfig(
            **inputs["model"],
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
            _refuse_main(parse_task(task).name)
            self.material = Questions(task, recipe.form, recipe.train.length)
            self._check_lengths()
        self.protocols = _protocols(self.material, recipe)
        self.train_tokens = self.material.n_tokens(recipe.train.length)
        self.common = {
            "model": dataclasses.asdict(recipe.model),
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
            spec = _checked(recipe, row, f"schemes.{i}", self.material, self.train_tokens)
            rows.append((row.label or (row.scheme if isinstance(row.scheme, str) else str(spec)), row.tune, spec))
        rows += self._grid()
        found = [e for seed in recipe.seeds for name, tune, spec in rows for e in self._row(name, tune, spec, seed)]
        _refuse_repeats(found)
        place = {label: i for i, label in enumerate(dict.fromkeys(e.label for e in found))}
        self.plan.evaluations.extend(sorted(found, key=lambda e: (place[e.label], recipe.seeds.index(e.seed))))

    def _grid(self) -> Iterator[tuple[str, tuple[int, ...], Spec]]:
        """Rows of the grid, without pairs that are refused."""
        recipe = self.recipe
        encodings = _matching("grid.encodings", recipe.grid.encodings, "encoding")
        extensions = _matching("grid.extensions", recipe.grid.extensions, "extension")
        for scheme in (f"{e}+{x}" if x else e for e in encodings for x in ("", *extensions)):
            row = Row(scheme, tuple(dict.fromkeys(recipe.tune.steps)), None)
            try:
                spec = _checked(recipe, row, "grid", self.material, self.train_tokens)
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
        key = self._add(kind, shown, reduced, settings=dataclasses.asdict(settings), seed=seed, **inputs)
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


def _matching(key: str, asked: list[str], kind: str) -> list[str]:
    """Members that names with settings, or patterns, stand for."""
    names, found = [n for n, e in entries().items() if e.kind == kind], []
    for text in asked:
        matches = fnmatch.filter(names, text) if "*" in text else [text] * (text.split(":")[0] in names)
        if not matches:
            raise UserError(
                f"{key}: no {kind} is called {brief(text)}.{suggest(text, names)} All: pezoo list --{kind}s"
            )
        try:
            for name, settings in read_members(text) if "*" not in text else ():
                MemberSpec.make(name, settings)
        except UserError as error:  # else its pairs would be left out like those that cannot work
            raise UserError(f"{key}: {error}") from None
        found += matches
    return list(dict.fromkeys(found))


def _protocols(material: Material, recipe: Recipe) -> list[tuple[Material, str]]:
    """What is tested under which protocol.

    Raises:
        UserError: if there is no such protocol or task, or the task has another vocabulary than the text.
    """
    asked = recipe.test.protocols
    try:
        if isinstance(material, Questions):
            for protocol in asked:
                check_answer_protocol(protocol, material)
            return [(material, protocol) for protocol in dict.fromkeys(asked or ["answers"])]
        protocols = dict.fromkeys(str(parse_protocol(p)) for p in asked or ["prefix"])
    except UserError as error:
        raise UserError(f"test.protocols: {error}") from None
    tests: list[tuple[Material, str]] = [(material, protocol) for protocol in protocols]
    for task in dict.fromkeys(str(parse_task(task)) for task in recipe.test.tasks):
        _refuse_main(parse_task(task).name)
        questions = Questions(task, "causal", None)
        if questions.vocab_size != material.vocab_size:
            raise UserError(
                f"test.tasks: {task} has a vocabulary of {questions.vocab_size}, the text of data one of "
                f"{material.vocab_size}; a task to test a language model on must have the same"
            )
        tests.append((questions, "answers"))
    return tests


def acting(spec: Spec, phase: str) -> Spec:
    """The scheme as it acts in a phase, if its modules are then still the same ones.

    `{layers: [t5, t5+window:at=test]}` has two sets of T5 weights and would have one without the
    window; it is kept as it is, since an extension that does not act changes only the name.
    """
    reduced = spec.at(phase)
    return reduced if _pattern(reduced) == _pattern(spec) else spec


def _pattern(spec: Spec) -> list[list[int]]:
    """Which groups of heads in which layers share modules."""
    seen: dict[Any, int] = {}
    layers = [layer.heads or ((layer, 0),) for layer in spec.layers or (spec,)]
    return [[seen.setdefault(group, len(seen)) for group in layer] for layer in layers]


def resolve_device(recipe: Recipe) -> str:
    """Return the kind of device that cells run on, "cpu", "cuda" or "mps": which one of several is not in their hash.

    Raises:
        UserError: if it is not there, or cannot do what the recipe asks.
    """
    device = find_device(recipe.device)
    check_training(device, recipe.train.precision)
    check_testing(device, recipe.test.precision)
    for protocol in recipe.test.protocols if device.type == "mps" else ():
        if protocol.partition(":")[0].strip() == "attention":
            raise UserError(
                "test.protocols: attention sums in float64, which device=mps does not have; type device=cpu"
            )
    return device.type


def _checked(recipe: Recipe, row: Row, key: str, material: Material, train_tokens: int) -> Spec:
    """Parse a scheme and try it on two tokens: what cannot work is refused before any training."""
    model = recipe.model
    try:
        spec = parse(row.scheme)
        _refuse_main(*(member.name for member in spec.all_members()))
        shape = Shape(model.d_model, model.n_heads, model.n_layers, train_tokens, causal=material.causal)
        scheme = build(spec, shape)
        q, x = torch.zeros(1, model.n_heads, 2, shape.head_dim), torch.zeros(1, 2, model.d_model)
        tokens = torch.zeros(1, 2, dtype=torch.int64)
        for phase in ("train", "test"):
            with torch.no_grad():
                prepared = scheme.prepare(scheme.positions(1, 2, phase=phase, rows=(0,), tokens=tokens))
                for layer in range(model.n_layers):
                    prepared.attend(layer, q, q, q, recipe.backend, x=x)
    except Undefined:
        return spec
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
    except Exception as error:  # in somebody's plug-in
        where = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {cut(str(error), 300)} ({where.filename}, line {where.lineno})"
        raise UserError(f"{key}: {spec} fails with {what}") from error
    return spec


def _refuse_main(*names: str) -> None:
    """Refuse members of the running program itself, which the processes of a study could not import."""
    for name in names:
        if entry(name).cls.__module__ == "__main__":
            raise UserError(
                f"{name} was defined in a notebook, a console or the running script, where the processes of a study do "
                'not find it; put it in a file of its own and pass plugins=["FILE.py"], or --plugin FILE.py'
            )


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
