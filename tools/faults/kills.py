"""Processes that are killed or stopped, at any moment."""

import contextlib
import functools
import random
import re
import shutil
import signal
import time
from collections.abc import Iterator

from studies import SAVE_SECONDS, Case, Place, Running, Skipped, Wrong, expect, fault

TRAININGS = ("dropout", "random positions", "uniform lengths", "tuning")
LATE_SECONDS = 5
"""That a saving may be late on a busy machine."""


@fault("SIGKILL at any moment of a study", "the next run goes on; the same results and weights", everywhere=True)
def killed(place: Place, short: bool) -> Iterator[Case]:
    """Of the study's own process, of a worker, or of all at once."""
    for i in range(place.times(short, 3, 54)):
        yield functools.partial(_struck, place, signal.SIGKILL, ("all", "study", "worker")[i % 3], not i % 9)


@fault("SIGTERM at any moment of a study", "it says so and ends; the next run goes on", everywhere=True)
def terminated(place: Place, short: bool) -> Iterator[Case]:
    """Of the study's own process, or of a worker."""
    for i in range(place.times(short, 1, 6)):
        yield functools.partial(_struck, place, signal.SIGTERM, ("study", "worker")[i % 2], i % 6 == 5)


@fault("Ctrl-C at any moment of a study", "it says so and ends; the next run goes on", everywhere=True)
def interrupted(place: Place, short: bool) -> Iterator[Case]:
    """As a terminal does it: workers have sessions of their own."""
    for i in range(place.times(short, 1, 6)):
        yield functools.partial(_struck, place, signal.SIGINT, "study", i % 6 == 5)


def _struck(place: Place, sign: int, whom: str, real: bool, rng: random.Random) -> None:
    """Run a study that is struck once, or twice, and then run to its end."""
    _needs_proc()
    name, out = "everything" if place.launcher == "local" else TRAININGS[0], place.fresh() / "out"
    seconds = place.usual(name) + 10 * real  # to import
    for _ in range(rng.choice([1, 1, 2])):
        run = place.start(name, out, real=real)
        if not _waited(run, rng.random() * seconds, whom):
            run.finish().expect(0)
            break  # it was faster than the moment that was drawn; nothing is left to strike
        begun = (out / "recipe.yaml").exists()
        run.kill(sign, whom)
        done = run.finish(jobs_stay=place.launcher == "slurm" and whom == "study" and sign == signal.SIGKILL)
        if whom == "worker":  # in a cell, or while it still began
            done.expect(0, *([] if _goes_on(place, sign) else [1]))
        elif sign == signal.SIGKILL:
            expect(done.code in (0, -sign), f"exit code {done.code}")
        elif begun:
            done.expect(0, 128 + sign)
        else:  # Python itself was not yet up
            expect(done.code in (0, 1, 128 + sign, -sign), f"exit code {done.code}")
    place.heals(name, out)
    shutil.rmtree(out.parent)


def _goes_on(place: Place, sign: int) -> bool:
    """Whether a worker that is struck has its cell begun again in the same run."""
    return place.launcher == "ray" or (place.launcher == "slurm" and sign == signal.SIGTERM)


def _waited(run: Running, seconds: float, whom: str) -> bool:
    """Wait some seconds, and for somebody to strike; return whether there is."""
    until = time.monotonic() + seconds
    return run.wait_for(lambda: time.monotonic() >= until and (whom != "worker" or run.workers())) and not run.ended


@fault(
    "SIGKILL in a training that saved its state three times",
    "it repeats one interval at most; the same weights",
    everywhere=True,
)
def killed_in_training(place: Place, short: bool) -> Iterator[Case]:
    """With dropout, random positions, lengths that are drawn, and in a tuning."""
    for i in range(place.times(short, 1, 32)):
        whom = ("all", "study" if place.launcher != "slurm" else "worker", "worker")[i % 3]  # jobs go on without it
        yield functools.partial(_stopped_in_training, place, _training(place, i), signal.SIGKILL, whom)


