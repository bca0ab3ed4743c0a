"""Statistics, tables, figures and TensorBoard logs, from results that are made up here."""

import dataclasses
import html
import io
import json
import math
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from pezoo.errors import UserError
from pezoo.report import figure, statistics, table, tensorboard
from pezoo.report.statistics import Summary
from pezoo.results import Losses, Result, write_losses

LENGTHS = (64, 128, 256, 512, 1024)
# label, encoding, extensions, tuning steps, perplexity at L, factor for each doubling
SCHEMES = (
    ("nope", "nope", (), 0, 5.5, 1.1),
    ("sinusoidal", "sinusoidal", (), 0, 6.6, 1.5),
    ("sinusoidal+pi", "sinusoidal", ("pi",), 0, 6.6, 1.2),
    ("shape", "sinusoidal", ("shift",), 0, 8.0, 1.1),
    ("alibi", "alibi", (), 0, 6.2, 0.98),
    ("rope", "rope", (), 0, 5.7, 1.35),
    ("rope+pi, zero-shot", "rope", ("pi",), 0, 5.7, 1.4),
    ("rope+pi, 200 steps @ 8x", "rope", ("pi",), 200, 6.9, 0.98),
    ("rope+ntk", "rope", ("ntk",), 0, 5.7, 1.15),
    ("learned", "learned", (), 0, 6.5, 1.0),
)


def result(label="rope", value=5.0, length=64, seed=0, **changes):
    facts = {
        "study": "made_up",
        "cell": f"{zlib.crc32(label.encode()):x}-{seed}",
        "scheme": "rope",
        "encoding": "rope",
        "extensions": (),
        "family": "relative",
        "task": "language_modelling",
        "corpus": "python",
        "protocol": "prefix",
        "metric": "perplexity",
        "n_tokens": 32 * length,
        "n_documents": 20,
        "train_length": 64,
        "length_ratio": length / changes.get("train_length", 64),
        "scale_factor": None,
        "learning_rate": 2e-3,
        "steps": 800,
        "finetune_steps": 0,
        "finetune_length": None,
        "params": 200_000,
        "train_seconds": 40.0,
        "eval_seconds": 0.4,
        "tokens_per_second": 5e4,
        "peak_memory_bytes": None,
        "threads": 1,
        "config_hash": "77ab",
        "versions": {"torch": "2.13.0"},
        "device": "cpu",
        "date": "2030-01-01T00:00:00+00:00",
    }
    return Result(**facts | changes, label=label, value=value, test_length=length, seed=seed)


def lost(label, length, seed=0, status="diverged", reason="the loss is not finite", **changes):
    return result(label, None, length, seed, status=status, reason=reason, **changes)


def study(seeds=(0, 1), protocols=("prefix",)):
    """Results as a study writes them: `learned` undefined beyond L, `nope` diverging once."""
    made = []
    for label, encoding, extensions, tuned, start, factor in SCHEMES:
        facts = {
            "scheme": "+".join([encoding, *extensions]),
            "encoding": encoding,
            "extensions": extensions,
            "finetune_steps": tuned,
            "finetune_length": 512 if tuned else None,
        }
        for seed in seeds:
            for protocol in protocols:
                for k, length in enumerate(LENGTHS):
                    value = start * factor**k * (1 + 0.01 * seed)
                    for metric in ("loss", "perplexity"):
                        at = {"metric": metric, "protocol": protocol} | facts
                        value = math.log(value) if metric == "loss" else math.exp(value)
                        if label == "learned" and length > 64:
                            why = "the table holds 64 positions"
                            made.append(lost(label, length, seed, "undefined", why, **at))
                        elif label == "nope" and length == 1024 and seed == 1:
                            made.append(lost(label, length, seed, **at))
                        else:
                            made.append(result(label, value, length, seed, **at))
    return made


