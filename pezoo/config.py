"""The recipe of a study: what its keys are, how it is read, and what is refused.

A recipe is data: no tags, no interpolation, nothing that runs. Later wins: defaults, the recipe's
YAML, its `sizes[size]`, then `key=value` overrides (dotted, list items by index: `train.steps=100`,
`schemes.0=alibi`).
"""

import dataclasses
import io
import math
import re
import shlex
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pezoo.data import DataConfig
from pezoo.devices import TestPrecision
from pezoo.errors import UserError, brief, cut, suggest
from pezoo.experiments import recipes_dir
from pezoo.results import LANGUAGE_MODELLING
from pezoo.transformer import ModelConfig
from pezoo.typed import check_items, check_plain, check_yaml, said

LONGEST = 2**24
"""Most tokens of a sequence: up to here float32 holds every position exactly."""
Schedule = Literal["cosine", "linear", "constant"]


@dataclass
class TrainConfig:
    """Training, and what tuning shares with it."""

    length: int = 64
    """Training length L: tokens, or for a task what it counts, and then the longest."""
    lengths: Literal["fixed", "uniform", "curriculum"] = "fixed"
    """Lengths of the batches: all of L; drawn from min_length ... L; or growing to L in the first half of the steps.
    A batch of shorter text has more rows, so that its tokens stay as many."""
    min_length: int | None = None
    """Shortest batches, where lengths differ; null: 1, or the least that the task has questions of."""
    steps: int = 800
    """Optimiser steps."""
    batch_size: int = 32
    """Sequences a step, before accumulation."""
    lr: float = 2e-3
    """Peak learning rate of AdamW."""
    lrs: list[float] = field(default_factory=list)
    """Several to choose from, for each scheme by its mean validation loss at L over all seeds; empty: lr alone."""
    schedule: Schedule = "cosine"
    """Course of the learning rate after the warm-up."""
    warmup_steps: int = 50
    """Steps of linear warm-up."""
    min_lr_ratio: float = 0.1
    """Last learning rate over the peak."""
    weight_decay: float = 0.1
    """AdamW's weight decay."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    """AdamW's betas."""
    grad_clip: float = 1.0
    """Largest gradient norm; 0: no clipping."""
    accumulate: int = 1
    """Batches whose gradients make one step."""
    precision: Literal["32-true", "bf16-mixed", "bf16-true", "16-mixed", "64-true"] = "32-true"
    """Lightning's precision."""
    log_every: int = 20
    """Steps between two points of the training curves."""


@dataclass
class TuneConfig:
    """Tuning of a trained model at a longer length; the keys it lacks are those of `train`."""

    steps: list[int] = field(default_factory=lambda: [0])
    """One tuned model for each count, 0 being the trained model as it is (zero-shot)."""
    length: Any = "8x"
    """Tokens, or a multiple of the training length such as 8x."""
    batch_size: int = 4
    """Sequences a step, before accumulation."""
    lr: float = 1e-3
    """Peak learning rate."""
    schedule: Schedule = "cosine"
    """Course of the learning rate after the warm-up."""
    warmup_steps: int = 10
    """Steps of linear warm-up."""
    min_lr_ratio: float = 0.1
    """Last learning rate over the peak."""
    weight_decay: float = 0.1
    """AdamW's weight decay."""
    grad_clip: float = 1.0
    """Largest gradient norm; 0: no clipping."""
    accumulate: int = 1
    """Batches whose gradients make one step."""


@dataclass
class TestConfig:
    """Testing at lengths beyond the training length."""

    lengths: list[Any] = field(default_factory=lambda: ["1x", "2x", "4x", "8x", "16x"])
    """Test lengths: tokens, or multiples of the training length such as 16x."""
    protocols: list[str] = field(default_factory=list)
    """How it is tested: names from pezoo.evaluation; empty: prefix for text, answers for tasks."""
    windows: int = 32
    """Test windows, each as long as the longest test length; of a task the questions of each length (and depth)."""
    companion: bool = False
    """Test each scheme a second time with a window of L, as "... | windowed": what it gains by distant text. Not
    for mixtures of layers or heads, nor for schemes that have a window."""
    tasks: list[str] = field(default_factory=list)
    """Tasks to test a language model on beside its text, such as passkey_text; length in tokens, and "undefined" where
    that is too short for a question."""
    last: int | None = None
    """Tokens that count for the perplexity of the last tokens; null: the training length."""
    seed: int = 0
    """Chooses the windows, or the questions; the same for every scheme and training seed."""
    batch_tokens: int = 16384
    """Tokens in one forward."""
    precision: TestPrecision = "float32"
    """How matrices are multiplied: tf32 needs a CUDA GPU; bf16 is PyTorch's autocast. Losses are float32 in each."""


