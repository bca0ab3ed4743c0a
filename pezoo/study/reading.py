"""A recipe as people give it, YAML and overrides, read and checked."""

import io
import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from pezoo.errors import UserError, brief, cut, suggest
from pezoo.results import LANGUAGE_MODELLING
from pezoo.study import bodies
from pezoo.study.recipe import Recipe, TuneConfig, join_trees, merge, merge_typed, require, to_recipe
from pezoo.training.config import check_shares
from pezoo.typed import check_plain, check_yaml, said

CLAIMS = "claims.yaml"
"""File beside the recipes with published findings that they test; `pezoo.report.claims` reads it."""


def recipes_dir() -> Path:
    """Return the folder of the recipes that come with pezoo: `experiments/`, in a checkout or a wheel."""
    package = Path(__file__).parents[1]
    installed = package / "experiments"
    return installed if installed.is_dir() else package.parent / "experiments"


def own_recipes() -> dict[str, Path]:
    """Return the files of the recipes that come with pezoo, by name; what is claimed of them is no recipe."""
    return {path.stem: path for path in sorted(recipes_dir().glob("*.yaml")) if path.name != CLAIMS}


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
    shipped = own_recipes()
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
        name, given = path.stem, read_keys(path)
    pairs = [_parse_override(text) for text in overrides]
    early = [(key, value) for key, value in pairs if re.match(r"sizes?\b", key)]
    tree = merge({}, given)
    for key, value in early:
        _set(tree, key, value)
    tree = merge({}, tree)
    sized = _sized(tree)
    tree = merge(tree, sized)
    for key, value in pairs:
        if (key, value) not in early:
            _set(tree, key, value)
    result = to_recipe(merge_typed({}, tree))
    result.study = result.study or name
    _check_study(result)
    if not isinstance(recipe, Mapping) and not any(key in ("ray", "ray.address") for key, _ in pairs):
        _refuse_address(result)
    length = any(_holds(one, ["train", "length"]) for one in (given, sized))
    bodies.complete(result, length or any(key in ("train", "train.length") for key, _ in pairs))
    parts = result.split()
    _refuse_idle(result, [one for _, one in parts], [key for key, _ in pairs])
    for part, one in parts:
        try:
            _check_values(one)
        except UserError as error:
            raise UserError(f"parts.{cut(part)}: {error}" if part else str(error)) from None
    return result


def _refuse_address(recipe: Recipe) -> None:
    """Refuse to connect where a file says so: what a cluster sends back is pickled, and a pickle can run code."""
    if recipe.launcher == "ray" and recipe.ray.address is not None:
        typed = shlex.quote(f"ray.address={recipe.ray.address}")
        raise UserError(
            f"the recipe names a cluster of Ray, {recipe.ray.address}; pezoo connects to one only if you name it: "
            f"type {typed}, or ray.address=null to have one started here"
        )


def read_keys(path: Path) -> dict[str, Any]:
    """A recipe's keys as its file holds them.

    Raises:
        UserError: if there is no such file, or it is no recipe.
    """
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


def _parse_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"{brief(text)} is no override; type key=value, such as train.steps=100")
    try:
        check_yaml(value)
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))["value"]
    except Exception as error:  # as in `_read`
        why = said(error)
        if value.count("[") > value.count("]") or value.count("{") > value.count("}"):
            why = "a bracket is not closed; quote the whole, such as 'schemes=[rope, alibi]'"
        raise UserError(f"cannot read the value of the override {brief(text)}: {why}") from None
    check_plain(parsed, key)
    return key.strip(), parsed


