"""A needle that shares no symbol with its question (after NoLiMa: Modarressi et al. 2025, arXiv 2502.05167), in tokens.

    input:  filler ... n3 p7 ... filler ... n5 p2 ... filler QUERY r7        output: n3

Somebody (n3) is told to be at a place (p7), and the question is who is in a region (r7). Each place lies in a region of
its own: place p_i in region r_i. No row says so, and the ids have nothing in common: a model learns the pairing in
training, where it meets all pairs. NoLiMa relies on what large models know, such as that the Semper Opera House is in
Dresden. Rows of testing are others, of the same pairs.

With `direct=true` the question names the place itself, QUERY p7: the same task with literal matches. The difference of
the two is what the missing overlap costs. Names and places in a row differ. A model that only finds the people is right
in one of `n_told` questions, a quarter. Ids: names, places, regions, filler, QUERY.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pezoo.data.tasks._recall import Needles, column, distinct, names, places, strew, uniform
from pezoo.errors import UserError
from pezoo.registry import register, setting
from pezoo.task import Pairs


@register(
    "no_overlap",
    title="Needles that share no symbol with the question",
    year=2025,
    authors="Modarressi et al.",
    arxiv="2502.05167",
    family="recall",
    equation="y = x_{p-1}, x_p = place(x_{n-1})",
)
class NoOverlap(Needles):
    """Who is at the place that belongs to the region asked for; length: tokens that the model reads."""

    @dataclass
    class Config:
        """Settings of no_overlap."""

        n_told: int = setting(4, "people told of in a row, with the asked one (K)", at_least=1)
        n_names: int = setting(26, "names that people are drawn from", at_least=1)
        n_places: int = setting(16, "places, with a region each", at_least=1)
        n_filler: int = setting(20, "different tokens of the filler", at_least=1)
        direct: bool = setting(False, "ask for the place itself, not for its region")

        def __post_init__(self) -> None:
            """Check that people and places can differ."""
            if self.n_told > min(self.n_names, self.n_places):
                what = f"no_overlap:n_told={self.n_told} needs as many names and places"
                raise UserError(f"{what}, got n_names={self.n_names} and n_places={self.n_places}")

    width = tail = 2
    n_needles = property(lambda self: self.config.n_told)
    first_place = property(lambda self: self.config.n_names)
    first_region = property(lambda self: self.config.n_names + self.config.n_places)
    first_filler = property(lambda self: self.config.n_names + 2 * self.config.n_places)
    query = property(lambda self: self.first_filler + self.config.n_filler)
    n_symbols = property(lambda self: self.query + 1)
    chance = property(lambda self: 1 / self.config.n_names)

    @property
    def symbols(self) -> list[str]:
        """Names n, places p, their regions r of the same number, filler f."""
        c = self.config
        counts = {"n": c.n_names, "p": c.n_places, "r": c.n_places, "f": c.n_filler}
        return [*(name for letter, count in counts.items() for name in names(letter, count)), "QUERY"]

    @property
    def first_asked(self) -> int:
        """The first id of what a question names."""
        return self.first_place if self.config.direct else self.first_region

    def output_length(self, length: int) -> int:
        """One name."""
        return 1

    def solve(self, inputs: Tensor) -> Tensor:
        """Find the place of the region that is asked for; its name stands before it."""
        self.require_room(inputs)
        place = self.first_place + inputs[:, -1:] - self.first_asked
        told = inputs[:, 1:-2] == place
        people = inputs.gather(1, told.int().argmax(1, keepdim=True))
        known = (place >= self.first_place) & (place < self.first_region)
        good = known[:, 0] & (inputs[:, -2] == self.query) & (told.sum(1) == 1) & (people[:, 0] < self.first_place)
        good &= inputs[:, 0] != place[:, 0]
        asked = "one of these places" if self.config.direct else "the region of one of these places"
        self.require(good, inputs, f"names with a place each in filler, then QUERY and {asked}")
        return people

    def sample(self, batch_size: int, length: int, generator: torch.Generator, depth: float | None = None) -> Pairs:
        """Random people at random places in random filler.

        Args:
            batch_size: rows (B).
            length: tokens that the model reads.
            generator: of all draws.
            depth: share of filler and other people that stands before the asked one; None: any, row by row.

        Raises:
            UserError: if the length has no room for people and question, or the depth is not in 0 ... 1.
        """
        config, room = self.config, self.spare(length)
        filler = uniform(self.first_filler, config.n_filler, (batch_size, room), generator)
        people = distinct(batch_size, config.n_told, config.n_names, generator)
        where = distinct(batch_size, config.n_told, config.n_places, generator)
        needles = torch.stack([people, self.first_place + where], 2)
        body = strew(filler, needles, places(batch_size, config.n_told, room, depth, generator))
        inputs = torch.cat([body, column(self.query, batch_size), self.first_asked + where[:, :1]], 1)
        return Pairs(inputs, self.solve(inputs))
