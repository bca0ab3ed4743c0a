"""Text from the Hugging Face hub, or from a folder that the library datasets reads."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pezoo.data.config import DataConfig
from pezoo.data.documents import SPLITS, Documents, Named, Source, beginning, cut_at, join_rows, keep, split_name
from pezoo.errors import UserError, suggest

if TYPE_CHECKING:  # datasets takes a second to import, and only the hub needs it
    from datasets import Dataset, IterableDataset


def from_hub(config: DataConfig) -> Source:
    """The data set that `data.name` names."""
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
            found = {split_name(name): rows for name, rows in splits.items()}
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
        documents = join_rows(documents, config.document_start)
    if config.delimiter is not None:
        documents = cut_at(documents, config.delimiter)
    if config.max_bytes is not None:
        shares = {"validation": config.validation_fraction, "test": config.test_fraction}
        taken = sum(share for name, share in shares.items() if name not in found) if split_name == "train" else 0
        documents = beginning(documents, config.max_bytes / (1 - taken))
    return keep(documents, scratch / split_name)


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
