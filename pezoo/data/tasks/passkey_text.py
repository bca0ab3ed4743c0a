"""Passkey in text (Mohtashami & Jaggi 2023, arXiv 2305.16300, as in their code), for byte-level models.

    TASK newline FILLER[:a] newline "The pass key is N. Remember it. N is the pass key." newline
    FILLER[:b] newline "What is the pass key? The pass key is "; output: N

FILLER repeats its five sentences, joined by spaces, and is cut to the byte wherever it ends, before
and after the key alike, so that every length is met exactly. N is uniform in 10000 ... 99999: always
five digits, where the released code draws 1 ... 50000. The space before the answer belongs to the
question, so that the answer is the digits alone.
"""

import re

import torch
from torch import Tensor

from pezoo.data.tasks._recall import Needles, places, strew
from pezoo.registry import register
from pezoo.task import Pairs

TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there.\n"
)
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
KEY = "\nThe pass key is {0}. Remember it. {0} is the pass key.\n"
QUESTION = "\nWhat is the pass key? The pass key is "
N_DIGITS = 5
TOLD = re.escape(KEY.format("#")).replace(r"\#", rf"(\d{{{N_DIGITS}}})", 1).replace(r"\#", r"\1").encode()


def as_bytes(text: str) -> torch.Tensor:
    """Byte ids, int64."""
    return torch.tensor(list(text.encode()))


@register(
    "passkey_text",
    title="Passkey retrieval, in text",
    year=2023,
    authors="Mohtashami & Jaggi",
    arxiv="2305.16300",
    family="recall",
    equation="y = N, told once between a and b bytes of filler",
)
class PasskeyText(Needles):
    """The five-digit number told once in repeating text; length: bytes that the model reads."""

    n_symbols = 256
    symbols = tuple(map(chr, range(256)))
    chance = (1 / 9 + (N_DIGITS - 1) / 10) / N_DIGITS  # no leading zero
    head, width, tail = len(TASK), len(KEY.format(10**4)), len(QUESTION)

    def output_length(self, length: int) -> int:
        """The digits."""
        return N_DIGITS

    def solve(self, inputs: Tensor) -> Tensor:
        """Find the number."""
        texts = [row.tobytes() for row in inputs.to(torch.uint8).numpy()]
        found = [text.endswith(QUESTION.encode()) and re.search(TOLD, text) for text in texts]
        good = torch.tensor([bool(match) for match in found])
        self.require(good, inputs, f"text with {KEY.strip()!r} in a line of its own, and {QUESTION!r} at the end")
        return torch.tensor([list(match[1]) for match in found])

    def sample(self, batch_size: int, length: int, generator: torch.Generator, depth: float | None = None) -> Pairs:
        """Random numbers at random places.

        Args:
            batch_size: rows (B).
            length: bytes that the model reads.
            generator: of all draws.
            depth: share of the filler that stands before the key; None: any, row by row.

        Raises:
            UserError: if the length has no room for the fixed sentences, or the depth is not in 0 ... 1.
        """
        room = self.spare(length)
        number = torch.randint(10 ** (N_DIGITS - 1), 10**N_DIGITS, (batch_size, 1), generator=generator)
        digits = number // 10 ** torch.arange(N_DIGITS - 1, -1, -1) % 10 + ord("0")
        needle = as_bytes(KEY.format("?" * N_DIGITS)).repeat(batch_size, 1)
        needle[needle == ord("?")] = digits.repeat(1, 2).flatten()
        place = places(batch_size, 1, room, depth, generator)
        index = torch.arange(room)
        index = index - place * (index >= place)  # the filler starts anew after the key
        body = strew(as_bytes(FILLER)[index % len(FILLER)], needle[:, None], place)
        head, tail = (as_bytes(text).expand(batch_size, -1) for text in (TASK, QUESTION))
        inputs = torch.cat([head, body, tail], 1)
        return Pairs(inputs, self.solve(inputs))