@dataclass
class GridConfig:
    """Every encoding with every extension that it takes; pairs that cannot work are left out."""

    encodings: list[str] = field(default_factory=list)
    """Encodings, with settings if need be, or patterns such as *; each stands in the grid without extension too."""
    extensions: list[str] = field(default_factory=list)
    """Extensions, likewise."""


@dataclass(frozen=True)
class Row:
    """One item of the recipe's `schemes`: a row of the table for each count in `tune`."""

    scheme: str | Mapping[str, Any]
    tune: tuple[int, ...]
    label: str | None


@dataclass
class Recipe:
    """A study: schemes, data, lengths, seeds, budgets."""

    study: str = ""
    """Name of the study, and of its folder in `runs/`; empty: the recipe file's name."""
    description: str = ""
    """What the study asks."""
    size: str = "cpu"
    """Which of `sizes` counts; `cpu` is the recipe as it stands, if `sizes` has no such entry."""
    sizes: dict[str, Any] = field(default_factory=dict)
    """Other sizes of the same study: overrides by name."""
    schemes: list[Any] = field(default_factory=list)
    """`rope+pi`, a scheme as a mapping, or {scheme: ..., tune: [0, 200], label: ...}."""
    grid: GridConfig = field(default_factory=GridConfig)
    """More schemes: encodings x extensions."""
    tasks: list[str] = field(default_factory=lambda: [LANGUAGE_MODELLING])
    """What each scheme is trained on, one after the other: text, or tasks such as mqar:n_pairs=8."""
    form: Literal["causal", "encoder"] = "causal"
    """Whether tasks are answered token by token, or all at once by an encoder."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """One training of each scheme for each seed."""
    workers: int = 1
    """Cells at a time."""
    threads: int = 1
    """CPU threads of one cell."""
    cell_minutes: float | None = None
    """Minutes after which a cell fails and is ended, to be tried again in the next run; null: no limit."""
    save_minutes: float = 5.0
    """Minutes of a training between two savings of its state, from which it goes on if it is killed; .inf: only when it
    is stopped (Ctrl-C, SIGTERM)."""
    device: str = "auto"
    """Where to compute: cpu, cuda, a GPU by number such as cuda:1, or mps; auto: cuda if there is one, else cpu."""
    backend: str = "auto"
    """Attention back-end."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    test: TestConfig = field(default_factory=TestConfig)
    plugins: list[str] = field(default_factory=list)
    """Plug-ins that the study needs: Python files, as seen from the folder of the recipe's file. A recipe is data and a
    plug-in is code, so none is loaded unless --plugin names it. `pezoo run` writes them into a study's recipe.yaml."""
    parts: dict[str, Any] = field(default_factory=dict)
    """Parts of the study by name, each with keys that differ there: schemes, grid, tasks, form, data, model, train,
    tune, test. What a part sets, it keeps: type parts.NAME.train.steps=100 to change it."""

    def split(self) -> list[tuple[str, "Recipe"]]:
        """The parts as recipes of their own, by name; the whole, named "", if there are none.

        Raises:
            UserError: if a part is malformed.
        """
        if not self.parts:
            return [("", self)]
        whole = dataclasses.asdict(self) | {"parts": {}, "sizes": {}}
        split = []
        for name, given in self.parts.items():
            _require(bool(name.strip()), "parts", name, "named")
            _require(isinstance(given, Mapping), f"parts.{name}", given, f"a group of keys ({', '.join(_OF_A_PART)})")
            for key in given:
                if key not in _OF_A_PART:
                    near, known = suggest(str(key), _OF_A_PART), ", ".join(_OF_A_PART)
                    raise UserError(f"parts.{cut(name)} cannot set {brief(key)}.{near} A part sets: {known}")
            try:
                split.append((name, _recipe(_merged(whole, given))))
            except UserError as error:
                raise UserError(f"parts.{cut(name)}: {error}") from None
        return split

    @property
    def test_lengths(self) -> list[int]:
        """Test lengths in tokens, ascending."""
        lengths = self.test.lengths
        return sorted({self._tokens(f"test.lengths.{i}", x) for i, x in enumerate(lengths)})

    @property
    def tune_length(self) -> int:
        """Length at which models are tuned, in tokens."""
        return self._tokens("tune.length", self.tune.length)

    @property
    def rows(self) -> list[Row]:
        """The items of `schemes`, each written out."""
        return [self._row(f"schemes.{i}", item) for i, item in enumerate(self.schemes)]

    def tuning(self, steps: int) -> TrainConfig:
        """What `fit` needs for a tuning of `steps` steps."""
        shared = {f.name: getattr(self.tune, f.name) for f in dataclasses.fields(TuneConfig)}
        return dataclasses.replace(self.train, **shared | {"steps": steps, "length": self.tune_length, "lrs": []})

    def to_dict(self) -> dict[str, Any]:
        """The recipe in full as plain data; itself a recipe, of the same study."""
        return dataclasses.asdict(self) | {"sizes": {self.size: {}}}

    def _tokens(self, key: str, value: Any) -> int:
        if isinstance(value, int) and not isinstance(value, bool):
            _require(value > 0, key, value, "at least 1")
            _require(value <= LONGEST, key, value, f"at most {LONGEST}")
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)x", value, re.ASCII) if isinstance(value, str) else None
        tokens = float(match[1]) * self.train.length if match else 0.0
        allowed = f"a number of tokens, or a multiple of train.length={self.train.length} such as 8x"
        _require(1 <= tokens < math.inf and tokens == int(tokens), key, value, allowed)
        _require(tokens <= LONGEST, key, value, f"at most {LONGEST} tokens")
        return int(tokens)

    def _row(self, key: str, item: Any) -> Row:
        if isinstance(item, str):
            item = {"scheme": item}
        if not isinstance(item, dict) or not item:
            raise UserError(f"{key} must be a scheme such as rope+pi, got {brief(item)}")
        if "scheme" not in item:
            item = {"scheme": item}
        for name in item:
            if name not in (known := ("scheme", "tune", "label")):
                hint = suggest(str(name), known)
                raise UserError(f"{key} has no key {brief(name)}.{hint} Its keys: {', '.join(known)}")
        steps, label = item.get("tune", self.tune.steps), item.get("label")
        good = isinstance(steps, list) and all(type(n) is int and n >= 0 for n in steps)
        _require(good and bool(steps), f"{key}.tune", steps, "a list of step counts such as [0, 200]")
        _require(label is None or (isinstance(label, str) and bool(label.strip())), f"{key}.label", label, "a text")
        return Row(item["scheme"], tuple(dict.fromkeys(steps)), label)


