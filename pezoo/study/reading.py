"""A recipe as people give it, YAML and overrides, read and checked."""

import io
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from pezoo.errors import UserError, brief, cut, suggest
from pezoo.results import LANGUAGE_MODELLING
from pezoo.study import bodies
from pezoo.study.checking import check_study, check_values
from pezoo.study.recipe import Recipe, merge, merge_typed, to_recipe
from pezoo.study.trees import join_trees, require
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


def load_recipe(recipe: str | Path | Mapping[str, Any], overrides: Iterable[str] = (), connects: bool = True) -> Recipe:
    """Read a recipe and check it.

    Args:
        recipe: path of a YAML file, folder of a study, bare name of a recipe that comes with pezoo, or its keys.
        overrides: `key=value` texts, dotted keys, values as YAML.
        connects: whether it is to be run, and so may not name a cluster that was not typed.

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
    if any(key == "model.from" or (key == "model" and _holds(value, ["from"])) for key, value in pairs):
        tree["model"] = {}  # who types a model wants none of the recipe's
    for key, value in pairs:
        if (key, value) not in early:
            _set(tree, key, value)
    result = to_recipe(merge_typed({}, tree))
    result.study = result.study or name
    check_study(result)
    if connects and not isinstance(recipe, Mapping) and not any(key in ("ray", "ray.address") for key, _ in pairs):
        _refuse_address(result)
    length = any(_holds(one, ["train", "length"]) for one in (given, sized))
    bodies.complete(result, length or any(key in ("train", "train.length") for key, _ in pairs))
    parts = result.split()
    _refuse_idle(result, [one for _, one in parts], [key for key, _ in pairs])
    for part, one in parts:
        try:
            check_values(one)
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
    if not isinstance(content, dict) or not content:
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
    for name, keys in sizes.items():
        require(keys is None or isinstance(keys, dict), f"sizes.{name}", keys, "a group of keys")
        try:
            merge({}, keys or {})
        except UserError as error:
            raise UserError(f"sizes.{cut(str(name))}: {error}") from None
    return sizes.get(size) or {}


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
                has = f"has items 0 to {len(node) - 1}, no {brief(part)}" if node else "is an empty list"
                raise UserError(f"{cut(key)}: {here} {has}; type '{here}=[...]' to replace the whole list")
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


def _refuse_idle(recipe: Recipe, parts: list[Recipe], keys: Iterable[str]) -> None:
    """Refuse what would have no effect: an override of what every part sets, half a grid, questions to nobody."""
    for key in keys:
        path = re.sub(r"\[(\d+)\]", r".\1", key).split(".")
        setting = [name for name, given in recipe.parts.items() if _holds(given, path)]
        if recipe.parts and len(setting) == len(recipe.parts):
            example = shlex.quote(f"parts.{setting[0]}.{key}=...")
            raise UserError(f"{key} is set by every part of the recipe ({', '.join(setting)}); type {example}")
        if path[0] == "tune" and len(path) > 1 and all(_sets_tuning(one, path[1]) for one in parts):
            own = [part for part, given in recipe.parts.items() if _holds(given, ["schemes"])]
            where = f"parts.{own[0]}." if own and (not recipe.schemes or len(own) == len(recipe.parts)) else ""
            raise UserError(f"{key} is set by every scheme of the recipe; type {where}schemes.0.{key}=...")
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
