"""What a study finds around it: no room, no rights, no memory, no home, another run, a folder that moves."""

import contextlib
import functools
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from studies import Case, Place, Skipped, expect, fault, processes, results

COMMAND = 'exec "$@"'
NO_POWERS = "setpriv --bounding-set=-dac_override,-dac_read_search"
"""Takes from root the right to write where its permissions do not let it."""


@contextlib.contextmanager
def disk(folder: Path, size: int) -> Iterator[Callable[[str], None]]:
    """A small disk in memory; yields a function that changes its options.

    Raises:
        Skipped: if disks cannot be mounted here.
    """
    folder.mkdir()

    def mount(options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise Skipped("there is no mount") from None
        if done.returncode:
            raise Skipped(f"mounting is not permitted: {done.stderr.strip()}")

    mount(f"size={size}")
    try:
        yield lambda options: mount(f"remount,{options}")
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


@fault("a full disk under the study", "exit code 1, naming a file; with room again the same results")
def full_disk(place: Place, short: bool) -> Iterator[Case]:
    """Of a size at which it is full somewhere in the middle."""
    whole = place.whole("everything")
    used = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    for i in range(1 if short else 8):
        yield functools.partial(_full_disk, place, used, 0.5 if short else (i + 0.5) / 8)


def _full_disk(place: Place, used: int, share: float, rng: random.Random) -> str:
    folder = place.fresh() / "disk"
    with disk(folder, max(4096, int(used * share))) as remount:
        out = folder / "out"
        done = place.run("everything", out)
        expect(processes(folder) == [], "processes were left behind")
        expect(done.code, f"exit code 0 on a disk with room for {share:.0%}")
        done.expect(1, 2)
        expect(str(folder) in done.errors, f"no file is named: {done.errors[-500:]}")
        remount("size=100m")
        place.heals("everything", out)
    shutil.rmtree(folder.parent)
    return f"{used / 1000:.0f} kB in all"


@fault("a limit of the size of files", "exit code 1, naming a file; without it the same results")
def file_limit(place: Place, short: bool) -> Iterator[Case]:
    """As `ulimit -f`, which needs no rights: what is larger cannot be written."""
    for blocks in () if short else (1, 16, 30, 50, 80):
        yield functools.partial(_file_limit, place, blocks)


def _file_limit(place: Place, blocks: int, rng: random.Random) -> None:
    out = place.fresh() / "out"
    done = place.run("everything", out, shell=f"ulimit -f {blocks}; {COMMAND}").expect(0, 1, 2)
    expect(done.code == 0 or str(place.scratch) in done.errors, f"no file is named: {done.errors[-500:]}")
    place.heals("everything", out)
    shutil.rmtree(out.parent)


@fault("a full disk under the cache", "exit code 2, naming the folder and PEZOO_CACHE; with room the same results")
def full_cache(place: Place, short: bool) -> Iterator[Case]:
    """Too small for the text."""
    for size in (8192,) if short else (4096, 8192, 16384, 24576):
        yield functools.partial(_full_cache, place, size)


def _full_cache(place: Place, size: int, rng: random.Random) -> None:
    folder = place.fresh() / "disk"
    with disk(folder, size) as remount:
        out, cache = folder.parent / "out", {"PEZOO_CACHE": str(folder / "cache")}
        done = place.run("small", out, environment=cache).expect(2)
        expect(str(folder) in done.errors and "PEZOO_CACHE" in done.errors, f"not named: {done.errors[-500:]}")
        expect(not out.exists(), "something was written")
        remount("size=100m")
        place.heals("small", out, environment=cache)
    shutil.rmtree(folder.parent)


@fault("no permission to write", "exit code 2, naming the folder; with permission the same results")
def no_permission(place: Place, short: bool) -> Iterator[Case]:
    """To the folder above the study, to the study, to the cache; and a disk that is read-only."""
    for what in ("above",) if short else ("above", "out", "cells", "cache"):
        yield functools.partial(_no_permission, place, what)
    if not short:
        yield functools.partial(_read_only, place)


def _no_permission(place: Place, what: str, rng: random.Random) -> None:
    folder = place.fresh()
    above, cache = folder / "above", folder / "cache"
    out = above / "out"
    for path in (above, cache):
        path.mkdir()
    if what in ("out", "cells"):
        shutil.copytree(place.whole("small"), out)
        for cell in list(out.glob("cells/*")):
            shutil.rmtree(cell)
    shut = {"above": above, "out": out, "cells": out / "cells", "cache": cache}[what]
    shell = COMMAND
    if os.geteuid() == 0:
        shell = f'exec {NO_POWERS} "$@"'
        if subprocess.run(["sh", "-c", f"{NO_POWERS} true"], capture_output=True, check=False).returncode:
            raise Skipped("root writes everywhere, and setpriv cannot keep it from that here")
    os.chmod(shut, 0o555)
    environment = {"PEZOO_CACHE": str(cache)}
    done = place.run("small", out, shell=shell, environment=environment).expect(*((1, 2) if what == "cells" else (2,)))
    named = shut if what != "cells" else out
    expect(str(named) in done.errors, f"the folder is not named: {done.errors[-500:]}")
    os.chmod(shut, 0o755)
    place.heals("small", out, shell=shell, environment=environment)
    shutil.rmtree(folder)


def _read_only(place: Place, rng: random.Random) -> None:
    folder = place.fresh() / "disk"
    with disk(folder, 10**8) as remount:
        out = folder / "out"
        remount("ro")
        done = place.run("small", out).expect(2)
        expect(str(folder) in done.errors, f"the folder is not named: {done.errors[-500:]}")
        remount("rw")
        place.heals("small", out)
    shutil.rmtree(folder.parent)


@fault("no home, no folder for temporary files", "the same results, or exit code 2 and what to set")
def no_home(place: Place, short: bool) -> Iterator[Case]:
    """HOME and TMPDIR unset, or missing."""
    missing = str(place.scratch / "missing")
    variables: list[dict[str, str | None]] = [{"HOME": None, "TMPDIR": missing}, {"HOME": missing}, {"TMPDIR": missing}]
    for changed in variables[:1] if short else variables:
        yield functools.partial(_no_home, place, changed)
    if not short:
        yield functools.partial(_no_home, place, {"HOME": "/proc/none", "PEZOO_CACHE": None})


def _no_home(place: Place, changed: dict[str, str | None], rng: random.Random) -> None:
    out = place.fresh() / "out"
    done = place.run("small", out, environment=changed)
    if "PEZOO_CACHE" in changed:
        done.expect(2)
        expect("PEZOO_CACHE" in done.errors, f"it does not say what to set: {done.errors[-500:]}")
        place.heals("small", out)
    else:
        done.expect(0)
        place.compare("small", out)
    shutil.rmtree(out.parent)


@fault("little memory", "no hang; out_of_memory or an exit code of its own; with memory the same results")
def little_memory(place: Place, short: bool) -> Iterator[Case]:
    """As `ulimit -v`, from far too little to start up to enough."""
    for megabytes in () if short else (300, 600, 900, 1200, 1800):
        yield functools.partial(_little_memory, place, megabytes)


def _little_memory(place: Place, megabytes: int, rng: random.Random) -> str:
    out = place.fresh() / "out"
    done = place.run("small", out, shell=f"ulimit -v {megabytes * 1000}; {COMMAND}")
    if done.code == 0:
        place.compare("small", out)
    place.heals("small", out)
    shutil.rmtree(out.parent)
    return f"enough: {megabytes} MB" if done.code == 0 else ""


@fault("a model that no memory holds", "its rows are out_of_memory, exit code 1; the others have their results")
def huge_model(place: Place, short: bool) -> Iterator[Case]:
    """In a part of the study."""
    if not short:
        yield functools.partial(_huge_model, place)


def _huge_model(place: Place, rng: random.Random) -> None:
    out = place.fresh() / "out"
    more = ["parts.huge.model.d_model=2000000", "parts.small.model.d_model=16"]
    place.run("small", out, *more).expect(1)
    found = {(one["part"], one["status"]) for one in results(out)}
    expect(found == {("huge", "out_of_memory"), ("small", "ok")}, f"{found}")
    place.run("small", out, more[0].replace("2000000", "32"), more[1]).expect(0)
    expect({one["status"] for one in results(out)} == {"ok"}, "they stay out of memory")
    shutil.rmtree(out.parent)


@fault("numbers that are not finite", "the rows are diverged, exit code 0; a second run does nothing")
def not_finite(place: Place, short: bool) -> Iterator[Case]:
    """A learning rate of 1e9."""
    if not short:
        yield functools.partial(_not_finite, place)


def _not_finite(place: Place, rng: random.Random) -> None:
    out, more = place.fresh() / "out", ["train.lr=1e9", "train.steps=30", "train.grad_clip=0"]
    place.run("small", out, *more).expect(0)
    found = results(out)
    expect({one["status"] for one in found} == {"diverged"}, f"{ {one['status'] for one in found} }")
    done = place.run("small", out, *more).expect(0)
    expect("[1/" not in done.errors and results(out) == found, "it is done again")
    shutil.rmtree(out.parent)


@fault("two runs at once", "one does the work, the other says so and ends; the same results")
def two_runs(place: Place, short: bool) -> Iterator[Case]:
    """In one folder; or in two, with one cache that is empty."""
    for i in range(1 if short else 8):
        yield functools.partial(_two_runs, place, i % 4 == 3)


def _two_runs(place: Place, two_folders: bool, rng: random.Random) -> None:
    place.whole("small")
    folder = place.fresh()
    outs = [folder / "out", folder / ("other" if two_folders else "out")]
    environment = {"PEZOO_CACHE": str(folder / "cache")} if two_folders else {}
    runs = [place.start("small", outs[0], environment=environment)]
    time.sleep(rng.choice([0, 0.3, 3]))
    runs.append(place.start("small", outs[1], environment=environment))
    codes = {run: run.process.wait(600) for run in runs}
    done = [run.finish() for run in runs]
    for one in done:
        one.expect(0, *([] if two_folders else [2]))
        expect(one.code == 0 or "another run" in one.errors, f"it does not say so: {one.errors[-300:]}")
    expect(0 in codes.values(), "neither did the work")
    for out in outs:
        place.heals("small", out)
    shutil.rmtree(folder)


@fault(
    "a folder that is moved",
    "a study that was stopped goes on in its new place; one that runs ends without a traceback",
)
def moved(place: Place, short: bool) -> Iterator[Case]:
    """While it does not run, and while it does."""
    for i in range(0 if short else 6):
        yield functools.partial(_moved, place, i % 2 == 1)


def _moved(place: Place, while_it_runs: bool, rng: random.Random) -> None:
    place.whole("everything")
    folder = place.fresh()
    out, new = folder / "out", folder / "new"
    run = place.start("everything", out)
    wanted = rng.randrange(1, 6)
    run.wait_for(lambda: len(list(out.glob("cells/*/done.json"))) >= wanted)
    if while_it_runs:
        os.rename(out, new)
        run.finish().expect(0, 1, 2)
    else:
        run.kill(signal.SIGKILL, "all")
        run.finish()
        os.rename(out, new)
    done = place.heals("everything", new)
    expect("alibi on task, seed 0" not in done.errors or wanted < 6, "all was done again")
    shutil.rmtree(folder)


@fault("an output that is closed or plain ASCII", "the same results, exit code 0; signs such as ± in plain characters")
def outputs(place: Place, short: bool) -> Iterator[Case]:
    """Standard output closed, its reader gone, the disk it goes to full, no UTF-8."""
    ascii = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    ways = [(COMMAND, ascii), ('exec "$@" >&-', {}), ('"$@" | true', {}), ('exec "$@" <&-', {})]
    for shell, environment in ways[:1] if short else ways:
        yield functools.partial(_output, place, shell, environment, (0,))
    if not short:
        yield functools.partial(_output, place, 'exec "$@" > /dev/full', {}, (0, 1))
        yield functools.partial(_output, place, 'exec "$@" 2>&-', {}, (0,))


def _output(place: Place, shell: str, environment: dict[str, str], codes: tuple[int, ...], rng: random.Random) -> None:
    out = place.fresh() / "out"
    done = place.run("small", out, shell=shell, environment=environment).expect(*codes)
    expect(not environment or (done.output + done.errors).isascii(), "there are other signs")
    if done.code:
        place.heals("small", out)
    place.compare("small", out)
    shutil.rmtree(out.parent)
