"""What recall tasks share: lengths counted in tokens, and needles at their places.

Legend: B rows, K needles, w tokens of a needle, F tokens of filler.
"""

import torch
from torch import Tensor

from pezoo.errors import UserError
from pezoo.task import IGNORE, Task

DIGITS = 10
DEPTHS = tuple(tenth / 10 for tenth in range(11))


class Recall(Task):
    """A task whose length is the number of tokens that the model reads, exactly; for causal models alone."""

    forms = ("causal",)

    @property
    def least_length(self) -> int:
        """Shortest length at which there is a question."""
        raise NotImplementedError

    def input_length(self, length: int) -> int:
        """What the answer leaves of the tokens read; its last token is not read."""
        return length if self.layout == "inline" else length - self.output_length(length) + 1

    def output_length(self, length: int) -> int:
        """Of an inline task: as long as the input."""
        return length

    def require_room(self, inputs: Tensor) -> None:
        """Refuse questions shorter than the shortest."""
        least = self.input_length(self.least_length)
        self.require(inputs.shape[1] >= least, inputs, f"{least} tokens long at least")

    def spare(self, length: int) -> int:
        """Tokens beyond the least length.

        Raises:
            UserError: if there are fewer than none.
        """
        if length < self.least_length:
            settings = ", ".join(f"{name}={value}" for name, value in vars(self.config).items())
            task = self.name + (f" with {settings}" if settings else "")
            raise UserError(f"{task} needs a length of at least {self.least_length} tokens, got {length}")
        return length - self.least_length


class Needles(Recall):
    """Needles of one width, strewn in filler; then the question.

    A subclass states `n_needles`, `width` and `output_length`, and `head` and `tail` where they differ.
    """

    layout = "plain"
    depths = DEPTHS
    n_needles = 1
    width: int
    """Tokens of a needle (w)."""
    head = 0
    """Tokens in front of all filler."""
    tail = 1
    """Tokens of the question, after all filler."""

    @property
    def least_length(self) -> int:
        """A length without filler."""
        return self.head + self.n_needles * self.width + self.tail + self.output_length(0) - 1

    def distance(self, length: int, depth: float) -> int:
        """Tokens from the asked needle's first to the last of the question, both counted.

        Where other needles stand around it, in the mean over rows.
        """
        room = self.spare(length) + self.width * (self.n_needles - 1)
        return self.input_length(length) - self.head - round(depth * room)


def uniform(first: int, count: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw from the ids first ... first + count - 1, independent and uniform."""
    return torch.randint(first, first + count, shape, generator=generator)


def distinct(batch_size: int, count: int, of: int, generator: torch.Generator) -> Tensor:
    """Draw different numbers below `of` in each row, every order as likely, (B, count)."""
    return torch.rand(batch_size, of, generator=generator).topk(count).indices


def names(letter: str, count: int) -> list[str]:
    """Names for so many ids: f0, f1, and so on."""
    return [f"{letter}{i}" for i in range(count)]


def after(marks: Tensor, inputs: Tensor, count: int) -> Tensor:
    """So many tokens of each row after the first place where it is marked, (B, count)."""
    return inputs.gather(1, marks.int().argmax(1, keepdim=True) + torch.arange(1, count + 1))


def column(value: int, batch_size: int) -> Tensor:
    """One token for all rows, (B, 1)."""
    return torch.full((batch_size, 1), value)


def places(batch_size: int, n_needles: int, n_filler: int, depth: float | None, generator: torch.Generator) -> Tensor:
    """Draw where needles stand among filler, each of them counted as one unit, (B, K).

    Args:
        batch_size: rows.
        n_needles: needles a row (K).
        n_filler: tokens of filler a row (F).
        depth: share of the other units that stand before the first needle; None: all places are as likely.
        generator: of all draws.

    Raises:
        UserError: if the depth is not in 0 ... 1.
    """
    chances = torch.rand(batch_size, n_filler + n_needles, generator=generator)
    if depth is not None:
        if not 0 <= depth <= 1:
            raise UserError(f"depth must lie in 0 ... 1, from the first place to the last, got {depth:g}")
        chances[:, round(depth * (n_filler + n_needles - 1))] = 2  # above all others
    return chances.topk(n_needles).indices


def strew(filler: Tensor, needles: Tensor, places: Tensor) -> Tensor:
    """Put needles into filler.

    Args:
        filler: (B, F), whose order stays.
        needles: (B, K, w).
        places: (B, K), as `places` draws them.

    Returns:
        (B, F + K w).
    """
    batch_size, n_needles, width = needles.shape
    before = (places[:, None] < places[..., None]).sum(-1)  # needles in front of each
    tokens = places + (width - 1) * before
    tokens = (tokens[..., None] + torch.arange(width)).flatten(1)
    result = torch.full((batch_size, filler.shape[1] + n_needles * width), IGNORE)
    result.scatter_(1, tokens, needles.flatten(1))
    result[result == IGNORE] = filler.flatten()
    return result
