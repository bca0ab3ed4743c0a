"""The results of a study: one typed schema, read strictly and written whole or not at all.

`results.jsonl` holds one `Result` a line: one metric of one scheme and seed at one test length. A
value that is not a finite number is never written: the line then holds null, and its status and
reason say what happened. Beside it each evaluation keeps its `Losses`, summed per document and
position bin, from which loss-by-position curves and intervals over documents are made.
"""

import json
import math
import numbers
import os
import threading
import types
import typing
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Union

import numpy as np

from pezoo.errors import UserError, suggest

if TYPE_CHECKING:
    import pandas

LANGUAGE_MODELLING = "language_modelling"
"""The task of learning a text."""
BITS_PER_BYTE = "bits_per_byte"
"""The metric that compares tokenizers."""
Status = Literal["ok", "undefined", "diverged", "out_of_memory", "failed"]


@dataclass(frozen=True, kw_only=True)
class Result:
    """One metric of one scheme and seed at one test length.

    Values are checked against the types below when a result is made. Where a field may be None, a
    number that is not finite becomes None; `value` is None exactly where `status` is not "ok".

    Raises:
        ValueError: if a field has the wrong type, or fields contradict each other.
    """

    study: str
    """Name of the study."""
    cell: str
    """Name of the evaluation cell, which is the hash of all that determines it."""
    label: str
    """What tables and figures call the row, such as "rope+pi, 200 steps @ 8x"."""
    scheme: str
    """The scheme in its short canonical form."""
    encoding: str
    """Names of the scheme's encodings, joined with "+"."""
    extensions: tuple[str, ...]
    """Names of the scheme's extensions, in order."""
    family: str
    """Where the encoding stands in the taxonomy."""
    part: str = ""
    """The part of the recipe that it belongs to; empty where a recipe has none."""
    task: str
    """What was tested, such as "language_modelling" or "passkey:n_digits=5"."""
    corpus: str
    """The text or the generator it was tested on."""
    corpus_digest: str = ""
    """SHA-256 of the text it was trained on; empty without a text, and in earlier results."""
    tokenizer: str = ""
    """How that text became tokens, "bytes" or a name; empty likewise."""
    protocol: str
    """How it was tested, such as "prefix"."""
    stride: int | None = None
    """Tokens between the starts of two windows, where the protocol has them."""
    bos: bool = False
    """Whether every window starts with a beginning-of-sequence token."""
    depth: float | None = None
    """Where in the context the answer stood, from 0 to 1, for retrieval tasks."""
    metric: str
    """What `value` is, such as "perplexity"."""
    value: float | None
    """The measured value, or None where the status is not "ok"."""
    n_tokens: int
    """Scored tokens."""
    n_documents: int
    """Documents they came from."""
    window_overlap: float | None = None
    """In how many test windows each of their tokens is, on average: more than 1 where the text is too short for so
    many windows. None without windows, and in earlier results."""
    train_length: int
    """L, the length of the training sequences: in tokens, or for a task as the task counts it."""
    test_length: int
    """T, the tested length, counted likewise."""
    length_ratio: float
    """T / L."""
    scale_factor: float | None
    """The factor of the scheme's interpolation at this length, where it has one."""
    seed: int
    """Seed of the training."""
    learning_rate: float
    """Peak learning rate of the training."""
    steps: int
    """Training steps."""
    finetune_steps: int
    """Tuning steps; 0 for zero-shot."""
    finetune_length: int | None
    """Length of the tuning sequences, in tokens; None for zero-shot."""
    params: int | None
    """Parameters of the model; None where it could not be built or tested."""
    train_seconds: float | None
    """Wall-clock time of training and tuning together."""
    eval_seconds: float | None
    """Wall-clock time of this test length."""
    tokens_per_second: float | None
    """Training speed."""
    peak_memory_bytes: int | None
    """Peak memory, where it was measured."""
    threads: int
    """CPU threads the cell was given."""
    config_hash: str
    """Hash of the resolved recipe."""
    versions: dict[str, str]
    """Versions of the programs that determine the value, by name: those it was tested with."""
    device: str
    """The device it was tested on: the model of a GPU, or cpu."""
    machine: str = ""
    """The system it was tested on, such as "Linux-6.1-x86_64"; empty in earlier results, as the next three."""
    train_versions: dict[str, str] = field(default_factory=dict)
    """Versions of the programs it was trained with."""
    train_device: str = ""
    """The device it was trained on."""
    train_machine: str = ""
    """The system it was trained on."""
    test_precision: str = "float32"
    """How matrices were multiplied in testing: "float32", "tf32" or "bf16"."""
    date: str
    """When the cell finished, in ISO 8601."""
    status: Status = "ok"
    """"ok", or why there is no value."""
    reason: str = ""
    """The status in words; empty where it is "ok"."""

    def __post_init__(self) -> None:
        """Check types and relations; store tuples, floats and ints as such."""
        for name, hint in _HINTS.items():
            object.__setattr__(self, name, _fitted(name, getattr(self, name), hint))
        if (self.value is None) == (self.status == "ok"):
            raise ValueError(
                f"'value' must be null exactly where 'status' is not 'ok', got {self.value} with status {self.status!r}"
            )
        if (self.reason == "") != (self.status == "ok"):
            raise ValueError(f"'reason' must say why the status is {self.status!r}, and only then")
        if self.train_length < 1 or self.test_length < 1:
            raise ValueError("'train_length' and 'test_length' must be at least 1")
        if not math.isclose(self.length_ratio, self.test_length / self.train_length):
            raise ValueError(
                f"'length_ratio' must be test_length / train_length = "
                f"{self.test_length / self.train_length:g}, got {self.length_ratio}"
            )


