"""SCAN: commands to actions (Lake & Baroni 2018, arXiv 1711.00350; length as in their split by length).

    input: jump opposite left after walk twice        output: WALK WALK LTURN LTURN JUMP

    command   phrase | phrase and phrase | phrase after phrase
    phrase    motion | motion twice | motion thrice
    motion    verb | verb side | turn side | V opposite side | V around side      V: verb or turn
    verb      walk look run jump            side    left right

`x and y` is x then y, `x after y` is y then x; opposite is two turns and the verb, around is four times a turn and the
verb; turn adds no action of its own.

Length: actions of the answer, 1 or more, as in the paper's split and in Kazemnejad et al. 2023 (arXiv 2305.19466:
trained to 25, tested to 48). Some numbers of actions have no command (23, 29, 31 ... with two phrases, at most 48):
there the next smaller number is meant. Words are as many in all rows of a call; over calls, all commands of a length
are equally likely.
Departures: commands are drawn rather than listed. `phrases` above 2 allows longer ones, read from left to right: `and`
appends to, `after` goes before, all that came so far.
"""

import random
from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import product

import torch
from torch import Tensor

from pezoo.data.tasks._bounds import check_length
from pezoo.data.tasks._rows import padded, python_random
from pezoo.registry import register, setting
from pezoo.task import Pairs, Task

VERBS = ("walk", "look", "run", "jump")
WORDS = (*VERBS, "turn", "left", "right", "opposite", "around", "twice", "thrice", "and", "after")
ACTIONS = ("WALK", "LOOK", "RUN", "JUMP", "LTURN", "RTURN")
WORD = {word: i for i, word in enumerate(WORDS)}
ACTION = {action: i + len(WORDS) for i, action in enumerate(ACTIONS)}

Size = tuple[int, int]
"""Actions and words of a phrase or a command."""
Phrase = tuple[list[int], list[int]]
"""Words and actions."""


@register(
    "scan",
    title="SCAN",
    year=2018,
    authors="Lake & Baroni",
    arxiv="1711.00350",
    family="length generalisation",
    equation="[[x and y]] = [[x]] [[y]], [[x after y]] = [[y]] [[x]], [[x twice]] = [[x]] [[x]], ...",
)
class Scan(Task):
    """Navigation commands to actions; length: actions."""

    n_symbols = len(WORDS) + len(ACTIONS)
    symbols = (*WORDS, *ACTIONS)

    @dataclass(frozen=True)
    class Config:
        """How far the grammar goes."""

        phrases: int = setting(2, "most phrases that a command joins by and / after", at_least=1, at_most=8)

    @property
    def chance(self) -> float:
        """Share of the commonest action, a turn, in all commands; joining phrases does not change it."""
        actions = Counter(a for phrases in _phrases().values() for phrase in phrases for a in phrase[1])
        return max(actions.values()) / actions.total()

    def input_length(self, length: int) -> int:
        """Words of the longest command with so many actions."""
        actions = self.output_length(length)
        return max(w for counts in _counts(self.config.phrases) for a, w in counts if a == actions)

    def output_length(self, length: int) -> int:
        """The length, or the next smaller one that a command has."""
        found = {a for counts in _counts(self.config.phrases) for a, _ in counts}
        check_length("scan", length, 1, max(found), "type scan:phrases=4, say, for commands of more phrases")
        return max(a for a in found if a <= length)

    def solve(self, inputs: Tensor) -> Tensor:
        """Phrase by phrase, from left to right."""
        answers = [_actions(row) for row in inputs.tolist()]
        good = torch.tensor([answer is not None for answer in answers])
        self.require(good, inputs, "commands of phrases joined by and / after, such as jump twice and turn left")
        return padded(answers, max(map(len, answers)))

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Uniform commands of one number of actions and of words."""
        actions = self.output_length(length)
        rng = python_random(generator)
        counts = _counts(self.config.phrases)
        words = Counter()
        for sizes in counts:
            words.update({w: n for (a, w), n in sizes.items() if a == actions})
        size = (actions, *rng.choices(list(words), list(words.values())))
        joined = rng.choices(range(len(counts)), [sizes[size] for sizes in counts], k=batch_size)
        inputs = torch.tensor([_command(n, size, rng) for n in joined])
        return Pairs(inputs, self.solve(inputs))


@cache
def _phrases() -> dict[Size, list[Phrase]]:
    """Every phrase of the grammar, by its size."""
    motions = [([WORD[verb]], [ACTION[verb.upper()]]) for verb in VERBS]
    for verb, (side, turn) in product((*VERBS, "turn"), (("left", "LTURN"), ("right", "RTURN"))):
        act = [ACTION[verb.upper()]] if verb != "turn" else []
        turns = [ACTION[turn]]
        motions.append(([WORD[verb], WORD[side]], turns + act))
        motions.append(([WORD[verb], WORD["opposite"], WORD[side]], turns * 2 + act))
        motions.append(([WORD[verb], WORD["around"], WORD[side]], (turns + act) * 4))
    found: dict[Size, list[Phrase]] = {}
    for (words, actions), (times, adverb) in product(motions, ((1, []), (2, ["twice"]), (3, ["thrice"]))):
        phrase = (words + [WORD[a] for a in adverb], actions * times)
        found.setdefault((len(phrase[1]), len(phrase[0])), []).append(phrase)
    return found


@cache
def _counts(phrases: int) -> list[Counter[Size]]:
    """How many commands of 1, 2, ... phrases have each size."""
    counts = [Counter({size: len(found) for size, found in _phrases().items()})]
    for _ in range(phrases - 1):
        longer: Counter[Size] = Counter()
        for (size, n), (last, m) in product(counts[-1].items(), counts[0].items()):
            longer[size[0] + last[0], size[1] + last[1] + 1] += 2 * n * m
        counts.append(longer)
    return counts


@cache
def _last(joined: int, size: Size) -> tuple[list[tuple[Size, Size]], list[int]]:
    """Sizes that the last phrase of such a command and what it is joined to may have, and how many have them."""
    before = _counts(joined)[-1]
    ways = {}
    for last, phrases in _phrases().items():
        rest = (size[0] - last[0], size[1] - last[1] - 1)
        if rest in before:
            ways[rest, last] = before[rest] * len(phrases)
    return list(ways), list(ways.values())


def _command(joined: int, size: Size, rng: random.Random) -> list[int]:
    """The words of a uniform command of one phrase and `joined` more, of a size that there is."""
    if not joined:
        return rng.choice(_phrases()[size])[0]
    [(rest, last)] = rng.choices(*_last(joined, size))
    words = _command(joined - 1, rest, rng)
    more, _ = rng.choice(_phrases()[last])
    return [*words, WORD["and" if rng.random() < 0.5 else "after"], *more]


@cache
def _meanings() -> dict[tuple[int, ...], list[int]]:
    """The actions of every phrase, by its words."""
    return {tuple(words): actions for found in _phrases().values() for words, actions in found}


def _actions(command: list[int]) -> list[int] | None:
    """The actions of a command's words; None if it is none."""
    actions, phrase, joint = [], [], WORD["and"]
    for word in [*command, WORD["and"]]:
        if word not in (WORD["and"], WORD["after"]):
            phrase.append(word)
            continue
        meant = _meanings().get(tuple(phrase))
        if meant is None:
            return None
        actions = actions + meant if joint == WORD["and"] else meant + actions
        phrase, joint = [], word
    return actions
