"""What people type, changed at random."""

import functools
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from studies import HANG_SECONDS, ROOT, Case, Place, Wrong, expect, fault

TOGETHER = 170
"""Inputs that one process reads."""
KINDS = ("recipe", "override", "label", "file", "task", "scheme")


@fault("a recipe, override, scheme, task or label mutated", "it is read or refused in a message; no traceback, no hang")
def mutated(place: Place, short: bool) -> Iterator[Case]:
    """Hundreds of each kind, of which each case reads some."""
    for kind in KINDS:
        for i in range(0 if short else 5):  # the default test suite has some of each
            yield functools.partial(_mutated, kind, TOGETHER, i)


def _mutated(kind: str, count: int, part: int, rng: random.Random) -> str:
    first = 10_000 + part * count
    command = [sys.executable, str(Path(__file__).with_name("mutants.py")), kind, str(first), str(first + count - 1)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=HANG_SECONDS, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        raise Wrong(f"{kind} {first} to {first + count - 1}: no end") from None
    expect(done.returncode == 0, f"{' '.join(done.stderr.splitlines()[-1:])}")
    found = json.loads(done.stdout)
    expect(sum(found.values()) == count, f"{found}")
    return f"{count} inputs each time"


@fault("a mutated override at the command line", "exit code 0 or 2, a message of at most a screen; nothing is written")
def command_line(place: Place, short: bool) -> Iterator[Case]:
    """In a process of its own, as people type it."""
    for _ in range(1 if short else 10):
        yield functools.partial(_command_line, place)


def _command_line(place: Place, rng: random.Random) -> None:
    from mutants import PIECES, mutate_text

    out = place.fresh() / "out"
    key = rng.choice(
        ["schemes", "tasks", "seeds", "study", "data.path", "train.lrs", "parts", "schemes.0", "test.lengths"]
    )
    given = f"{key}={mutate_text(rng, rng.choice(['rope', '[rope]', '{a: 1}', '3', *PIECES]))}".replace("\0", "")
    try:
        os.fsencode(given)
    except UnicodeEncodeError:
        given = "schemes=[\x1b]"
    done = place.run("small", out, "--dry-run", given).expect(0, 2)
    expect(len(done.errors) < 1200, f"a message of {len(done.errors)} characters")
    expect("\x1b" not in done.output + done.errors, "an escape sequence goes to the terminal")
    expect(not out.exists(), "something was written")
