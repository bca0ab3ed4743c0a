"""What the folder of a study says of itself: whose it is, what it was run with, and what a recipe changes in it.

`recipe.yaml` is the recipe in full, and itself a recipe. It names the plug-ins too, as data: whoever runs the study
again names them again. Its first line holds a digest of the others, so that a damaged one is not taken for a whole one.
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

import pezoo
from pezoo.errors import NeedsPlugins, UserError, cut
from pezoo.files import replacing
from pezoo.study.reading import find_recipe, load_recipe
from pezoo.study.recipe import Recipe
from pezoo.study.store import STATE, UNFINISHED

RECIPE, RESULTS = "recipe.yaml", "results.jsonl"
MOST = 6
"""Changed keys that are named."""
WRITTEN = ("report", "logs", "tensorboard", "cells", RESULTS, "status.json", "jobs.json")
"""What a run writes or removes in its folder."""
_HEAD = re.compile(rb"#.*sha256 of the lines below: ([0-9a-f]{64})")


def folder_of(given: str | Path | Mapping[str, Any], out: str | Path | None = None) -> Path | None:
    """The folder of the study that is gone on with, named by itself or by the `recipe.yaml` in it.

    Returns:
        None for any other recipe; so for such a file with another folder `out` to run it in.

    Raises:
        UserError: if no study was run there, or its recipe is damaged.
    """
    if isinstance(given, Mapping):
        return None
    file, by_folder = find_recipe(given), Path(given).is_dir()
    if file.name != RECIPE or not (by_folder or out is None):
        return None
    if _is_study(file.parent):
        read_record(file.parent)
        return file.parent
    if by_folder:
        raise UserError(
            f"no study was run in {given}: it has a recipe and no cells; "
            f"to run that recipe: pezoo run {shlex.quote(str(file))}"
        )
    return None


def _is_study(folder: Path) -> bool:
    """Whether a study was run here; a folder with published results has no cells, and others may call theirs so."""
    made = ("*/done.json", f"*{STATE}", f"{UNFINISHED}*")
    return (folder / ".lock").exists() or any(any((folder / "cells").glob(name)) for name in made)


def read_record(folder: Path) -> Recipe:
    """The recipe that a study was last run with.

    Raises:
        UserError: if there is none, or it is not as it was written.
    """
    path = folder / RECIPE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    head, _, rest = content.partition(b"\n")
    known, digest = _HEAD.match(head), hashlib.sha256(rest).hexdigest()
    try:
        if known and known[1] != digest.encode():
            raise UserError(f"{path} is not as pezoo wrote it")
        return _load(path, head + digest.encode())
    except UserError as error:
        where = shlex.quote(str(folder))
        raise UserError(
            f"{error}. If it is damaged, give the recipe that it was made from: pezoo run RECIPE --out {where}. "
            f"If you changed it: pezoo run {shlex.quote(str(path))} --out {where}"
        ) from None


@functools.lru_cache(maxsize=2)
def _load(path: Path, content: bytes) -> Recipe:
    """Read a recipe once for each content that it has."""
    return load_recipe(path, connects=False)


def write_record(folder: Path, recipe: Recipe, plugins: Iterable[str]) -> None:
    """Write down what a study is run with.

    Args:
        folder: of the study.
        recipe: of the study.
        plugins: absolute paths.
    """
    content = recipe.to_dict() | {"plugins": _recorded(folder, plugins)}
    text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100).encode()
    head = f"# Written by pezoo {pezoo.__version__}; sha256 of the lines below: {hashlib.sha256(text).hexdigest()}\n"
    with replacing(folder / RECIPE) as file:
        file.write(head.encode() + text)


class _Dumper(yaml.SafeDumper):
    """Quotes texts such as 1e-3 as well, which OmegaConf reads as numbers, and PyYAML does not."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """A text, quoted if a number can be read from it."""
        with contextlib.suppress(ValueError):
            float(data.replace("_", ""))
            return self.represent_scalar("tag:yaml.org,2002:str", data, style="'")
        return super().represent_str(data)


_Dumper.add_representer(str, _Dumper.represent_str)


def _recorded(folder: Path, plugins: Iterable[str]) -> list[str]:
    """Plug-ins as a recipe names them: as seen from the folder, so that both can be moved together.

    What shares nothing with the folder but the root of the file system keeps its absolute path.
    """
    home = str(folder.resolve())
    shared = {path: os.path.commonpath([home, path]) != os.path.sep for path in plugins}
    return [os.path.relpath(path, home) if near else path for path, near in shared.items()]


def plugins_of(recipe: Recipe, folder: Path) -> list[Path]:
    """The plug-ins that a recipe names, as absolute paths.

    Args:
        recipe: the recipe.
        folder: where its file is.
    """
    return [Path(os.path.normpath(folder.resolve() / name)) for name in recipe.plugins]


def require_plugins(plugins: Iterable[Path], given: Iterable[str], what: str) -> None:
    """Refuse to go on without plug-ins that a recipe names: they are code, and only the user can say what is run.

    Args:
        plugins: those that are needed.
        given: those that the user named; a file of the same name elsewhere counts, since files are moved.
        what: needs them, for the message.

    Raises:
        NeedsPlugins: if any is missing.
    """
    given = [Path(path) for path in given]
    names = {path.name for path in given}
    missing = [path for path in plugins if path not in given and path.name not in names]
    if not missing:
        return
    lost = [path for path in missing if not os.path.isfile(path)]
    named = ", ".join(cut(path.name) for path in missing)
    gone = f"; not found: {', '.join(cut(str(path), 200) for path in lost)}" if lost else ""
    raise NeedsPlugins(
        f"{what} needs the plug-in{'s' * (len(missing) > 1)} {named}; code runs only if you name it{gone}",
        [f"PATH/{path.name}" if path in lost else str(path) for path in missing],
    )


def claim(folder: Path, recipe: Recipe, plugins: Iterable[str], replace: bool) -> tuple[str, bool]:
    """What a run of a recipe would change in a folder.

    Args:
        folder: of the study; it need not be there.
        recipe: of the run.
        plugins: of the run, as absolute paths.
        replace: whether another study in the folder may be replaced.

    Returns:
        One line that says what has changed, or nothing; and whether another study is replaced.

    Raises:
        UserError: if the folder holds another study, or somebody's own files under the names that a study uses.
    """
    path, before = folder / RECIPE, None
    if path.is_file():
        if not replace and not _is_study(folder) and not _HEAD.match(path.read_bytes()):
            raise UserError(f"{path} is not pezoo's and would be written over; choose another --out")
        with contextlib.suppress(UserError):
            before = read_record(folder)
    there = (before.study, before.size) if before else (_study_of_results(folder), recipe.size)
    if there[0] is None:
        if not _is_study(folder) and (foreign := [name for name in WRITTEN if (folder / name).exists()]):
            why = f"holds no study, but {', '.join(foreign)}, which a run would write over"
            raise UserError(f"{folder} {why}; choose another --out")
        return "", False
    if there != (recipe.study, recipe.size):
        old, new = _title(*there), _title(recipe.study, recipe.size)
        if not replace:
            raise UserError(
                f"{folder} holds the study {old}, and this is {new}; choose another --out, or type --replace to have "
                f"it replaced (its trained models stay)"
            )
        return f"replacing the study {old} in {folder} by {new}", True
    if before is None:
        return f"{path} was not whole, and is written anew" * path.is_file(), False
    found = list(changes(flat(_compared(before)), flat(_compared(recipe, _recorded(folder, plugins)))))
    more = f", and {len(found) - MOST} more" if len(found) > MOST else ""
    return f"changed since the last run: {', '.join(found[:MOST])}{more}" if found else "", False


def _title(study: str, size: str) -> str:
    return cut(study) if size == "cpu" else f"{cut(study)} (size={cut(size)})"


def _study_of_results(folder: Path) -> str | None:
    """The name of the study whose results are here."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        with (folder / RESULTS).open("rb") as file:
            name = json.loads(file.readline(1 << 20))["study"]
        return name if isinstance(name, str) else None
    return None


def _compared(recipe: Recipe, plugins: list[str] | None = None) -> dict[str, Any]:
    """What of a recipe can change."""
    content = recipe.to_dict() | ({} if plugins is None else {"plugins": plugins})
    return {key: value for key, value in content.items() if key not in ("study", "description", "size", "sizes")}


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted key."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        found |= flat(value, f"{key}.") if isinstance(value, Mapping) and value else {key: value}
    return found


def changes(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """Keys that differ, each with what was there and what is now."""
    for key in dict.fromkeys([*old, *new]):
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        if not (isinstance(before, list) and isinstance(after, list)):
            yield f"{cut(key)} {_text(before)} -> {_text(after)}"
            continue
        items = [f"+ {_text(item)}" for item in after if item not in before]
        items += [f"- {_text(item)}" for item in before if item not in after]
        more = f" and {len(items) - MOST} more" if len(items) > MOST else ""
        yield f"{cut(key)}: {', '.join(items[:MOST]) + more if items else 'another order'}"


def _text(value: Any) -> str:
    """A value as a recipe holds it."""
    if value and isinstance(value, str):
        return cut(value, 60)
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf)
    return cut(text.removesuffix("\n...\n").strip(), 60)