_HINTS: dict[str, Any] = typing.get_type_hints(Result)
_ADDED = (
    *("corpus_digest", "tokenizer", "window_overlap", "test_precision"),
    *("machine", "train_versions", "train_device", "train_machine"),
)
"""Fields that files of earlier versions do not have."""
_KINDS = {
    str: "a string",
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    types.NoneType: "null",
    tuple: "a list of strings",
    dict: "a mapping of strings",
}


def write(path: str | Path, results: Iterable[Result]) -> None:
    """Write results as JSON lines, replacing the file at once.

    Args:
        path: the file; its folder is made if it is missing.
        results: what to write, in the order to keep.

    Raises:
        OSError: if the file cannot be written; what was there before is then unchanged.
    """
    names = [field.name for field in fields(Result)]
    with replacing(path) as file:
        for result in results:
            line = {name: getattr(result, name) for name in names}
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n")


def read(path: str | Path) -> list[Result]:
    """Read a results file strictly.

    Args:
        path: a file of JSON lines.

    Returns:
        The results in the order of the file.

    Raises:
        UserError: if there is no such file, or a line is not a whole and valid result; the message
            names the line.
    """
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise UserError(
            f"cannot read results from {path}: {error.strerror}. Give a results.jsonl that `pezoo run` wrote."
        ) from error
    results = []
    for number, line in enumerate(lines, 1):
        try:
            results.append(_parse(line))
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}. Run the study again to have it written anew.") from error
    return results


def to_frame(results: Iterable[Result]) -> "pandas.DataFrame":
    """Return the results as a table with a row per result and a column per field of the schema."""
    import pandas

    names = [field.name for field in fields(Result)]
    frame = pandas.DataFrame([[getattr(r, n) for n in names] for r in results], columns=names)
    return frame.astype({name: float for name in names if float in _parts(_HINTS[name])})


