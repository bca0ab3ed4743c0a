"""Plug-ins that fail, in every way that code can."""

import functools
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from studies import Case, Place, Wrong, expect, fault, results

PLUGIN = Path(__file__).parent / "failing.py"
PLUGIN_REASONS = {
    "raises": ("failed", "ValueError: a bug"),
    "recurses": ("failed", "RecursionError: maximum recursion depth exceeded"),
    "mistaken": ("failed", "UserError: my mistake"),
    "interrupts": ("failed", "KeyboardInterrupt"),
    "leaves": ("failed", "SystemExit: 3"),
    "gone": ("failed", "its process ended with exit code 7"),
    "aborts": ("failed", "its process was killed by signal 6 (SIGABRT)"),
    "crashes": ("failed", "its process was killed by signal 11 (SIGSEGV)"),
    "hungry": ("out_of_memory", "no room"),
    "hangs": ("failed", "it took longer than cell_minutes=0.5"),
    "prints": ("ok", ""),
}


@fault("plug-ins that raise, exit, crash, hang, print", "their cells say why, exit code 1; mended, they are run again")
def plugins(place: Place, short: bool) -> Iterator[Case]:
    """All in one study."""
    yield functools.partial(_plugins, place, ["raises", "aborts"] if short else list(PLUGIN_REASONS), not short)


def _plugins(place: Place, names: list[str], compared: bool, rng: random.Random) -> str:
    folder = place.fresh()
    out, plugin = folder / "out", folder / "plugin.py"
    shutil.copy(PLUGIN, plugin)
    (folder / "bad").touch()
    more = [f"schemes=[{', '.join(names)}, nope]", "cell_minutes=0.5", "--plugin", str(plugin)]
    done = place.run("small", out, *more, real=True).expect(1)
    found = {one["label"]: (one["status"], one["reason"]) for one in results(out) if one["test_length"] > 16}
    for name in names:
        status, reason = PLUGIN_REASONS[name]
        expect(found[name][0] == status and reason in found[name][1], f"{name}: {found[name]}")
        expect(status == "ok" or f"{name}, seed 0: {status}" in done.errors, f"no line tells of {name}")
    expect(found["nope"][0] == "ok", f"the others did not run: {found['nope']}")
    (folder / "bad").unlink()
    done = place.run("small", out, *more, real=True).expect(0)
    expect({one["status"] for one in results(out)} == {"ok"}, "they were not tried again")
    expect("train " not in done.errors, "what was trained was trained again")
    if compared:
        place.run("small", folder / "fresh", *more, real=True).expect(0)
        expect(results(out) == results(folder / "fresh"), "other results than without a fault")
    shutil.rmtree(folder)
    return f"{len(names)} kinds"


GOOD = """
from pezoo import Encoding, register


@register("mine", title="Nothing")
class Mine(Encoding):
    pass
"""


@fault("a plug-in that fails where it is loaded", "exit code 1 or 2, naming it; mended, the same results")
def bad_imports(place: Place, short: bool) -> Iterator[Case]:
    """It raises, exits, kills its process or prints; everywhere, or in the workers alone."""
    actions = ["raise ValueError('a bug')", "raise SystemExit(5)", "import os; os.kill(os.getpid(), 9)", "def ("]
    actions = [f"{line}" for line in actions] + [f"import sys\nif sys.argv[0] == '-c':\n    {a}" for a in actions[:3]]
    for action in () if short else actions:
        yield functools.partial(_bad_import, place, action)


def _bad_import(place: Place, action: str, rng: random.Random) -> None:
    folder = place.fresh()
    out, plugin = folder / "out", folder / "plugin.py"
    plugin.write_text(f"{action}\n{GOOD}")
    done = place.run("small", out, "--plugin", str(plugin), real=True)
    if "os.kill" not in action or "argv" in action:
        expect("Traceback" not in done.errors, f"a traceback: {done.errors[-500:]}")
        expect(done.code in (1, 2, 5), f"exit code {done.code}: {done.errors[-500:]}")
        expect(str(folder) in done.errors or done.code == 5, f"nothing is named: {done.errors[-500:]}")
    elif done.code == 0:
        raise Wrong("exit code 0")
    plugin.write_text(GOOD)
    place.heals("small", out, "--plugin", str(plugin), real=True)
    shutil.rmtree(folder)
