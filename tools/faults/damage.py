"""Files that are emptied, halved, deleted or have a bit flipped, one at a time."""

import functools
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from studies import Case, Place, expect, fault

WAYS = ("emptied", "halved", "deleted", "a bit flipped")


def damaged(path: Path, way: str, rng: random.Random) -> bool:
    """Damage a file; return whether that changes it."""
    content = bytearray(path.read_bytes())
    if way == "deleted":
        path.unlink()
        return True
    if not content:
        return False
    if way == "a bit flipped":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    else:
        del content[0 if way == "emptied" else len(content) // 2 :]
    with path.open("r+b") as file:
        file.write(content)
        file.truncate()
    return True


@fault(
    "a file of a finished study damaged",
    "the next run makes it anew; the same results, exit code 0",
    everywhere=True,
)
def damaged_study(place: Place, short: bool) -> Iterator[Case]:
    """Each file, in each way."""
    whole = place.whole("everything")
    paths = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    paths = [path for path in paths if path.parts[0] != "logs"]  # what workers had to say is of no more use
    if short or place.launcher != "local":  # one of each kind
        cells = {path.name: path for path in paths if path.parts[0] == "cells"}
        picked = [*cells.values(), Path("results.jsonl"), Path("recipe.yaml")]
        for i, path in enumerate(picked):
            yield functools.partial(_damaged_study, place, path, WAYS[i % len(WAYS)])
        return
    for path in paths:
        for way in WAYS:
            yield functools.partial(_damaged_study, place, path, way)


def _damaged_study(place: Place, path: Path, way: str, rng: random.Random) -> None:
    out = place.copy("everything")
    if damaged(out / path, way, rng):
        curves = path.parts[:2] == ("tensorboard", "train")  # what a training wrote is not written again
        done = place.heals("everything", out, tree=not curves)
        if path.parts[0] == "cells":
            expect("damaged, and made anew: " in done.errors, f"{path} {way}: no line says so")
    shutil.rmtree(out.parent)


@fault("a file of the corpus cache damaged", "the text is read anew; the same results, exit code 0", everywhere=True)
def damaged_cache(place: Place, short: bool) -> Iterator[Case]:
    """Each file, in each way, with a test that reads it again."""
    place.whole("small")
    paths = sorted(path.relative_to(place.cache) for path in place.cache.rglob("*") if path.is_file())
    for i, path in enumerate(paths):
        for j, way in enumerate(WAYS):
            if (i == j and i < 2) or not (short or place.launcher != "local"):
                yield functools.partial(_damaged_cache, place, path, way)


def _damaged_cache(place: Place, path: Path, way: str, rng: random.Random) -> None:
    out = place.copy("small")
    cache = out.parent / "cache"
    shutil.copytree(place.cache, cache)
    for cell in out.glob("cells/*"):
        if not (cell / "model.pt").exists():
            shutil.rmtree(cell)  # the evaluation
    before = sorted(os.listdir(cache / "corpora"))
    if damaged(cache / path, way, rng):
        place.heals("small", out, environment={"PEZOO_CACHE": str(cache)})
        expect(sorted(os.listdir(cache / "corpora")) == before, "the cache holds something else")
    shutil.rmtree(out.parent)
