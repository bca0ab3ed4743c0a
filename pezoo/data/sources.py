"""Where documents come from: each source reads its splits."""

import contextlib
import hashlib
import os
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from pezoo.data.config import DataConfig
from pezoo.errors import UserError, suggest

if TYPE_CHECKING:  # datasets takes a second to import, and only the hub needs it
    from datasets import Dataset, IterableDataset

SPLITS = ("train", "validation", "test")
_OTHER_NAMES = {"valid": "validation", "val": "validation", "dev": "validation"}

# Left out of the standard library and of packages: what distributions leave out too (tests), what others installed,
# and generated tables (character maps, help texts, parsers, polynomials to solve), near copies of one another that
# would show the test to the training.
_NOT_READ = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "benchmarks",
    "encodings",
    "pydoc_data",
    "_antlr",
}

Named = Iterable[tuple[str, str]]
"""Documents: name and text."""


@dataclass(frozen=True)
class Documents:
    """Documents of one split, read when they are asked for.

    Attributes:
        names: of all documents that `read` knows.
        sizes: (n,) int64, their bytes, about.
        read: numbers of documents -> their texts.
        rows: (m,) int64, which of them these are, in their order.
    """

    names: list[str]
    sizes: np.ndarray
    read: Callable[[list[int]], list[str]]
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def size(self) -> int:
        """Bytes in all, about."""
        return int(self.sizes[self.rows].sum())

    def select(self, which: np.ndarray) -> "Documents":
        """These of them, in this order."""
        return replace(self, rows=self.rows[which])

    def batches(self, size: int) -> Iterator[list[tuple[str, str]]]:
        """Names and texts of a few at a time: of one, or of more that have `size` bytes together."""
        filled = np.cumsum(self.sizes[self.rows]) // size
        for rows in np.split(self.rows, np.flatnonzero(np.diff(filled)) + 1):
            yield [(self.names[i], text) for i, text in zip(rows, self.read(rows.tolist()), strict=True)]


@dataclass(frozen=True)
class Source:
    """A corpus before it is tokenised.

    Attributes:
        name: what results call it.
        fingerprint: changes whenever a document or its split does.
        read: given a scratch folder, reads the documents of each split that the source has.
    """

    name: str
    fingerprint: str
    read: Callable[[Path], dict[str, Documents]]


def find(config: DataConfig) -> Source:
    """Find the corpus.

    Raises:
        UserError: if it is missing, empty or unreadable.
    """
    return {"package": _package, "python": _python, "text": _text, "hub": _hub}[config.corpus](config)


def split(given: dict[str, Documents], validation: float, test: float) -> dict[str, Documents]:
    """Cut the splits that are missing from `train`.

    Documents are ranked by a hash of their names: the first are the test split, the next validate,
    so that which split a document is in hardly depends on the others. Where there are too few for
    every split to have one, each document is cut into contiguous parts instead.

    Args:
        given: the splits that the source has, `train` among them.
        validation: share of the documents that validates, unless given.
        test: share of the documents that tests, unless given.

    Returns:
        All three splits, their documents in the order of the hashes: any first part is a sample.
    """
    given = {name: documents.select(_rank(documents)) for name, documents in given.items()}
    shares = {"test": test, "validation": validation}
    shares = {name: share for name, share in shares.items() if name not in given}
    train = given["train"]
    total = len(train)
    counts = {name: max(1, int(share * total)) for name, share in shares.items()}
    if sum(counts.values()) >= total:
        return given | _contiguous(train, shares)
    start = 0
    for name, count in counts.items():
        given[name] = train.select(np.arange(start, start + count))
        start += count
    return given | {"train": train.select(np.arange(start, total))}


def _rank(documents: Documents) -> np.ndarray:
    keys = [hashlib.sha256(os.fsencode(documents.names[i])).digest() for i in documents.rows]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)


