"""Files that are whole or not there at all, on disk and as they were written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    pass


@contextmanager
def replacing(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes the place of `path` once it is complete.

    Until the block has ended without an error, and the bytes are on the disk, whatever was at
    `path` stays as it was.

    Args:
        path: the file to replace or to make; its folder is made if it is missing.

    Yields:
        A binary file in the same folder.
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
    except OSError as error:  # a full disk names no file
        error.filename = error.filename or str(path)
        raise
    finally:
        unfinished.unlink(missing_ok=True)


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
        if number.isdigit() and (int(number) == os.getpid() or not _runs(int(number))):
            left.unlink(missing_ok=True)


def _runs(number: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is somebody else's
        pass
    return True
