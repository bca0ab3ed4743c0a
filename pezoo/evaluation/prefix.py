"""`prefix`: every length reads the beginning of the same long windows.

Windows of the longest test length are cut at fixed places inside documents. The loss at T is the
mean over all windows w and their first T tokens i, each given the tokens before it in its window:

    loss(T) = 1 / (N T) sum_w sum_{i < T} -ln p(token_{w,i} | token_{w,<i})

and perplexity(T) is its exponential; `last_perplexity` takes i = T - last ... T - 1 alone. A window
is one context, so there is no stride. No beginning-of-sequence token is added: the first scored
token follows one token of text.

A scheme whose prefixes are stable is read once for all lengths, at the longest test length for which the forward
pass succeeds. Any other is read once per length and told that length, which all tokens of that pass then share.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pezoo.data import Windows
from pezoo.evaluation.passes import LOSS_METRICS, Contexts, Passes
from pezoo.evaluation.result import LengthResult

METRICS = LOSS_METRICS


@dataclass(frozen=True)
class Settings:
    """There are none."""


def run(passes: Passes, windows: Windows, lengths: Sequence[int], last: int, settings: Settings) -> list[LengthResult]:
    """Results at `lengths`; see this module and `pezoo.evaluation.evaluate`."""
    waiting = sorted(set(lengths), reverse=True)
    stable = passes.model.scheme.prefix_stable
    passes.expect(len(windows.ids) * (waiting[0] if stable else sum(waiting)))
    results = {}
    while waiting:
        longest = waiting[0]
        read = passes.run(longest, [Contexts(windows, [0], longest, longest)])
        served = waiting if stable and read.status == "ok" else waiting[:1]
        results |= {length: read.result(length, last=last) for length in served}
        waiting = waiting[len(served) :]
    return [results[length] for length in lengths]
