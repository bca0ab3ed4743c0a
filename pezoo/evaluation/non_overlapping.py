"""`non_overlapping`: the same tokens at every length, in blocks that know nothing of each other.

The protocol of most published tables. Each window is cut into blocks of T tokens, and each block is
read with a fresh context: the stride is T. The loss at T is the mean over all tokens of all blocks,
each given the tokens before it in its block; perplexity is its exponential, and `last_perplexity`
takes the positions T - last ... T - 1 of the blocks alone. Every T scores every token of the
windows: where T does not divide their length, a window's last block is shorter. No
beginning-of-sequence token is added: a block's first scored token follows one token of text.

The early tokens of a block have little context, so this perplexity falls with T even for a model
that makes no use of distant text. Each length takes a pass, and schemes that depend on the total
length are told T.
"""

from collections.abc import Sequence

import numpy as np

from pezoo.data import Windows
from pezoo.evaluation.passes import Passes
from pezoo.evaluation.result import LengthResult


def non_overlapping(passes: Passes, windows: Windows, lengths: Sequence[int], last: int) -> list[LengthResult]:
    """Results at `lengths`; see this module and `pezoo.evaluation.evaluate`."""
    ids, document = windows.ids, np.asarray(windows.document)
    longest = ids.shape[1] - 1
    passes.expect(len(ids) * longest * len(lengths))
    results = []
    for length in lengths:
        n_blocks, rest = divmod(longest, length)
        blocks = [ids.unfold(1, length + 1, length).flatten(0, 1)]
        documents = [document.repeat(n_blocks)]
        if rest:
            blocks.append(ids[:, n_blocks * length :])
            documents.append(document)
        read = passes.run(length, blocks)
        results.append(
            read.result(
                length,
                read.losses,
                documents,
                last=last,
                protocol="non_overlapping",
                stride=length,
            )
        )
    return results
