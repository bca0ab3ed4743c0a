"""Questions in plain text, told to models that read by a tokenizer."""

from functools import cache
from typing import Any

import torch

from pezoo.data.material import TESTING, Questions
from pezoo.data.tokenizer import load_tokenizer
from pezoo.errors import UserError
from pezoo.task import IGNORE, Example, Pairs

PROBED = 8
"""Questions whose tokens say how many bytes fit into a length."""


class Retold(Questions):
    """A task whose symbols are bytes, by a tokenizer. Lengths are tokens that the model reads.

    A question has as many bytes as fit. Rows may differ by a few tokens; the shorter ones end in padding, which no
    decoder sees before the answer. Where question and answer share a token, such as a space and a digit, it counts as
    the answer's.

    Args:
        task: name and settings.
        tokenizer: as in `data.tokenizer`.

    Raises:
        UserError: if the task is not one of text, or for what `Questions` and `load_tokenizer` refuse.
    """

    def __init__(self, task: str, tokenizer: str) -> None:
        super().__init__(task, "causal", None)
        if self.task.n_symbols != 256 or self.task.layout != "plain":
            raise UserError(
                f"{self.name} is no task in text, so a model that reads by a tokenizer cannot be asked it; "
                "passkey_text and facts are"
            )
        self.tokenizer = load_tokenizer(tokenizer)
        self.vocab_size = self.tokenizer.vocab_size
        self.n_bytes = cache(self._n_bytes)

    def facts(self) -> dict[str, Any]:
        """All that determines the questions, as plain data."""
        named = {"tokenizer": self.tokenizer.name, "fingerprint": self.tokenizer.fingerprint}
        return super().facts() | named

    def n_tokens(self, length: int) -> int:
        """Lengths are tokens."""
        return length

    def distance(self, length: int, depth: float) -> int:
        """Tokens from the needle to the end of the question, about."""
        n_bytes = self.n_bytes(length)
        return round(self.task.distance(n_bytes, depth) * length / n_bytes)

    def pairs(self, purpose: int, step: int, batch_size: int, length: int, seed: int, **place: float) -> Pairs:
        """Questions of a step, in bytes: so many that no row has more than `length` tokens."""
        n_bytes = self.n_bytes(length)
        while True:
            found = super().pairs(purpose, step, batch_size, n_bytes, seed, **place)
            over = self._longest(found) - length
            if over <= 0:
                return found
            n_bytes -= over

    def example(self, pairs: Pairs) -> Example:
        """Pairs as sequences of tokens."""
        rows = self._rows(pairs)
        longest = max(len(question) + len(answer) for question, answer in rows) - 1
        tokens = torch.zeros(len(rows), longest, dtype=torch.int64)
        targets = torch.full_like(tokens, IGNORE)
        for i, (question, answer) in enumerate(rows):
            whole = torch.tensor([*question, *answer])
            tokens[i, : len(whole) - 1] = whole[:-1]
            targets[i, len(question) - 1 : len(whole) - 1] = whole[len(question) :]
        return Example(tokens, targets)

    def _rows(self, pairs: Pairs) -> list[tuple[list[int], list[int]]]:
        """Tokens of each question and answer."""
        asked = [bytes(row).decode("latin-1") for row in pairs.inputs.tolist()]
        said = [bytes(i for i in row if i != IGNORE).decode("latin-1") for row in pairs.outputs.tolist()]
        alone = self.tokenizer.encode(asked)
        whole = self.tokenizer.encode([question + answer for question, answer in zip(asked, said, strict=True)])
        found = []
        for question, both in zip(alone, whole, strict=True):
            shared = min(len(question), len(both) - 1)
            differ = (question[:shared] != both[:shared]).nonzero()[0]
            cut = int(differ[0]) if len(differ) else shared
            found.append((both[:cut].tolist(), both[cut:].tolist()))
        return found

    def _longest(self, pairs: Pairs) -> int:
        return max(len(question) + len(answer) - 1 for question, answer in self._rows(pairs))

    def _n_bytes(self, length: int) -> int:
        """How many bytes fit into `length` tokens, by a few questions.

        Raises:
            UserError: if the shortest question does not fit.
        """
        least = low = self.task.least_length

        def tokens(n_bytes: int) -> int:
            return self._longest(super(Retold, self).pairs(TESTING, 0, PROBED, n_bytes, 0))

        if (shortest := tokens(least)) > length:
            raise UserError(f"{self.name} needs a length of at least {shortest} tokens, got {length}")
        high = 2 * least
        while tokens(high) <= length:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if tokens(middle) <= length else (low, middle)
        return low
