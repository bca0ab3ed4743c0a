"""Position coupling: tokens that play the same part in a task share a position, and a learned table is read there.

    x_i = E[token_i] + W[c_i]

    c_i = p_1                       where token i is a mark
    c_i = p_1 + 1 + p_i - p_s       elsewhere; s: the first token after the last mark, or of the document

p: coordinates, those of the index if no extension changes them; p_1: that of the document's first token. So a mark
stands at 0, and what follows it at 1, 2, ... Marks are the symbols between the parts of a task. Where the parts are
aligned from their beginnings, as numbers with their lowest digit first, what belongs together has one position:

    token    7 0 1 + 9 9 SEP 6 0 2      addition:order=lowest_first; + is 10 and SEP 11: coupling:marks=10,11
    c        1 2 3 0 1 2  0  1 2 3

    token    5 8 2 SEP 5 8 2            copy: coupling:marks=100; each token of the answer is predicted at the position
    c        1 2 3  0  1 2 3            before its own

The table W has N rows; beyond the last one, that is read. Real coordinates read between two rows, linearly.

Shapes: (B, L, D) -> (B, L, D). Tokens before alone decide, so decoding goes on as it began.
Training and testing: the same. The paper starts the positions of each training sequence at a random one, so that tests
at greater lengths find trained rows: that is `coupling+shift`, with K = `max_shift` of the order of the tested lengths.
N is by default what training shows then. Other extensions of coordinates act as well, through p.
Where the text has none of the marks, this is `learned`, one row further on. A study refuses it for a task whose answer
begins at no mark, or at one that `marks` does not name: what is coupled to it would be left to chance.

Source: Cho, Cha, Awasthi, Bhojanapalli, Gupta, Yun 2024 (arXiv 2405.20671) and the authors' code. There each data set
writes down the positions of its own tokens. For copying they are these. For addition they are these, turned round:
the paper has numbers with the highest digit first, counts from their last digits, and reverses the answer alone.
Departures: marks tell the positions, so numbers must be written lowest digit first: where a number will end cannot be
known while it is read. Parity, whose coupling is to a scratchpad or to one position for all, has no counterpart here.
Initialisation N(0, 0.02^2).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pezoo.contract import Encoding, Positions, Shape, Traits, Undefined, to_device
from pezoo.encodings.absolute.learned import read_rows
from pezoo.registry import register, setting

IDLE = {"every_row_learns": "a row waits for a token at its place"}


def is_one_of(positions: Positions, ids: list[int]) -> Tensor:
    """Which keys' tokens are among some ids, (B, Lk), bool."""
    assert positions.tokens is not None
    wanted = to_device(torch.tensor(ids, dtype=torch.int64), positions.key.device)
    return (positions.tokens[..., None] == wanted).any(-1)


def counted(positions: Positions, marks: Tensor) -> Tensor:
    """Coordinates c of all keys, counted anew after each mark of the document, (B, Lk).

    Args:
        positions: with the coordinates p.
        marks: which keys are marks, (B, Lk) bool.
    """
    at = torch.arange(marks.shape[1], device=marks.device)
    rows = max(len(marks), len(positions.key))
    p, first = positions.key.expand(rows, -1), (at - positions.key_index).expand(rows, -1)
    start = torch.where(marks, at + 1, first).cummax(1).values.clamp(max=len(at) - 1)
    origin = p.gather(1, first)
    return torch.where(marks, origin, origin + 1 + p - p.gather(1, start))


class Counted(Encoding):
    """A learned vector for the coordinate at which a token is counted."""

    def __init__(self, shape: Shape, config: "TableConfig") -> None:
        super().__init__(shape, config)
        self.table = nn.Parameter(torch.randn(config.rows(shape), shape.d_model) * 0.02)

    def check(self, positions: Positions) -> None:
        """Raise `Undefined` for coordinates below 0."""
        if not positions.within(0, float("inf")):
            raise Undefined(f"{self.name} counts from 0; coordinate {positions.smallest():g} has no row")

    def rows(self, coordinates: Tensor) -> Tensor:
        """W at coordinates (...), (..., D)."""
        return read_rows(self.table, coordinates.clamp(0, len(self.table) - 1))


@dataclass
class TableConfig:
    """Settings of the table."""

    places: int | None = setting(None, "rows of the table (N); unset: one more than training shows", at_least=1)

    def rows(self, shape: Shape) -> int:
        """N."""
        return self.places or (shape.extent or shape.train_length) + 1


@register(
    "coupling",
    title="Position coupling",
    year=2024,
    authors="Cho, Cha, Awasthi, Bhojanapalli, Gupta, Yun",
    arxiv="2405.20671",
    equation="x_i = E[token_i] + W[p_1 + 1 + p_i - p_s],  s: the first token after the last mark",
    aliases={"position_coupling": ("coupling+shift", "Position coupling with its random starts")},
)
class Coupling(Counted):
    """Positions that begin anew after each mark, in a learned table."""

    traits = Traits(tokens=True, parameters=lambda shape, c: c.rows(shape) * shape.d_model, deviations=IDLE)

    @dataclass
    class Config(TableConfig):
        """Settings of the marks and of the table."""

        marks: list[int] = setting([10, 11], "where positions begin anew; these: + and SEP of addition", at_least=0)  # noqa: RUF009

    def refuses_task(self, task: Any) -> str | None:
        """A task without a mark before the answer, or with one that is not among `marks`."""
        if task.layout != "marked" or not self.shape.causal:
            return "it counts from a mark between question and answer, and there is none"
        if task.sep not in self.config.marks:
            ids = f"{task.sep}, SEP, and others between its parts, if there are any"
            return (
                f"answers begin at a mark that it does not know. Give the ids of marks: {ids}, as coupling:marks=10,11"
            )
        return None

    def embed(self, x: Tensor, positions: Positions) -> Tensor:
        """Add W of each token's place since the last mark."""
        places = counted(positions, is_one_of(positions, self.config.marks))
        return x + self.rows(positions.of_queries(places)).to(x.dtype)
