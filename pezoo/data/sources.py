"""Where documents come from: each source reads its splits."""

import contextlib
import csv
import hashlib
import os
import sysconfig
from collections.abc import Callable
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from pezoo.data.config import DataConfig
from pezoo.data.documents import SPLITS, Documents, Named, Source, cut_at, keep, split_name
from pezoo.data.hub import from_hub
from pezoo.errors import UserError

if TYPE_CHECKING:  # datasets takes a second to import, and only the hub needs it
    pass


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


def find(config: DataConfig) -> Source:
    """Find the corpus.

    Raises:
        UserError: if it is missing, empty or unreadable.
    """
    return {"package": _package, "python": _python, "text": _text, "hub": from_hub}[config.corpus](config)


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
        file.as_posix(): Path(str(package.locate_file(file)))
        for file in _listed(package)
        if file.suffix == ".py" and len(file.parts) > 1 and not {"..", *_NOT_READ} & set(file.parts)
    }
    return _sources(f"{name} {package.version}", found, f"the installed package {name}, by its list of files,")


def _listed(package: metadata.Distribution) -> list[PurePosixPath]:
    """The files that a package was installed with. From Python 3.12 on `package.files` leaves out what is gone."""
    record = package.read_text("RECORD")
    if record:
        return [PurePosixPath(row[0]) for row in csv.reader(record.splitlines())]
    return [PurePosixPath(file.as_posix()) for file in package.files or ()]


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
        folders = {split_name(p.name): p for p in sorted(path.iterdir()) if p.is_dir()}
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


def _wanted(name: Path, pattern: str) -> bool:
    return PurePosixPath(name).match(pattern) and not any(p.startswith(".") for p in name.parts)


def _users_files(corpus: str, splits: dict[str, dict[str, Path]], delimiter: str | None) -> Source:
    digest = hashlib.sha256()
    for split, files in splits.items():
        for name, path in files.items():
            try:
                digest.update(_digest(f"{split}\0{name}", path))
            except OSError as error:
                raise UserError(f"data.path: {path} cannot be read: {error.strerror}.") from None
            except UnicodeDecodeError as error:
                raise UserError(
                    f"data.path: {path} is not UTF-8 text (byte {error.start}). Convert it, or "
                    "choose other files with data.pattern, such as \"data.pattern='*.txt'\"."
                ) from None

    def read(scratch: Path) -> dict[str, Documents]:
        if delimiter is None:
            return {name: _files(files, _decoded) for name, files in splits.items()}
        found = {name: keep(cut_at(_named(files), delimiter), scratch / name) for name, files in splits.items()}
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
