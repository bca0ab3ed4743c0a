"""Trials to plan: which cells a study consists of, and which of them depend on which.

A cell is a training, a choice among trainings, a tuning or an evaluation. Its name is the hash of its inputs, and its
inputs are all that the code that runs it gets to see, so two cells with one name give the same numbers:

- train: the scheme as it acts in training, the code of its members, model, data or task, settings and seed.
- choose: the trainings of a scheme at several learning rates, for all seeds, and the seed whose model it hands on.
- tune: the same for the scheme as it acts in tuning, and the trained parent. Each step count is a
  tuning of its own from that parent, not a stop on the way of the longest one: the learning rate
  comes down to its floor at each one's own last step, so that 50 steps are judged as somebody who
  can afford 50 would run them.
- evaluate: the trained or tuned parent, the whole scheme, protocol, lengths and windows or questions.

What two trials share is one cell. A cell's inputs are plain data, since processes pass them on; the cell makes objects
of them again.
"""

import dataclasses
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pezoo.data import Corpus
from pezoo.data.material import Material, Questions, Text
from pezoo.data.retold import Retold
from pezoo.errors import UserError, brief, cut, suggest
from pezoo.escape import safe_names
from pezoo.model.config import ModelConfig, TransformerConfig
from pezoo.model.transformer import Transformer
from pezoo.pretrained.source import Source, digest_of
from pezoo.registry import entry
from pezoo.results import LANGUAGE_MODELLING, tuning_name
from pezoo.scheme import MemberSpec, Spec, parse
from pezoo.study.bodies import OWN
from pezoo.study.recipe import Recipe
from pezoo.study.resolve import (
    Evaluation,
    Row,
    Test,
    Trial,
    acting,
    in_part,
    load_corpora,
    refuse_repeats,
    resolve,
    texts_of,
)
from pezoo.training.checkpoint import carry_over, load, save
from pezoo.training.config import TrainConfig
from pezoo.training.keys import from_stored, hashed, to_stored
from pezoo.training.weights import ALL, Weights, check_weights, from_stored_weights, parse_weights, stored_weights

if TYPE_CHECKING:
    from pezoo.pretrained.body import Body

VERSIONS = {"train": 4, "choose": 1, "tune": 4, "evaluate": 3}
"""Raised when the code of a kind of cell changes its numbers; older cells are then not reused. The code of members is
in the hash itself (`pezoo.sources`); for the rest `tests/test_fingerprint.py` fails if this is forgotten."""
BODY_VERSION = 1
"""Raised when only trainings and tunings of somebody's model move."""
GROUPS: dict[str, type] = {"model": ModelConfig, "body": Source, "settings": TrainConfig}
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

    def model(self, parent: Path | None = None) -> "Transformer | Body":
        """The model that it works on, with the weights that the cell before it left, if any.

        Args:
            parent: their file. None: fresh weights, or those that a model of transformers comes with.
        """
        if "body" in self.inputs:
            return self._body(parent)
        model = self._transformer()
        if parent is not None:
            carry_over(load(parent)[0], model)
        return model

    def outline(self) -> nn.Module:
        """The model's modules without memory for their numbers."""
        with torch.device("meta"):
            if "body" not in self.inputs:
                return self._transformer()
            from pezoo.pretrained.body import outline

            return outline(Source(**self.inputs["body"]), parse(self.inputs["scheme"]), self.inputs["train_length"])

    def save(self, path: Path, model: "Transformer | Body") -> None:
        """Write what it has made of its model, for the cells that begin there."""
        if isinstance(model, Transformer):
            save(path, model, {"title": self.title})
            return
        from pezoo.pretrained import body

        body.save(path, model, {"title": self.title})

    def _body(self, parent: Path | None) -> "Body":
        from pezoo.pretrained.body import make_body, read

        inputs, source = self.inputs, Source(**self.inputs["body"])
        if source.folder is not None and digest_of(Path(source.folder)) != source.digest:
            raise UserError(f"the model in {source.folder} has changed since this run began; run the study again")
        return make_body(
            source,
            None if self.kind == "train" else parse(inputs["scheme"]),
            train_length=inputs["train_length"],
            seed=inputs["seed"],
            state=None if parent is None else read(parent),
        )

    def _transformer(self) -> Transformer:
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

    def settings(self) -> TrainConfig:
        """How it trains or tunes."""
        return TrainConfig(**from_stored(TrainConfig, self.inputs["settings"]))

    def weights(self) -> Weights:
        """What it trains or tunes."""
        return from_stored_weights(self.inputs["weights"]) if "weights" in self.inputs else ALL

    def material(self, corpora: Mapping[str, Corpus]) -> Material:
        """What it reads: in a test what is tested, else what is trained on.

        Args:
            corpora: those of the study, by hash.

        Raises:
            UserError: if the corpus is no longer the one that the study was planned with.
        """
        facts = self.inputs.get("tested", self.inputs["data"])
        if "tokenizer" in facts and facts["task"] != LANGUAGE_MODELLING:
            return Retold(facts["task"], facts["tokenizer"])
        if facts["task"] != LANGUAGE_MODELLING:
            return Questions(facts["task"], facts["form"], facts["train_length"])
        if facts["hash"] not in corpora:
            raise UserError("the corpus has changed since this run began; run the study again")
        return Text(corpora[facts["hash"]])


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

    def summary(self, keys: Iterable[str]) -> str:
        """How many cells of each kind these are: "2 to train, 4 to evaluate"."""
        kinds = Counter(self.cells[key].kind for key in keys)
        return ", ".join(f"{n} to {kind}" for kind, n in kinds.items()) or "nothing"

    def line(self, key: str) -> Iterator[str]:
        """Keys of the cells whose model it is handed, nearest first: ancestors, without what was not chosen."""
        while (parent := self.cells[key].parent) is not None:
            yield parent
            key = parent


