"""The recipe of a study: what its keys are, how it is read, and what is refused.

A recipe is data: no tags, no interpolation, nothing that runs. Later wins: defaults, the recipe's
YAML, its `sizes[size]`, then `key=value` overrides (dotted, list items by index: `train.steps=100`,
`schemes.0=alibi`).
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pezoo.data import DataConfig
from pezoo.errors import UserError, brief, cut, suggest
from pezoo.model.config import ModelConfig
from pezoo.model.devices import TestPrecision
from pezoo.registry import entries
from pezoo.results import LANGUAGE_MODELLING
from pezoo.study.trees import check_keys, join_trees, problem_of, require, typed_name
from pezoo.training.config import Precision, Schedule, TrainConfig
from pezoo.typed import check_plain

LONGEST = 2**24
"""Most tokens of a sequence: up to here float32 holds every position exactly."""
WHERE = ("launcher", "ray", "slurm", "workers", "cell_minutes", "save_minutes")
"""Keys that say where cells run and how long; they move no number."""


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
    precision: Precision | None = None
    """Lightning's precision; null: that of train."""
    checkpointing: bool | None = None
    """Gradient checkpointing; null: as in train."""
    weights: str = "all"
    """Which weights are tuned: all; scheme, the scheme's own parameters alone; lora, adapters of low rank beside frozen
    weights, and the scheme's, with settings such as lora:rank=16:embeddings_and_norms=true."""


@dataclass
class TestConfig:
    """Testing at lengths beyond the training length."""

    lengths: list[Any] = field(default_factory=lambda: ["1x", "2x", "4x", "8x", "16x"])
    """Test lengths: tokens, or multiples of the training length such as 16x."""
    protocols: list[str] = field(default_factory=list, metadata={"example": ["prefix", "sliding"]})
    """How it is tested: names from pezoo.evaluation; empty: prefix for text, answers for tasks."""
    windows: int = 32
    """Test windows, each as long as the longest test length; of a task the questions of each length (and depth)."""
    companion: bool = False
    """Test each scheme a second time with a window of L, as "... | windowed": what it gains by distant text. Not
    for mixtures of layers or heads, nor for schemes that have a window."""
    tasks: list[str] = field(default_factory=list, metadata={"example": ["passkey_text"]})
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
class BodyConfig(ModelConfig):
    """The body of the Transformer, the same for every scheme; or, by `from`, a model of the library transformers."""

    from_: Any = field(default=None, metadata={"before": None})
    """A trained decoder of transformers: its folder, or its name on the hub. Or a config as data, such as
    `{model_type: llama, hidden_size: 128}`, of which a model is made that transformers' own code trains first. Then no
    other key of `model` may be set, `rope` in a scheme is the model's own rotation, and the scheme `own` its own."""


@dataclass
class GridConfig:
    """Every encoding with every extension that it takes; pairs that cannot work are left out."""

    encodings: list[str] = field(default_factory=list, metadata={"example": ["rope", "alibi"]})
    """Encodings, with settings if need be, or patterns such as *; each stands in the grid without extension too."""
    extensions: list[str] = field(default_factory=list, metadata={"example": ["pi", "random"]})
    """Extensions, likewise."""


@dataclass
class RayConfig:
    """What a cell needs of a cluster of Ray, where `launcher` is ray."""

    address: str | None = None
    """The cluster: auto, for one that runs on this machine, or HOST:PORT; a file cannot set it, you type it yourself.
    Null: one is started here, for the time of the run."""
    num_cpus: float = 1.0
    """CPUs that Ray keeps for a cell; its threads are `threads`."""
    num_gpus: float = 0.0
    """GPUs that Ray keeps for a cell; 0.25: four cells share one."""
    max_retries: int = 3
    """Times that a cell begins again elsewhere when its machine or its process dies."""


@dataclass
class SlurmConfig:
    """The jobs of Slurm, one for each cell, where `launcher` is slurm."""

    partition: str | None = None
    """Partition; null: Slurm's default."""
    account: str | None = None
    """Account that is charged; null: Slurm's default."""
    minutes: int = 60
    """Time limit of a job. A training that reaches it saves its state, and its job is queued again."""
    signal_seconds: int = 90
    """Seconds before the limit at which a training is told to save its state."""
    requeues: int = 20
    """Times that a job may reach its limit."""
    cpus: int = 1
    """CPUs of a job; a cell's threads are `threads`."""
    gpus: int = 0
    """GPUs of a job."""
    memory_gb: float | None = None
    """Memory of a job; null: Slurm's default."""
    local: bool = False
    """Run the jobs as processes of this machine, without Slurm: to try a study before it is queued."""


