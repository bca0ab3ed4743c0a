"""Facts strewn in a text, for byte-level models (after BABILong: Kuratov et al. 2024, arXiv 2406.10149).

    hops 1    ... Mary went to the kitchen. ... filler ... John moved to the library. ... filler ...
              Where is Mary?                output: kitchen
    hops 2    ... Daniel took the milk. ... Daniel journeyed to the nursery. ... filler ...
              Where is the milk?            output: nursery

The first two tasks of bAbI (Weston et al. 2015, arXiv 1502.05698), in sentences of its kind: people go to places; what
they have taken goes with them. Where somebody went last counts, whether before or after the thing was taken. `n_facts`
facts in all are told, those of other people too, in their order and between any two sentences. With two hops two people
take something, and each goes somewhere.

Filler is of short sentences that say nothing of people or places, in random order. The first is cut, so that every
length is met to the byte. People, verbs, places and who is asked are uniform.
Departures: BABILong has books (PG19) as filler, and 2 to some 20 facts. Here places have seven letters each, with
different initials, so that answers have one length; three of bAbI's six are among them.

Better guesses than the best byte: a place at random is right in one question of six. The place told last is right in
48 % of questions with one hop and in 59 % with two (41 and 45 % with eight facts), so look at what lies above that.
"""

import re
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from pezoo.data.tasks._recall import Recall
from pezoo.data.tasks._rows import python_random
from pezoo.errors import UserError
from pezoo.registry import register, setting
from pezoo.task import Pairs

PEOPLE = ("Mary", "John", "Daniel", "Sandra")
PLACES = ("bedroom", "hallway", "kitchen", "library", "nursery", "terrace")
THINGS = ("football", "milk", "apple")
GOING = ("went to", "moved to", "journeyed to", "travelled to", "went back to")
TAKING = ("got", "took", "grabbed", "picked up")
FILLER = (
    "The wind came from the sea.",
    "It rained for most of the day.",
    "A clock struck in the distance.",
    "Clouds hung low over the hills.",
    "The road was long and dusty.",
    "Leaves fell without a sound.",
    "Far away a dog barked twice.",
    "The river was higher than ever.",
    "Snow lay on all the roofs.",
    "Nothing stirred until the evening.",
    "A lamp was lit, then another.",
    "The old bridge creaked a little.",
)
ANSWER = len(PLACES[0])
LONGEST = max(
    *(len(f"{who} {verb} the {place}. ") for who in PEOPLE for verb in GOING for place in PLACES),
    *(len(f"{who} {verb} the {thing}. ") for who in PEOPLE for verb in TAKING for thing in THINGS),
)
"""Bytes of a fact."""
QUESTION = max(len(f"\nWhere is {what}? ") for what in (*PEOPLE, *(f"the {thing}" for thing in THINGS)))
"""Bytes of a question."""
FACT = re.compile(
    rf"\b({'|'.join(PEOPLE)}) "
    rf"(?:(?:{'|'.join(GOING)}) the ({'|'.join(PLACES)})|(?:{'|'.join(TAKING)}) the ({'|'.join(THINGS)}))\."
)
ASKED = re.compile(rf"\nWhere is (?:({'|'.join(PEOPLE)})|the ({'|'.join(THINGS)}))\? \Z")


def _answer(text: str) -> str | None:
    """Where somebody or something is at the end of a text, or None if it does not ask, or not say."""
    asked = ASKED.search(text)
    if asked is None:
        return None
    where, holder = {}, {}
    for who, place, thing in FACT.findall(text):
        if place:
            where[who] = place
        else:
            holder[thing] = who
    who, thing = asked.groups()
    return where.get(who or holder.get(thing))


@register(
    "facts",
    title="Facts in a text",
    year=2024,
    authors="Kuratov et al.",
    arxiv="2406.10149",
    family="recall",
    equation="y = where the person asked for, or who took the thing, went last",
)
class Facts(Recall):
    """Where somebody or something is, after facts told in a text; length: bytes that the model reads."""

    @dataclass
    class Config:
        """Settings of facts."""

        hops: int = setting(
            1, "facts that an answer needs: 1, where somebody is, or 2, something", at_least=1, at_most=2
        )
        n_facts: int = setting(4, "facts in a text", at_least=1)

        def __post_init__(self) -> None:
            """Check that two people can take something and go somewhere."""
            if self.hops == 2 and self.n_facts < 4:
                raise UserError(
                    f"facts:hops=2 needs four facts, got n_facts={self.n_facts}; type facts:hops=2:n_facts=4"
                )

    layout = "plain"
    n_symbols = 256
    symbols = tuple(map(chr, range(256)))
    chance = max(map("".join(PLACES).count, "abcdefghijklmnopqrstuvwxyz")) / len("".join(PLACES))
    least_length = property(lambda self: self.config.n_facts * LONGEST + QUESTION + ANSWER - 1)

    def output_length(self, length: int) -> int:
        """A place."""
        return ANSWER

    def solve(self, inputs: Tensor) -> Tensor:
        """Follow the facts from the first to the last."""
        found = [_answer(row.tobytes().decode("latin-1")) for row in inputs.to(torch.uint8).numpy()]
        what = 'texts in which people go to places or take something, and "\\nWhere is ...? " at the end'
        self.require(torch.tensor([place is not None for place in found]), inputs, what)
        return torch.tensor([list((place or "").encode()) for place in found])

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Random facts in random filler.

        Raises:
            UserError: if the length has no room for the longest facts.
        """
        self.spare(length)
        draws = python_random(generator)
        texts = [self._text(self.input_length(length), draws).encode() for _ in range(batch_size)]
        inputs = torch.frombuffer(bytearray(b"".join(texts)), dtype=torch.uint8).view(batch_size, -1).long()
        return Pairs(inputs, self.solve(inputs))

    def _text(self, size: int, draws: Random) -> str:
        """A text of so many bytes, with its question."""
        asked, facts = self._facts(draws)
        question = f"\nWhere is {asked}? "
        room = size - len(question) - sum(map(len, facts))
        filler: list[str] = []
        while room > 0:
            filler.append((draws.choice(FILLER) + " ")[-room:])
            room -= len(filler[-1])
        filler.reverse()  # the one that was cut is the first
        starts = sorted(draws.randint(0, len(filler)) for _ in facts)
        for start, fact in reversed(list(zip(starts, facts, strict=True))):
            filler.insert(start, fact)
        return "".join(filler) + question

    def _facts(self, draws: Random) -> tuple[str, list[str]]:
        """What is asked for, and all facts in their order."""

        def going(who: str) -> str:
            return f"{who} {draws.choice(GOING)} the {draws.choice(PLACES)}. "

        n_facts = self.config.n_facts
        if self.config.hops == 1:
            people = draws.choices(PEOPLE, k=n_facts)
            return draws.choice(sorted(set(people))), list(map(going, people))
        carriers, things = draws.sample(PEOPLE, 2), draws.sample(THINGS, 2)
        taking = [f"{w} {draws.choice(TAKING)} the {t}. " for w, t in zip(carriers, things, strict=True)]
        facts = taking + list(map(going, carriers + draws.choices(PEOPLE, k=n_facts - 4)))
        draws.shuffle(facts)
        return f"the {things[0]}", facts