@dataclass(frozen=True, eq=False, kw_only=True)
class Losses:
    """The losses of one evaluation, summed per document and position bin.

    Raises:
        ValueError: if shapes do not fit each other, or edges do not ascend.
    """

    loss_sum: np.ndarray
    """(documents, bins) float64: summed loss in nats."""
    tokens: np.ndarray
    """(documents, bins) int64: scored tokens."""
    edges: np.ndarray
    """(bins + 1,) int64: bin i covers the positions edges[i] <= p < edges[i + 1], from 0."""
    documents: Sequence[str]
    """A name per row."""
    test_length: int
    """T, in tokens."""
    protocol: str
    """How it was tested."""

    def __post_init__(self) -> None:
        """Bring the arrays to their types and check their shapes."""
        kinds = {"loss_sum": np.float64, "tokens": np.int64, "edges": np.int64}
        for name, kind in kinds.items():
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=kind))
        object.__setattr__(self, "documents", tuple(str(name) for name in self.documents))
        object.__setattr__(self, "test_length", int(self.test_length))
        shape = (len(self.documents), len(self.edges) - 1)
        if self.loss_sum.shape != shape or self.tokens.shape != shape:
            raise ValueError(
                f"loss_sum {self.loss_sum.shape} and tokens {self.tokens.shape} must both be "
                f"(documents, bins) = {shape}"
            )
        if np.any(np.diff(self.edges) < 1):
            raise ValueError("edges must ascend")

    def by_position(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean loss by position.

        Returns:
            Positions counted from 1, each the middle of its bin, and the mean loss in nats there;
            both (bins,), leaving out bins in which nothing was scored.
        """
        tokens = self.tokens.sum(axis=0)
        kept = tokens > 0
        middle = (self.edges[:-1] + 1 + self.edges[1:]) / 2
        return middle[kept], self.loss_sum.sum(axis=0)[kept] / tokens[kept]


_LOSSES = tuple(field.name for field in fields(Losses))


def write_losses(path: str | Path, losses: Losses) -> None:
    """Write losses as an npz file, replacing it at once.

    Args:
        path: the file; its folder is made if it is missing.
        losses: what to write.

    Raises:
        OSError: if the file cannot be written; what was there before is then unchanged.
    """
    with replacing(path) as file:
        np.savez_compressed(file, **{name: np.asarray(getattr(losses, name)) for name in _LOSSES})


def read_losses(path: str | Path) -> Losses:
    """Read what `write_losses` wrote.

    Args:
        path: an npz file.

    Returns:
        The losses.

    Raises:
        UserError: if there is no such file, or it does not hold exactly what losses are made of.
    """
    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if set(arrays.files) != set(_LOSSES):
                raise ValueError(f"it must hold {', '.join(_LOSSES)}")
            found = {name: arrays[name] for name in _LOSSES}
        found["protocol"] = str(found["protocol"])
        return Losses(**found)
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(
            f"cannot read losses from {path}: {error}. Run the study again to have it written anew."
        ) from error


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
        said.filename = said.filename or str(path)  # a full disk names no file
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


def _parse(line: bytes) -> Result:
    try:
        found = json.loads(line, parse_constant=_refuse)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError("not a whole line of JSON") from error
    if not isinstance(found, dict):
        raise ValueError(f"must be a JSON object, got {type(found).__name__}")
    if unknown := [key for key in found if key not in _HINTS]:
        raise ValueError(f"unknown key {unknown[0]!r}.{suggest(unknown[0], _HINTS)}".rstrip("."))
    if missing := [key for key in _HINTS if key not in found and key not in _ADDED]:
        raise ValueError(f"missing key {', '.join(map(repr, missing))}")
    return Result(**found)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON number; a value that is not finite must be null")


def _parts(hint: Any) -> tuple[Any, ...]:
    union = typing.get_origin(hint) in (Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _fitted(name: str, value: Any, hint: Any) -> Any:
    """Return `value` as the type that `hint` names, or raise a ValueError that names the field."""
    for part in _parts(hint):
        origin = typing.get_origin(part)
        if part is float and isinstance(value, numbers.Real) and not isinstance(value, bool):
            if math.isfinite(value):
                return float(value)
            if types.NoneType in _parts(hint):
                return None
        if part is int and isinstance(value, numbers.Integral) and not isinstance(value, bool):
            return int(value)
        if part in (str, bool, types.NoneType) and isinstance(value, part):
            return value
        if origin is Literal and value in typing.get_args(part):
            return value
        if origin is tuple and isinstance(value, list | tuple) and _are_strings(value):
            return tuple(value)
        if origin is dict and isinstance(value, Mapping) and _are_strings(chain(*value.items())):
            return dict(value)
    allowed = " or ".join(_describe(part) for part in _parts(hint))
    raise ValueError(f"{name!r} must be {allowed}, got {value!r}")


def _are_strings(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(typing.get_args(hint))}"
    return _KINDS[typing.get_origin(hint) or hint]