@dataclass(frozen=True)
class Row:
    """One item of the recipe's `schemes`: a row of the table for each count in `tune.steps`."""

    scheme: str | Mapping[str, Any]
    tune: TuneConfig
    """The recipe's, with what the item sets."""
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
    schemes: list[Any] = field(default_factory=list, metadata={"example": ["rope", "alibi"]})
    """`rope+pi`, a scheme as a mapping, or {scheme: ..., tune: ..., label: ...}. Its tune holds step counts such as
    [0, 200], or the keys of `tune` that differ for this scheme, such as {steps: [200], length: 4x}."""
    grid: GridConfig = field(default_factory=GridConfig)
    """More schemes: encodings x extensions."""
    tasks: list[str] = field(default_factory=lambda: [LANGUAGE_MODELLING])
    """What each scheme is trained on, one after the other: text, or tasks such as mqar:n_pairs=8."""
    form: Literal["causal", "encoder"] = "causal"
    """Whether tasks are answered token by token, or all at once by an encoder."""
    baseline: str = ""
    """Label of the scheme that the report compares all others with; empty: the best one at L."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """One training of each scheme for each seed."""
    launcher: Literal["local", "ray", "slurm"] = "local"
    """Where cells run: in processes of this machine, as tasks of Ray, or as jobs of Slurm (docs/cluster.md)."""
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
    """Attention back-end: auto, eager, sdpa, chunked; on a CUDA GPU also flex, PyTorch's FlexAttention."""
    data: DataConfig = field(default_factory=DataConfig)
    model: BodyConfig = field(default_factory=BodyConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    test: TestConfig = field(default_factory=TestConfig)
    ray: RayConfig = field(default_factory=RayConfig)
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    plugins: list[str] = field(default_factory=list, metadata={"example": ["my_encoding.py"]})
    """Plug-ins that the study needs: Python files, as seen from the folder of the recipe's file. A recipe is data and a
    plug-in is code, so none is loaded unless --plugin names it. `pezoo run` writes them into a study's recipe.yaml."""
    parts: dict[str, Any] = field(default_factory=dict)
    """Parts of the study by name, each with keys that differ there: schemes, grid, tasks, form, data, model, train,
    tune, test. A key of a part wins over the same key outside, and a scheme's own tune over both. To change it, name
    the part: parts.NAME.train.steps=100."""

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
            require(bool(name.strip()), "parts", name, "named")
            require(isinstance(given, Mapping), f"parts.{name}", given, f"a group of keys ({', '.join(_OF_A_PART)})")
            for key in given:
                if key not in _OF_A_PART:
                    near, known = suggest(str(key), _OF_A_PART), ", ".join(_OF_A_PART)
                    raise UserError(f"parts.{cut(name)} cannot set {brief(key)}.{near} A part sets: {known}")
            try:
                split.append((name, to_recipe(merge_typed(whole, given))))
            except UserError as error:
                raise UserError(f"parts.{cut(name)}: {error}") from None
        return split

    @property
    def test_lengths(self) -> list[int]:
        """Test lengths in tokens, ascending."""
        lengths = self.test.lengths
        return sorted({self._tokens(f"test.lengths.{i}", x) for i, x in enumerate(lengths)})

    @property
    def rows(self) -> list[Row]:
        """The items of `schemes`, each written out."""
        return [self._row(f"schemes.{i}", item) for i, item in enumerate(self.schemes)]

    @property
    def tunings(self) -> dict[str, TuneConfig]:
        """How models are tuned, by key: `tune`, and `schemes.2.tune` of an item that sets keys of its own."""
        rows = {f"schemes.{i}.tune": row.tune for i, row in enumerate(self.rows)}
        return {"tune": self.tune} | {key: tune for key, tune in rows.items() if tune != self.tune}

    def tuning(self, tune: TuneConfig, steps: int, key: str = "tune") -> TrainConfig:
        """What `fit` needs for a tuning of `steps` steps; `key` is where `tune` comes from, for messages."""
        own = {f.name: getattr(tune, f.name) for f in dataclasses.fields(TuneConfig) if f.name != "weights"}
        own |= {"steps": steps, "length": self._tokens(f"{key}.length", tune.length), "lrs": []}
        return dataclasses.replace(self.train, **{name: value for name, value in own.items() if value is not None})

    def to_dict(self) -> dict[str, Any]:
        """The recipe in full as plain data; itself a recipe, of the same study."""
        return _typed(dataclasses.asdict(self)) | {"sizes": {self.size: {}}}

    def _tokens(self, key: str, value: Any) -> int:
        if isinstance(value, int) and not isinstance(value, bool):
            require(value > 0, key, value, "at least 1")
            require(value <= LONGEST, key, value, f"at most {LONGEST}")
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)x", value, re.ASCII) if isinstance(value, str) else None
        tokens = float(match[1]) * self.train.length if match else 0.0
        allowed = f"a number of tokens, or a multiple of train.length={self.train.length} such as 8x"
        require(1 <= tokens < math.inf and tokens == int(tokens), key, value, allowed)
        require(tokens <= LONGEST, key, value, f"at most {LONGEST} tokens")
        return int(tokens)

    def _row(self, key: str, item: Any) -> Row:
        if not isinstance(item, str | dict) or item == {}:
            raise UserError(f"{key} must be a scheme such as rope+pi, got {brief(item)}")
        if isinstance(item, str) or "scheme" not in item:
            _check_short(key, item)
            item = {"scheme": item}
        for name in item:
            if name not in _OF_A_ROW:
                hint, known = suggest(str(name), _OF_A_ROW), ", ".join(_OF_A_ROW)
                raise UserError(f"{key} has no key {brief(name)}.{hint} Its keys: {known}")
        given, label = item.get("tune", {}), item.get("label")
        require(label is None or (isinstance(label, str) and bool(label.strip())), f"{key}.label", label, "a text")
        return Row(item["scheme"], self._tune(f"{key}.tune", given), label)

    def _tune(self, key: str, given: Any) -> TuneConfig:
        """The recipe's `tune`, with what an item of `schemes` sets."""
        allowed = "a list of step counts such as [0, 200], or keys of tune such as {steps: [200], length: 4x}"
        require(isinstance(given, list | Mapping), key, given, allowed)
        own, tune = ({"steps": given} if isinstance(given, list) else given), self.tune
        check_keys(own, TuneConfig, Recipe, f"{key}.")
        try:
            tune = OmegaConf.to_object(join_trees(OmegaConf.structured(tune), own)) if own else tune
        except UserError as error:
            raise UserError(f"{key}.{error}") from None
        return dataclasses.replace(tune, steps=list(dict.fromkeys(tune.steps)))