def _contiguous(train: Documents, shares: dict[str, float]) -> dict[str, Documents]:
    """The beginning of each document is for training, its end for testing."""
    parts, start = {}, 0.0
    for name in SPLITS:
        if name in shares or name == "train":
            stop = start + shares.get(name, 1 - sum(shares.values()))
            names = [f"{document} ({name})" for document in train.names]
            sizes = (train.sizes * (stop - start)).astype(np.int64)
            parts[name] = Documents(names, sizes, partial(_parts, train, start, stop), train.rows)
            start = stop
    return parts


def _parts(documents: Documents, start: float, stop: float, rows: list[int]) -> list[str]:
    return [text[round(start * len(text)) : round(stop * len(text))] for text in documents.read(rows)]


def _python(config: DataConfig) -> Source:
    root = Path(sysconfig.get_path("stdlib"))
    found = {}
    for folder, folders, names in os.walk(root):
        folders[:] = set(folders) - _NOT_READ
        for path in (Path(folder, name) for name in names):
            # _sysconfigdata_* is what the interpreter's own build wrote.
            if path.suffix == ".py" and path.is_file() and not path.name.startswith("_sysconfigdata"):
                found[path.relative_to(root).as_posix()] = path
    return _sources("python", found, f"this interpreter's standard library, {root},")


def _package(config: DataConfig) -> Source:
    """The files that the package's own list names: not what others put beside them, nor what is compiled."""
    name, version = config.name or "sympy", config.version
    try:
        package = metadata.distribution(name)
    except (metadata.PackageNotFoundError, ValueError):
        wanted = f"{name}=={version}" if version else name
        raise UserError(
            f"data.name={name} is not installed: type `pip install {wanted}`, or add data.corpus=hub if a data set of "
            "the hub is meant."
        ) from None
    if version not in (None, package.version):
        raise UserError(
            f"data.version={version}, but {name} {package.version} is installed: type `pip install "
            f"{name}=={version}`, or leave out data.version."
        )
    found = {
        file.as_posix(): Path(file.locate())
        for file in package.files or ()
        if file.suffix == ".py" and len(file.parts) > 1 and not {"..", *_NOT_READ} & set(file.parts)
    }
    return _sources(f"{name} {package.version}", found, f"the installed package {name}, by its list of files,")


def _sources(corpus: str, found: dict[str, Path], where: str) -> Source:
    """Python files, the same on every system: line ends of Unix, in the order of their names."""
    files, digest = {}, hashlib.sha256()
    for name, path in sorted(found.items()):
        # A source file may declare an encoding of its own; few do, and they are left out.
        try:
            with contextlib.suppress(UnicodeDecodeError):
                digest.update(_digest(name, path))
                files[name] = path
        except OSError as error:
            raise UserError(f"data.corpus: {path} cannot be read: {error.strerror}. Install {corpus} again.") from None
    if not files:
        raise UserError(f"{where} holds no source text. Use data.corpus=text data.path=FOLDER.")
    return Source(corpus, digest.hexdigest(), lambda scratch: {"train": _files(files, _unix)})


def _unix(path: Path) -> str:
    return _decoded(path).replace("\r\n", "\n")


def _text(config: DataConfig) -> Source:
    path = Path(config.path).expanduser()
    if os.path.isfile(path):
        return _users_files(path.stem, {"train": {path.name: path}}, config.delimiter)
    if not os.path.isdir(path):
        what = "is neither a file nor a folder" if os.path.exists(path) else "does not exist"
        raise UserError(f"data.path={config.path} {what}; give a text file or a folder of them.")
    try:
        folders = {_split_name(p.name): p for p in sorted(path.iterdir()) if p.is_dir()}
        if "train" in folders:
            folders = {name: folder for name, folder in folders.items() if name in SPLITS}
        else:
            folders = {"train": path}
        files = {
            name: {
                file.relative_to(path).as_posix(): file
                for file in sorted(folder.rglob("*"))
                if file.is_file() and _wanted(file.relative_to(folder), config.pattern)
            }
            for name, folder in folders.items()
        }
    except OSError as error:
        raise UserError(f"data.path={config.path} cannot be read: {error}.") from None
    for name, found in files.items():
        if not found:
            raise UserError(
                f"data.path: no file in {folders[name]} fits "
                f"data.pattern={config.pattern}. Give a folder that holds text files."
            )
    return _users_files(path.resolve().name, files, config.delimiter)


