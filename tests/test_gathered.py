"""The results of many studies in one file."""

from pathlib import Path

import pandas
import pytest

from pezoo.cli import main
from pezoo.errors import UserError
from pezoo.results import find_results, read
from pezoo.results.gathered import gather

PUBLISHED = Path(__file__).parents[1] / "experiments" / "results"


def test_all_results_of_several_studies_come_back_from_one_file(tmp_path, capsys):
    folders, file = [PUBLISHED / "quickstart", PUBLISHED / "kerple"], tmp_path / "all.parquet"
    assert main(["gather", *map(str, folders), "--out", str(file)]) == 0
    frame = pandas.read_parquet(file)
    known = [(folder, result) for folder in folders for result in read(find_results(folder))]
    assert len(frame) == len(known)
    assert f"{len(known)} results of 2 studies" in capsys.readouterr().out
    for (folder, result), row in zip(known[::97], frame.iloc[::97].itertuples(), strict=True):
        assert (row.folder, row.label, row.seed, row.test_length) == (
            str(folder),
            result.label,
            result.seed,
            result.test_length,
        )
        assert tuple(row.extensions) == result.extensions
        assert row.value == result.value or (pandas.isna(row.value) and result.value is None)
    assert frame.seed.dtype == "int64"
    assert frame.value.dtype == "float64"


def test_a_folder_without_results_or_named_twice_is_refused_and_nothing_is_written(tmp_path):
    file = tmp_path / "all.parquet"
    with pytest.raises(UserError, match="no folder of a study"):
        gather([PUBLISHED / "quickstart", tmp_path], file)
    with pytest.raises(UserError, match="named twice"):
        gather([PUBLISHED / "quickstart", PUBLISHED / "kerple" / ".." / "quickstart"], file)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "why"), [("results.jsonl", "name it FILE.parquet"), ("notes.parquet", "is no Parquet")]
)
def test_what_is_no_parquet_file_is_not_written_over(tmp_path, name, why):
    (tmp_path / name).write_text("a thesis")
    with pytest.raises(UserError, match=why):
        gather([PUBLISHED / "quickstart"], tmp_path / name)
    assert (tmp_path / name).read_text() == "a thesis"
