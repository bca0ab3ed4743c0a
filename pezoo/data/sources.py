"""Where documents come from: each source reads its splits as Hugging Face `datasets`."""

import contextlib
import hashlib
import os
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from pezoo.data.config import DataConfig
from pezoo.errors import UserError, suggest

if TYPE_CHECKING:  # datasets takes a second to import, and a cached corpus does not need it
    from datasets import Dataset

SPLITS = ("train", "validation", "test")
_OTHER_NAMES = {"valid": "validation", "val": "validation", "dev": "validation"}

# Left out of the standard library: what distributions leave out too (tests), what others installed,
# and generated tables (character maps, help texts), near copies of one another that would show the
# test to the training.
_NOT_READ = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "encodings",
    "pydoc_data",
}


@dataclass(frozen=True)
class Documents:
    """Documents of one split.

    Attributes:
        texts: one column, `text`.
        names: of the documents, in the order of `texts`.
    """

    texts: "Dataset"
    names: list[str]

    def select(self, rows: np.ndarray) -> "Documents":
        """These rows, in this order."""
        return Documents(self.texts.select(rows), [self.names[i] for i in rows])


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
    return {"python": _python, "text": _text, "hub": _hub}[config.corpus](config)


def split(given: dict[str, Documents], validation: float, test: float, scratch: Path) -> dict[str, Documents]:
    """Cut the splits that are missing from `train`.

    Documents are ranked by a hash of their names: the first are the test split, the next validate,
    so that which split a document is in hardly depends on the others. Where there are too few for
    every split to have one, each document is cut into contiguous parts instead.

    Args:
        given: the splits that the source has, `train` among them.
        validation: share of the documents that validates, unless given.
        test: share of the documents that tests, unless given.
        scratch: folder for temporary files.

    Returns:
        All three splits, their documents in the order of the hashes: any first part is a sample.
    """
    given = {name: documents.select(_rank(documents.names)) for name, documents in given.items()}
    shares = {"test": test, "validation": validation}
    shares = {name: share for name, share in shares.items() if name not in given}
    train = given["train"]
    total = len(train.names)
    counts = {name: max(1, int(share * total)) for name, share in shares.items()}
    if sum(counts.values()) >= total:
        return given | _contiguous(train, shares, scratch)
    start = 0
    for name, count in counts.items():
        given[name] = train.select(np.arange(start, start + count))
        start += count
    return given | {"train": train.select(np.arange(start, total))}


def _rank(names: list[str]) -> np.ndarray:
    keys = [hashlib.sha256(os.fsencode(name)).digest() for name in names]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)


def _contiguous(train: Documents, shares: dict[str, float], scratch: Path) -> dict[str, Documents]:
    """The beginning of each document is for training, its end for testing."""
    texts = list(train.texts["text"])
    parts, start = {}, 0.0
    for name in SPLITS:
        if name in shares or name == "train":
            stop = start + shares.get(name, 1 - sum(shares.values()))
            cut = [text[round(start * len(text)) : round(stop * len(text))] for text in texts]
            names = [f"{document} ({name})" for document in train.names]
            parts[name] = Documents(_dataset(iter, cut, scratch / "parts" / name), names)
            start = stop
    return parts


def _python(config: DataConfig) -> Source:
    root = Path(sysconfig.get_path("stdlib"))
    files, digest = {}, hashlib.sha256()
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - _NOT_READ)
        for path in (Path(folder, name) for name in sorted(names)):
            # _sysconfigdata_* is what the interpreter's own build wrote.
            if path.suffix == ".py" and not path.name.startswith("_sysconfigdata"):
                name = path.relative_to(root).as_posix()
                # A source file may declare an encoding of its own; few do, and they are left out.
                with contextlib.suppress(OSError, UnicodeDecodeError):
                    digest.update(_digest(path, name))
                    files[name] = path
    if not files:
        raise UserError(
            f"data.corpus=python: this interpreter's standard library, {root}, holds no source "
            "text. Use data.corpus=text data.path=FOLDER."
        )
    return _files("python", digest.hexdigest(), {"train": files})


def _text(config: DataConfig) -> Source:
    path = Path(config.path).expanduser()
    if os.path.isfile(path):
        return _users_files(path.stem, {"train": {path.name: path}})
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
    return _users_files(path.resolve().name, files)


