"""Corpora: text, tokenised once and cached memory-mapped, and the two ways of cutting it.

`load` gives a corpus in three splits, `crops` its training batches, `windows` its test sequences.
"""

from pezoo.data.config import DataConfig
from pezoo.data.corpus import Corpus, load
from pezoo.data.tokens import Tokens, Windows, crops, windows

__all__ = ["Corpus", "DataConfig", "Tokens", "Windows", "crops", "load", "windows"]
