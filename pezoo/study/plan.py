"""Recipe to plan: which cells a study consists of, and which of them depend on which.

A cell is a training, a tuning or an evaluation. Its name is the hash of its inputs, and its inputs
are all that the code that runs it gets to see, so two cells with one name give the same numbers:

- train: the scheme as it acts in training, the source files of its members, model, data, settings
  and seed.
- tune: the same for the scheme as it acts in tuning, and the trained parent. Each step count is a
  tuning of its own from that parent, not a stop on the way of the longest one: the learning rate
  comes down to its floor at each one's own last step, so that 50 steps are judged as somebody who
  can afford 50 would run them.
- evaluate: the trained or tuned parent, the whole scheme, protocol, lengths and windows.
"""

import dataclasses
import hashlib
import json
import re
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from pezoo.compose import attend_with, build
from pezoo.config import Recipe, Row, TrainConfig
from pezoo.contract import Shape, Undefined
from pezoo.data import Corpus, crops, windows
from pezoo.errors import UserError, suggest
from pezoo.evaluation import PROTOCOLS
from pezoo.scheme import Spec, parse
from pezoo.transformer import Transformer, TransformerConfig

VERSIONS = {"train": 1, "tune": 1, "evaluate": 1}
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
        """train, tune or evaluate."""
        return self.inputs["kind"]

    @property
    def parent(self) -> str | None:
        """Key of the cell whose model this one starts from."""
        return self.inputs.get("parent")

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
            scheme=inputs["scheme"],
            train_length=inputs["train_length"],
            seed=inputs["seed"],
            backend=inputs["backend"],
        )
        return Transformer(config)


@dataclass(frozen=True)
class Evaluation:
    """A use of an evaluation cell by the recipe: which row of the table its numbers go to."""

    label: str
    spec: Spec
    seed: int
    protocol: str
    tune_steps: int
    cell: str


@dataclass(frozen=True)
class Plan:
    """The cells of a study, parents before children, and what the recipe wants of them."""

    recipe: Recipe
    corpus: str
    """Name of the corpus."""
    cells: dict[str, Cell]
    evaluations: list[Evaluation]
    """Ordered by the recipe's schemes, then seed."""

    def ancestors(self, key: str) -> Iterator[str]:
        """Keys of the cells that a cell is built on, nearest first."""
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


