"""`pezoo status`."""

import shlex
from typing import Any

from pezoo.cli.shared import add_json, make_console, make_parser, print_json, say, shown

STATES = {
    "running": "at work",
    "ended": "ended",
    "stopped": "stopped",
    "killed": "killed: its process is gone",
    "silent": "silent for more than ten minutes: it may have ended",
}


def status(argv: list[str]) -> int:
    """Where a study stands: what is queued, running, done and failed."""
    parser = make_parser(
        "status",
        status,
        "pezoo status runs/quickstart",
        "watch pezoo status runs/quickstart",
        "pezoo status /shared/runs/survey --json",
        note="It reads a file that the run keeps up to date, from any machine that sees the folder, and disturbs\n"
        "nothing.\n\n",
    )
    parser.add_argument("folder", metavar="DIR", help="folder of a study")
    add_json(parser)
    args = parser.parse_args(argv)

    from pezoo.study.status import read_status

    facts = read_status(args.folder)
    if args.json:
        print_json(facts)
    else:
        _show(args.folder, facts)
    return 0


def _show(folder: str, facts: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from pezoo.study.estimate import duration

    def line(text: str) -> None:
        say(escape(shown(text)))

    state, n_running, queued = facts["state"], len(facts["running"]), facts["queued"]
    line(f"{facts['study']} in {folder}: {STATES[state]}")
    line(f"process {facts['process']} on {facts['host']}, workers: {facts['workers']}, told {facts['written']}")
    total, done = sum(facts["cells"].values()), sum(facts["done"].values())
    kinds = ", ".join(f"{facts['done'].get(kind, 0)} of {n} to {kind}" for kind, n in facts["cells"].items())
    line(f"done {done} of {total} cells ({kinds})")
    left = f"; {duration(facts['seconds_left'])} left" if state == "running" and n_running + queued else ""
    line(f"running {n_running}, queued {queued}, failed {len(facts['failed'])}{left}")
    if facts["running"]:
        table = Table("running", "", "at", "loss", box=None, title_justify="left")
        for key, at in facts["running"].items():
            share = f"{at['done']} of {at['total']}" if "done" in at else "begins"
            loss = f"{at['loss']:.3f}" if at.get("loss") is not None else ""
            table.add_row(key, escape(shown(at["title"])), share, loss)
        make_console().print(table)
    for failed in facts["failed"].values():
        line(f"{failed['status']}: {failed['title']}: {failed['reason']}")
    if state in ("stopped", "killed") or (state == "ended" and facts["failed"]):
        line(f"to go on: pezoo run {shlex.quote(folder)}")