def _sized(tree: dict[str, Any]) -> dict[str, Any]:
    size, sizes = tree["size"], tree["sizes"]
    if size not in sizes and size != "cpu":
        known = ", ".join(sizes if "cpu" in sizes else ["cpu", *sizes])
        raise UserError(f"size: the recipe has no size {brief(size)}.{suggest(size, sizes)} It has: {known}")
    chosen = sizes.get(size) or {}
    require(isinstance(chosen, dict), f"sizes.{size}", chosen, "a group of keys")
    return chosen


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    """Put one override into the tree; a group of keys is merged into what is there."""
    parts = re.sub(r"\[(\d+)\]", r".\1", key).split(".")
    node: Any = tree
    for depth, part in enumerate(parts):
        here, last = ".".join(parts[:depth]), depth == len(parts) - 1
        if part == "tune" and isinstance(node, dict) and re.search(r"(^|\.)schemes\.\d+$", here):
            # A list there is short for {steps: ...}.
            node["tune"], value = _as_tuning(node.get("tune", {})), _as_tuning(value) if last else value
        if isinstance(node, list):
            if not (re.fullmatch(r"[0-9]{1,9}", part) and int(part) < len(node)):
                raise UserError(
                    f"{cut(key)}: {here} has items 0 to {len(node) - 1}, no {brief(part)}; "
                    f"type '{here}=[...]' to replace the whole list"
                )
            part = int(part)
            short = not (isinstance(node[part], dict) and "scheme" in node[part])
            if re.search(r"(^|\.)schemes$", here) and not last and short:
                node[part] = {"scheme": node[part]}
        elif not isinstance(node, dict):
            raise UserError(f"unknown key {brief(key)}: {cut(here)} is a single value ({brief(node)})")
        elif not last:
            node.setdefault(part, {})
        if not last:
            node = node[part]
        elif isinstance(node, dict) and isinstance(node.get(part), dict) and isinstance(value, dict):
            node[part] = OmegaConf.to_container(join_trees(node[part], value))
        else:
            node[part] = value


def _as_tuning(given: Any) -> Any:
    return {"steps": given} if isinstance(given, list) else given


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


def _refuse_idle(recipe: Recipe, parts: list[Recipe], keys: Iterable[str]) -> None:
    """Refuse what would have no effect: an override of what every part sets, half a grid, questions to nobody."""
    for key in keys:
        path = re.sub(r"\[(\d+)\]", r".\1", key).split(".")
        setting = [name for name, given in recipe.parts.items() if _holds(given, path)]
        if recipe.parts and len(setting) == len(recipe.parts):
            example = shlex.quote(f"parts.{setting[0]}.{key}=...")
            raise UserError(f"{key} is set by every part of the recipe ({', '.join(setting)}); type {example}")
        if path[0] == "tune" and len(path) > 1 and all(_sets_tuning(one, path[1]) for one in parts):
            raise UserError(f"{key} is set by every scheme of the recipe; type schemes.0.{key}=...")
    if recipe.grid.extensions and not any(one.grid.encodings for one in parts):
        asked = recipe.grid.extensions
        typed = "'grid.encodings=[rope]' or 'grid.encodings=[\"*\"]'"
        raise UserError(f"grid.extensions={asked} has nothing to extend; type {typed} as well")
    if recipe.test.tasks and not any(LANGUAGE_MODELLING in one.tasks for one in parts):
        raise UserError(
            f"test.tasks={recipe.test.tasks} are asked of language models, and tasks={recipe.tasks} trains none; "
            f"add {LANGUAGE_MODELLING} to tasks, or what is asked"
        )


def _sets_tuning(recipe: Recipe, name: str) -> bool:
    """Whether each scheme sets a key of `tune` itself."""
    own = [_as_tuning(item.get("tune", {})) if isinstance(item, dict) else {} for item in recipe.schemes]
    return bool(own) and not recipe.grid.encodings and all(isinstance(keys, dict) and name in keys for keys in own)


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
    require(bool(recipe.study.strip()), "study", recipe.study, "a name")
    good = re.fullmatch(r"[^/\\\0]+", recipe.study) and recipe.study not in (".", "..")
    require(bool(good), "study", recipe.study, "a name without slashes")
    good = len(recipe.study.encode()) <= 200 and recipe.study.isprintable()
    require(good, "study", recipe.study, "a name of at most 200 bytes that can be printed")
    good = re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", recipe.device)
    require(bool(good), "device", recipe.device, "auto, cpu, cuda, cuda:N (a GPU by number) or mps")
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


def _check_values(recipe: Recipe) -> None:
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