def write_all_losses(results, cells):
    edges = np.array([0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024])
    for number, (label, cell) in enumerate(sorted({(r.label, r.cell) for r in results})):
        for longest in (64,) if label == "learned" else (512, 1024):
            own = edges[edges <= longest]
            tokens = np.tile(np.diff(own), (20, 1))
            losses = Losses(
                loss_sum=tokens * (1 + 0.1 * number),
                tokens=tokens,
                edges=own,
                documents=[f"{i}.py" for i in range(20)],
                test_length=longest,
                protocol="prefix",
            )
            write_losses(cells / cell / f"losses_{longest}.npz", losses)


# Statistics


@pytest.mark.parametrize(
    ("values", "troubles", "shown"),
    [
        ((5.234,), (), "5.23"),
        ((1.0, 2.0, 6.0), (), "3.00 ± 2.65"),  # sample deviation: sqrt((4 + 1 + 9) / 2)
        ((12.34, 12.36), (), "12.3 ± 0.0"),
        ((0.0123,), (), "0.0123"),
        ((1234.5,), (), "1234"),
        ((0.0,), (), "0.00"),
        ((2e7, 2e7), (), "2.00e+07 ± 0.00e+00"),
        ((), ("undefined", "undefined"), "undefined"),
        ((), ("out_of_memory",), "out of memory"),
        ((8.43,), ("diverged",), "8.43, diverged 1/2"),
        ((), ("diverged", "failed", "failed"), "diverged 1/3, failed 2/3"),
    ],
)
def test_a_summary_shows_mean_spread_and_troubles(values, troubles, shown):
    assert str(Summary(values, troubles)) == shown


def test_one_seed_has_no_spread_and_no_interval():
    assert Summary((5.0,)).spread is None
    assert statistics.interval([5.0]) is None


@given(st.lists(st.floats(1, 1e4), min_size=2, max_size=8), st.floats(0.5, 0.99))
def test_t_interval_is_the_textbooks(values, level):
    low, high = statistics.interval(values, level)
    mean, deviation = np.mean(values), np.std(values, ddof=1)
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * deviation / math.sqrt(len(values))
    assert low == pytest.approx(mean - half, rel=1e-6, abs=1e-6)
    assert high == pytest.approx(mean + half, rel=1e-6, abs=1e-6)


def test_intervals_of_logarithms_stay_positive():
    values = [1.0, 400.0]
    assert statistics.interval(values)[0] < 0 < statistics.interval(values, log=True)[0]


def test_bootstrap_interval_agrees_with_t_on_many_seeds():
    values = np.random.default_rng(0).normal(10, 2, 400)
    bootstrap = statistics.interval(values, method="bootstrap")
    assert bootstrap == pytest.approx(statistics.interval(values), abs=0.05)
    assert statistics.interval([3.0, 3.0], method="bootstrap") == (3.0, 3.0)


def test_pairs_cancel_what_a_seed_does_to_both():
    made = [result("a", 2.0 * s, seed=s) for s in (1, 2, 5)]
    made += [result("b", 1.0 * s, seed=s) for s in (5, 1, 9)]
    ratio, (low, high) = statistics.paired_ratio(made, "a", "b", 64)
    assert (ratio, low, high) == pytest.approx((2, 2, 2))
    with pytest.raises(UserError, match="no seed with a value in common at 128"):
        statistics.paired_ratio(made, "a", "b", 128)


def test_document_interval_covers_the_mean_and_pairs_documents():
    rng = np.random.default_rng(0)
    tokens = rng.integers(50, 200, (40, 3))
    loss = tokens * rng.normal(2, 0.5, (40, 1))
    facts = {"tokens": tokens, "edges": [0, 1, 2, 3], "documents": range(40)}
    facts |= {"test_length": 3, "protocol": "prefix"}
    one = Losses(loss_sum=loss, **facts)
    other = Losses(loss_sum=loss + 0.1 * tokens, **facts)
    low, high = statistics.document_interval(one)
    assert low < loss.sum() / tokens.sum() < high
    assert 0.2 < high - low < 0.5  # four standard errors, 4 × 0.5 / sqrt(40), give or take
    difference = statistics.document_interval(other, baseline=one)
    assert difference == pytest.approx((0.1, 0.1))
    with pytest.raises(ValueError, match="same documents"):
        statistics.document_interval(one, dataclasses.replace(other, documents=range(1, 41)))


