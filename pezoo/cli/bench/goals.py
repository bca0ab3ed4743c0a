"""The goals of speed and memory, as data: what is measured, how, and what it should be at most.

A row holds when each of its figures does, as rounded to what is shown. Goals are those of a CPU, in float32, with one
thread. Training steps read 4,096 tokens. Models have 4 layers of 4 heads of 32.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import torch

from pezoo.cli.bench import rows
from pezoo.cli.bench.measuring import Extent, Spread


@dataclass(frozen=True)
class Figure:
    """One number of a row."""

    measure: rows.Measure
    subject: str
    length: int = 0
    """Tokens; 0 where a length makes no sense."""
    goal: float | None = None
    """None: it is measured for what it is."""
    at_least: bool = False
    """Whether the goal is the least that it should be; else the most."""

    def label(self, length: int) -> str:
        """The subject, and how long the text was."""
        return f"{self.subject} at {length:,}" if self.length else self.subject

    def holds(self, found: Spread | None) -> bool | None:
        """Whether the goal is reached; None where there is none, or nothing was measured."""
        if self.goal is None or found is None:
            return None
        shown = round(found.median, 2)
        return shown >= self.goal if self.at_least else shown <= self.goal


@dataclass(frozen=True)
class Row:
    """Figures that are reached together or not."""

    name: str
    """What `--only` calls it."""
    what: str
    figures: Sequence[Figure]
    unit: str = ""
    needs: str = ""
    """A library without which nothing can be measured."""

    def measure(self, extent: Extent) -> dict[str, Any]:
        """The row as plain data: each figure beside its goal."""
        found: dict[Figure, Spread | None] = {}
        for (how, length), together in groupby(self.figures, lambda f: (f.measure, f.length)):
            figures = list(together)
            values = how(extent.length(length), [f.subject for f in figures], extent)
            found |= {f: values.get(f.subject) for f in figures}
        shown = [
            {
                "figure": f.label(extent.length(f.length)),
                **(asdict(value) if value else {"median": None}),
                "goal": f.goal,
                "holds": f.holds(value),
            }
            for f, value in found.items()
        ]
        states = [f.holds(value) for f, value in found.items()]
        holds = None if None in states else all(states)
        missing = self.needs if None in found.values() else ""
        return {
            "row": self.name,
            "what": self.what,
            "unit": self.unit,
            "figures": shown,
            "holds": holds,
            "missing": missing,
        }


def _figures(measure: rows.Measure, lengths: dict[int, float | None], subjects: str) -> list[Figure]:
    """Each subject at each length, with the length's goal."""
    return [Figure(measure, s, length, goal) for length, goal in lengths.items() for s in subjects.split()]


LEARNED = "t5 kerple tisa alibi:slopes=learned"
WINDOWS = "rope+window:size=256 alibi+window:size=256"
FRONTIER = "fox rope+sink_logits rope+ssmax"
REST = "path pope stick_breaking"

ROWS = (
    Row(
        "fixed-biases",
        "training step over nope: fixed biases",
        _figures(rows.training_steps, {1024: 1.06}, "alibi sandwich"),
    ),
    Row(
        "learned-biases",
        "training step over nope: learned biases",
        _figures(rows.training_steps, {256: 1.12, 512: 1.4, 1024: 1.5}, LEARNED),
    ),
    Row(
        "small-networks",
        "training step over nope: FIRE, TUPE, FLOATER",
        _figures(rows.training_steps, {512: 1.3}, "fire tupe floater"),
    ),
    Row(
        "content",
        "training step over nope: logits that read content",
        [
            *_figures(rows.training_steps, {512: 1.6}, "shaw transformer_xl"),
            *_figures(rows.training_steps, {512: 1.8}, "deberta"),
            *_figures(rows.training_steps, {512: 2.2}, "cope"),
        ],
    ),
    Row("dape", "training step over nope: DAPE", _figures(rows.training_steps, {512: 3.0}, "alibi+dape")),
    Row(
        "frontier",
        "FoX, learned sinks, SSMax: training step, forward, over nope",
        [*_figures(rows.training_steps, {512: 1.3}, FRONTIER), *_figures(rows.long_forwards, {8192: 1.5}, FRONTIER)],
    ),
    Row("window", "forward over nope: window of 256", _figures(rows.long_forwards, {8192: 0.6}, WINDOWS)),
    Row(
        "window-attention",
        "attention alone over full causal: window of 256",
        _figures(rows.attention_alone, {32768: 0.07}, WINDOWS),
    ),
    Row(
        "regions",
        "forward over nope: sinks and far regions",
        [
            *_figures(rows.long_forwards, {8192: 0.7}, "rope+sinks rope+lm_infinite"),
            *_figures(rows.long_forwards, {8192: 1.6}, "rope+rerope rope+self_extend"),
        ],
    ),
    Row(
        "content-forward",
        "forward over nope: logits that read content",
        _figures(rows.long_forwards, {8192: 3.0}, "cope shaw deberta transformer_xl"),
    ),
    Row(
        "networks-forward",
        "forward over nope: FIRE, DAPE",
        [*_figures(rows.long_forwards, {8192: 3.0}, "fire"), *_figures(rows.long_forwards, {8192: 8.0}, "alibi+dape")],
    ),
    Row(
        "table-memory",
        "memory of a learned table's gradient above causal attention's",
        _figures(rows.table_memory, {4096: 100.0}, LEARNED),
        unit="MiB",
    ),
    Row(
        "decoding",
        "decoding step over that of transformers' Llama",
        _figures(rows.decoding, {1024: 1.05}, "rope rope:pairing=half"),
        needs="transformers",
    ),
    Row(
        "x-transformers",
        "training step over x-transformers' fastest",
        _figures(rows.beside_x_transformers, {256: 0.95}, "rope alibi t5"),
        needs="x-transformers",
    ),
    Row(
        "llama",
        "training step with Llama's body over transformers' Llama",
        _figures(rows.beside_llama, {256: 1.0}, "rope:pairing=half"),
        needs="transformers",
    ),
    Row(
        "start",
        "CPU time of a command over that of `python -c`",
        [
            Figure(rows.commands, "pezoo --help over pass", goal=3.0),
            Figure(rows.commands, "pezoo list over import torch", goal=1.1),
        ],
    ),
    Row(
        "worker",
        "start of a study's worker over `import torch`",
        [Figure(rows.worker_start, "each worker after the first", goal=0.3)],
    ),
    Row(
        "quickstart",
        "quickstart with train.steps=60: share of CPU time that trains and tests",
        [Figure(rows.study_share, "share of a whole study", goal=0.9, at_least=True)],
    ),
    Row(
        "rest",
        "PaTH, PoPE, stick-breaking: training step, forward, over nope",
        [*_figures(rows.training_steps, {512: None}, REST), *_figures(rows.long_forwards, {8192: None}, REST)],
    ),
    Row(
        "floor",
        "nope over what it cannot be faster than",
        [
            Figure(rows.floors, "training over a plain model", 256),
            Figure(rows.floors, "training over its products alone", 256),
            Figure(rows.floors, "forward over a plain model", 8192),
            Figure(rows.attention_alone, "nope", 8192),
        ],
    ),
)
"""In the order in which they are shown."""


def measure(names: Iterable[str], extent: Extent, tell: Callable[[str], object] = str) -> list[dict[str, Any]]:
    """The rows of these names as plain data; `tell` hears of each before it is measured."""
    found = []
    for row in (row for row in ROWS if row.name in set(names)):
        tell(row.name)
        torch.manual_seed(0)
        found.append(row.measure(extent))
    return found
