"""`sliding`: the same tokens at every length, nearly all of them with nearly T tokens of context.

In each window a context of T tokens starts at every S-th token and is read afresh. The first one
scores what follows each of its T tokens, each later one only what follows its last S, which no
earlier one has scored. So every T scores every token of the windows once. With x_0 ... x_W the
tokens of a window, what follows x_i is predicted from

    x_c ... x_i,  c = S max(0, ceil((i - T + 1) / S))

that is from the window's beginning for i < T, and from T - S + 1 to T tokens after that. The loss at
T is the mean of -ln p(x_{i+1} | x_c ... x_i) over all windows and i = 0 ... W - 1; perplexity is its
exponential, and `last_perplexity` takes the scored positions T - last ... T - 1 of the contexts
alone. Where S does not divide W - T, the last context starts like the others and ends with the
window, so it is shorter.

`stride` is S. S = 1 is exact: T tokens of context for each token but a window's first. S = T is
`non_overlapping`, token for token, and a longer stride counts as T. Unset, S is a quarter of T
(rounded down, at least 1): more than three quarters of T as context, at the price of reading the
text about four times, whatever T is. A stride of so many tokens reads it T / S times: 256 at
T >= 2048 in Position Interpolation (Chen et al., 2023, arXiv 2306.15595) and YaRN (Peng et al.,
2023, arXiv 2309.00071).

Each length takes a pass, and a scheme that needs the total length beforehand, such as dynamic NTK, is given T,
also in the shorter context. No beginning-of-sequence token is added: the first scored token follows one token of
text. In losses by position, those below T - S are of the first contexts alone.
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
    """Of `sliding`."""

    stride: int | None = setting(None, "tokens between the starts of contexts; null: a quarter of T", at_least=1)


def run(passes: Passes, windows: Windows, lengths: Sequence[int], last: int, settings: Settings) -> list[LengthResult]:
    """Results at `lengths`; see this module and `pezoo.evaluation.evaluate`."""
    strides = [min(settings.stride or max(1, length // 4), length) for length in lengths]
    plans = [cut(windows, length, stride) for length, stride in zip(lengths, strides, strict=True)]
    passes.expect(sum(contexts.n_tokens for plan in plans for contexts in plan))
    return [
        passes.run(length, plan).result(length, last=last, stride=stride)
        for length, stride, plan in zip(lengths, strides, plans, strict=True)
    ]


def cut(windows: Windows, length: int, stride: int) -> list[Contexts]:
    """The contexts of one length: whole ones that score all, whole ones that score a stride, and the rest."""
    n_later, rest = divmod(windows.ids.shape[1] - 1 - length, stride)
    starts = range(0, n_later * stride + 1, stride)
    first, later = (starts[:1], starts[1:]) if stride < length else (starts, [])
    groups = [Contexts(windows, first, length, length)]
    if later:
        groups.append(Contexts(windows, later, length, stride))
    if rest:
        groups.append(Contexts(windows, [starts[-1] + stride], length - stride + rest, rest))
    return groups