def make_plan(recipe: Recipe, corpus: Corpus) -> Plan:
    """Plan a study.

    Raises:
        UserError: if a scheme is malformed, cannot work in this model, or occurs twice; for an
            unknown protocol, a device that is not there or cannot do what is asked, and a corpus
            with too little text.
    """
    device = resolve_device(recipe)
    crops(corpus.train, recipe.train.length, 1, 0, 0)
    if any(steps for row in recipe.rows for steps in row.tune):
        crops(corpus.train, recipe.tune_length, 1, 0, 0)
    windows(corpus.test, max(recipe.test_lengths), recipe.test.windows, recipe.test.seed)
    for protocol in recipe.test.protocols:
        if protocol not in PROTOCOLS:
            near = suggest(protocol, PROTOCOLS)
            raise UserError(f"test.protocols: no protocol {protocol!r}.{near} Known: {', '.join(PROTOCOLS)}")
    rows = [(row, _checked(recipe, row, i)) for i, row in enumerate(recipe.rows)]
    common = {
        "model": dataclasses.asdict(recipe.model),
        "train_length": recipe.train.length,
        "data": {
            "hash": corpus.hash,
            "tokenizer": corpus.tokenizer,
            "vocab_size": corpus.vocab_size,
        },
        "backend": recipe.backend,
        "device": device,
        "threads": recipe.threads,
    }
    testing = {
        "lengths": recipe.test_lengths,
        "last": recipe.test.last or recipe.train.length,
        "windows": {"count": recipe.test.windows, "seed": recipe.test.seed},
        "batch_tokens": recipe.test.batch_tokens,
    }
    cells: dict[str, Cell] = {}
    evaluations: list[Evaluation] = []

    def add(kind: str, name: str, spec: Spec, log: str = "", **inputs: Any) -> str:
        scheme = {"scheme": str(spec), "settings": spec.data, "sources": spec.sources()}
        all_inputs = {"kind": kind, "version": VERSIONS[kind]} | scheme | common | inputs
        cell = Cell(f"{kind} {name}, seed {inputs['seed']}", all_inputs, log)
        return cells.setdefault(cell.key, cell).key

    def fit(kind: str, name: str, label: str, spec: Spec, settings: TrainConfig, **inputs: Any) -> str:
        reduced = acting(spec, kind)
        shown = label if reduced == spec else label.replace(name, str(reduced), 1)
        folder = f"tensorboard/train/{_file_name(shown)}/seed{inputs['seed']}"
        return add(kind, shown, reduced, folder, settings=dataclasses.asdict(settings), **inputs)

    for seed in recipe.seeds:
        for row, spec in rows:
            name = row.label or (row.scheme if isinstance(row.scheme, str) else str(spec))
            trained = fit("train", name, name, spec, recipe.train, seed=seed)
            for steps in row.tune:
                parent, tested, label = trained, spec, name
                if steps:
                    label = f"{name}, {steps} steps @ {recipe.tune_length / recipe.train.length:g}x"
                    tuning = recipe.tuning(steps)
                    parent = fit("tune", name, label, spec, tuning, seed=seed, parent=trained)
                    tested = spec.fixed(recipe.tune_length, recipe.train.length)
                for protocol in recipe.test.protocols:
                    what = label if len(recipe.test.protocols) == 1 else f"{label} ({protocol})"
                    facts = testing | {"seed": seed, "parent": parent, "protocol": protocol}
                    cell = add("evaluate", what, tested, **facts)
                    evaluations.append(Evaluation(label, tested, seed, protocol, steps, cell))
    _refuse_repeats(evaluations)
    place = {label: i for i, label in enumerate(dict.fromkeys(e.label for e in evaluations))}
    evaluations.sort(key=lambda e: (place[e.label], recipe.seeds.index(e.seed)))
    return Plan(recipe, corpus.name, cells, evaluations)


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
    """Return "cpu" or "cuda".

    Raises:
        UserError: if there is no such device, or it cannot train in the recipe's precision.
    """
    present = torch.cuda.is_available()
    if recipe.device == "cuda" and not present:
        raise UserError("device=cuda, but PyTorch finds no GPU here; type device=cpu")
    device = ("cuda" if present else "cpu") if recipe.device == "auto" else recipe.device
    if device == "cpu" and recipe.train.precision.startswith("16"):
        raise UserError(f"train.precision={recipe.train.precision} needs a GPU; type train.precision=bf16-mixed")
    return device


def _checked(recipe: Recipe, row: Row, i: int) -> Spec:
    """Parse a scheme and try it on two tokens: what cannot work is refused before any training."""
    model = recipe.model
    try:
        spec = parse(row.scheme)
        shape = Shape(model.d_model, model.n_heads, model.n_layers, recipe.train.length)
        scheme = build(spec, shape)
        q = torch.zeros(1, model.n_heads, 2, shape.head_dim)
        for training in (True, False):
            for layer in range(model.n_layers):
                with torch.no_grad():
                    attend_with(scheme.train(training), q, q, q, layer=layer, backend=recipe.backend)
    except Undefined:
        return spec
    except UserError as error:
        raise UserError(f"schemes.{i}: {error}") from None
    except Exception as error:  # in somebody's plug-in
        where = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {error} ({where.filename}, line {where.lineno})"
        raise UserError(f"schemes.{i}: {spec} fails with {what}") from error
    return spec


def _file_name(label: str) -> str:
    return re.sub(r"[^\w +,@=.()\[\]{}-]", "_", label.replace(":", " "))


def _refuse_repeats(evaluations: list[Evaluation]) -> None:
    cells: dict[str, str] = {}
    labels: dict[tuple[Any, ...], str] = {}
    for e in evaluations:
        if e.cell in cells:
            raise UserError(
                f"schemes: {cells[e.cell]!r} and {e.label!r} are the same scheme, {e.spec}; keep one of them"
            )
        row = (e.label, e.seed, e.protocol)
        if row in labels:
            raise UserError(f"schemes: two rows are called {e.label!r}; give one of them another label")
        cells[e.cell], labels[row] = e.label, e.cell
