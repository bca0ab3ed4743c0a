"""The `data` part of a recipe."""

import re
from dataclasses import dataclass, fields
from typing import Literal

from pezoo.errors import UserError, suggest

CORPORA = ("package", "python", "text", "hub")

_ONLY_FOR = {
    "path": ("text",),
    "pattern": ("text",),
    "name": ("package", "hub"),
    "version": ("package",),
    "subset": ("hub",),
    "revision": ("hub",),
    "text_column": ("hub",),
    "document_start": ("hub",),
    "delimiter": ("text", "hub"),
}


@dataclass
class DataConfig:
    """Which text is read, how it is split, and how it becomes tokens.

    Raises:
        UserError: for values that do not go together, naming the key.
    """

    corpus: Literal["package", "python", "text", "hub"] = "package"
    """`package`: source of an installed Python package, the same text for everybody who has that version; `python`:
    source of the running interpreter's standard library; `text`: your own files; `hub`: a data set of the Hugging Face
    hub."""
    name: str | None = None
    """`package`: its name, as pip knows it; null: `sympy`, which PyTorch brings. `hub`: the data set, such as
    `Salesforce/wikitext`, or a folder of jsonl or parquet files."""
    version: str | None = None
    """`package`: the version that must be installed, such as `1.14.0`; null: any."""
    path: str | None = None
    """`text`: a file or a folder, one document a file, UTF-8. Where it has a sub-folder
    `train`, that and `validation` and `test` beside it are the splits, and nothing else is read. A
    single file is cut into three contiguous parts, unless `delimiter` makes enough documents of it."""
    pattern: str = "*"
    """`text`: which files of the folder are read, such as `*.txt`. Hidden ones never are."""
    subset: str | None = None
    """`hub`: the data set's configuration, such as `wikitext-103-raw-v1`."""
    revision: str | None = None
    """`hub`: commit, tag or branch of the data set."""
    text_column: str = "text"
    """`hub`: the column that holds the documents."""
    document_start: str | None = None
    """`hub`: for rows that are paragraphs. A regular expression; a row that it matches begins a document, and the rows
    after it belong to that. Null: each row is a document."""
    delimiter: str | None = None
    """`text`, `hub`: what stands between documents in a file or a row, such as `<|endoftext|>`. Text is cut there, and
    neither it nor the line breaks beside it are read."""
    tokenizer: str | None = None
    """Name (or folder) of a `transformers` tokenizer; null: bytes, a vocabulary of 256."""
    max_bytes: int | None = None
    """Read at most this much text into each split; null: everything. `hub`: the beginning of the data set, and no more
    of it is fetched; others: a sample of the documents."""
    validation_fraction: float = 0.05
    """Share of the documents that validates, where the corpus has no validation split."""
    test_fraction: float = 0.1
    """Share of the documents that tests, where the corpus has no test split."""

    def __post_init__(self) -> None:
        """Refuse values that do not go together."""
        if self.corpus not in CORPORA:
            raise UserError(
                f"data.corpus={self.corpus} is no corpus.{suggest(str(self.corpus), CORPORA)} "
                f"There are: {', '.join(CORPORA)}."
            )
        for corpus, key, example in (("text", "path", "FOLDER"), ("hub", "name", "Salesforce/wikitext")):
            if self.corpus == corpus and not getattr(self, key):
                raise UserError(f"data.corpus={self.corpus} needs data.{key}, such as data.{key}={example}.")
        defaults = {field.name: field.default for field in fields(self)}
        for key, corpora in _ONLY_FOR.items():
            if self.corpus not in corpora and getattr(self, key) != defaults[key]:
                raise UserError(
                    f"data.{key}={getattr(self, key)} is read by data.corpus={' or '.join(corpora)} alone, and "
                    f"data.corpus is {self.corpus}: add data.corpus={corpora[-1]}, or leave out data.{key}, as "
                    f"data.{key}={'null' if defaults[key] is None else defaults[key]} does."
                )
        for key in ("pattern", "text_column", "delimiter", "document_start"):
            if getattr(self, key) == "":
                raise UserError(f"data.{key} is empty; leave it out for {defaults[key] or 'none'}.")
        try:
            re.compile(self.document_start or "")
        except re.error as error:
            raise UserError(f"data.document_start={self.document_start} is no regular expression: {error}.") from None
        if self.max_bytes is not None and self.max_bytes < 1:
            raise UserError(f"data.max_bytes={self.max_bytes} must be at least 1, or null for all.")
        for key in ("validation_fraction", "test_fraction"):
            if not 0 < getattr(self, key) < 1:
                raise UserError(f"data.{key}={getattr(self, key)} must lie between 0 and 1.")
        if self.validation_fraction + self.test_fraction >= 1:
            raise UserError(
                f"data.validation_fraction={self.validation_fraction} and "
                f"data.test_fraction={self.test_fraction} leave nothing to train on; "
                "their sum must be below 1."
            )
