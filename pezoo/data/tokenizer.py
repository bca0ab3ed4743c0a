"""Text to tokens: the bytes of UTF-8, or a tokenizer of `transformers`."""

import codecs
import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pezoo.errors import UserError


@dataclass(frozen=True)
class Tokenizer:
    """What turns texts into ids.

    Attributes:
        name: `bytes`, or the name it was loaded by.
        vocab_size: ids are below this.
        bos: id of the begin-of-sequence token, if it has one. `encode` never adds it.
        fingerprint: hash of all that determines the ids.
        encode: texts -> ids of each text, (n_tokens,).
        decoder: makes a function that is called as `decode(ids)` as tokens come, and once as `decode([], final=True)`;
            it returns the text that they complete. What is no text becomes U+FFFD.
    """

    name: str
    vocab_size: int
    bos: int | None
    fingerprint: str
    encode: Callable[[list[str]], list[np.ndarray]]
    decoder: Callable[[], Callable[..., str]]

    @property
    def dtype(self) -> np.dtype:
        """The smallest unsigned type that holds every id, little-endian."""
        return np.min_scalar_type(self.vocab_size - 1).newbyteorder("<")


def load_tokenizer(name: str | None) -> Tokenizer:
    """Load a tokenizer by name or folder; None is bytes.

    Raises:
        UserError: if there is no such tokenizer, or no `transformers` to load it with.
    """
    if name is None:
        return Tokenizer("bytes", 256, None, "bytes", _utf8, _utf8_decoder)
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise UserError(
            f"data.tokenizer={name} needs the package transformers: type "
            "`pip install transformers`, or leave data.tokenizer out to read bytes."
        ) from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f"data.tokenizer={name} cannot be loaded: {_first_line(error)} Give the name of a "
            "tokenizer on the hub or a folder that holds one, or leave it out to read bytes."
        ) from None

    def encode(texts: list[str]) -> list[np.ndarray]:
        options: dict[str, Any] = {"add_special_tokens": False, "return_attention_mask": False}
        return [np.array(ids) for ids in tokenizer(texts, verbose=False, **options)["input_ids"]]

    def decoder() -> Callable[..., str]:
        return _incremental(lambda ids: tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    vocab_size = max(tokenizer.get_vocab().values()) + 1
    return Tokenizer(name, vocab_size, tokenizer.bos_token_id, _fingerprint(tokenizer), encode, decoder)


def _utf8(texts: list[str]) -> list[np.ndarray]:
    return [np.frombuffer(text.encode(), np.uint8) for text in texts]


def _utf8_decoder() -> Callable[..., str]:
    incremental = codecs.getincrementaldecoder("utf-8")("replace")
    return lambda ids, final=False: incremental.decode(bytes(ids), final)


def _incremental(to_text: Callable[[list[int]], str]) -> Callable[..., str]:
    """Text as it comes, where a token's text depends on the one before it and a character may take several tokens."""
    context: list[int] = []  # the tokens shown last
    waiting: list[int] = []

    def decode(ids: Sequence[int], final: bool = False) -> str:
        waiting.extend(ids)
        before, after = to_text(context), to_text(context + waiting)
        if not final and after.endswith("\N{REPLACEMENT CHARACTER}") and len(waiting) < 4:  # bytes of a character
            return ""
        context[:], waiting[:] = waiting or context, []
        return after[len(before) :]

    return decode


def _fingerprint(tokenizer: Any) -> str:
    """Hash of the files it saves; a name would not tell that what it names has changed."""
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
