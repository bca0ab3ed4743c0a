"""The `data` part of a recipe."""

from dataclasses import dataclass, fields
from typing import Literal

from pezoo.errors import UserError, suggest

_ONLY_FOR = {
    "path": "text",
    "pattern": "text",
    "name": "hub",
    "subset": "hub",
    "revision": "hub",
    "text_column": "hub",
}


@dataclass
class DataConfig:
    """Which text is read, how it is split, and how it becomes tokens.

    Raises:
        UserError: for values that do not go together, naming the key.
    """

    corpus: Literal["python", "text", "hub"] = "python"
    """`python`: source of the running interpreter's standard library; `text`: your own files;
    `hub`: a data set of the Hugging Face hub."""
    path: str | None = None
    """`text`: a file or a folder, one document a file, UTF-8. Where it has a sub-folder
    `train`, that and `validation` and `test` beside it are the splits, and nothing else is read. A
    single file is cut into three contiguous parts."""
    pattern: str = "*"
    """`text`: which files of the folder are read, such as `*.txt`. Hidden ones never are."""
    name: str | None = None
    """`hub`: the data set, such as `Salesforce/wikitext`, or a folder of jsonl or parquet files."""
    subset: str | None = None
    """`hub`: the data set's configuration, such as `wikitext-103-raw-v1`."""
    revision: str | None = None
    """`hub`: commit, tag or branch of the data set."""
    text_column: str = "text"
    """`hub`: the column that holds the documents."""
    tokenizer: str | None = None
    """Name (or folder) of a `transformers` tokenizer; null: bytes, a vocabulary of 256."""
    max_bytes: int | None = None
    """Read at most this much text into each split, a sample of its documents; null: everything."""
    validation_fraction: float = 0.05
    """Share of the documents that validates, where the corpus has no validation split."""
    test_fraction: float = 0.1
    """Share of the documents that tests, where the corpus has no test split."""

    def __post_init__(self) -> None:
        """Refuse values that do not go together."""
        corpora = ("python", "text", "hub")
        if self.corpus not in corpora:
            raise UserError(
                f"data.corpus={self.corpus} is no corpus.{suggest(str(self.corpus), corpora)} "
                f"There are: {', '.join(corpora)}."
            )
        for key, example in (("path", "FOLDER"), ("name", "Salesforce/wikitext")):
            if self.corpus == _ONLY_FOR[key] and not getattr(self, key):
                raise UserError(f"data.corpus={self.corpus} needs data.{key}, such as data.{key}={example}.")
        defaults = {field.name: field.default for field in fields(self)}
        for key, corpus in _ONLY_FOR.items():
            if self.corpus != corpus and getattr(self, key) != defaults[key]:
                raise UserError(
                    f"data.{key}={getattr(self, key)} is read by data.corpus={corpus} alone, and "
                    f"data.corpus is {self.corpus}: add data.corpus={corpus}, or leave out "
                    f"data.{key}."
                )
        if not self.pattern or not self.text_column:
            key = "text_column" if self.pattern else "pattern"
            raise UserError(f"data.{key} is empty; leave it out for {defaults[key]!r}.")
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