def test_results_that_cannot_share_a_table_are_refused():
    select = statistics.select
    with pytest.raises(UserError, match="no results yet"):
        select([], "perplexity", "prefix")
    with pytest.raises(UserError, match=r"no results of accuracy \(prefix\), but of perplexity"):
        select([result()], "accuracy", "prefix")
    with pytest.raises(UserError, match="several train_length: 32, 64"):
        select([result(), result("b", length=32, train_length=32)], "perplexity", "prefix")
    with pytest.raises(UserError, match=r"'rope' with seed 0 .* differ in depth\. Give"):
        select([result(depth=0.1), result(depth=0.5)], "perplexity", "prefix")


def test_losses_are_found_at_the_longest_length_of_each_label(tmp_path):
    results = study()
    write_all_losses(results, tmp_path)
    found = statistics.losses_by_label(results, tmp_path, "prefix")
    assert list(found) == [label for label, *_ in SCHEMES]
    assert [one.test_length for one in found["rope"]] == [1024, 1024]
    assert [one.test_length for one in found["learned"]] == [64, 64]
    assert statistics.losses_by_label(results, tmp_path, "non_overlapping") == {}


def test_loss_by_position_is_the_mean_over_seeds():
    facts = {"edges": [0, 1, 3], "documents": ["a"], "test_length": 3, "protocol": "prefix"}
    seeds = [Losses(loss_sum=[[s, 4 * s]], tokens=[[1, 2]], **facts) for s in (1.0, 3.0)]
    assert statistics.mean_by_position(seeds) == {1.0: 2.0, 2.5: 4.0}


# Tables


def test_pivot_has_a_row_per_label_and_a_column_per_length():
    frame = table.pivot(study())
    assert list(frame.index) == [label for label, *_ in SCHEMES]
    assert list(frame.columns) == ["L", "2L", "4L", "8L", "16L"]
    assert frame.loc["rope", "L"].mean == pytest.approx(5.7 * 1.005)
    assert frame.loc["rope", "L"].spread == pytest.approx(0.01 * 5.7 / math.sqrt(2))
    assert str(frame.loc["learned", "2L"]) == "undefined"
    assert str(frame.loc["nope", "16L"]) == "8.05, diverged 1/2"


def test_a_result_that_is_not_there_yet_is_a_dash():
    made = [result("a", 5.0), result("a", 6.0, length=96), result("b|c", 7.0, length=100)]
    assert table.markdown(made).splitlines() == [
        "Perplexity on python; prefix protocol; L = 64 tokens; one seed.",
        "",
        "| scheme | L | 1.5L | 100 tokens |",
        "| --- | ---: | ---: | ---: |",
        "| a | 5.00 | 6.00 | – |",
        r"| b\|c | – | – | 7.00 |",
    ]


def test_tables_give_the_reasons():
    text = table.markdown(study())
    assert "mean ± sample standard deviation over 2 seeds" in text
    assert "- learned: undefined at 2L, 4L, 8L, 16L: the table holds 64 positions\n" in text
    assert "- nope: diverged at 16L: the loss is not finite\n" in text


def test_the_file_has_a_table_per_metric_and_protocol(tmp_path):
    table.write(study(protocols=("prefix", "non_overlapping")), tmp_path / "report" / "table.md")
    headings = re.findall("^#.*", (tmp_path / "report" / "table.md").read_text(), re.M)
    assert headings == [
        "# made_up",
        "## Loss, prefix protocol",
        "## Perplexity, prefix protocol",
        "## Loss, non_overlapping protocol",
        "## Perplexity, non_overlapping protocol",
    ]
    with pytest.raises(UserError, match="no results yet"):
        table.write([], tmp_path / "report" / "none.md")
    assert not (tmp_path / "report" / "none.md").exists()