@fault("SIGTERM or Ctrl-C in a training", "it saves its state and repeats nothing; the same weights", everywhere=True)
def stopped_in_training(place: Place, short: bool) -> Iterator[Case]:
    """Of the study's own process, or of a worker."""
    signals = [(signal.SIGTERM, "study"), (signal.SIGINT, "study"), (signal.SIGTERM, "worker")]
    for i in range(place.times(short, 1, 6)):
        yield functools.partial(_stopped_in_training, place, _training(place, i), *signals[i % 3])


@fault("a saved state damaged", "the training starts anew, and a line says so; the same weights", everywhere=True)
def damaged_state(place: Place, short: bool) -> Iterator[Case]:
    """A state that a kill left is emptied, halved, or has a bit flipped."""
    ways = ("a bit flipped", "emptied", "halved")
    for way in ways[: place.times(short, 0 if place.launcher == "local" else 1, 3)]:
        yield functools.partial(_stopped_in_training, place, "dropout", signal.SIGKILL, "all", damage=way)


def _training(place: Place, i: int) -> str:
    """The recipe of a case; with another launcher, which takes longer, always the same."""
    return TRAININGS[i % 4 if place.launcher == "local" else 0]


def _stopped_in_training(
    place: Place, name: str, sign: int, whom: str, rng: random.Random, damage: str | None = None
) -> str:
    """Strike in a training that has saved its state three times or more; return what was measured."""
    import torch
    from damage import damaged

    place.whole(name)
    _needs_proc()
    for _ in range(5):
        out, seen = place.fresh() / "out", set[tuple[str, int]]()
        run, wanted = place.start(name, out), 3 + rng.randrange(3)

        def saved(out=out, seen=seen, wanted=wanted) -> bool:
            for state in out.glob("cells/*.state.pt"):
                with contextlib.suppress(FileNotFoundError):
                    seen.add((state.name, state.stat().st_mtime_ns))
            return len(seen) >= wanted

        if run.wait_for(saved) and _waited(run, rng.random() * 2 * SAVE_SECONDS, whom):
            run.kill(sign, whom)
            struck = time.time()
            done = run.finish(jobs_stay=place.launcher == "slurm" and whom == "study" and sign == signal.SIGKILL)
            if whom == "worker" and _goes_on(place, sign):
                steps = re.findall(r"goes on at step ([\d,]+)", done.expect(0).errors)
                expect(any(step != "0" for step in steps), f"it does not go on: {done.errors[-300:]}")
                place.compare(name, out)
                shutil.rmtree(out.parent)
                return ""
            states = list(out.glob("cells/*.state.pt"))
            if states:
                break
        else:
            run.finish()
    else:
        raise Wrong("five trainings ended before they could be struck")
    [state] = states
    repeated = struck - state.stat().st_mtime
    step = torch.load(state, weights_only=True)["counted"]["steps"]
    if sign == signal.SIGKILL:
        expect(repeated < SAVE_SECONDS + LATE_SECONDS, f"{repeated:.1f} s of training are repeated")
    else:
        done.expect(1 if whom == "worker" else 128 + sign)
        expect(repeated <= 0, "the state was not saved")
    if damage is not None:
        damaged(state, damage, rng)
    done = place.heals(name, out)
    if damage is not None:
        expect("starts anew: its saved state is damaged" in done.errors, f"it does not say so: {done.errors[-300:]}")
        return ""
    expect(f"goes on at step {step:,}" in done.errors, f"it does not go on at step {step:,}: {done.errors[-300:]}")
    expect(step > 0, "it goes on at step 0")
    shutil.rmtree(out.parent)
    return f"{max(0.0, repeated):.2f} s repeated"


def _needs_proc() -> None:
    import os

    if not os.path.isdir("/proc/self/task"):
        raise Skipped("workers are found by /proc, which this system does not have")
