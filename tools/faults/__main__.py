"""Breaks studies on purpose, and says whether the outcome was as it should be.

Every fault happens to a real study, run by `python -m pezoo run` in processes of its own; then it is run once more, and
must end like one that nothing happened to: the same results, weights and files.
"""

import argparse
import os
import platform
import random
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import damage  # noqa: F401
import kills  # noqa: F401
import plugins  # noqa: F401
import saving  # noqa: F401
import surroundings  # noqa: F401
import typed_wrongly  # noqa: F401
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from studies import FAULTS, LAUNCHERS, MAY_DIFFER, Fault, Place, Skipped, Wrong

import pezoo

EXAMPLES = """
examples:
  python tools/faults                               all of it: about an hour on two cores
  python tools/faults --short                       a few of each: two minutes
  python tools/faults --only SIGKILL --seed 1       the faults of this name, at other moments
  python tools/faults --launcher ray                kills and damage, where cells are tasks of Ray
  python tools/faults --save docs/faults.md         write the table down
"""


PAGE = """# Faults

What was done to studies, and whether they ended as they should. Each is a real study, run by `pezoo run` in processes
of its own. After the fault it is run once more, and must end like one that nothing happened to: exit code 0, the same
lines of `results.jsonl`, weights that are the same bit by bit, the same files, no process and no unfinished file left.
Of a line of the results, {names} may differ.

| fault | times | as it should | what should happen, and what was measured |
|---|---:|---:|---|
{lines}

With the launchers `ray` and `slurm` the faults happen where cells are tasks of a Ray that is started for the run, and
jobs of submitit's local executor; the study that nothing happened to is run by `local`.

Made by `python tools/faults --seed {seed} --save docs/faults.md` with {versions},
on {where}. Most runs are forked from a process that has imported everything, since there are
many; some of the kills, and whatever changes their surroundings, are programs of their own (`--real`: all). Moments and
bits are drawn by the seed. `python tools/faults --only NAME` repeats one fault, `--launcher NAME` those of a
launcher, and `--save` renews their rows here; the rows are from several such runs. A short form of the worst is part of
`make ci`.
"""


@dataclass
class Row:
    """What came of a fault."""

    fault: Fault
    launcher: str = "local"
    times: int = 0
    wrong: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    stopped: bool = False
    """Whether Ctrl-C came before its end."""

    @property
    def name(self) -> str:
        """The fault's, with the launcher if it is another than local."""
        return _name(self.fault.name, self.launcher)

    @property
    def right(self) -> int:
        """How often the outcome was as it should be."""
        return self.times - len(self.wrong)

    def said(self) -> str:
        """What should happen, why it was skipped, what was measured."""
        skipped = [f"skipped {count}: {why}" for why, count in self.skipped.items()]
        notes = [max(self.notes)] if self.notes else []
        return "; ".join([self.fault.outcome, *notes, *skipped])


def _name(fault: str, launcher: str) -> str:
    return fault if launcher == "local" else f"{fault}, {launcher}"


def run(fault: Fault, place: Place, short: bool, seed: int, jobs: int, console: Console) -> Row:
    """Make a fault as often as it wants; each time has a generator of its own."""
    row, began = Row(fault, place.launcher), time.monotonic()

    def one(numbered: tuple[int, object]) -> None:
        number, case = numbered
        try:
            note = case(random.Random(f"{fault.name} {seed} {number}"))
        except Skipped as why:
            row.skipped[str(why)] += 1
            return
        except Wrong as why:
            row.wrong.append(f"{row.name}, number {number}: {why}")
            console.print(f"[red]WRONG[/red] {escape(row.wrong[-1])}", soft_wrap=True)
        else:
            if note:
                row.notes.append(note)
        row.times += 1
        if row.times % 10 == 0:
            console.print(escape(f"{row.name}: {row.times} so far"), soft_wrap=True)

    with ThreadPoolExecutor(jobs) as pool:
        try:
            list(pool.map(one, enumerate(fault.cases(place, short))))
        except KeyboardInterrupt:
            row.stopped = True
            pool.shutdown(cancel_futures=True)
    row.seconds = time.monotonic() - began
    return row


