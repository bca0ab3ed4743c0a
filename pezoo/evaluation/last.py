"""`last`: the same few tokens at every length, with more and more text to their left.

The last k tokens of each window are scored, from one context: the T tokens that end where the
longest context ends. With x_0 ... x_W the tokens of a window,

    loss(T) = 1 / (N k) sum_w sum_{W - k <= i < W} -ln p(x_{i+1} | x_{W-T} ... x_i)

and perplexity(T) is its exponential; `last_perplexity` is over the last `last` of the k tokens. What
is predicted is the same at every T and only the context grows, from T - k + 1 ... T tokens at T, so a
model that uses distant text gets better with T and one that cannot bear it gets worse: there is no
effect of early tokens, nor of easier or harder text. So Kazemnejad et al. (2023, arXiv 2305.19466,
appendix F.3) measure it, with k = 200.

`n_tokens` is k; unset, k is `last`. A T below k cannot hold the tokens and is "undefined".

Each length takes a pass, and a scheme that needs the total length beforehand, such as dynamic NTK, is given T. No
beginning-of-sequence token is added: the context's first token is one of the text. In losses by
position there are the positions T - k ... T - 1 alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pezoo.data import Windows
from pezoo.evaluation.passes import LOSS_METRICS, Contexts, Passes
from pezoo.evaluation.result import LengthResult
from pezoo.registry import setting

METRICS = LOSS_METRICS


@dataclass(frozen=True)
class Settings:
    """Of `last`."""

    n_tokens: int | None = setting(None, "scored tokens of each window (k); null: as many as `last`", at_least=1)


def run(passes: Passes, windows: Windows, lengths: Sequence[int], last: int, settings: Settings) -> list[LengthResult]:
    """Results at `lengths`; see this module and `pezoo.evaluation.evaluate`."""
    longest, scored = windows.ids.shape[1] - 1, settings.n_tokens or last
    passes.expect(len(windows.ids) * sum(length for length in lengths if length >= scored))
    results = []
    for length in lengths:
        if length < scored:
            why = f"a context of {length} tokens does not hold the {scored} that are scored"
            results.append(LengthResult(length, status="undefined", reason=why))
            continue
        read = passes.run(length, [Contexts(windows, [longest - length], length, scored)])
        results.append(read.result(length, last=last))
    return results
