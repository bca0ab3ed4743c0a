"""Labels that people chose, where they are shown: files, terminals, Markdown, figures."""

import io
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from rich.console import Console

import pezoo
from pezoo.escape import in_figure, in_markdown, in_terminal, safe_names
from pezoo.report import table
from pezoo.report.printed import Table
from pezoo.report.write import write_report
from pezoo.results import read
from pezoo.study import make_plan
from pezoo.study.reading import load_recipe

ROOT = Path(__file__).parents[1]
TINY = {
    "tasks": ["parity"],
    "model": {"d_model": 8, "n_layers": 1, "n_heads": 2},
    "train": {"length": 8, "steps": 2, "batch_size": 2, "warmup_steps": 1, "log_every": 1},
    "tune": {"warmup_steps": 1},
    "test": {"lengths": [8, 16], "windows": 2},
}
LABELS = {
    "rope": "L" * 300,
    "alibi": "..",
    "nope": "a/b",
    "kerple": "a?b",
    "xpos": "a:b",
    "sinusoidal": "a b",
    "fire": "\x1b[31mred\x1b[0m",
    "t5": "<script>alert(1)</script> | ![x](http://a.b) \n# new\\",
    "shaw": r"$\frac{1}{$",
    "learned": "_hidden",
    "sandwich": "A/B",
    "tisa": "Ж" * 100,
    "cope": "[bold]x[/bold] [/]",
}


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A study whose rows, and part, have odd names, run and reported."""
    folder = tmp_path_factory.mktemp("odd") / "out"
    schemes = [{"scheme": scheme, "label": label} for scheme, label in LABELS.items()]
    pezoo.run(TINY | {"study": "odd", "parts": {"..": {"schemes": schemes}}}, out=folder)
    return folder


@pytest.mark.slow
@pytest.mark.ci
def test_every_label_has_a_folder_of_its_own(odd):
    assert list(dict.fromkeys(r.label for r in read(odd / "results.jsonl"))) == list(LABELS.values())
    train = odd / "tensorboard" / "train"
    (part,) = train.iterdir()
    (task,) = part.iterdir()
    folders = [path for path in task.iterdir() if list((path / "seed0").glob("events*"))]
    assert len(folders) == len(LABELS)
    shown = {path for path in (odd / "tensorboard" / "test").iterdir() if path.is_dir()}
    assert len(shown) >= len(LABELS)
    assert {path.name for path in odd.iterdir()} >= {"cells", "report", "tensorboard"}
    assert {path.name for path in odd.parent.iterdir()} == {"out"}, "nothing beside the study"


def test_the_plan_gives_each_label_a_folder():
    schemes = [{"scheme": scheme, "label": label} for scheme, label in LABELS.items()]
    cells = make_plan(load_recipe(TINY | {"schemes": schemes})).cells.values()
    logs = [cell.log for cell in cells if cell.kind == "train"]
    assert len({log.casefold() for log in logs}) == len(LABELS)
    for log in logs:
        assert ".." not in Path(log).parts
        assert all(len(part.encode()) < 200 for part in Path(log).parts)
    backwards = make_plan(load_recipe(TINY | {"schemes": schemes[::-1]})).cells.values()
    assert sorted(cell.log for cell in backwards if cell.kind == "train") == sorted(logs), "whatever the order"


@pytest.mark.slow
@pytest.mark.ci
def test_markdown_shows_labels_as_they_are(odd):
    text = (odd / "report" / "report.md").read_text()
    assert "\x1b" not in text
    assert "<script" not in text
    assert not re.search(r"\]\(", text)
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert tables
    for table_ in tables:
        widths = {len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in table_.splitlines()}
        assert len(widths) == 1, "no label makes a cell"
    assert "# new" not in text.splitlines()


@pytest.mark.slow
@pytest.mark.ci
def test_a_terminal_gets_no_escape_sequence(odd, capsys):
    for one in table.overview(read(odd / "results.jsonl")):
        for terminal in (False, True):
            out = io.StringIO()
            one.show(Console(file=out, force_terminal=terminal, color_system=None, width=100, highlight=False))
            shown = out.getvalue()
            assert "\x1b[31m" not in shown
            assert "[/bold]" in shown
    from pezoo.cli import main

    argv = ["run", str(odd / "recipe.yaml"), "--out", str(odd)]
    assert main([*argv, "--dry-run"]) == 0
    assert main(argv) == 0
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err
    assert r"\x1b[31mred" in captured.out


def test_progress_escapes_titles(capsys):
    from pezoo.study.plan import Cell
    from pezoo.study.progress import make_progress

    cell = Cell("train \x1b[31mred ±", {"kind": "train", "seed": 0})
    for terminal in (False, True):
        out = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
        console = Console(file=out, force_terminal=terminal, color_system=None, width=100)
        with make_progress(0, 1, console) as progress:
            progress.start(cell)
            progress.update(cell, 1, 2, None)
            progress.finish(cell, 1.0, None, {"status": "failed", "reason": "\x1b[32m≥"})
        text = out.buffer.getvalue().decode()
        assert "\x1b[31m" not in text
        assert "\x1b[32m" not in text
        assert r"train \x1b[31mred +-" in text


def test_matplotlib_draws_labels_as_they_are():
    for label in [*LABELS.values(), r"\$", "$", "$$"]:
        figure = Figure()
        drawn = figure.text(0, 0, in_figure(label))
        figure.draw_without_rendering()
        text, math = drawn._preprocess_math(drawn.get_text())
        assert not math
        assert text == in_terminal(label)


@pytest.mark.slow
@pytest.mark.ci
def test_a_legend_shows_a_label_that_begins_with_an_underscore(odd, tmp_path):
    from pezoo.report.curves import draw_curves

    results = [replace(r, part="") for r in read(odd / "results.jsonl")]
    figure = draw_curves(results, "exact_match", "answers")
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(texts) == len(LABELS)
    assert any(text.startswith("_hidden") for text in texts)
    write_report(results, tmp_path, odd / "cells", tmp_path / "logs")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rope+yarn:factor=8", "rope+yarn:factor=8"),
        ("dynamic_ntk", "dynamic_ntk"),
        ("{layers: [rope, nope]}", "{layers: [rope, nope]}"),
        ("5.23 ± 0.04", "5.23 ± 0.04"),
        ("a | windowed", r"a \| windowed"),
        ("a\\", r"a\\"),
        ("_a_", r"\_a\_"),
        ("# a", r"\# a"),
        ("![a](b)", r"![a]\(b)"),
        ("a\nb", r"a\\nb"),
        ("<a href=x>&lt;", "&lt;a href=x>&amp;lt;"),
    ],
)
def test_markdown(text, shown):
    assert in_markdown(text) == shown


@pytest.mark.parametrize(
    ("text", "encoding", "shown"),
    [
        ("5 ± 1, ≥ 4L – x", "ascii", "5 +- 1, >= 4L - x"),
        ("5 ± 1, ≥ 4L – x", "latin-1", "5 ± 1, >= 4L - x"),
        ("5 ± 1, ≥ 4L – x", "cp1252", "5 ± 1, >= 4L – x"),
        ("5 ± 1", "utf-8", "5 ± 1"),
        ("漢\N{REPLACEMENT CHARACTER}", "ascii", r"\u6f22?"),
        ("\ud800", "utf-8", r"\ud800"),
        ("\u202egnp", "utf-8", r"\u202egnp"),
    ],
)
def test_terminal(text, encoding, shown):
    assert in_terminal(text, encoding) == shown


def test_a_name_does_not_depend_on_the_others_order():
    labels = ["a:b", "a b", "A/B", "a_b", "漢" * 200, "L" * 300, "..", ""]
    names = safe_names(labels)
    assert safe_names(labels[::-1]) == names
    assert all(0 < len(name.encode()) < 150 for name in names.values())
    assert len({name.casefold() for name in names.values()}) == len(labels)


@pytest.mark.slow
@pytest.mark.ci
def test_the_command_prints_where_signs_are_missing(odd):
    """As `PYTHONIOENCODING=ascii pezoo run ...`: the table, in plain signs, and exit code 0."""
    encoding = "ascii"
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "pezoo", "run", str(odd / "recipe.yaml"), "--out", str(odd)]
    done = subprocess.run(command, capture_output=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr.decode(encoding)
    assert "exact match" in done.stdout.decode(encoding).lower()
    assert "\\u0416" in done.stdout.decode(encoding)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_table_lines_up_where_signs_are_missing(encoding):
    import pandas

    frame = pandas.DataFrame({"L": ["1.0 ± 0.1", "–"], "2L": ["≥ 4L", "x"]}, index=pandas.Index(["a", "b"], name="s"))
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    Table("h", "mean ± ≥", frame, ("—",)).show(Console(file=out, width=80))
    lines = out.buffer.getvalue().decode(encoding).splitlines()
    assert "mean" in lines[0]
    assert ">= 4L" in "\n".join(lines)
    rows = [line.rstrip() for line in lines if " x" in line or "4L" in line]
    assert [len(row) for row in rows] == [len(rows[0])] * 2
