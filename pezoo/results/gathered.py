"""The results of many studies in one Parquet file, which pandas, DuckDB, Polars and Spark read."""

import json
import typing
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pezoo.errors import UserError
from pezoo.files import replacing
from pezoo.results import Result, read_study

_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def gather(folders: Iterable[str | Path], file: str | Path) -> int:
    """Write the results of studies into one Parquet file, a row per result.

    Columns are the fields of `Result`, and `folder`, where a result came from. What holds versions is JSON. Studies
    may differ in anything.

    Args:
        folders: of studies, run here or published.
        file: to write; what was there is replaced once the new one is whole.

    Returns:
        How many rows it has.

    Raises:
        UserError: if there are no results in a folder, or it is named twice; if the file is another than Parquet.
    """
    file = Path(file)
    if file.suffix != ".parquet":
        raise UserError(f"the results go to one Parquet file: name it FILE.parquet, not {str(file)!r}")
    if file.exists() and not _is_parquet(file):
        raise UserError(f"{file} is there and is no Parquet file; name another")
    places = [Path(folder) for folder in folders]
    if again := [place for i, place in enumerate(places) if place.resolve() in [p.resolve() for p in places[:i]]]:
        raise UserError(f"{again[0]} is named twice; its results would count twice")
    schema, n_rows = _schema(), 0
    with replacing(file) as whole, pq.ParquetWriter(whole, schema, compression="zstd") as writer:
        for place in places:
            rows = [_row(place, result) for result in read_study(place)]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            n_rows += len(rows)
    return n_rows


def _is_parquet(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def _schema() -> pa.Schema:
    """A column for each field, nullable where the field may be None."""
    found = [pa.field("folder", pa.string(), nullable=False)]
    for name, hint in typing.get_type_hints(Result).items():
        kinds = typing.get_args(hint) if type(None) in typing.get_args(hint) else (hint,)
        if typing.get_origin(hint) is tuple:
            kind: Any = pa.list_(pa.string())
        else:
            kind = next((_TYPES[k] for k in kinds if k in _TYPES), pa.string())  # else names, and versions as JSON
        found.append(pa.field(name, kind, nullable=type(None) in kinds))
    return pa.schema(found)


def _row(folder: Path, result: Result) -> dict[str, Any]:
    values = {field.name: getattr(result, field.name) for field in fields(Result)}
    return {"folder": str(folder)} | {k: json.dumps(v) if isinstance(v, dict) else v for k, v in values.items()}
