"""`non_overlapping`: the same tokens at every length, in blocks that know nothing of each other.

The protocol of most published tables. Each window is cut into blocks of T tokens, and each block is
read with a fresh context: the stride is T. The loss at T is the mean over all tokens of all blocks,
each given the tokens before it in its block; perplexity is its exponential, and `last_perplexity`
takes the positions T - last ... T - 1 of the blocks alone. Every T scores every token of the
windows: where T does not divide their length, a window's last block is shorter. No
beginning-of-sequence token is added: a block's first scored token follows one token of text.

The early tokens of a block have little context, so this perplexity falls with T even for a model
that makes no use of distant text; `sliding`, of which this is the case S = T, shows how much of it
is that. Each length takes a pass, and a scheme that needs the total length beforehand, such as dynamic NTK, is given T.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pezoo.data import Windows
from pezoo.evaluation import sliding
from pezoo.evaluation.passes import LOSS_METRICS, Passes
from pezoo.evaluation.result import LengthResult

METRICS = LOSS_METRICS


@dataclass(frozen=True)
class Settings:
    """There are none."""


def run(passes: Passes, windows: Windows, lengths: Sequence[int], last: int, settings: Settings) -> list[LengthResult]:
    """Results at `lengths`; see this module and `pezoo.evaluation.evaluate`."""
    return sliding.run(passes, windows, lengths, last, sliding.Settings(stride=max(lengths)))