def table(rows: list[Row]) -> Table:
    """The table for a terminal."""
    shown = Table("fault", "times", "as it should", "what should happen", title_justify="left")
    for row in rows:
        colour = "red" if row.wrong else "green" if row.times else "yellow"
        counts = f"[{colour}]{row.right}[/{colour}]"
        shown.add_row(escape(row.name), str(row.times), counts, escape(row.said()))
    return shown


def markdown(rows: list[Row], seed: int, earlier: str = "") -> str:
    """A page of the table and how it was made; of faults that were not made now it keeps the rows of an earlier one."""
    lines = {line[2:].split(" | ")[0]: line for line in earlier.splitlines() if line.startswith("| ")}
    for row in rows:
        said = row.said().replace("|", "/")
        lines[row.name] = f"| {row.name} | {row.times} | {row.right} | {said} |"
    names = [_name(name, launcher) for launcher in LAUNCHERS for name in FAULTS]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return PAGE.format(
        lines="\n".join(lines[name] for name in names if name in lines),
        names=", ".join(f"`{name}`" for name in MAY_DIFFER),
        seed=seed,
        versions=f"pezoo {pezoo.__version__}, Python {platform.python_version()}, PyTorch {version('torch')}",
        where=f"{platform.system()}, {os.cpu_count()} cores ({platform.machine()}), {memory:.0f} GB",
    )


def main(argv: list[str] | None = None) -> int:
    """Make the faults that were asked for; return 1 if an outcome was not as it should be."""
    parser = argparse.ArgumentParser(
        prog="python tools/faults",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--short", action="store_true", help="a few of each, in two minutes")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="faults whose name holds this")
    parser.add_argument("--seed", type=int, default=0, help="draws moments and bits; default: 0")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="faults at a time; default: 1")
    parser.add_argument("--real", action="store_true", help="fork no run from another: several times as slow")
    parser.add_argument("--launcher", choices=LAUNCHERS, default="local", help="where cells run; default: local")
    parser.add_argument("--save", type=Path, metavar="FILE.md", help="write the table down, or renew its rows")
    parser.add_argument("--list", action="store_true", help="name the faults, and do nothing")
    args = parser.parse_args(argv)
    chosen = [one for one in FAULTS.values() if not args.only or any(text in one.name for text in args.only)]
    chosen = [one for one in chosen if args.launcher == "local" or one.everywhere]
    if not chosen:
        parser.error(f"no fault is called so; there are: {'; '.join(FAULTS)}")
    console = Console(highlight=False)
    if args.list:
        for one in chosen:
            console.print(f"{escape(one.name)}: {escape(one.outcome)}", soft_wrap=True)
        return 0
    rows = []
    with tempfile.TemporaryDirectory(prefix="pezoo-faults-") as scratch:
        place = Place(Path(scratch), args.real, args.launcher)
        for one in chosen:
            rows.append(run(one, place, args.short, args.seed, args.jobs, console))
            told = f"{rows[-1].right} of {rows[-1].times} as it should, {rows[-1].seconds:.0f} s"
            console.print(escape(f"{rows[-1].name}: {told}"), soft_wrap=True)
            made = [row for row in rows if row.times or row.skipped]
            if args.save is not None:  # each row when it is known, since all of it takes long
                earlier = args.save.read_text() if args.save.exists() else ""
                args.save.write_text(markdown([row for row in rows[-1:] if row in made], args.seed, earlier))
            if rows[-1].stopped:
                break
    console.print(table(made))
    return int(any(row.wrong or row.stopped for row in rows))


if __name__ == "__main__":
    sys.exit(main())
