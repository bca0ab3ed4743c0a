"""A corpus: found, split, tokenised once, then read memory-mapped from a cache.

The cache (`$PEZOO_CACHE`, else `~/.cache/pezoo`) holds a folder per corpus, named by the hash of
its documents, its tokenizer and how it is split. A folder appears whole or not at all: it is built
beside its place and moved there, so that neither two processes nor a killed one leave half of it.
`corpus.json` lists its files with their digests; a folder that is not as it was written is built anew.
"""

import contextlib
import errno
import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pezoo.data.config import DataConfig
from pezoo.data.documents import SPLITS, Documents, Source, split
from pezoo.data.sources import find
from pezoo.data.tokenizer import Tokenizer, load_tokenizer
from pezoo.data.tokens import Tokens
from pezoo.errors import UserError
from pezoo.files import Damaged, move, seal, unseal

_log = logging.getLogger(__name__)

_BATCH = 1 << 20
"""Bytes of text that are tokenised together, where documents are short."""

_FORMAT = 3
"""Raised whenever the same documents would give other tokens or other files."""


@dataclass(frozen=True, eq=False)
class Corpus:
    """Text as tokens, in three splits.

    Attributes:
        train: what is trained on.
        validation: what is looked at during training.
        test: what is tested on. None of its documents is in the other two; where there are too few documents for three
            splits, it has the end of each.
        vocab_size: ids are below this.
        name: `python`, a package and its version, the name of a file or folder, or of a data set.
        hash: of the tokens of all splits; equal hashes are equal data.
        digest: of the text of all splits, whatever it is tokenised by; equal digests are equal texts.
        tokenizer: `bytes`, or the tokenizer's name.
        bos: id of the tokenizer's begin-of-sequence token, if it has one. No document holds it.
    """

    train: Tokens
    validation: Tokens
    test: Tokens
    vocab_size: int
    name: str
    hash: str
    digest: str
    tokenizer: str
    bos: int | None


def load(config: DataConfig, cache_dir: Path | None = None) -> Corpus:
    """Load a corpus; the first time, tokenise it.

    Args:
        config: which corpus.
        cache_dir: where tokens are kept; default: `$PEZOO_CACHE`, else `~/.cache/pezoo`.

    Raises:
        UserError: if the corpus is missing, empty or unreadable, or the cache cannot be written.
    """
    source, tokenizer = find(config), load_tokenizer(config.tokenizer)
    determined_by = [
        _FORMAT,
        source.fingerprint,
        tokenizer.fingerprint,
        config.max_bytes,
        config.validation_fraction,
        config.test_fraction,
        config.document_start,
        config.delimiter,
    ]
    key = hashlib.sha256(json.dumps(determined_by).encode()).hexdigest()[:20]
    folder = (cache_dir or _default_cache()) / "corpora" / f"{config.corpus}-{key}"
    facts = _facts(folder)
    if facts is None:
        facts = _build(folder, source, tokenizer, config)
    return Corpus(
        **{name: _open(folder, name, facts) for name in SPLITS},
        vocab_size=tokenizer.vocab_size,
        name=source.name,
        hash=facts["hash"],
        digest=facts["digest"],
        tokenizer=tokenizer.name,
        bos=tokenizer.bos,
    )


def _default_cache() -> Path:
    return Path(os.environ.get("PEZOO_CACHE") or "~/.cache/pezoo").expanduser()


def _facts(folder: Path) -> dict[str, Any] | None:
    """What was written down of a corpus; None if it must be built. Its files are read once in a process."""
    if not os.path.lexists(folder):
        return None
    try:
        return unseal(folder / "corpus.json")
    except Damaged as error:
        _log.warning("the corpus in %s is damaged (%s), and made anew", folder, error)
        return None


def _open(folder: Path, name: str, facts: dict[str, Any]) -> Tokens:
    names = json.loads((folder / f"{name}.names.json").read_text("utf-8"))
    ids = np.memmap(folder / f"{name}.ids", dtype=facts["dtype"], mode="r")
    return Tokens(ids, np.load(folder / f"{name}.offsets.npy"), names, facts["bytes"][name], name)