def _split_name(name: str) -> str:
    return _OTHER_NAMES.get(name, name)


def _wanted(name: Path, pattern: str) -> bool:
    return PurePosixPath(name).match(pattern) and not any(p.startswith(".") for p in name.parts)


def _users_files(corpus: str, splits: dict[str, dict[str, Path]]) -> Source:
    digest = hashlib.sha256()
    for split_name, files in splits.items():
        for name, path in files.items():
            try:
                digest.update(_digest(path, f"{split_name}\0{name}"))
            except OSError as error:
                raise UserError(f"data.path: {path} cannot be read: {error.strerror}.") from None
            except UnicodeDecodeError as error:
                raise UserError(
                    f"data.path: {path} is not UTF-8 text (byte {error.start}). Convert it, or "
                    "choose other files with data.pattern, such as data.pattern='*.txt'."
                ) from None
    return _files(corpus, digest.hexdigest(), splits)


def _digest(path: Path, name: str) -> bytes:
    content = path.read_bytes()
    _decode(content)
    return hashlib.sha256(os.fsencode(name) + b"\0" + content).digest()


def _files(corpus: str, fingerprint: str, splits: dict[str, dict[str, Path]]) -> Source:
    """One document a file."""

    def read(scratch: Path) -> dict[str, Documents]:
        return {
            name: Documents(_dataset(_read_all, list(files.values()), scratch / name), list(files))
            for name, files in splits.items()
        }

    return Source(corpus, fingerprint, read)


def _read_all(paths: list[Path]) -> Iterator[str]:
    return (_decode(path.read_bytes()) for path in paths)


def _decode(content: bytes) -> str:
    return content.decode("utf-8-sig")


def _dataset(texts: Callable[[list[Any]], Iterator[str]], items: list[Any], folder: Path) -> "Dataset":
    """A data set of `texts(items)`, kept in `folder`."""
    import datasets

    with _quiet():
        return datasets.Dataset.from_generator(
            lambda: ({"text": text} for text in texts(items)),
            features=datasets.Features({"text": datasets.Value("large_string")}),
            cache_dir=str(folder),
        )


def _hub(config: DataConfig) -> Source:
    import datasets

    given = f"data.name={config.name}" + (f" data.subset={config.subset}" if config.subset else "")
    given += f" data.revision={config.revision}" if config.revision else ""
    # Downloads may be long and show their progress; reading a folder is not worth a bar.
    quiet = _quiet if os.path.isdir(config.name) else contextlib.nullcontext
    try:
        with quiet():
            builder = datasets.load_dataset_builder(config.name, config.subset, revision=config.revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise _unavailable(given, error) from None

    def read(scratch: Path) -> dict[str, Documents]:
        try:
            with quiet():
                builder.download_and_prepare()
                splits = builder.as_dataset()
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise _unavailable(given, error) from None
        found = {_split_name(name): documents for name, documents in splits.items()}
        if "train" not in found:
            raise UserError(f"{given} has no split named train; it has: {', '.join(splits)}.")
        return {
            name: Documents(
                _column(found[name], config.text_column, given),
                [f"{name}[{i}]" for i in range(len(found[name]))],
            )
            for name in SPLITS
            if name in found
        }

    fingerprint = f"{config.name}/{builder.config_id}/{builder.hash}/{config.text_column}"
    return Source("/".join(filter(None, [config.name, config.subset])), fingerprint, read)


def _column(documents: "Dataset", column: str, given: str) -> "Dataset":
    features = documents.features
    strings = [name for name in features if features[name].dtype in ("string", "large_string")]
    if column not in strings:
        raise UserError(
            f"data.text_column={column} is no column of text in {given}.{suggest(column, strings)} "
            f"Its columns of text: {', '.join(strings) or 'none'}."
        )
    chosen = documents.select_columns(column)
    return chosen if column == "text" else chosen.rename_column(column, "text")


def _unavailable(given: str, error: Exception) -> UserError:
    first_line = str(error.__cause__ or error).strip().split("\n")[0]
    return UserError(
        f"{given} cannot be loaded: {first_line}. Give a data set of the Hugging Face hub (the "
        "first time needs a network), or a folder of jsonl or parquet files."
    )


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