def _split_name(name: str) -> str:
    return _OTHER_NAMES.get(name, name)


def _wanted(name: Path, pattern: str) -> bool:
    return PurePosixPath(name).match(pattern) and not any(p.startswith(".") for p in name.parts)


def _users_files(corpus: str, splits: dict[str, dict[str, Path]], delimiter: str | None) -> Source:
    digest = hashlib.sha256()
    for split_name, files in splits.items():
        for name, path in files.items():
            try:
                digest.update(_digest(f"{split_name}\0{name}", path))
            except OSError as error:
                raise UserError(f"data.path: {path} cannot be read: {error.strerror}.") from None
            except UnicodeDecodeError as error:
                raise UserError(
                    f"data.path: {path} is not UTF-8 text (byte {error.start}). Convert it, or "
                    "choose other files with data.pattern, such as data.pattern='*.txt'."
                ) from None

    def read(scratch: Path) -> dict[str, Documents]:
        if delimiter is None:
            return {name: _files(files, _decoded) for name, files in splits.items()}
        found = {name: _kept(_cut(_named(files), delimiter), scratch / name) for name, files in splits.items()}
        if sum(map(len, found.values())) <= sum(map(len, splits.values())):
            raise UserError(f"data.delimiter={delimiter!r} stands between no two documents in {corpus}.")
        return found

    return Source(corpus, digest.hexdigest(), read)


def _named(files: dict[str, Path]) -> Named:
    return ((name, _decoded(path)) for name, path in files.items())


def _files(files: dict[str, Path], read: Callable[[Path], str]) -> Documents:
    """One document a file."""
    paths = list(files.values())
    sizes = np.array([path.stat().st_size for path in paths], np.int64)
    return Documents(list(files), sizes, lambda rows: [read(paths[i]) for i in rows], np.arange(len(paths)))


def _decoded(path: Path) -> str:
    return path.read_bytes().decode("utf-8-sig")


def _digest(name: str, path: Path) -> bytes:
    content = path.read_bytes()
    content.decode("utf-8-sig")  # text it must be
    return hashlib.sha256(os.fsencode(name) + b"\0" + content).digest()


def _kept(documents: Named, path: Path) -> Documents:
    """Documents that come one after the other, written to a file so that they can be read in any order."""
    names, ends = [], [0]
    with path.open("wb") as file:
        for name, text in documents:
            names.append(name)
            ends.append(ends[-1] + file.write(text.encode()))

    def read(rows: list[int]) -> list[str]:
        texts = []
        with path.open("rb") as file:
            for i in rows:
                file.seek(ends[i])
                texts.append(file.read(ends[i + 1] - ends[i]).decode())
        return texts

    return Documents(names, np.diff(np.array(ends, np.int64)), read, np.arange(len(names)))


def _cut(documents: Named, delimiter: str) -> Named:
    """The parts of each document between the delimiters that have any text."""
    for name, text in documents:
        parts = (part.strip("\r\n") for part in text.split(delimiter))
        yield from ((f"{name}[{i}]", part) for i, part in enumerate(filter(None, parts)))


def _joined(rows: Named, start: str) -> Named:
    """Rows as lines of documents; one that matches `start` is the first of a document, named by it."""
    begins, first, lines = re.compile(start).match, "", list[str]()
    for name, text in rows:
        if begins(text) and lines:
            yield first, "".join(lines)
            lines = []
        first = first if lines else name
        lines.append(text if text.endswith("\n") else text + "\n")
    yield first, "".join(lines)


def _beginning(documents: Named, size: float) -> Named:
    """As many documents as have `size` bytes; no more are asked for."""
    for name, text in documents:
        yield name, text
        size -= len(text.encode())
        if size <= 0:
            return


