"""What the keys of a recipe may hold: ranges of single keys, then how keys go together."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pezoo.attention import BACKENDS
from pezoo.errors import UserError, either, suggest
from pezoo.results import LANGUAGE_MODELLING
from pezoo.study import bodies
from pezoo.study.recipe import Recipe, TuneConfig
from pezoo.study.trees import require
from pezoo.training.config import check_shares

_AT_LEAST_ONE = """workers threads
model.d_model model.n_layers model.n_heads model.n_kv_heads model.head_dim model.d_ff
train.length train.min_length train.steps train.batch_size train.accumulate train.devices train.num_nodes
train.log_every
tune.batch_size tune.accumulate test.windows test.last test.batch_tokens"""


_AT_LEAST_ZERO = """train.warmup_steps train.weight_decay train.grad_clip
tune.warmup_steps tune.weight_decay tune.grad_clip test.seed"""


def _values(recipe: Recipe, keys: str, tunings: Mapping[str, TuneConfig] | None = None) -> Iterator[tuple[str, Any]]:
    """The values of keys; a key of `tune` has one more for each scheme with a tuning of its own."""
    for key in keys.split():
        group, _, name = key.rpartition(".")
        whole: Any = getattr(recipe, group) if group else recipe
        for place, holder in (tunings if group == "tune" and tunings else {group: whole}).items():
            value = getattr(holder, name)
            if value is not None:
                yield f"{place}.{name}".lstrip("."), value


def check_study(recipe: Recipe) -> None:
    """What all parts share."""
    require(bool(recipe.study.strip()), "study", recipe.study, "a name")
    good = re.fullmatch(r"[^/\\\0]+", recipe.study) and recipe.study not in (".", "..")
    require(bool(good), "study", recipe.study, "a name without slashes")
    good = len(recipe.study.encode()) <= 200 and recipe.study.isprintable()
    require(good, "study", recipe.study, "a name of at most 200 bytes that can be printed")
    good = re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", recipe.device)
    require(bool(good), "device", recipe.device, "auto, cpu, cuda, cuda:N (a GPU by number) or mps")
    names = ("auto", *BACKENDS)
    hint = suggest(recipe.backend, names)
    require(recipe.backend in names, "backend", recipe.backend, either(names), hint)
    good = recipe.cell_minutes is None or 0 < recipe.cell_minutes < math.inf
    require(good, "cell_minutes", recipe.cell_minutes, "above 0, or null for no limit")
    require(recipe.save_minutes > 0, "save_minutes", recipe.save_minutes, "above 0")
    _check_launcher(recipe)
    good = recipe.seeds and len(set(recipe.seeds)) == len(recipe.seeds) and min(recipe.seeds) >= 0
    require(bool(good), "seeds", recipe.seeds, "different whole numbers from 0 on, such as [0, 1]")


def _check_launcher(recipe: Recipe) -> None:
    """What is asked of Ray and of Slurm."""
    ray, slurm = recipe.ray, recipe.slurm
    for key, value in _values(recipe, "ray.num_cpus ray.num_gpus"):
        require(0 <= value < math.inf and (value <= 1 or value == int(value)), key, value, "a share of 1, or a number")
    good = ray.address is None or ray.address == "auto" or re.fullmatch(r"[\w.:\[\]-]+:\d{1,5}", ray.address, re.ASCII)
    require(bool(good), "ray.address", ray.address, "auto, HOST:PORT, or null for a cluster that is started here")
    for key, value in _values(recipe, "ray.max_retries slurm.requeues slurm.gpus"):
        require(0 <= value < 2**31, key, value, "at least 0")
    for key, value in _values(recipe, "slurm.minutes slurm.cpus slurm.signal_seconds slurm.memory_gb"):
        require(0 < value < 2**31, key, value, "above 0")
    good, limit = slurm.signal_seconds < 60 * slurm.minutes, f"less than the time limit, slurm.minutes={slurm.minutes}"
    require(good, "slurm.signal_seconds", slurm.signal_seconds, limit)
    for key, value in _values(recipe, "slurm.partition slurm.account"):  # they become lines of a script
        require(bool(re.fullmatch(r"[\w.,@/+-]+", value, re.ASCII)), key, value, "a name as Slurm has them")
    good = recipe.launcher == "local" or recipe.device in ("auto", "cpu", "cuda")
    allowed = f"auto, cpu or cuda with launcher={recipe.launcher}, which chooses the GPU"
    require(good, "device", recipe.device, allowed)


def check_values(recipe: Recipe) -> None:
    """Ranges of single keys, then the relations between keys."""
    tunings = recipe.tunings
    for key, steps in _values(recipe, "tune.steps", tunings):
        require(bool(steps) and min(steps) >= 0, key, steps, "a list of step counts such as [0, 200]")
    for key, value in _values(recipe, _AT_LEAST_ONE, tunings):
        require(value >= 1, key, value, "at least 1")
        require(value < 2**31, key, value, f"at most {2**31 - 1}")
    for key, value in _values(recipe, _AT_LEAST_ZERO, tunings):
        require(value >= 0 and math.isfinite(value), key, value, "at least 0")
    rates = [(f"train.lrs.{i}", lr) for i, lr in enumerate(recipe.train.lrs)]
    for key, value in [*_values(recipe, "train.lr tune.lr", tunings), *rates]:
        require(value > 0 and math.isfinite(value), key, value, "above 0")
    for key, value in _values(recipe, "train.min_lr_ratio tune.min_lr_ratio", tunings):
        require(0 <= value <= 1, key, value, "between 0 and 1")
    require(0 <= recipe.model.dropout < 1, "model.dropout", recipe.model.dropout, "in [0, 1)")
    betas = recipe.train.betas
    good = len(betas) == 2 and all(0 <= beta < 1 for beta in betas)
    require(good, "train.betas", betas, "two numbers in [0, 1)")

    bodies.check(recipe)
    model, length = recipe.model, recipe.train.length
    good = model.norm_eps is None or 0 < model.norm_eps < math.inf
    require(good, "model.norm_eps", model.norm_eps, "above 0, or null")
    good = model.qk_norm or model.qk_norm_scope == "head"
    require(good, "model.qk_norm_scope", model.qk_norm_scope, "head, unless model.qk_norm=true")
    if model.head_dim is None and model.d_model % model.n_heads:
        raise UserError(
            f"model.d_model={model.d_model} is not divisible by model.n_heads={model.n_heads}; "
            f"type model.d_model={math.ceil(model.d_model / model.n_heads) * model.n_heads}, or set model.head_dim"
        )
    kv_heads = model.n_kv_heads or model.n_heads
    require(
        model.n_heads % kv_heads == 0,
        *("model.n_kv_heads", kv_heads, f"a divisor of model.n_heads={model.n_heads}"),
    )
    require(bool(recipe.schemes or recipe.grid.encodings), "schemes", recipe.schemes, "a list such as [rope, alibi]")
    require(bool(recipe.test.lengths), "test.lengths", [], "a list such as [1x, 2x, 4x]")
    for tokens, given in zip(recipe.test_lengths, recipe.test.lengths, strict=False):
        if tokens < length:
            raise UserError(
                f"test.lengths holds {tokens} ({given!r}), shorter than the training length "
                f"train.length={length}; a test length is train.length or more"
            )
    least = recipe.train.min_length or 1
    require(least <= length, "train.min_length", least, f"at most train.length={length}")
    require(bool(recipe.tasks), "tasks", [], f"a list such as [{LANGUAGE_MODELLING}] or [reverse_string]")
    if (recipe.test.last or length) > min(recipe.test_lengths):
        raise UserError(
            f"test.last={recipe.test.last} is more than the shortest test length, {min(recipe.test_lengths)}"
        )
    _check_processes(recipe)
    _check_warmup("train", recipe.train.warmup_steps, recipe.train.steps)
    for key, tune in tunings.items():
        used = key != "tune" or bool(recipe.grid.encodings) or tune in [row.tune for row in recipe.rows]
        _check_tuning(recipe, key, tune, [n for n in tune.steps if used and n])


def _check_tuning(recipe: Recipe, key: str, tune: TuneConfig, steps: list[int]) -> None:
    """How its length goes with training, and its batches and steps, if there are any; `key` is where it is set."""

    def at(name: str) -> str:  # what a scheme does not set is set in `tune`
        return key if getattr(tune, name) != getattr(recipe.tune, name) else "tune"

    tuned = recipe.tuning(tune, 1, at("length"))
    if not steps:
        return
    if tuned.length < recipe.train.length:
        length = recipe.train.length
        raise UserError(
            f"{at('length')}.length={tuned.length} is shorter than the training length train.length={length}"
        )
    check_shares(tuned, at("batch_size"))
    _check_warmup(at("warmup_steps"), tune.warmup_steps, min(steps), at("steps"))


def _check_warmup(stage: str, warmup: int, steps: int, other: str = "train") -> None:
    if warmup >= steps:
        raise UserError(
            f"{stage}.warmup_steps={warmup} must be less than the {steps} steps of {other}.steps; "
            f"type {stage}.warmup_steps={steps // 10}"
        )


def _check_processes(recipe: Recipe) -> None:
    """Whether a training of several processes can be had where cells run."""
    train = recipe.train
    check_shares(train)
    if train.num_nodes > 1 and (recipe.launcher != "slurm" or recipe.slurm.local):
        raise UserError(
            f"train.num_nodes={train.num_nodes} needs jobs on several machines: type launcher=slurm, or leave it at 1"
        )
    if train.devices > 1 and recipe.device == "mps":
        raise UserError(f"train.devices={train.devices}, but device=mps is one GPU; type train.devices=1")
    gpus = {"ray": ("ray.num_gpus", recipe.ray.num_gpus), "slurm": ("slurm.gpus", recipe.slurm.gpus)}
    key, there = gpus.get(recipe.launcher, ("", 0))
    if there and recipe.device != "cpu" and train.devices > max(1, there):
        raise UserError(f"train.devices={train.devices} is more than {key}={there:g}; type {key}={train.devices}")