@pytest.mark.parametrize(("width", "terminal"), [(80, True), (80, False), (150, True)])
def test_the_terminal_shows_every_cell_whole(width, terminal):
    text = io.StringIO()
    table.show(study(), console=Console(file=text, width=width, force_terminal=terminal))
    plain = re.sub(r"\x1b\[[\d;]*m", "", text.getvalue())
    assert "…" not in plain
    assert plain.count("undefined") == 4 + 1  # one of them in the reasons
    assert plain.count("±") == 8 * 5 + 4 + 1 + 1
    if terminal and width == 80:
        assert max(len(line) for line in plain.splitlines() if "─" in line) <= 80
    else:
        assert re.search(r"^  rope  +5\.73 ± 0\.04  +7\.73 ± 0\.05  ", plain, re.M)


# Figures


def test_a_scheme_looks_the_same_in_every_figure():
    every = figure.styles(study())
    for label, look in every.items():
        alone = [r for r in study() if r.label == label]
        assert figure.styles(alone) == {label: look}
    assert every["rope"].colour == every["rope+ntk"].colour != every["alibi"].colour
    zero_shot, tuned = every["rope+pi, zero-shot"], every["rope+pi, 200 steps @ 8x"]
    assert zero_shot.dashes == tuned.dashes == every["sinusoidal+pi"].dashes
    assert not zero_shot.filled
    assert tuned.filled


def test_every_scheme_of_a_large_study_looks_different():
    extensions = [(), *[(name,) for name in figure.EXTENSIONS], ("pi", "window"), ("new_one",)]
    made = [
        result(
            f"{'+'.join([encoding, *added])}, {steps}",
            encoding=encoding,
            extensions=added,
            scheme="+".join([encoding, *added]),
            finetune_steps=steps,
        )
        for encoding in (*figure.ENCODINGS, "my_encoding", "another")
        for added in extensions
        for steps in (0, 200)
    ]
    looks = figure.styles(made)
    assert len(set(looks.values())) == len(looks) == 22 * len(extensions) * 2


def test_settings_that_differ_get_other_markers():
    made = [result(f"rope+pi:factor={n}", extensions=("pi",), scheme=f"rope+pi:factor={n}") for n in range(2, 40)]
    looks = figure.styles(made)
    assert len(set(looks.values())) == len(made)
    assert len({look.colour for look in looks.values()}) == 1


def test_curves_show_the_means_and_mark_the_training_length():
    drawn = figure.draw_curves(study())
    (axes,) = drawn.axes
    (legend,) = drawn.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    names = [tick.get_text() for tick in axes.get_xticklabels()]
    assert names == ["64\nL", "128\n2L", "256\n4L", "512\n8L", "1024\n16L"]
    assert axes.get_xlabel() == "test length (tokens), L = 64"
    (dashed,) = [line for line in axes.lines if list(line.get_xdata()) == [64, 64]]
    assert dashed.get_linestyle() == "--"
    curves = {tuple(line.get_xdata()): line for line in axes.lines}
    assert (64,) in curves  # `learned` ends where it is defined
    rope = axes.lines[[label for label, *_ in SCHEMES].index("rope")]
    assert rope.get_ydata() == pytest.approx([5.7 * 1.35**k * 1.005 for k in range(5)])
    assert "learned (undefined from 2L)" in texts
    assert "nope (diverged 1/2 from 16L)" in texts
    assert texts[0] == "sinusoidal"  # the legend stands in the order of the right ends
    assert texts[-1] == "alibi"


@pytest.mark.parametrize(
    ("seeds", "bars", "said"),
    [
        ((0,), None, "one seed"),
        ((0, 1), None, "mean of 2 seeds, bars: ± sample standard deviation"),
        ((0, 1, 2), None, "mean of 3 seeds, bars: 95 % confidence interval"),
        ((0, 1, 2), "spread", "mean of 3 seeds, bars: ± sample standard deviation"),
    ],
)
def test_error_bars_say_what_they_are(seeds, bars, said):
    made = [result("rope", 5.0 + seed, length, seed) for seed in seeds for length in LENGTHS]
    (axes,) = figure.draw_curves(made, bars=bars).axes
    assert any(said in text.get_text() for text in axes.texts)
    ends = [bar.vertices[:, 1] for c in axes.collections for bar in c.get_paths()]
    values = [5.0 + seed for seed in seeds]
    if said == "one seed":
        assert ends == []
    elif "interval" in said:
        assert ends[0] == pytest.approx(statistics.interval(values, log=True))
    else:
        half = np.std(values, ddof=1)
        assert ends[0] == pytest.approx([np.mean(values) - half, np.mean(values) + half])


