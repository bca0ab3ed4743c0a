"""A corpus: found, split, tokenised once, then read memory-mapped from a cache.

The cache (`$PEZOO_CACHE`, else `~/.cache/pezoo`) holds a folder per corpus, named by the hash of
its documents, its tokenizer and how it is split. A folder appears whole or not at all: it is built
beside its place and moved there, so that neither two processes nor a killed one leave half of it.
"""

import contextlib
import hashlib
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
from pezoo.data.sources import SPLITS, Documents, Source, find, split
from pezoo.data.tokenizer import Tokenizer, load_tokenizer
from pezoo.data.tokens import Tokens
from pezoo.errors import UserError

_log = logging.getLogger(__name__)

_FORMAT = 1
"""Raised whenever the same documents would give other tokens or other files."""


@dataclass(frozen=True, eq=False)
class Corpus:
    """Text as tokens, in three splits.

    Attributes:
        train: what is trained on.
        validation: what is looked at during training.
        test: what is tested on. None of its documents is in the other two.
        vocab_size: ids are below this.
        name: `python`, the name of a file or folder, or of a data set.
        hash: of the tokens of all splits; equal hashes are equal data.
        tokenizer: `bytes`, or the tokenizer's name.
        bos: id of the tokenizer's begin-of-sequence token, if it has one. No document holds it.
    """

    train: Tokens
    validation: Tokens
    test: Tokens
    vocab_size: int
    name: str
    hash: str
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
    ]
    key = hashlib.sha256(json.dumps(determined_by).encode()).hexdigest()[:20]
    folder = (cache_dir or _default_cache()) / "corpora" / f"{config.corpus}-{key}"
    if not _complete(folder):
        _build(folder, source, tokenizer, config)
    facts = json.loads((folder / "corpus.json").read_text("utf-8"))
    return Corpus(
        **{name: _open(folder, name, facts, 1.0 if tokenizer.name == "bytes" else None) for name in SPLITS},
        vocab_size=tokenizer.vocab_size,
        name=source.name,
        hash=facts["hash"],
        tokenizer=tokenizer.name,
        bos=tokenizer.bos,
    )


def _default_cache() -> Path:
    return Path(os.environ.get("PEZOO_CACHE") or "~/.cache/pezoo").expanduser()


def _complete(folder: Path) -> bool:
    return os.path.isfile(folder / "corpus.json")


def _open(folder: Path, name: str, facts: dict[str, Any], bytes_per_token: float | None) -> Tokens:
    names = json.loads((folder / f"{name}.names.json").read_text("utf-8"))
    ids = np.memmap(folder / f"{name}.ids", dtype=facts["dtype"], mode="r")
    return Tokens(ids, np.load(folder / f"{name}.offsets.npy"), names, bytes_per_token)


def _build(folder: Path, source: Source, tokenizer: Tokenizer, config: DataConfig) -> None:
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
        fractions = config.validation_fraction, config.test_fraction
        splits = split(source.read(scratch), *fractions, scratch)
        total, held_out = hashlib.sha256(), set()
        for name in reversed(SPLITS):  # the test first: what it holds is kept out of the others
            seen = _write(built, name, splits[name], tokenizer, config.max_bytes, held_out, total)
            held_out |= seen
        facts = {"hash": total.hexdigest(), "dtype": tokenizer.dtype.str}
        (built / "corpus.json").write_text(json.dumps(facts), "utf-8")
        try:
            os.replace(built, folder)
        except OSError:
            if not _complete(folder):
                raise
            # Another process was first, with the same content.
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


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
    total: Any,
) -> set[bytes]:
    """Tokenise one split into `folder` and add it to the hash `total`.

    Returns:
        Hashes of the documents, none for `train`, from which nothing is kept out.
    """

    def tokenise(batch: dict[str, list[str | None]]) -> dict[str, list[Any]]:
        texts = [text or "" for text in batch["text"]]
        contents = [text.encode() for text in texts]
        return {
            "ids": [ids.astype(tokenizer.dtype) for ids in tokenizer.encode(texts)],
            "digest": [hashlib.sha256(content).digest() for content in contents],
            "size": [len(content) for content in contents],
        }

    rows = documents.texts.to_iterable_dataset().map(tokenise, batched=True, batch_size=16, remove_columns=["text"])
    progress = tqdm(rows, f"tokenising {name}", len(documents.names), delay=5, leave=False)
    names, offsets, seen = [], [0], set()
    left, repeated = max_bytes, 0
    with (folder / f"{name}.ids").open("wb") as file:
        for document, row in zip(documents.names, progress, strict=True):
            ids = row["ids"]
            if row["digest"] in held_out:
                repeated += 1
                continue
            if left is not None and row["size"] > left:
                ids = ids[: len(ids) * left // row["size"]]
            if len(ids):
                file.write(ids.tobytes())
                total.update(ids.tobytes())
                names.append(document)
                offsets.append(offsets[-1] + len(ids))
                if name != "train":
                    seen.add(row["digest"])
            if left is not None:
                left -= row["size"]
                if left <= 0:
                    break
    if not names:
        raise UserError(
            f"the {name} split of the corpus is empty: {len(documents.names)} documents, no text "
            "but what other splits hold. Give a corpus with more text (data.corpus, data.path)."
        )
    if repeated:
        _log.info("%d documents of the %s split are held out elsewhere: left out", repeated, name)
    total.update(np.array(offsets, "<i8").tobytes())
    np.save(folder / f"{name}.offsets.npy", np.array(offsets, np.int64))
    (folder / f"{name}.names.json").write_text(json.dumps(names), "utf-8")
    return seen