def digest(data: Any) -> str:
    """First 16 hexadecimal digits of the SHA-256 of plain data, whatever the order of its keys."""
    text = json.dumps(data, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def make_plan(recipe: Recipe) -> Plan:
    """Plan a study; its text is tokenised, if it has not been.

    Raises:
        UserError: if a scheme is malformed, cannot work in this model, or occurs twice; for an
            unknown task or protocol, a device that is not there or cannot do what is asked, and a
            corpus with too little text.
    """
    plan = Plan(recipe, load_corpora(texts_of(recipe)), {}, [])
    logs: dict[str, list[str]] = {}
    source = functools.cache(lambda name: entry(name).source_hash)  # of the code as it is now
    for trial in resolve(recipe, plan.corpora):
        with in_part(trial.part):
            _Planner(plan, trial, logs, source).add_all()
    _check_baseline(plan)
    names = safe_names(dict.fromkeys(name for place in logs.values() for name in place))
    for key, place in logs.items():
        cell = plan.cells[key]
        log = "/".join(["tensorboard/train", *(names[name] for name in place), f"seed{cell.inputs['seed']}"])
        plan.cells[key] = dataclasses.replace(cell, log=log)
    return plan


class _Planner:
    """Adds to a plan what a trial wants."""

    def __init__(self, plan: Plan, trial: Trial, logs: dict[str, list[str]], source: Callable[[str], str]) -> None:
        self.plan, self.trial, self.recipe = plan, trial, trial.recipe
        self.logs, self.source = logs, source
        """By key of a training or tuning, what tells its training curves from others: part, task, row."""
        self.candidates, self.scheme = functools.cache(self._candidates), functools.cache(self._scheme)
        body = {} if trial.body is None else {"body": dataclasses.asdict(trial.body.source)}
        model = self.recipe.model
        model = ModelConfig(**{key.name: getattr(model, key.name) for key in dataclasses.fields(ModelConfig)})
        self.common = (body or {"model": to_stored(model)}) | {
            "train_length": trial.train_tokens,
            "data": trial.material.facts(),
            "backend": self.recipe.backend,
            "device": trial.device,
            "threads": self.recipe.threads,
        }
        task = "" if isinstance(trial.material, Text) else trial.material.name
        self.place = [name for name in (trial.part, task) if name]
        """What tells this part and task from others, for people."""
        self.shown: set[tuple[str, int]] = set()
        """Names and seeds of trainings and tunings: each has curves of its own."""

    def add_all(self) -> None:
        """Add cells and evaluations, ordered by scheme, then seed."""
        seeds = self.recipe.seeds
        found = [e for seed in seeds for row in self.trial.rows for e in self._row(row, seed)]
        refuse_repeats(found)
        place = {label: i for i, label in enumerate(dict.fromkeys(e.label for e in found))}
        self.plan.evaluations.extend(sorted(found, key=lambda e: (place[e.label], seeds.index(e.seed))))

    def _row(self, row: Row, seed: int) -> Iterator[Evaluation]:
        """The cells of one scheme and seed; its evaluations."""
        trial, trained = self.trial, self._train(row.label, row.spec, seed)
        for steps in row.tune.steps:
            parent, tested, label, tuned = trained, row.spec, row.label, None
            if steps:
                tuned = self.recipe.tuning(row.tune, steps)
                label = f"{row.label}, {tuning_name(steps, tuned.length / self.recipe.train.length)}"
                parent = self._tune(row, label, tuned, seed, trained)
                tested = row.spec.fixed(trial.material.n_tokens(tuned.length), trial.train_tokens)
            for name, spec in ((label, tested), (f"{label} | windowed", self._windowed(tested))):
                if spec is not None:
                    yield from (self._evaluate(name, spec, seed, parent, tuned, test) for test in trial.tests)

    def _tune(self, row: Row, label: str, settings: TrainConfig, seed: int, trained: str | None) -> str:
        """The tuning cell; refused where its model has no such weights."""
        weights = parse_weights(row.tune.weights)
        some = {} if weights == ALL else {"weights": stored_weights(weights)}
        key = self._fit("tune", row.label, label, row.spec, to_stored(settings), seed, parent=trained, **some)
        if some:
            own = row.tune.weights != self.recipe.tune.weights
            where = f"{row.key}.weights" if own else "tune.weights"
            check_weights(weights, self.plan.cells[key].outline(), where)
        return key

    def _train(self, name: str, spec: Spec, seed: int) -> str | None:
        """The training cell, or that which chooses among several learning rates; None for a model that is trained."""
        body = self.trial.body
        if body is not None:
            if body.trained:
                return None
            name, spec = OWN, body.look.own  # by transformers' own code, whatever is attached later
        if not self.recipe.train.lrs:
            return self._fit("train", name, name, spec, to_stored(self.recipe.train), seed)
        return self._add("choose", name, acting(spec, "train"), candidates=self.candidates(name, spec), seed=seed)

    def _candidates(self, name: str, spec: Spec) -> dict[str, list[str]]:
        """The trainings of a scheme at each learning rate, for all seeds; each choice is among the same ones."""
        found = {}
        for lr in self.recipe.train.lrs:
            label, settings = f"{name}, lr {lr}", to_stored(dataclasses.replace(self.recipe.train, lr=lr, lrs=[]))
            found[str(lr)] = [self._fit("train", name, label, spec, settings, seed) for seed in self.recipe.seeds]
        return found

    def _fit(
        self, kind: str, name: str, label: str, spec: Spec, settings: dict[str, Any], seed: int, **inputs: Any
    ) -> str:
        reduced = acting(spec, kind)
        shown = label if reduced == spec else label.replace(name, str(reduced), 1)
        key = self._add(kind, shown, reduced, settings=settings, seed=seed, **inputs)
        if key not in self.logs:
            if (shown, seed) in self.shown:  # by what acts alike here, and is tuned in another way
                shown = next(name for name in (label, f"{label} ({key[:6]})") if (name, seed) not in self.shown)
                self.plan.cells[key] = dataclasses.replace(self.plan.cells[key], title=self._title(kind, shown, seed))
            self.shown.add((shown, seed))
            self.logs[key] = [*self.place, shown]
        return key

    def _evaluate(
        self, label: str, spec: Spec, seed: int, parent: str | None, tuned: TrainConfig | None, test: Test
    ) -> Evaluation:
        recipe, trial, what = self.recipe, self.trial, label
        own = test.material is trial.material
        if len(trial.tests) > 1:
            what = f"{label} ({test.protocol if own else f'{test.material.name}, {test.protocol}'})"
        facts = {
            "protocol": str(test.protocol),
            "lengths": trial.test_lengths,
            "windows": {"count": recipe.test.windows, "seed": recipe.test.seed},
            "batch_tokens": recipe.test.batch_tokens,
            "precision": recipe.test.precision,
        }
        if isinstance(test.material, Text):
            facts["last"] = recipe.test.last or recipe.train.length
        elif not own:
            facts["tested"] = test.material.facts()
        cell = self._add("evaluate", what, spec, seed=seed, parent=parent, **facts)
        return Evaluation(trial, label, spec, seed, test, tuned, cell)

    def _windowed(self, spec: Spec) -> Spec | None:
        """The scheme with a window of L in testing, where the recipe wants it and the scheme takes one."""
        if not self.recipe.test.companion or not spec.members or "window" in spec.extensions:
            return None
        window = MemberSpec.make("window", {"size": self.trial.train_tokens, "at": ["test"]})
        return Spec((*spec.members, window))

    def _add(self, kind: str, name: str, spec: Spec, **inputs: Any) -> str:
        all_inputs = {"kind": kind, "version": VERSIONS[kind]} | self.scheme(spec) | self.common | inputs
        if "body" in all_inputs and kind in ("train", "tune"):
            all_inputs["body_version"] = BODY_VERSION
        cell = Cell(self._title(kind, name, inputs["seed"]), all_inputs)
        self.plan.cells.setdefault(key := cell.key, cell)
        return key

    def _title(self, kind: str, name: str, seed: int) -> str:
        return " ".join([kind, name, *([f"on {', '.join(self.place)}"] if self.place else [])]) + f", seed {seed}"

    def _scheme(self, spec: Spec) -> dict[str, Any]:
        """What a cell's inputs say of its scheme."""
        sources = {member.name: self.source(member.name) for member in spec.all_members()}
        return {"scheme": str(spec), "scheme_settings": spec.data, "sources": sources}


def _check_baseline(plan: Plan) -> None:
    """Refuse a baseline that is no row of any table."""
    labels, baseline = dict.fromkeys(e.label for e in plan.evaluations), plan.recipe.baseline
    if baseline and baseline not in labels:
        near = suggest(baseline, labels) or f" They are {', '.join(map(repr, labels))}"
        raise UserError(f"baseline must be the label of one of the schemes, got {brief(baseline)}.{cut(near, 500)}")
