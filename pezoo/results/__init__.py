"""The results of a study: one typed schema, read strictly and written whole or not at all.

`results.jsonl` holds one `Result` a line: one metric of one scheme and seed at one test length. A
value that is not a finite number is never written: the line then holds null, and its status and
reason say what happened. A published study holds the same lines compressed, `results.jsonl.gz`.
"""

import csv
import gzip
import io
import json
import math
import numbers
import operator
import shlex
import types
import typing
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Union

from pezoo.errors import UserError, suggest
from pezoo.files import replacing

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
    rate_is: Literal["", "lowest", "highest"] = ""
    """Whether it was the lowest or the highest of those tried, so that one beyond may be better; empty where it was
    given, or stands between others, and in earlier results."""
    steps: int
    """Training steps."""
    finetune_steps: int
    """Tuning steps; 0 for zero-shot."""
    finetune_length: int | None
    """Length of the tuning sequences, in tokens; None for zero-shot."""
    params: int | None
    """Parameters of the model; None where it could not be built or tested."""
    trained_params: int | None = None
    """Parameters that its last training or tuning moved, adapters among them; None likewise, and in earlier results."""
    train_seconds: float | None
    """Wall-clock time of training and tuning together."""
    train_cpu_seconds: float | None = None
    """Processor time of the same on a CPU, over all threads, which other work on the machine does not stretch; None on
    a GPU, and in earlier results."""
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
    *("machine", "train_versions", "train_device", "train_machine", "trained_params"),
    *("rate_is", "train_cpu_seconds"),
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


def tuning_name(steps: int, ratio: float) -> str:
    """Return what a tuning at so many times L is called, in labels and headings: "200 steps @ 8x"."""
    return f"{steps} steps @ {ratio:g}x"


def write(path: str | Path, results: Iterable[Result]) -> None:
    """Write results as JSON lines, replacing the file at once; the same results always give the same bytes.

    Args:
        path: the file, compressed if its name ends in .gz; its folder is made if it is missing.
        results: what to write, in the order to keep.

    Raises:
        OSError: if the file cannot be written; what was there before is then unchanged.
    """
    names = [field.name for field in fields(Result)]
    with replacing(path) as whole, _packed(whole) if _is_packed(path) else nullcontext(whole) as file:
        for result in results:
            line = {name: getattr(result, name) for name in names}
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n")


def _is_packed(path: str | Path) -> bool:
    return Path(path).suffix == ".gz"


def _packed(file: IO[bytes]) -> gzip.GzipFile:
    return gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0)


def find_results(folder: str | Path) -> Path | None:
    """The results file of a study, run or published; None if the folder has none."""
    files = (Path(folder, name) for name in ("results.jsonl", "results.jsonl.gz"))
    return next((path for path in files if path.is_file()), None)


def read_study(folder: str | Path) -> list[Result]:
    """The results of a study, run or published.

    Raises:
        UserError: if the folder has none, or they are damaged.
    """
    path = find_results(folder)
    if path is None:
        raise UserError(f"{folder} is no folder of a study: it has no results.jsonl; name one that `pezoo run` made")
    if not (results := read(path)):
        raise UserError(f"the study in {folder} has no results yet; type: pezoo run {shlex.quote(str(folder))}")
    return results


def read(path: str | Path) -> list[Result]:
    """Read a results file strictly.

    Args:
        path: a file of JSON lines, compressed if its name ends in .gz.

    Returns:
        The results in the order of the file.

    Raises:
        UserError: if there is no such file, or a line is not a whole and valid result; the message
            names the line.
    """
    try:
        content = Path(path).read_bytes()
        lines = (gzip.decompress(content) if _is_packed(path) else content).splitlines()
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot read results from {path}: {why}. Give a results.jsonl that `pezoo run` wrote."
        ) from error
    results = []
    for number, line in enumerate(lines, 1):
        try:
            results.append(_parse(line))
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}. Run the study again to have it written anew.") from error
    return results


def to_csv(results: Iterable[Result]) -> str:
    """Return results as comma-separated values, a line per result and a column per field of the schema.

    Lists are joined by "+", mappings are JSON.
    """
    names = [field.name for field in fields(Result)]
    places: list[tuple[int, Callable[[Any], str]]] = []
    for place, name in enumerate(names):
        kinds = [typing.get_origin(part) for part in _parts(_HINTS[name])]
        if tuple in kinds or dict in kinds:
            places.append((place, "+".join if tuple in kinds else json.dumps))
    file, values = io.StringIO(), operator.attrgetter(*names)
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(names)
    for result in results:
        row = list(values(result))
        for place, text in places:
            row[place] = text(row[place])
        writer.writerow(row)
    return file.getvalue()


def to_frame(results: Iterable[Result]) -> "pandas.DataFrame":
    """Return the results as a table with a row per result and a column per field of the schema."""
    import pandas

    names = [field.name for field in fields(Result)]
    frame = pandas.DataFrame([[getattr(r, n) for n in names] for r in results], columns=names)
    return frame.astype({name: float for name in names if float in _parts(_HINTS[name])})


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
