"""What `docs/speed.md` says of speed and memory: blocks made from what `pezoo bench --save` wrote.

The files lie in `experiments/results/bench`. A row of goals that two files hold is taken from the later one by name.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pezoo.attention import BACKENDS
from pezoo.cli.bench.show import count, number, said, spread, wanted

BENCH = Path(__file__).resolve().parent.parent / "experiments" / "results" / "bench"


def measured(section: str) -> list[tuple[dict[str, Any], Any]]:
    """Facts and figures of every file that holds a section."""
    files = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(BENCH.glob("*.json"))]
    return [(file["facts"], file[section]) for file in files if section in file]


def forward(scheme: str) -> tuple[int, float] | None:
    """Tokens of a forward, and how many times as long as `nope` it takes, the fastest way; None if not measured."""
    for facts, rows in measured("encodings")[-1:]:
        for row in rows:
            if row["scheme"] == scheme:
                return facts["forward"], _fastest(row)["median"]
    return None


def schemes() -> str:
    """What each encoding takes beside `nope`, the cheapest in training first."""
    facts, rows = measured("encodings")[-1]
    cells = []
    for row in sorted(rows, key=lambda row: row["train_step"]["median"]):
        name, best = row["scheme"], spread(_fastest(row))
        cells.append((f"[`{name}`](zoo.md#{name})", spread(row["train_step"]), best, number(row["mib"], 0)))
    told = (
        f"{machine(facts)}. Training step: forward and backward of 32 x 64 tokens. "
        f"Forward: {facts['forward']:,} tokens, by the fastest way that the scheme takes. "
        f"Memory: what a forward of {facts['memory']:,} tokens in 2 layers takes. "
        "Ratios over `nope`: the median, in brackets the least and the most."
    )
    return _table(("encoding", "training step", "forward", "memory, MiB"), cells, told)


def _fastest(row: dict[str, Any]) -> dict[str, float]:
    """A forward by the fastest way that a scheme takes."""
    return min((row[backend] for backend in BACKENDS if row[backend]), key=lambda forward: forward["median"])


def goals() -> str:
    """Each goal beside its figure."""
    found = {row["row"]: (machine(facts), row) for facts, rows in measured("goals") for row in rows}
    machines = list(dict.fromkeys(name for name, _ in found.values()))
    cells = []
    for name, row in found.values():
        on = "abcd"[machines.index(name)]
        cells.append((f"**{row['what']}**", "", "", said(row["holds"]), on))
        for figure in row["figures"]:
            cells.append((figure["figure"], spread(figure), wanted(row, figure), said(figure["holds"]), ""))
    head = f"{count(row for _, row in found.values())} A goal holds where each of its figures does.\n\n"
    told = "; ".join(f"{letter}: {name}" for letter, name in zip("abcd", machines, strict=False))
    return head + _table(("what", "measured", "should be", "holds", "on"), cells, told + ".")


def options() -> str:
    """What a training step takes under each option, and what becomes of the loss."""
    facts, rows = measured("options")[-1]
    cells = []
    for row in rows:
        loss = row.get("loss", {})
        shown = "{mean:+.4f} [{low:+.4f} to {high:+.4f}]".format(**loss) if "low" in loss else ""
        cells.append((f"`{row['scheme']}`", row["option"], spread(row["step"]), shown))
    seeds = len(rows[0]["losses"])
    told = f"{machine(facts)}. Both beside float32. Loss: after {rows[0]['steps']} steps, {seeds} seeds, 95 % interval."
    return _table(("scheme", "option", "training step", "validation loss, nats"), cells, told)


def machine(facts: dict[str, Any]) -> str:
    """Where a file was measured."""
    return f"{facts['hardware']}, {facts['threads']} thread, torch {facts['torch']}, pezoo {facts['pezoo']}"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]], told: str) -> str:
    """A Markdown table, with what is said of it below."""
    lines = [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows), "", f"*{told}*"]) + "\n"