def test_figures_of_what_has_no_value_are_drawn_too(tmp_path):
    made = [lost("rope", length, seed) for length in LENGTHS for seed in (0, 1)]
    drawn = figure.draw_curves(made)
    assert [t.get_text() for t in drawn.legends[0].get_texts()] == ["rope (diverged from L)"]
    figure.save(drawn, tmp_path / "curves")
    losses = [lost("rope", length, metric="loss") for length in LENGTHS]
    figure.save(figure.draw_by_position(losses, tmp_path), tmp_path / "by_position")


def test_values_far_apart_and_close_together_get_ticks():
    for high in (5.001, 6, 50, 1e9):
        (axes,) = figure.draw_curves([result(value=5.0), result(value=high, length=128)]).axes
        ticks = [tick.get_text() for tick in axes.get_yticklabels()]
        assert 2 <= len(ticks) <= 12


def test_files_are_the_same_every_time(tmp_path):
    results = study()
    write_all_losses(results, tmp_path / "cells")
    for name in ("a.svg", "b.png", "c.d"):
        svg, png = figure.save(figure.draw_curves(results), tmp_path / name)
        assert (svg.suffix, png.suffix) == (".svg", ".png")
    assert sorted(p.name for p in tmp_path.glob("c*.*")) == ["c.d.png", "c.d.svg"]
    for suffix in ("svg", "png"):
        one, other = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in "ab")
        assert one == other
    text = (tmp_path / "a.svg").read_text()
    assert "<dc:date>" not in text
    assert "rope+pi, 200 steps @ 8x" in text  # text, not outlines: it can be searched
    by_position = figure.draw_by_position(results, tmp_path / "cells")
    svg, _ = figure.save(by_position, tmp_path / "by_position")
    assert "loss (nats per token)" in svg.read_text()


def test_drawing_leaves_no_figures_behind():
    from matplotlib import pyplot

    figure.draw_curves(study())
    assert pyplot.get_fignums() == []


# TensorBoard


