"""Text to tokens: the bytes of UTF-8, or a tokenizer of `transformers`."""

import codecs
import hashlib
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
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
        encode: texts -> ids of each text, (n_tokens,) of `dtype`. No id is special, whatever a text says. A second
            argument, if given, is called as `advance(n)` whenever n more bytes of text are done.
        decoder: makes a function that is called as `decode(ids)` as tokens come, and once as `decode([], final=True)`;
            it returns the text that they complete. What is no text becomes U+FFFD.
    """

    name: str
    vocab_size: int
    bos: int | None
    fingerprint: str
    encode: Callable[..., list[np.ndarray]]
    decoder: Callable[[], Callable[..., str]]

    @property
    def dtype(self) -> np.dtype:
        """The smallest unsigned type that holds every id, little-endian."""
        return _dtype(self.vocab_size)


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
            "`pip install 'pezoo[hf]'`, or leave data.tokenizer out to read bytes."
        ) from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f"data.tokenizer={name} cannot be loaded: {_first_line(error)} Give the name of a "
            "tokenizer on the hub or a folder that holds one, or leave it out to read bytes."
        ) from None

    def decoder() -> Callable[..., str]:
        return _incremental(lambda ids: tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    vocab_size = max(tokenizer.get_vocab().values()) + 1
    encode = Encoder(tokenizer, _dtype(vocab_size))
    return Tokenizer(name, vocab_size, tokenizer.bos_token_id, _fingerprint(tokenizer), encode, decoder)


def _dtype(vocab_size: int) -> np.dtype:
    return np.min_scalar_type(vocab_size - 1).newbyteorder("<")


class Encoder:
    """Texts to ids by a tokenizer of `transformers`.

    What it holds of each token while it works takes some hundred bytes, so long texts are encoded in pieces. Each piece
    reads on into the next, and the ids change over where both have had the same tokens for a while: they are those of
    the whole text, unless a token depends on text further off than `margin`. A tokenizer written in Python does not say
    where its tokens stand; its pieces end at white space, and there the ids may differ.

    Args:
        tokenizer: of `transformers`.
        dtype: of the ids.
        piece: characters in a piece.
        margin: characters that a piece reads beyond its ends.
    """

    def __init__(self, tokenizer: Any, dtype: np.dtype, piece: int = 1 << 16, margin: int = 1 << 10) -> None:
        self.tokenizer, self.dtype, self.piece, self.margin = tokenizer, dtype, piece, margin
        special = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        if tokenizer.unk_token_id != tokenizer.bos_token_id:  # any text may have characters that are unknown
            special.pop(tokenizer.unk_token_id, None)
        self.special = np.array(list(special), np.int64)
        # Behind the first character of each mark.
        self.spelled = re.compile("|".join(f"(?<={re.escape(m[:1])})(?={re.escape(m[1:])})" for m in special.values()))

    def __call__(self, texts: list[str], advance: Callable[[int], Any] = lambda n: None) -> list[np.ndarray]:
        """Ids of each text; see `Tokenizer.encode`."""
        found: list[Any] = [None] * len(texts)
        short = [i for i, text in enumerate(texts) if len(text) <= self.piece]
        for i, (ids, _) in zip(short, self._encode([texts[i] for i in short]), strict=True):
            found[i] = ids
            advance(len(texts[i].encode()))
        for i, text in enumerate(texts):
            if found[i] is None:
                found[i] = np.concatenate(list(self._pieces(text, advance)))
        return found

    def _encode(self, texts: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Ids of each text, (n_tokens, 2) where each token begins and ends (nothing if the tokenizer does not say)."""
        found = self._as_it_is(texts)
        for i, (ids, _) in enumerate(found):
            if np.isin(ids, self.special).any():  # a vocabulary of words may hold the mark as one: spell it
                parts = [part for part in self.spelled.split(texts[i]) if part]
                starts = np.cumsum([0, *map(len, parts[:-1])])
                ids, places = zip(*self._as_it_is(parts), strict=True)
                places = np.concatenate([place + start for place, start in zip(places, starts, strict=True)])
                ids = np.concatenate(ids)
                kept = ~np.isin(ids, self.special)
                found[i] = ids[kept], places[kept[: len(places)]]
        return found

    def _as_it_is(self, texts: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        if not texts:
            return []
        done = self.tokenizer(
            texts, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, verbose=False
        )
        ids = [np.array(ids, self.dtype) for ids in done["input_ids"]]
        offsets = [encoding.offsets for encoding in done.encodings] if done.encodings else [[]] * len(ids)
        return [(i, np.array(o, np.int64).reshape(-1, 2)) for i, o in zip(ids, offsets, strict=True)]

    def _pieces(self, text: str, advance: Callable[[int], Any]) -> Iterator[np.ndarray]:
        if not self.tokenizer.is_fast:
            for part in self._words(text):
                yield self._encode([part])[0][0]
                advance(len(part.encode()))
            return
        starts = range(0, len(text), self.piece)
        before, begin = None, 0
        for few in (starts[i : i + 8] for i in range(0, len(starts), 8)):
            origins = [max(0, start - self.margin) for start in few]
            stops = [start + self.piece + self.margin for start in few]
            pieces = self._encode([text[a:b] for a, b in zip(origins, stops, strict=True)])
            for start, origin, (ids, places) in zip(few, origins, pieces, strict=True):
                piece = ids, places + origin
                if before is not None:
                    end, next_begin = self._meet(before, piece, start)
                    yield before[0][begin:end]
                    begin = next_begin
                before = piece
                advance(len(text[start : start + self.piece].encode()))
        yield before[0][begin:]

    def _meet(self, left: tuple, right: tuple, cut: int, alike: int = 8) -> tuple[int, int]:
        """The number in each piece of a token near `cut` with the same tokens on both sides of it."""
        near, tokens = [], []
        for ids, places in (left, right):
            first, last = np.searchsorted(places[:, 0], [cut - self.margin, cut + self.margin])
            near.append(int(first))
            rows = slice(first, last)
            tokens.append(list(zip(*places[rows].T.tolist(), ids[rows].tolist(), strict=True)))
        lefts, rights = tokens
        where = {token: i for i, token in enumerate(rights)}
        for i in sorted(range(alike, len(lefts) - alike), key=lambda i: abs(lefts[i][0] - cut)):
            j = where.get(lefts[i], 0)
            if j >= alike and lefts[i - alike : i + alike] == rights[j - alike : j + alike]:
                return near[0] + i, near[1] + j
        return tuple(int(np.searchsorted(places[:, 0], cut)) for _, places in (left, right))

    def _words(self, text: str) -> Iterator[str]:
        """Parts of a text that end at white space, if there is any."""
        start = 0
        while start < len(text):
            stop = start + self.piece
            if stop < len(text):
                stop = max(text.rfind(space, start + 1, stop) for space in " \n")
                stop = stop if stop > start else start + self.piece
            yield text[start:stop]
            start = stop


def _utf8(texts: list[str], advance: Callable[[int], Any] = lambda n: None) -> list[np.ndarray]:
    found = [np.frombuffer(text.encode(), np.uint8) for text in texts]
    advance(sum(map(len, found)))
    return found


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