def _check_short(key: str, scheme: str | Mapping[str, Any]) -> None:
    """Refuse a scheme as a mapping with keys that stand beside a scheme."""
    for name in () if isinstance(scheme, str) else map(str, scheme):
        meant = name if name in _OF_A_ROW else next((k for k in _OF_A_ROW if suggest(name, [k])), None)
        if meant and name not in entries():
            said = f"{key} has no key 'scheme', and {brief(name)} is no member"
            raise UserError(f"{said}; write {{scheme: rope+pi, tune: [0, 200], label: mine}}")


def _typed(tree: dict[str, Any]) -> dict[str, Any]:
    """A tree with `model.from` as people type it."""
    return tree | {"model": {typed_name(name): value for name, value in tree["model"].items()}}


def _coded(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """A tree with `model.from` as the field is called."""
    model = tree.get("model")
    if not isinstance(model, Mapping) or "from" not in model:
        return tree
    return dict(tree) | {"model": {"from_" if name == "from" else name: value for name, value in model.items()}}


def merge(base: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults, `base` and `given` as one plain tree, `given` checked."""
    return _typed(OmegaConf.to_container(merge_typed(base, given)))


def merge_typed(base: dict[str, Any], given: Mapping[str, Any]) -> DictConfig:
    """The same, as a tree that knows its types."""
    check_plain(given)
    check_keys(given, Recipe, Recipe)
    return join_trees(_DEFAULTS, _coded(base), _coded(given))


def to_recipe(tree: DictConfig) -> Recipe:
    """The recipe that a tree holds."""
    try:
        return OmegaConf.to_object(tree)
    except OmegaConfBaseException as error:
        raise UserError(problem_of(error)) from None


_DEFAULTS = OmegaConf.structured(Recipe)
_OF_A_ROW = ("scheme", "tune", "label")
_OF_A_PART = ("schemes", "grid", "tasks", "form", "data", "model", "train", "tune", "test")
