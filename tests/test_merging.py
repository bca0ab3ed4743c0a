"""Several studies as one, or side by side."""

from dataclasses import replace
from pathlib import Path

import pandas
import pytest
import yaml

import pezoo
from pezoo import results
from pezoo.cli import main
from pezoo.errors import UserError

PUBLISHED = Path(__file__).parents[1] / "experiments" / "results" / "quickstart"
RECIPE = {"study": "mine", "model": {"d_model": 64}, "train": {"length": 64}, "seeds": [0], "schemes": ["rope"]}


@pytest.fixture
def studies(tmp_path):
    """Make a study of some of quickstart's results, and return its folder."""

    def make(name, wanted, recipe=None, **changes):
        kept = [r for r in pezoo.load(PUBLISHED).results if r.metric == "perplexity" and wanted(r)]
        results.write(tmp_path / name / "results.jsonl", [replace(r, **changes) for r in kept])
        (tmp_path / name / "recipe.yaml").write_text(yaml.safe_dump(recipe or RECIPE))
        return tmp_path / name

    return make


def test_seeds_and_schemes_of_two_studies_are_one(studies):
    whole = [r for r in pezoo.load(PUBLISHED).results if r.metric == "perplexity"]
    first = studies("a", lambda r: r.seed == 0 and r.label != "alibi")
    other = studies("b", lambda r: r.seed > 0 or r.label == "alibi", RECIPE | {"seeds": [1], "schemes": ["alibi"]})
    merged = pezoo.load(first, other)
    assert {(r.label, r.seed, r.test_length, r.value) for r in merged.results} == {
        (r.label, r.seed, r.test_length, r.value) for r in whole
    }
    assert {r.study for r in merged.results} == {"quickstart"}
    assert list(pezoo.load(PUBLISHED).table().index) == list(merged.table().index)


def test_what_differs_is_named_and_refused(studies, capsys):
    first = studies("a", lambda r: r.seed == 0)
    other = studies("b", lambda r: r.seed == 1, RECIPE | {"model": {"d_model": 128}}, corpus="other")
    with pytest.raises(UserError, match=r"model.d_model 64 -> 128; corpus .* -> other"):
        pezoo.load(first, other)
    assert main(["report", str(first), str(other), "--out", str(first / "both")]) == 2
    assert f"pezoo compare {first} {other}" in capsys.readouterr().err


def test_a_report_of_several_studies_does_not_take_the_place_of_one(studies, capsys):
    first, other = studies("a", lambda r: r.seed == 0), studies("b", lambda r: r.seed == 1)
    assert main(["report", str(first), str(other)]) == 2
    assert "one report of 2 studies needs a folder of its own; add --out FOLDER" in capsys.readouterr().err
    assert not (first / "report").exists()
    own = other / "report"
    assert main(["report", str(first), str(other), "--out", str(own)]) == 2
    assert f"{own} shows the results of {other} alone; choose another folder" in capsys.readouterr().err
    assert not own.exists()


def test_a_report_writes_over_reports_alone(studies, tmp_path, capsys):
    study, out = studies("a", lambda r: r.seed == 0), tmp_path / "mine"
    out.mkdir()
    (out / "thesis.tex").write_text("all of it")
    assert main(["report", str(study), "--out", str(out)]) == 2
    assert f"{out} holds files that are no report; choose another folder" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]
    assert main(["report", str(study), "--out", str(study)]) == 2
    for _ in range(2):
        assert main(["report", str(study), "--out", str(tmp_path / "new")]) == 0
        assert main(["report", str(study)]) == 0


def test_different_results_of_one_scheme_and_seed_are_refused(studies):
    first = studies("a", lambda r: r.label == "rope")
    for changed in ({"cell": "0123456789abcdef"}, {}):  # another training, or the same on another machine
        other = studies("b", lambda r: r.label == "rope", value=3.0, **changed)
        with pytest.raises(UserError, match="'rope', seed 0, has different results in"):
            pezoo.load(first, other)


def test_studies_stand_side_by_side(studies, capsys):
    first = studies("a", lambda r: r.label == "rope")
    other = studies("b", lambda r: r.label == "alibi", RECIPE | {"model": {"d_model": 128}})
    assert main(["compare", str(first), str(other)]) == 0
    out = capsys.readouterr().out
    assert "16L (a)" in out
    assert "16L (b)" in out
    assert "model.d_model 64 -> 128" in out
    assert main(["compare", str(first)]) == 2
    assert "needs two folders" in capsys.readouterr().err


def test_a_study_is_looked_at_from_a_notebook():
    study = pezoo.load(PUBLISHED)
    frame = study.compare("rope", "alibi")
    assert set(frame["label"]) == {"rope"}
    assert set(frame["baseline"]) == {"alibi"}
    assert frame["effect"].iloc[-1] > 1
    whole = study.compare(baseline="alibi")
    both = ["test_length", "effect", "low", "high", "verdict"]  # the same intervals, alone or in a table
    pandas.testing.assert_frame_equal(frame[both], whole[whole["label"] == "rope"][both].reset_index(drop=True))
    assert {"low", "high", "p_corrected", "verdict"} <= set(frame.columns)
    with pytest.raises(UserError, match="no results of 'ropee'"):
        study.compare("ropee", "alibi")
    assert study.plot().axes
    page = study._repr_html_()
    assert "<table" in page
    assert all(len(sentence) > 20 for sentence in study.answer)
