"""A finished study is read, and its report drawn anew, whether it was run here or published."""

import gzip
from pathlib import Path

import pytest

import pezoo
from pezoo import results
from pezoo.cli import main
from pezoo.errors import UserError
from pezoo.results.losses import Losses, losses_of, pack_losses, write_losses

PUBLISHED = Path(__file__).parents[1] / "experiments" / "results" / "quickstart"
FACTS = {"edges": [0, 2, 4], "documents": ["a", "b"], "test_length": 64, "protocol": "prefix"}


def test_a_published_study_is_read_like_a_run(tmp_path):
    published = pezoo.load(PUBLISHED)
    results.write(tmp_path / "results.jsonl", published.results)
    run = pezoo.load(tmp_path)
    assert run.results == published.results
    assert len(published.frame) == len(published.results)
    assert {"scheme", "seed", "test_length", "value"} <= set(published.frame.columns)


def test_its_report_is_drawn_by_a_command(tmp_path, capsys):
    few = [r for r in pezoo.load(PUBLISHED).results if r.label in ("rope", "alibi") and r.metric == "perplexity"]
    results.write(tmp_path / "results.jsonl.gz", few)
    assert main(["report", str(tmp_path)]) == 0
    written = {path.name for path in (tmp_path / "report").iterdir()}
    pages = {"report.html", "report.md", "claims.md", "table.tex", "results.csv"}
    assert written == pages | {"curves.svg", "curves.png", "curves.pdf"}
    assert not (tmp_path / "tensorboard").exists()
    out = capsys.readouterr().out
    assert "alibi" in out
    assert f"report: {tmp_path / 'report'}" in out


def test_its_baseline_is_that_of_its_recipe(tmp_path):
    few = [r for r in pezoo.load(PUBLISHED).results if r.label in ("rope", "alibi") and r.metric == "perplexity"]
    results.write(tmp_path / "results.jsonl", few)
    assert pezoo.load(tmp_path).baseline == ""
    (tmp_path / "recipe.yaml").write_text("study: a\nbaseline: alibi\n")
    study = pezoo.load(tmp_path)
    study.write(tmp_path / "report")
    assert "ratio to alibi, the study's baseline" in (tmp_path / "report" / "report.md").read_text()
    (tmp_path / "recipe.yaml").write_text("{")
    with pytest.raises(UserError, match=r"recipe\.yaml is not a YAML recipe"):
        pezoo.load(tmp_path)


def test_a_folder_without_results_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "has no results.jsonl; name one that `pezoo run` made" in capsys.readouterr().err
    results.write(tmp_path / "results.jsonl", [])
    with pytest.raises(UserError, match="has no results yet"):
        pezoo.load(tmp_path)


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: b"", lambda data: data[:-5] + b"12345"])
def test_damaged_results_are_one_message(tmp_path, damage):
    path = tmp_path / "results.jsonl.gz"
    path.write_bytes(damage((PUBLISHED / path.name).read_bytes()))
    with pytest.raises(UserError, match=r"cannot read results from|has no results yet"):
        pezoo.load(tmp_path)


def test_the_same_results_give_the_same_compressed_bytes(tmp_path):
    found = pezoo.load(PUBLISHED).results
    results.write(tmp_path / "a.jsonl.gz", found)
    results.write(tmp_path / "b.jsonl.gz", found)
    results.write(tmp_path / "a.jsonl", found)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()) == (tmp_path / "a.jsonl").read_bytes()


def test_packed_losses_are_those_of_the_cells(tmp_path):
    one = Losses(loss_sum=[[1.0, 2.5], [0.125, 3.0]], tokens=[[1, 2], [0, 3]], **FACTS)
    other = Losses(loss_sum=[[0.5]], tokens=[[7]], edges=[3, 9], documents=["b"], test_length=9, protocol="last")
    write_losses(tmp_path / "cells" / "x" / "losses_64.npz", one)
    write_losses(tmp_path / "cells" / "x" / "losses_9.npz", other)
    write_losses(tmp_path / "cells" / "y" / "losses_9.npz", other)
    found = losses_of(tmp_path / "cells", ["x", "y", "z"])
    assert list(found) == ["x", "y"]
    pack_losses(tmp_path / "losses.npz", found)
    packed = losses_of(tmp_path / "losses.npz", ["y", "x", "z"])
    assert list(packed) == ["y", "x"]
    for cell, each in found.items():
        assert len(each) == len(packed[cell])
        for a, b in zip(each, packed[cell], strict=True):
            assert (a.documents, a.test_length, a.protocol) == (b.documents, b.test_length, b.protocol)
            for name in ("document_loss", "document_tokens", "position_loss", "position_tokens", "edges"):
                assert getattr(a, name).tolist() == getattr(b, name).tolist()  # halves, eighths are exact in float32
    before = (tmp_path / "losses.npz").read_bytes()
    pack_losses(tmp_path / "losses.npz", found)
    assert (tmp_path / "losses.npz").read_bytes() == before
    (tmp_path / "losses.npz").write_bytes(before[:200])
    with pytest.raises(UserError, match="cannot read the losses of a published study"):
        losses_of(tmp_path / "losses.npz", ["x"])
