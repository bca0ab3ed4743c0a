"""Files that are whole or not there at all, and folders that are known to be as they were written.

`replacing` writes a file under another name and renames it when it is complete. A folder is sealed by a JSON file of
facts: it lists every other file with its size and its SHA-256, and holds a digest of itself. What was cut short, lost
or changed on the disk is then found before it is used.
"""

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any


@contextmanager
def replacing(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes the place of `path` once it is complete.

    Until the block has ended without an error, and the bytes are on the disk, whatever was at
    `path` stays as it was.

    Args:
        path: the file to replace or to make; its folder is made if it is missing.

    Yields:
        A binary file in the same folder.

    Raises:
        OSError: naming the path, if the disk is full or nothing may be written there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        sync(path.parent)
    except (OSError, RuntimeError) as error:
        said = error.__context__ if isinstance(error, RuntimeError) else error  # PyTorch hides what the system said
        if not isinstance(said, OSError):
            raise
        if said.filename in (None, str(unfinished)):  # a full disk names no file
            said.filename = str(path)
        raise said from None
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def curves_into(folder: str | Path | None) -> Iterator[None]:
    """Let TensorBoard write curves: a full disk names the folder, and is told once, not by its thread as well.

    Args:
        folder: where they go; None: nowhere, and nothing is changed.

    Raises:
        OSError: naming the folder, if it cannot be written.
    """
    usual = threading.excepthook

    def told(what: threading.ExceptHookArgs) -> None:
        if not issubclass(what.exc_type, OSError):  # which the thread hands on to who writes
            usual(what)

    threading.excepthook = told if folder is not None else usual
    try:
        yield
    except OSError as error:
        error.filename = error.filename or (folder and str(folder))
        raise
    finally:
        threading.excepthook = usual


def sync(folder: Path) -> None:
    """Have the names of the files in a folder on the disk, where the system can."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def sweep(folder: Path) -> None:
    """Remove what `replacing` left unfinished in a folder when its process was killed."""
    for left in folder.glob(".*.tmp"):
        number = left.name.split(".")[-2]
        if number.isdigit() and (int(number) == os.getpid() or not runs(int(number))):
            left.unlink(missing_ok=True)


def runs(number: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is somebody else's
        pass
    return True


def started(number: int) -> int | None:
    """When the process of this number began, in ticks since the system did; None if nobody says.

    It tells a process from a later one of the same number.
    """
    try:
        facts = Path(f"/proc/{number}/stat").read_bytes()
        return int(facts.rpartition(b")")[2].split()[19])  # the 22nd in all; the name before it may hold spaces
    except (OSError, ValueError, IndexError):
        return None


_digests: dict[tuple[int, ...], str] = {}
"""Digests of the files that this process has read, so that each is read once, however many names it has."""


class Damaged(ValueError):
    """A sealed folder is not as it was written; the message says what is wrong with it."""


def seal(path: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write the facts of a folder, once all of its other files are there.

    When this returns, all of the folder is on the disk.

    Args:
        path: the JSON file.
        facts: plain data.

    Returns:
        What `unseal` will return.
    """
    files = {}
    for other in sorted(set(path.parent.iterdir()) - {path}):
        with other.open("rb") as file:
            os.fsync(file.fileno())
        files[other.name] = {"size": other.stat().st_size, "sha256": _sha256(other)}
    sealed: dict[str, Any] = json.loads(json.dumps({**facts, "files": files}))
    with replacing(path) as file:
        file.write(json.dumps(sealed | {"sha256": _sha256_of(sealed)}, indent=1).encode())
    return sealed


def unseal(path: Path, *, digests: bool = True) -> dict[str, Any]:
    """Read the facts of a folder, and check its files.

    Args:
        path: the JSON file.
        digests: whether to read every file. Else it must be there, with its size.

    Raises:
        Damaged: if anything is not as it was written.
        OSError: naming the file, if the system does not let it be read: that says nothing of what is in it.
    """
    with _reading(path):
        content = path.read_bytes()
    try:
        facts = json.loads(content)
    except (ValueError, RecursionError):
        raise Damaged(f"{path.name} cannot be read") from None
    if not isinstance(facts, dict) or "sha256" not in facts:
        raise Damaged(f"{path.name} has no digest, as before there were any")
    if facts.pop("sha256") != _sha256_of(facts):
        raise Damaged(f"{path.name} has changed")
    for name, known in facts["files"].items():
        other = path.parent / name
        with _reading(other):
            if other.stat().st_size != known["size"] or (digests and _sha256(other) != known["sha256"]):
                raise Damaged(f"{name} has changed")
    return facts


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """A file that is lost, or is none, is damaged; one that the disk or the system withholds may be whole."""
    try:
        yield
    except FileNotFoundError:
        raise Damaged(f"{path.name} is missing") from None
    except (IsADirectoryError, NotADirectoryError):
        raise Damaged(f"{path.name} cannot be read") from None
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def move(folder: Path, place: Path) -> None:
    """Move a sealed folder to its place, instead of what may be there."""
    remove(place)
    os.replace(folder, place)
    sync(place.parent)


def remove(path: Path) -> None:
    """Remove a folder, or what stands in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    facts = path.stat()
    key = facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns
    if key not in _digests:
        with path.open("rb") as file:
            _digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _digests[key]


def _sha256_of(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
