"""A recipe's texts, read once: from here on there are trials, with schemes, tasks, protocols and lengths as objects.

All that is wrong with them is said here, before anything is trained.
"""

import contextlib
import dataclasses
import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pezoo.attention import check
from pezoo.attention.flex import missing
from pezoo.compose import build
from pezoo.contract import Extension, Shape, Undefined
from pezoo.data import Corpus, DataConfig, crops, load, windows
from pezoo.data.material import TESTING, TRAINING, Material, Questions, Text
from pezoo.data.retold import Retold
from pezoo.errors import UserError, brief, cut, failed, suggest
from pezoo.evaluation import Protocol, parse_protocol
from pezoo.evaluation.answers import parse_answer_protocol
from pezoo.fitting import offers
from pezoo.model.devices import check_testing, check_training, find_device
from pezoo.registry import entries, entry
from pezoo.results import LANGUAGE_MODELLING
from pezoo.scheme import MemberSpec, Spec, parse, read_members
from pezoo.study.bodies import Foreign, find_body
from pezoo.study.recipe import Recipe, TuneConfig
from pezoo.task import parse_task
from pezoo.training.config import TrainConfig
from pezoo.training.weights import Lora, parse_weights


class Broken(UserError):
    """A scheme that somebody's code crashes on, which is no refusal."""


@dataclass(frozen=True)
class Row:
    """A scheme of a trial."""

    label: str
    spec: Spec
    tune: TuneConfig
    """How it is tuned: once for each of its step counts, 0 being the trained model as it is."""
    key: str = "tune"
    """Where that is set."""


@dataclass(frozen=True)
class Test:
    """A text or task under a protocol."""

    __test__ = False  # pytest would collect it
    material: Material
    protocol: Protocol


@dataclass(frozen=True)
class Trial:
    """What one part of a recipe asks on one task: which schemes, trained on what, tested how."""

    part: str
    recipe: Recipe
    """The part's, for its settings."""
    device: str
    material: Material
    """What is trained on."""
    train_tokens: int
    """Tokens of a sequence of the training length."""
    test_lengths: list[int]
    """Ascending."""
    tests: list[Test]
    rows: list[Row]
    body: Foreign | None = None
    """The model, if it is not pezoo's Transformer."""


@dataclass(frozen=True)
class Evaluation:
    """A use of an evaluation cell by the recipe: which row of which table its numbers go to."""

    trial: Trial
    label: str
    spec: Spec
    seed: int
    test: Test
    tuned: TrainConfig | None
    """How its model was tuned, if it was."""
    cell: str


@contextlib.contextmanager
def in_part(part: str) -> Iterator[None]:
    """Name the part in messages about it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"parts.{cut(part)}: {error}" if part else str(error)) from None


def texts_of(recipe: Recipe) -> list[DataConfig]:
    """What text a recipe's parts read; none for tasks alone."""
    parts = [one for _, one in recipe.split() if LANGUAGE_MODELLING in one.tasks]
    return list({repr(one.data): one.data for one in parts}.values())


def load_corpora(texts: Iterable[DataConfig]) -> dict[str, Corpus]:
    """Corpora by hash."""
    return {corpus.hash: corpus for corpus in map(load, texts)}


def resolve(recipe: Recipe, corpora: Mapping[str, Corpus]) -> list[Trial]:
    """Read a recipe's texts.

    Args:
        recipe: as `load_recipe` returns it.
        corpora: what `load_corpora` returns for its texts.

    Raises:
        UserError: for whatever is wrong with a scheme, task, protocol, length or device.
    """
    trials = []
    for name, part in recipe.split():
        with in_part(name):
            for task in dict.fromkeys(t if t == LANGUAGE_MODELLING else str(parse_task(t)) for t in part.tasks):
                trials.append(_trial(name, part, task, corpora))
    return trials


def _trial(part: str, recipe: Recipe, task: str, corpora: Mapping[str, Corpus]) -> Trial:
    device = resolve_device(recipe)
    for key, tune in recipe.tunings.items():
        _check_weights(recipe, key, tune)
    test_lengths, rows = recipe.test_lengths, recipe.rows
    tunings = [row.tune for row in rows] + [recipe.tune] * bool(recipe.grid.encodings)
    trained = isinstance(recipe.model.from_, str)
    fit_lengths = [recipe.train.length] * (not trained)
    fit_lengths += sorted({recipe.tuning(tune, n).length for tune in tunings for n in tune.steps if n})
    if task == LANGUAGE_MODELLING:
        material: Material = Text(corpora[load(recipe.data).hash])
        for length in fit_lengths:
            crops(material.corpus.train, length, 1, 0, 0)
            crops(material.corpus.validation, length, 1, 0, 0)
        windows(material.corpus.test, max(test_lengths), recipe.test.windows, recipe.test.seed)
    else:
        refuse_main(parse_task(task).name)
        material = Questions(task, recipe.form, recipe.train.length)
        recipe = _check_lengths(material, recipe, fit_lengths, test_lengths)
    tests = _tests(material, recipe, device)
    train_tokens = material.n_tokens(recipe.train.length)
    body = find_body(recipe, material, train_tokens)
    made = []
    for i, row in enumerate(rows):
        spec = _scheme(recipe, row.scheme, f"schemes.{i}", material, train_tokens, body)
        label = row.label or (row.scheme if isinstance(row.scheme, str) else str(spec))
        made.append(Row(label, spec, row.tune, f"schemes.{i}.tune"))
    made += _grid(recipe, material, train_tokens, body)
    return Trial(part, recipe, device, material, train_tokens, test_lengths, tests, made, body)