def _hub(config: DataConfig) -> Source:
    import datasets

    given = f"data.name={config.name}" + (f" data.subset={config.subset}" if config.subset else "")
    given += f" data.revision={config.revision}" if config.revision else ""
    # Downloads may be long and show their progress; reading a folder is not worth a bar.
    quiet = _quiet if os.path.isdir(config.name) else contextlib.nullcontext
    with quiet(), _loading(given, config):
        builder = datasets.load_dataset_builder(config.name, config.subset, revision=config.revision)

    def read(scratch: Path) -> dict[str, Documents]:
        with quiet(), _loading(given, config):
            if config.max_bytes is None:
                builder.download_and_prepare()
            # What was fetched before need not be fetched again.
            whole = config.max_bytes is None or os.path.isfile(Path(builder.cache_dir, "dataset_info.json"))
            splits = builder.as_dataset() if whole else builder.as_streaming_dataset()
            found = {_split_name(name): rows for name, rows in splits.items()}
            if "train" not in found:
                raise UserError(f"{given} has no split named train; it has: {', '.join(splits)}.")
            return {name: _rows(name, found, config, given, scratch) for name in SPLITS if name in found}

    fingerprint = f"{config.name}/{builder.config_id}/{builder.hash}/{config.text_column}"
    return Source("/".join(filter(None, [config.name, config.subset])), fingerprint, read)


def _rows(
    split_name: str, found: "dict[str, Dataset | IterableDataset]", config: DataConfig, given: str, scratch: Path
) -> Documents:
    """The documents of a split: its rows as they are, or joined, cut, or the beginning of them."""
    rows, column = found[split_name], config.text_column
    _check_column(rows, column, given)
    if config.document_start is None and config.delimiter is None and config.max_bytes is None:
        import pyarrow.compute as pc

        sizes = pc.fill_null(pc.binary_length(rows.data.column(column)), 0).to_numpy().astype(np.int64)
        names = [f"{split_name}[{i}]" for i in range(len(rows))]
        texts = rows[column]
        return Documents(names, sizes, lambda which: [text or "" for text in texts[which]], np.arange(len(names)))
    documents: Named = ((f"{split_name}[{i}]", row[column] or "") for i, row in enumerate(rows.select_columns(column)))
    if config.document_start is not None:
        documents = _joined(documents, config.document_start)
    if config.delimiter is not None:
        documents = _cut(documents, config.delimiter)
    if config.max_bytes is not None:
        shares = {"validation": config.validation_fraction, "test": config.test_fraction}
        taken = sum(share for name, share in shares.items() if name not in found) if split_name == "train" else 0
        documents = _beginning(documents, config.max_bytes / (1 - taken))
    return _kept(documents, scratch / split_name)


def _check_column(rows: "Dataset | IterableDataset", column: str, given: str) -> None:
    import datasets

    if rows.features is not None:
        kinds = ("string", "large_string")
        strings = [k for k, v in rows.features.items() if isinstance(v, datasets.Value) and v.dtype in kinds]
    else:  # of a stream the first row alone is known
        strings = [k for k, v in next(iter(rows), {}).items() if v is None or isinstance(v, str)]
    if column not in strings:
        raise UserError(
            f"data.text_column={column} is no column of text in {given}.{suggest(column, strings)} "
            f"Its columns of text: {', '.join(strings) or 'none'}."
        )


@contextlib.contextmanager
def _loading(given: str, config: DataConfig) -> Iterator[None]:
    """Say in one sentence what `datasets` says in many."""
    import datasets

    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, NotImplementedError, datasets.exceptions.DatasetsError) as error:
        reason = str(error.__cause__ or error).strip()
        if "scripts are no longer supported" in reason:
            raise UserError(
                f"{given} is a loading script, a program that is not run. Give a data set of data files; the hub holds "
                "a copy in parquet files of many: add data.revision=refs/convert/parquet."
            ) from None
        if "onfig name is missing" in reason:
            names = datasets.get_dataset_config_names(config.name, revision=config.revision)
            raise UserError(
                f"{given} has several configurations: add data.subset=NAME, one of {', '.join(names)}."
            ) from None
        raise UserError(
            f"{given} cannot be loaded: {reason.splitlines()[0] if reason else type(error).__name__}. Give a data set "
            "of the Hugging Face hub (the first time needs a network), or a folder of jsonl or parquet files."
        ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of `datasets`: they would flash by."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
