"""Prints what `pezoo bench` measured, as tables."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pezoo.attention import BACKENDS
from pezoo.cli.bench.measuring import Spread


def number(value: float | None, digits: int = 2) -> str:
    """A number, or a dash."""
    return "-" if value is None else f"{value:.{digits}f}"


def spread(found: dict[str, Any] | None) -> str:
    """The median with its range, or a dash."""
    if found is None or found["median"] is None:
        return "-"
    return str(Spread(found["median"], found["least"], found["most"]))


def show(found: dict[str, Any], console: Console) -> None:
    """Print the measurements as tables."""
    facts = found["facts"]
    console.print(f"{facts['hardware']}, {facts['device']}, {facts['threads']} thread, torch {facts['torch']}")
    if "goals" in found:
        show_goals(found["goals"], console)
    show_overheads(found, console)
    notes = []
    if "encodings" in found:
        table = Table("encoding", "train step", *BACKENDS, "MiB", title="Encodings: time over that of nope, and memory")
        for row in found["encodings"]:
            times = (number(row[b] and row[b]["median"]) for b in ("train_step", *BACKENDS))
            table.add_row(row["scheme"], *times, number(row["mib"], 0))
        console.print(table)
        notes.append(
            f"train step: 32 x 64 tokens, forward and backward. {', '.join(BACKENDS)}: forward of {facts['forward']} "
            "tokens over nope's sdpa; - where the back-end refuses."
        )
    if found.get("flex_attention"):
        table = Table("scheme", "train step", "forward", title="FlexAttention: time over that of backend=auto")
        for row in found["flex_attention"]:
            table.add_row(row["scheme"], spread(row["train_step"]), spread(row["forward"]))
        console.print(table)
        notes.append(f"FlexAttention: forward and backward of 8 x {facts['forward'] // 2} tokens; forward of "
                     f"{facts['memory']}.")  # fmt: skip
    if "extensions" in found:
        table = Table("scheme", "forward", "MiB", title="Extensions: time over that of the encoding alone, and memory")
        for row in found["extensions"]:
            table.add_row(row["scheme"], number(row["forward"]["median"]), number(row["mib"], 0))
        console.print(table)
    if "encodings" in found or "extensions" in found:
        notes.append(f"MiB: growth in a forward of {facts['memory']} tokens, 2 layers; - where undefined.")
    if "long_memory" in found:
        long = ", ".join(f"{row['scheme']} {number(row['mib'], 0)} MiB" for row in found["long_memory"])
        notes.append(f"Growth at {facts['long']} tokens: {long}.")
    if "draws" in found:
        drawn = ", ".join(f"{row['scheme']} {row['ms']:.1f} ms" for row in found["draws"])
        notes.append(f"Positions drawn for 256 rows of 512 tokens, with draw=layer in each of 12 layers: {drawn}.")
    show_options(found.get("options", []), console)
    show_seeds(found.get("seeds", []), console)
    if notes:
        console.print(" ".join(notes))


def show_goals(rows: list[dict[str, Any]], console: Console) -> None:
    """Each figure beside its goal, and which rows hold."""
    table = Table("what", "measured", "should be", "holds", title="Goals")
    for row in rows:
        table.add_section()
        table.add_row(escape(f"{row['row']}: {row['what']}"), "", "", said(row["holds"]), style="bold")
        for figure in row["figures"]:
            measured = spread(figure)
            if figure["median"] is None and row["missing"]:
                measured = f"needs {row['missing']}"
            table.add_row("  " + escape(figure["figure"]), measured, wanted(row, figure), said(figure["holds"]))
    console.print(table)
    if counted := count(rows):
        console.print(counted)


def wanted(row: dict[str, Any], figure: dict[str, Any]) -> str:
    """The goal of a figure in words, or nothing."""
    least = "at least " if row["row"] == "quickstart" else ""
    return "" if figure["goal"] is None else f"{least}{figure['goal']:g} {row['unit']}".strip()


def count(rows: Iterable[dict[str, Any]]) -> str:
    """How many rows hold, in a sentence; nothing if none has a goal."""
    judged = [row for row in rows if any(figure["goal"] is not None for figure in row["figures"])]
    return f"{sum(row['holds'] is True for row in judged)} of {len(judged)} goals hold." if judged else ""


def said(holds: bool | None) -> str:
    """Whether a goal holds, in a word."""
    return {True: "yes", False: "no", None: ""}[holds]


def show_overheads(found: dict[str, Any], console: Console) -> None:
    """What pezoo adds to PyTorch's own loops."""
    rows = {
        "training_step": ("training step through Lightning", "raw PyTorch loop"),
        "length_curve": ("length curve, prefix-stable scheme", "one forward of the longest"),
    }
    table = Table("what", "against", "ratio", title="Overheads")
    for name, words in rows.items():
        if name in found:
            table.add_row(*words, spread(found[name]["ratio"]))
    if table.row_count:
        console.print(table)


def show_options(rows: list[dict[str, Any]], console: Console) -> None:
    """What a step takes under each option, and what becomes of the loss."""
    if not rows:
        return
    table = Table("scheme", "option", "training step", "validation loss", title="Options, beside plain float32")
    for row in rows:
        mean, low, high = (row.get("loss", {}).get(name) for name in ("mean", "low", "high"))
        loss = "-" if mean is None else f"{mean:+.4f}" + (f" ({low:+.4f} to {high:+.4f})" if low is not None else "")
        table.add_row(row["scheme"], row["option"], spread(row["step"]), loss)
    console.print(table)
    first = rows[0]
    console.print(
        f"Loss: nats above float32's after {first['steps']} steps; the mean of {len(first['losses'])} seeds, in "
        "brackets its interval of 95 %."
    )


def show_seeds(rows: list[dict[str, Any]], console: Console) -> None:
    """How long several seeds take in each way."""
    if not rows:
        return
    first = rows[0]
    title = f"{first['seeds']} seeds of {first['parameters']:,} parameters on one device, {first['steps']} steps"
    table = Table("scheme", "way", "seconds", "over the first", "CPU time over", "loss differs by", title=title)
    for row in rows:
        table.add_section()
        for i, way in enumerate(row["ways"]):
            times = spread(way["seconds"]), spread(way["over"]), spread(way["cpu_over"])
            table.add_row("" if i else row["scheme"], way["way"], *times, f"{way['loss_differs_by']:.0e}")
    console.print(table)


def show_explained(scheme: str, rows: list[dict[str, Any]], console: Console) -> None:
    """Which back-end a scheme takes, and why."""
    several = any(row["layers"] != "all" for row in rows)
    columns = ["", "tokens", *["layers"] * several, "back-end", "why"]
    table = Table(*columns, title=f"Back-ends of {escape(scheme)} on a CPU")
    phase = None
    for row in rows:
        if row["phase"] != phase:
            table.add_section()
        first = {"train": "training", "test": "testing"}[row["phase"]] if row["phase"] != phase else ""
        phase = row["phase"]
        layers = [row["layers"]] * several
        table.add_row(first, f"{row['length']:,}", *layers, row["backend"] or "-", escape(row["why"]))
    console.print(table)
    defined = [row for row in rows if row["backend"]]
    if reasons := dict.fromkeys(row["flex"] for row in defined if row["flex"]):
        parts = "it" if all(row["flex"] for row in defined) else "all of it"
        console.print(f"On a GPU, backend=flex does not run {parts}: {escape('; '.join(reasons))}.")
    elif defined:
        console.print("On a GPU, backend=flex runs it too (PyTorch's FlexAttention).")