def _check_weights(recipe: Recipe, key: str, tune: TuneConfig) -> None:
    """Refuse unknown weights of a tuning, and those that cannot be spread over devices."""
    try:
        weights = parse_weights(tune.weights)
    except UserError as error:
        raise UserError(f"{key}.weights: {error}") from None
    if recipe.train.sharded and isinstance(weights, Lora):
        raise UserError(f"{key}.weights={tune.weights} and train.strategy={recipe.train.strategy} do not go together")


def _check_lengths(material: Questions, recipe: Recipe, fit_lengths: list[int], test_lengths: list[int]) -> Recipe:
    """Refuse lengths of which the task has no questions; the recipe with the shortest length filled in."""
    train, least = recipe.train, material.task.least_length
    if (given := train.min_length or least) < least:
        raise UserError(f"train.min_length={given} is too short for {material.name}; type train.min_length={least}")
    lengths = [(TRAINING, length) for length in fit_lengths] + [(TESTING, length) for length in test_lengths]
    for split, length in lengths:
        try:
            material.pairs(split, 0, 1, length, 0)
        except UserError:
            raise
        except Exception as error:  # in somebody's plug-in, or of numbers that are too large
            raise UserError(f"{material.name}, length {length}, fails with {failed(error)}") from error
    return dataclasses.replace(recipe, train=dataclasses.replace(train, min_length=given))


def refuse_repeats(evaluations: list[Evaluation]) -> None:
    """Refuse rows that are the same scheme, or are called the same."""
    cells: dict[str, str] = {}
    labels: dict[tuple[Any, ...], str] = {}
    for e in evaluations:
        if e.cell in cells:
            raise UserError(
                f"schemes: {cells[e.cell]!r} and {e.label!r} are the same scheme, {e.spec}; keep one of them"
            )
        row = (e.label, e.seed, str(e.test.protocol), e.test.material.name)
        if row in labels:
            raise UserError(f"schemes: two rows are called {e.label!r}; give one of them another label")
        cells[e.cell], labels[row] = e.label, e.cell


def _grid(recipe: Recipe, material: Material, train_tokens: int, body: Foreign | None) -> Iterator[Row]:
    """Rows of the grid, without pairs that are refused; one that crashes is told."""
    encodings = matching("grid.encodings", recipe.grid.encodings, "encoding")
    extensions = matching("grid.extensions", recipe.grid.extensions, "extension")
    worked: set[Any] = set()
    for scheme in (f"{e}+{x}" if x else e for e in encodings for x in ("", *extensions)):
        try:
            spec = _scheme(recipe, scheme, "grid", material, train_tokens, body, worked)
        except UserError as error:
            if isinstance(error, Broken) or ("+" not in scheme and scheme in recipe.grid.encodings):
                raise
            continue
        yield Row(scheme, spec, dataclasses.replace(recipe.tune, steps=list(dict.fromkeys(recipe.tune.steps))))


def matching(key: str, asked: list[str], kind: str) -> list[str]:
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


def _tests(material: Material, recipe: Recipe, device: str) -> list[Test]:
    """What is tested, and how."""
    asked = recipe.test.protocols
    try:
        if isinstance(material, Questions):
            protocols = [parse_answer_protocol(protocol, material) for protocol in asked or ["answers"]]
        else:
            protocols = [parse_protocol(protocol) for protocol in asked or ["prefix"]]
    except UserError as error:
        raise UserError(f"test.protocols: {error}") from None
    if device == "mps" and any(protocol.name == "attention" for protocol in protocols):
        raise UserError("test.protocols: attention sums in float64, which device=mps does not have; type device=cpu")
    tests = [Test(material, protocol) for protocol in dict.fromkeys(protocols)]
    for task in dict.fromkeys(str(parse_task(task)) for task in recipe.test.tasks if isinstance(material, Text)):
        refuse_main(parse_task(task).name)
        try:
            by_bytes = material.corpus.tokenizer == "bytes"
            questions = Questions(task, "causal", None) if by_bytes else Retold(task, material.corpus.tokenizer)
        except UserError as error:
            raise UserError(f"test.tasks: {error}") from None
        if questions.vocab_size != material.vocab_size:
            raise UserError(
                f"test.tasks: {task} has a vocabulary of {questions.vocab_size}, the text of data one of "
                f"{material.vocab_size}; a task to test a language model on must have the same"
            )
        tests.append(Test(questions, parse_answer_protocol("answers", questions)))
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
    device = _device(recipe)
    check_training(device, recipe.train.precision)
    for key, tune in recipe.tunings.items():
        if tune.precision is not None:
            check_training(device, tune.precision, f"{key}.precision")
    check_testing(device, recipe.test.precision)
    if reason := missing(recipe.backend, device):
        raise UserError(f"backend={recipe.backend} {reason}; type backend=auto")
    if recipe.train.sharded and device.type != "cuda":
        strategy = recipe.train.strategy
        raise UserError(f"train.strategy={strategy} needs CUDA GPUs, and this is device={device.type}; type ddp")
    return device.type