def _build(folder: Path, source: Source, tokenizer: Tokenizer, config: DataConfig) -> dict[str, Any]:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        scratch = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    except OSError as error:
        raise UserError(
            f"the cache folder {folder.parent} cannot be written ({error.strerror}); set the "
            "environment variable PEZOO_CACHE to a folder that can."
        ) from None
    try:
        built = scratch / "built"
        built.mkdir()
        splits = split(source.read(scratch), config.validation_fraction, config.test_fraction)
        facts = {"hash": hashlib.sha256(), "digest": hashlib.sha256(), "dtype": tokenizer.dtype.str, "bytes": {}}
        held_out: set[bytes] = set()
        for name in reversed(SPLITS):  # the test first: what it holds is kept out of the others
            held_out |= _write(built, name, splits[name], tokenizer, config.max_bytes, held_out, facts)
        facts |= {kind: facts[kind].hexdigest() for kind in ("hash", "digest")}
        facts = seal(built / "corpus.json", facts)
        try:
            os.replace(built, folder)
        except OSError:
            with contextlib.suppress(Damaged):
                return unseal(folder / "corpus.json")  # another process was first, with the same content
            move(built, folder)
        return facts
    except Exception as error:
        if (why := _no_room(error)) is not None:
            raise UserError(
                f"there is no room for the corpus in {folder.parent} ({why}); make some, or set the environment "
                "variable PEZOO_CACHE to a folder on another disk."
            ) from None
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _no_room(error: BaseException | None) -> str | None:
    """What the system said, if an exception comes from a full disk, by whatever way."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return error.strerror
        error = error.__cause__ or error.__context__
    return None


def _sweep(parent: Path) -> None:
    """Remove what killed processes left; a day is longer than any build."""
    for left in parent.glob(".building-*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > 86_400:
                shutil.rmtree(left)


def _write(
    folder: Path,
    name: str,
    documents: Documents,
    tokenizer: Tokenizer,
    max_bytes: int | None,
    held_out: set[bytes],
    facts: dict[str, Any],
) -> set[bytes]:
    """Tokenise one split into `folder` and add it to the hashes and bytes of `facts`.

    Returns:
        Hashes of the documents, none for `train`, from which nothing is kept out.
    """
    names, offsets, seen, repeated = [], [0], set[bytes](), 0
    left = documents.size if max_bytes is None else max_bytes
    total = min(left, documents.size)
    bar = tqdm(desc=f"tokenising {name}", total=total, unit="B", unit_scale=True, delay=5, leave=False)
    facts["bytes"][name] = 0
    with bar, (folder / f"{name}.ids").open("wb") as file:
        for batch in documents.batches(_BATCH):
            chosen = []
            for document, text in batch:
                content = text.encode()
                digest = hashlib.sha256(content).digest()
                if digest in held_out:
                    repeated += 1
                    continue
                cut = max_bytes is not None and len(content) > left
                if cut:
                    text = content[:left].decode(errors="ignore")  # not half a character
                    content = text.encode()
                left = 0 if cut else left - len(content)
                if content:
                    chosen.append((document, text))
                    facts["digest"].update(hashlib.sha256(content).digest())
                    facts["bytes"][name] += len(content)
                    if name != "train":
                        seen.add(digest)
            for (document, _), ids in zip(
                chosen, tokenizer.encode([text for _, text in chosen], bar.update), strict=True
            ):
                if len(ids):
                    file.write(ids.tobytes())
                    facts["hash"].update(ids.tobytes())
                    names.append(document)
                    offsets.append(offsets[-1] + len(ids))
            if max_bytes is not None and left <= 0:
                break
    if not names:
        raise UserError(
            f"the {name} split of the corpus is empty: {len(documents)} documents, no text "
            "but what other splits hold. Give a corpus with more text (data.corpus, data.path)."
        )
    if repeated:
        _log.info("%d documents of the %s split are held out elsewhere: left out", repeated, name)
    facts["hash"].update(np.array(offsets, "<i8").tobytes())
    array = io.BytesIO()  # numpy itself does not say that a disk is full
    np.save(array, np.array(offsets, np.int64))
    (folder / f"{name}.offsets.npy").write_bytes(array.getvalue())
    (folder / f"{name}.names.json").write_text(json.dumps(names), "utf-8")
    return seen