def find_recipe(name: str | Path) -> Path:
    """Return the file of a recipe, given its path, a folder with a recipe.yaml, or the bare name of one of pezoo's own.

    Raises:
        UserError: with near matches, if there is no such file.
    """
    path = Path(name)
    try:
        if path.is_file():
            return path
    except OSError as error:  # its name is too long, say
        raise UserError(f"cannot read the recipe {brief(str(name))}: {error.strerror}") from None
    shipped = {p.stem: p for p in sorted(recipes_dir().glob("*.yaml"))}
    if str(name) in shipped:
        return shipped[str(name)]
    if path.is_dir():
        if (path / "recipe.yaml").is_file():
            return path / "recipe.yaml"
        raise UserError(
            f"{cut(str(name))} is a folder without a recipe.yaml, so there is no study to go on with. "
            f"To run a recipe there: pezoo run RECIPE --out {shlex.quote(cut(str(name)))}"
        )
    near = suggest(path.stem, shipped)
    raise UserError(
        f"no recipe {brief(str(name))}: neither a file nor one of pezoo's own.{near} "
        f"pezoo's own: {', '.join(shipped) or 'none'}"
    )


def load_recipe(recipe: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe and check it.

    Args:
        recipe: path of a YAML file, folder of a study, bare name of a recipe that comes with pezoo, or its keys.
        overrides: `key=value` texts, dotted keys, values as YAML.

    Raises:
        UserError: naming the key, what was given and what is allowed.
    """
    if isinstance(recipe, Mapping):
        name, given = "study", dict(recipe)
    else:
        path = find_recipe(recipe)
        name, given = path.stem, _read(path)
    pairs = [_parse_override(text) for text in overrides]
    early = [(key, value) for key, value in pairs if re.match(r"sizes?\b", key)]
    tree = _merge({}, given)
    for key, value in early:
        _set(tree, key, value)
    tree = _merge({}, tree)
    tree = _merge(tree, _sized(tree))
    for key, value in pairs:
        if (key, value) not in early:
            _set(tree, key, value)
    result = _recipe(_merged({}, tree))
    result.study = result.study or name
    _check_study(result)
    parts = result.split()
    _refuse_idle(result, [one for _, one in parts], [key for key, _ in pairs])
    for part, one in parts:
        try:
            _check_values(one)
        except UserError as error:
            raise UserError(f"parts.{cut(part)}: {error}" if part else str(error)) from None
    return result


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the recipe {path}: {error}") from None
    try:
        check_yaml(text, aliases=True)
        content = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))
    except Exception as error:  # PyYAML and OmegaConf pass on whatever Python says of a date, a number, a tag
        raise UserError(f"{path} is not a YAML recipe: {said(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a recipe: it must hold keys such as `schemes: [rope, alibi]`")
    return content


def _check_keys(given: Mapping[str, Any], cls: type, prefix: str = "") -> None:
    """Refuse unknown keys, one value where a group or a list belongs, and items of a list that are of another type."""
    types = typing.get_type_hints(cls)
    for name, value in given.items():
        key = f"{prefix}{name}"
        if name not in types:
            raise UserError(f"unknown key {brief(key)}.{_meant(str(name), types)} Known here: {', '.join(types)}")
        if dataclasses.is_dataclass(types[name]):
            keys = ", ".join(f.name for f in dataclasses.fields(types[name]))
            _require(isinstance(value, Mapping), key, value, f"a group of keys ({keys})")
            _check_keys(value, types[name], f"{key}.")
        elif typing.get_origin(types[name]) is list:
            _require(isinstance(value, list), key, value, "a list such as [a, b]")
            check_items(key, value, types[name])
        elif typing.get_origin(types[name]) is dict:
            _require(isinstance(value, Mapping), key, value, "a group of keys")


def _meant(name: str, here: Iterable[str]) -> str:
    """Return " Did you mean ...?": keys of that very name, wherever they are, or else those that are near."""
    groups = {
        f.name: f.default_factory for f in dataclasses.fields(Recipe) if dataclasses.is_dataclass(f.default_factory)
    }
    every = [(f.name, f"{group}.{f.name}") for group, cls in groups.items() for f in dataclasses.fields(cls)]
    same = [key for leaf, key in every if leaf == name.casefold()]
    if not same and (near := suggest(name, here)):
        return near
    same = same or [key for leaf, key in every if suggest(name, [leaf])]
    return f" Did you mean {' or '.join(map(repr, same[:3]))}?" if same else ""


def _parse_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"{brief(text)} is no override; type key=value, such as train.steps=100")
    try:
        check_yaml(value)
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))["value"]
    except Exception as error:  # as in `_read`
        raise UserError(f"cannot read the value of the override {brief(text)}: {said(error)}") from None
    check_plain(parsed, key)
    return key.strip(), parsed


def _merge(base: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults, `base` and `given` as one plain tree, `given` checked."""
    return OmegaConf.to_container(_merged(base, given))


def _merged(base: dict[str, Any], given: Mapping[str, Any]) -> DictConfig:
    """The same, as a tree that knows its types."""
    check_plain(given)
    _check_keys(given, Recipe)
    return _joined(_DEFAULTS, base, given)


def _joined(*trees: Any) -> DictConfig:
    try:
        return OmegaConf.merge(*trees)
    except TypeError:
        raise UserError("a key is a list in one place of the recipe, and a group of keys in another") from None
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(_problem(error)) from None


def _problem(error: Exception) -> str:
    """What OmegaConf says on its first line, with the key."""
    key, problem = getattr(error, "full_key", None), cut((str(error).splitlines() or [""])[0], 200)
    return f"{cut(str(key))}: {problem}" if key else problem


def _recipe(tree: DictConfig) -> Recipe:
    try:
        return OmegaConf.to_object(tree)
    except OmegaConfBaseException as error:
        raise UserError(_problem(error)) from None


def _sized(tree: dict[str, Any]) -> dict[str, Any]:
    size, sizes = tree["size"], tree["sizes"]
    if size not in sizes and size != "cpu":
        known = ", ".join(sizes if "cpu" in sizes else ["cpu", *sizes])
        raise UserError(f"size: the recipe has no size {brief(size)}.{suggest(size, sizes)} It has: {known}")
    chosen = sizes.get(size) or {}
    _require(isinstance(chosen, dict), f"sizes.{size}", chosen, "a group of keys")
    return chosen


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    """Put one override into the tree; a group of keys is merged into what is there."""
    parts = re.sub(r"\[(\d+)\]", r".\1", key).split(".")
    node: Any = tree
    for depth, part in enumerate(parts):
        here, last = ".".join(parts[:depth]), depth == len(parts) - 1
        if isinstance(node, list):
            if not (re.fullmatch(r"[0-9]{1,9}", part) and int(part) < len(node)):
                raise UserError(
                    f"{cut(key)}: {here} has items 0 to {len(node) - 1}, no {brief(part)}; "
                    f"type '{here}=[...]' to replace the whole list"
                )
            part = int(part)
            short = not (isinstance(node[part], dict) and "scheme" in node[part])
            if here == "schemes" and not last and short:
                node[part] = {"scheme": node[part]}
        elif not isinstance(node, dict):
            raise UserError(f"unknown key {brief(key)}: {cut(here)} is a single value ({brief(node)})")
        elif not last:
            node.setdefault(part, {})
        if not last:
            node = node[part]
        elif isinstance(node, dict) and isinstance(node.get(part), dict) and isinstance(value, dict):
            node[part] = OmegaConf.to_container(_joined(node[part], value))
        else:
            node[part] = value


def _require(condition: bool, key: str, value: Any, allowed: str) -> None:
    if not condition:
        raise UserError(f"{cut(key)} must be {allowed}, got {brief(value)}")


_DEFAULTS = OmegaConf.structured(Recipe)
_OF_A_PART = ("schemes", "grid", "tasks", "form", "data", "model", "train", "tune", "test")
_AT_LEAST_ONE = """workers threads
model.d_model model.n_layers model.n_heads model.n_kv_heads model.d_ff
train.length train.min_length train.steps train.batch_size train.accumulate train.log_every
tune.batch_size tune.accumulate test.windows test.last test.batch_tokens"""
_AT_LEAST_ZERO = """train.warmup_steps train.weight_decay train.grad_clip
tune.warmup_steps tune.weight_decay tune.grad_clip test.seed"""


def _values(recipe: Recipe, keys: str) -> Iterator[tuple[str, Any]]:
    for key in keys.split():
        value: Any = recipe
        for part in key.split("."):
            value = getattr(value, part)
        if value is not None:
            yield key, value


def _refuse_idle(recipe: Recipe, parts: list[Recipe], keys: Iterable[str]) -> None:
    """Refuse what would have no effect: an override of what every part sets, half a grid, questions to nobody."""
    for key in keys:
        path = re.sub(r"\[(\d+)\]", r".\1", key).split(".")
        setting = [name for name, given in recipe.parts.items() if _holds(given, path)]
        if recipe.parts and len(setting) == len(recipe.parts):
            example = shlex.quote(f"parts.{setting[0]}.{key}=...")
            raise UserError(f"{key} is set by every part of the recipe ({', '.join(setting)}); type {example}")
    if recipe.grid.extensions and not any(one.grid.encodings for one in parts):
        asked = recipe.grid.extensions
        typed = "'grid.encodings=[rope]' or 'grid.encodings=[\"*\"]'"
        raise UserError(f"grid.extensions={asked} has nothing to extend; type {typed} as well")
    if recipe.test.tasks and not any(LANGUAGE_MODELLING in one.tasks for one in parts):
        raise UserError(
            f"test.tasks={recipe.test.tasks} are asked of language models, and tasks={recipe.tasks} trains none; "
            f"add {LANGUAGE_MODELLING} to tasks, or what is asked"
        )


def _holds(given: Any, path: list[str]) -> bool:
    """Whether a tree sets what is at a dotted key, or anything above it."""
    for name in path:
        if not isinstance(given, Mapping):
            return True
        if name not in given:
            return False
        given = given[name]
    return True


def _check_study(recipe: Recipe) -> None:
    """What all parts share."""
    _require(bool(recipe.study.strip()), "study", recipe.study, "a name")
    good = re.fullmatch(r"[^/\\\0]+", recipe.study) and recipe.study not in (".", "..")
    _require(bool(good), "study", recipe.study, "a name without slashes")
    good = len(recipe.study.encode()) <= 200 and recipe.study.isprintable()
    _require(good, "study", recipe.study, "a name of at most 200 bytes that can be printed")
    good = re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", recipe.device)
    _require(bool(good), "device", recipe.device, "auto, cpu, cuda, cuda:N (a GPU by number) or mps")
    good = recipe.cell_minutes is None or 0 < recipe.cell_minutes < math.inf
    _require(good, "cell_minutes", recipe.cell_minutes, "above 0, or null for no limit")
    _require(recipe.save_minutes > 0, "save_minutes", recipe.save_minutes, "above 0")
    good = recipe.seeds and len(set(recipe.seeds)) == len(recipe.seeds) and min(recipe.seeds) >= 0
    _require(bool(good), "seeds", recipe.seeds, "different whole numbers from 0 on, such as [0, 1]")


def _check_values(recipe: Recipe) -> None:
    """Ranges of single keys, then the relations between keys."""
    for key, value in _values(recipe, _AT_LEAST_ONE):
        _require(value >= 1, key, value, "at least 1")
        _require(value < 2**31, key, value, f"at most {2**31 - 1}")
    for key, value in _values(recipe, _AT_LEAST_ZERO):
        _require(value >= 0 and math.isfinite(value), key, value, "at least 0")
    rates = [(f"train.lrs.{i}", lr) for i, lr in enumerate(recipe.train.lrs)]
    for key, value in [*_values(recipe, "train.lr tune.lr"), *rates]:
        _require(value > 0 and math.isfinite(value), key, value, "above 0")
    for key, value in _values(recipe, "train.min_lr_ratio tune.min_lr_ratio"):
        _require(0 <= value <= 1, key, value, "between 0 and 1")
    _require(0 <= recipe.model.dropout < 1, "model.dropout", recipe.model.dropout, "in [0, 1)")
    betas = recipe.train.betas
    good = len(betas) == 2 and all(0 <= beta < 1 for beta in betas)
    _require(good, "train.betas", betas, "two numbers in [0, 1)")

    model, length = recipe.model, recipe.train.length
    if model.d_model % model.n_heads:
        raise UserError(
            f"model.d_model={model.d_model} is not divisible by model.n_heads={model.n_heads}; "
            f"type model.d_model={math.ceil(model.d_model / model.n_heads) * model.n_heads}"
        )
    kv_heads = model.n_kv_heads or model.n_heads
    _require(
        model.n_heads % kv_heads == 0,
        *("model.n_kv_heads", kv_heads, f"a divisor of model.n_heads={model.n_heads}"),
    )
    _require(bool(recipe.schemes or recipe.grid.encodings), "schemes", recipe.schemes, "a list such as [rope, alibi]")
    _require(bool(recipe.tune.steps), "tune.steps", [], "a list of step counts such as [0, 200]")
    _require(bool(recipe.test.lengths), "test.lengths", [], "a list such as [1x, 2x, 4x]")
    for tokens, given in zip(recipe.test_lengths, recipe.test.lengths, strict=False):
        if tokens < length:
            raise UserError(
                f"test.lengths holds {tokens} ({given!r}), shorter than the training length "
                f"train.length={length}; a test length is train.length or more"
            )
    least = recipe.train.min_length or 1
    _require(least <= length, "train.min_length", least, f"at most train.length={length}")
    _require(bool(recipe.tasks), "tasks", [], f"a list such as [{LANGUAGE_MODELLING}] or [reverse_string]")
    if (recipe.test.last or length) > min(recipe.test_lengths):
        raise UserError(
            f"test.last={recipe.test.last} is more than the shortest test length, {min(recipe.test_lengths)}"
        )
    steps = {n for row in recipe.rows for n in row.tune if n}
    if recipe.grid.encodings:
        steps |= {n for n in recipe.tune.steps if n}
    if steps and recipe.tune_length < length:
        raise UserError(f"tune.length={recipe.tune_length} is shorter than the training length train.length={length}")
    for stage, n in [("train", recipe.train.steps), *(("tune", n) for n in sorted(steps))]:
        warmup = getattr(recipe, stage).warmup_steps
        if warmup >= n:
            raise UserError(
                f"{stage}.warmup_steps={warmup} must be less than the {n} steps of {stage}.steps; "
                f"type {stage}.warmup_steps={n // 10}"
            )