def _device(recipe: Recipe) -> torch.device:
    """The device that is asked for; whether it is there, this machine knows only of itself."""
    gpus = {"local": 0, "ray": recipe.ray.num_gpus, "slurm": recipe.slurm.gpus}[recipe.launcher]
    if recipe.launcher == "local" or (recipe.device == "auto" and not gpus):
        return find_device(recipe.device if recipe.launcher == "local" else "cpu")
    if recipe.device == "cuda" and not gpus:
        key = {"ray": "ray.num_gpus", "slurm": "slurm.gpus"}[recipe.launcher]
        raise UserError(f"device=cuda needs a GPU for each cell; type {key}=1")
    return torch.device("cpu" if recipe.device == "cpu" else "cuda")


def _scheme(
    recipe: Recipe,
    given: str | Mapping[str, Any],
    key: str,
    material: Material,
    train_tokens: int,
    body: Foreign | None,
    worked: set[Any] | None = None,
) -> Spec:
    """Parse a scheme and try it on two tokens: what cannot work is refused before any training.

    `worked` is what has worked of a grid, to be added to; None where this is no scheme of one.
    """
    model = recipe.model
    try:
        if body is None:
            spec = parse(given)
            sizes = {"d_model": model.d_model, "n_heads": model.n_heads, "n_layers": model.n_layers}
            shape = Shape(**sizes, head_dim=model.head_dim or 0, train_length=train_tokens, causal=material.causal)
        else:
            spec, shape = body.scheme(given), body.look.shape
        refuse_main(*(member.name for member in spec.all_members()))
        scheme = build(spec, shape)
        for member in scheme.members if isinstance(material, Questions) else ():
            if reason := member.refuses_task(material.task):
                raise UserError(f"{member.name} does not fit {material.name}: {reason}")
        needed = set() if worked is None else _kinds(spec)
        if needed and needed <= worked:
            return spec
        q, x = torch.zeros(1, shape.n_heads, 2, shape.head_dim), torch.zeros(1, 2, shape.d_model)
        tokens = torch.zeros(1, 2, dtype=torch.int64)
        for phase in ("train", "test"):
            with torch.no_grad():
                prepared = scheme.prepare(scheme.positions(1, 2, phase=phase, rows=(0,), tokens=tokens))
                for layer in range(shape.n_layers):
                    for group in prepared.at(layer):
                        check(recipe.backend, group.composition)
                    here = "auto" if missing(recipe.backend, q.device) else recipe.backend
                    prepared.attend(layer, q, q, q, here, x=x)
        if worked is not None:
            worked |= needed if len(needed) == 1 else needed - {spec.members[0]}
    except Undefined:
        return spec
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
    except Exception as error:  # in somebody's plug-in
        raise Broken(f"{key}: {spec} fails with {failed(error)}") from error
    return spec


def _kinds(spec: Spec) -> set[Any]:
    """What stands for a scheme of the zoo: an encoding for itself, a pair for it and all pairs like it.

    Those are alike whose extensions are the same, and whose encodings offer it the same things to act on. Nothing
    stands for what a plug-in brings, or a scheme of more members.
    """
    classes = [entry(member.name).cls for member in spec.members]
    if not 1 <= len(classes) <= 2 or not all(cls and cls.__module__.startswith("pezoo.encodings.") for cls in classes):
        return set()
    encoding, *extensions = spec.members
    if not extensions:
        return {encoding}
    if not issubclass(classes[1], Extension):
        return set()
    return {encoding, (tuple(offers(classes[0]).values()), extensions[0])}


def refuse_main(*names: str) -> None:
    """Refuse members of the running program itself, which the processes of a study could not import."""
    for name in names:
        if entry(name).cls.__module__ == "__main__":
            raise UserError(
                f"{name} was defined in a notebook, a console or the running script, where the processes of a study do "
                'not find it; put it in a file of its own and pass plugins=["FILE.py"], or --plugin FILE.py'
            )