def events(folder):
    """Read a run: tag -> [(step, value)], tags of images, tags of texts."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload()
    scalars = {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    return scalars, found.Tags()["images"], found.Tags()["tensors"]


def test_a_run_per_scheme_with_test_lengths_as_steps(tmp_path):
    results = study()
    write_all_losses(results, tmp_path / "cells")
    folder = tensorboard.write(results, tmp_path, tmp_path / "cells")
    runs = {path.name for path in folder.iterdir()}
    assert runs == {label for label, *_ in SCHEMES} | {"training length 64", "all schemes"}
    scalars, images, texts = events(folder / "rope+pi, 200 steps @ 8x")
    assert set(scalars) == {
        "extrapolation/perplexity",
        "extrapolation_more/loss",
        "extrapolation_more/loss_by_position",
    }
    steps, values = zip(*scalars["extrapolation/perplexity"], strict=True)
    assert steps == LENGTHS
    assert values == pytest.approx([6.9 * 0.98**k * 1.005 for k in range(5)])
    steps, _ = zip(*scalars["extrapolation_more/loss_by_position"], strict=True)
    assert steps == (1, 2, 4, 6, 12, 24, 48, 96, 192, 384, 768)
    assert (images, texts) == ([], [])
    scalars, images, texts = events(folder / "all schemes")
    assert scalars == {}
    assert images == ["extrapolation/perplexity", "extrapolation_more/loss_by_position"]
    assert "extrapolation/perplexity/text_summary" in texts
    assert events(folder / "learned")[0]["extrapolation/perplexity"][0][0] == 64
    assert len(events(folder / "learned")[0]["extrapolation/perplexity"]) == 1


def test_the_line_at_the_training_length_keeps_all_curves_on_the_card(tmp_path):
    folder = tensorboard.write(study(), tmp_path)
    every = []
    for run in folder.iterdir():
        every += events(run)[0].get("extrapolation/perplexity", [])
    line = events(folder / "training length 64")[0]["extrapolation/perplexity"]
    assert all(abs(step - 64) < 8 for step, _ in line)
    values = sorted(value for _, value in every)
    shown = values[math.ceil(0.05 * (len(values) - 1))], values[int(0.95 * (len(values) - 1))]
    assert shown == (values[0], values[-1])


def test_writing_again_replaces_the_view_and_spares_the_training_logs(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path / "train" / "rope" / "seed0") as writer:
        writer.add_scalar("loss", 1.0, 1)
    kept = tmp_path / "test" / "notes.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    tensorboard.write(study(), tmp_path)
    fewer = [r for r in study() if r.label != "rope"]
    for _ in range(2):
        folder = tensorboard.write(fewer, tmp_path)
    assert not (folder / "rope").exists()
    assert all(len(list(run.iterdir())) == 1 for run in folder.iterdir() if run.is_dir())
    assert len(events(folder / "alibi")[0]["extrapolation/perplexity"]) == 5
    assert events(tmp_path / "train" / "rope" / "seed0")[0] == {"loss": [(1, 1.0)]}
    assert kept.read_text() == "mine"


def test_protocols_have_groups_of_their_own(tmp_path):
    folder = tensorboard.write(study(protocols=("prefix", "non_overlapping")), tmp_path)
    assert set(events(folder / "rope")[0]) == {
        "extrapolation/perplexity",
        "extrapolation_more/loss",
        "extrapolation_non_overlapping/perplexity",
        "extrapolation_non_overlapping_more/loss",
    }


def test_without_results_nothing_is_deleted(tmp_path):
    tensorboard.write(study(), tmp_path)
    with pytest.raises(UserError, match="no results yet"):
        tensorboard.write([], tmp_path)
    assert (tmp_path / "test" / "rope").exists()


@given(st.lists(st.text(), unique=True))
def test_run_names_are_distinct_single_folders(labels):
    names = tensorboard.run_names(labels)
    assert list(names) == labels
    assert len({name.casefold() for name in names.values()}) == len(labels)
    for name in names.values():
        assert not set(name) & set('/\\:*?"<>|\0\n')
        assert name.strip(" .") == name != ""
        assert len(name.encode()) < 255


@pytest.mark.slow
def test_the_page_shows_all_curves_on_one_card(tmp_path):
    """Opens TensorBoard in a browser and reads the first card of the page."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs a browser: apt-get install chromium")
    tensorboard.write(study(), tmp_path / "logs")
    runs = {f"test/{label}" for label, *_ in SCHEMES}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(tmp_path / "logs")]
    with (tmp_path / "output").open("w") as output:
        server = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], stdout=output, stderr=output)
    try:
        address = tensorboard.ADDRESS.replace("localhost:6006", f"127.0.0.1:{port}")
        tags = f"http://127.0.0.1:{port}/data/plugin/scalars/tags"
        assert _within(60, lambda: json.load(urllib.request.urlopen(tags)).keys() >= runs)
        flags = [
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1600,1200",
            "--virtual-time-budget=30000", "--dump-dom",
        ]  # fmt: skip
        page = subprocess.run(
            [browser, *flags, address], capture_output=True, text=True, timeout=120, check=True
        ).stdout
    finally:
        server.terminate()
        server.wait()
    card = page[page.index("<scalar-card") : page.index("</scalar-card>")]
    texts = [html.unescape(text).strip() for text in re.findall(">([^<]+)<", card)]
    assert texts[:2] == ["extrapolation", "/perplexity"]
    assert "Smoothed" not in texts
    for label, *_ in SCHEMES:
        row = texts.index(f"test/{label}")
        length = "64" if label == "learned" else "1,024"
        assert length in texts[row : row + 4], texts[row : row + 4]
    ticks = [float(text) for text in texts[: texts.index("Run")] if text.isdigit()]
    assert 30 in ticks  # the worst curve ends at 33.6, the axis is not cut below it
    assert "image-card" in page


def _within(seconds, holds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if holds():
                return True
        except OSError:
            pass
        time.sleep(0.5)
    return False
