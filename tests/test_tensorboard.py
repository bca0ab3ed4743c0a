"""TensorBoard's view of a study: what is written, read back, and looked at in a browser."""

import json
import math
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import replace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata
from tensorboard.util.tensor_util import make_ndarray
from torch.utils.tensorboard import SummaryWriter

from pezoo.errors import UserError
from pezoo.report import groups, statistics, tensorboard
from pezoo.report.lines import MOST, draw_lengths, draw_positions
from pezoo.report.write import write_report
from tests.browser import chromium
from tests.test_report import (
    LENGTHS,
    SCHEMES,
    answers,
    crossing,
    lost,
    needles,
    result,
    study,
    trained_at,
    write_all_losses,
)

FAMILIES = {"nope": "none", "sinusoidal": "absolute", "learned": "absolute", "alibi": "bias", "rope": "relative"}
LOW, HIGH = (f"4 ends of intervals/1 perplexity, relative, {end}" for end in ("low", "high"))


def filed(**changes):
    """Those results, filed by family: two cards."""
    return [replace(r, family=FAMILIES[r.encoding]) for r in study(**changes)]


def opened(run):
    return EventAccumulator(str(run), size_guidance={"tensors": 0}).Reload()


def scalars(run):
    """Read a run: tag -> step -> value."""
    found = opened(run)
    tags = [tag for tag in found.Tags()["tensors"] if found.SummaryMetadata(tag).plugin_data.plugin_name == "scalars"]
    return {tag: {e.step: float(make_ndarray(e.tensor_proto)) for e in found.Tensors(tag)} for tag in tags}


def layout(run):
    """Read custom scalars: heading -> chart -> tags of mean, low and high."""
    found = layout_pb2.Layout()
    found.ParseFromString(opened(run).Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    charts = {category.title: category.chart for category in found.category}
    return {title: {c.title: series(c) for c in each} for title, each in charts.items()}


def series(chart):
    (one,) = chart.margin.series
    return one.value, one.lower, one.upper


def experiment(folder):
    content = opened(folder / "all schemes").SummaryMetadata(metadata.EXPERIMENT_TAG).plugin_data.content
    return metadata.parse_experiment_plugin_data(content)


def facts(run):
    content = opened(run).SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    started = metadata.parse_session_start_info_plugin_data(content)
    return {name: value.string_value or value.number_value for name, value in started.hparams.items()}


@pytest.fixture(scope="module")
def view(tmp_path_factory):
    """The whole view of a study: the folder of its curves, beside that of its rows."""
    logs = tmp_path_factory.mktemp("view")
    write_all_losses(filed(), logs / "cells")
    return tensorboard.write(filed(), logs, logs / "cells")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """What is drawn is tested elsewhere; here `view` alone has figures."""
    for name in ("draw_lengths", "draw_positions"):
        monkeypatch.setattr(tensorboard, name, lambda *_: None)


# Curves


@pytest.mark.slow
@pytest.mark.ci
def test_the_report_s_figures_are_shown_as_they_would_be_drawn(tmp_path, monkeypatch):
    seen, made = [], filed()
    write_all_losses(made, tmp_path / "cells")

    def pixels(picture, inner=tensorboard._pixels):
        seen.append(inner(picture))
        return seen[-1]

    monkeypatch.setattr(tensorboard, "_pixels", pixels)
    monkeypatch.setattr(tensorboard, "draw_lengths", draw_lengths)
    monkeypatch.setattr(tensorboard, "draw_positions", draw_positions)
    tensorboard.write(made, tmp_path / "logs", tmp_path / "cells")
    for name in ("draw_lengths", "draw_positions"):
        monkeypatch.delattr(tensorboard, name)  # none is drawn again
    write_report(made, tmp_path / "report", tmp_path / "cells", tmp_path / "logs")
    assert len(seen) == 4
    # All but a few pixels of 800,000: where a line ends between two of them, the last bit of the layout decides.
    assert all((one != other).mean() < 1e-4 for one, other in zip(seen[:2], seen[2:], strict=True))


def test_a_run_per_scheme_with_test_lengths_as_steps(view):
    assert {path.name for path in view.iterdir()} == {label for label, *_ in SCHEMES} | {"all schemes"}
    found = scalars(view / "rope+pi, 200 steps @ 8x")
    cards = {f"{section}/relative, by doublings" for section in ("1 perplexity", "2 loss", "3 loss by position")}
    cards |= {f"{section}/relative, by length" for section in ("1 perplexity", "2 loss")}
    assert set(found) == cards | {LOW, HIGH} | {"3 loss by position/relative, by position"}
    means = [6.9 * 0.98**k * math.sqrt(1.01) for k in range(5)]
    assert found["1 perplexity/relative, by length"] == pytest.approx(dict(zip(LENGTHS, means, strict=True)))
    assert found["1 perplexity/relative, by doublings"] == pytest.approx(
        dict(zip((0, 100, 200, 300, 400), means, strict=True))
    )
    positions = (1, 2, 4, 6, 12, 24, 48, 96, 192, 384, 768)
    assert tuple(found["3 loss by position/relative, by position"]) == positions
    assert min(found["3 loss by position/relative, by doublings"]) == -600
    assert list(scalars(view / "learned")["1 perplexity/none, absolute, bias, by length"]) == [64]


def test_figures_and_tables_stand_in_a_run_of_their_own(view):
    tags = opened(view / "all schemes").Tags()
    assert tags["images"] == ["1 perplexity/all schemes", "3 loss by position/all schemes"]
    assert {"1 perplexity/all schemes/text_summary", "2 loss/all schemes/text_summary"} <= set(tags["tensors"])
    assert scalars(view / "all schemes") == {}
    assert opened(view / "rope").Tags()["images"] == []


@pytest.mark.parametrize(("length", "step"), [(32, -100), (64, 0), (96, 58), (1024, 400)])
def test_a_step_is_a_hundredth_of_a_doubling(length, step, tmp_path):
    folder = tensorboard.write([result(length=length)], tmp_path)
    assert list(scalars(folder / "rope")["1 perplexity/all schemes, by doublings"]) == [step]


def test_cards_say_what_their_steps_are_and_where_training_ended(view):
    found = opened(view / "rope")
    said = {
        end: found.SummaryMetadata(f"1 perplexity/relative, by {end}").summary_description
        for end in ("doublings", "length")
    }
    assert all("Perplexity on python, prefix protocol, geometric mean of 2 seeds." in text for text in said.values())
    assert all("Ignore outliers in chart scaling" in text for text in said.values())
    assert "Step: 100 × log2(T / L), rounded; T is the test length in tokens" in said["doublings"]
    assert "L the training length, 64. 0 is L" in said["doublings"]
    assert "Step: the test length in tokens. Trained at L = 64." in said["length"]


def begins(run):
    return opened(run).FirstEventTimestamp()


@pytest.mark.parametrize("made", [filed(), crossing(extensions=[f"x{i}" for i in range(6)])], ids=["10", "42"])
def test_cards_hold_seven_schemes_and_give_them_seven_colours(made, tmp_path):
    """TensorBoard has seven colours, and gives them to runs in the order in which these begin."""
    folder = tensorboard.write(made, tmp_path)
    runs = sorted((run for run in folder.iterdir() if run.name != "all schemes"), key=begins)
    cards = {}
    for place, run in enumerate(runs):
        for tag in scalars(run):
            cards.setdefault(tag, []).append(place)
    assert all(len(places) <= MOST == 7 for places in cards.values())
    assert all(len({place % 7 for place in places}) == len(places) for places in cards.values())
    shown = {place for tag, places in cards.items() if tag.startswith("1 perplexity/") for place in places}
    assert len(shown) == len(runs) == len({r.label for r in made})


def test_small_families_share_a_card():
    found = tensorboard._cards(filed())
    assert list(found) == ["none, absolute, bias", "relative"]
    assert found["relative"] == ["rope", "rope+pi, zero-shot", "rope+pi, 200 steps @ 8x", "rope+ntk"]
    assert tensorboard._cards(r for r in filed() if r.encoding != "rope") == {
        "all schemes": ["nope", "sinusoidal", "sinusoidal+pi", "shape", "learned", "alibi"]
    }


def test_the_headline_comes_first_and_protocols_have_sections(tmp_path):
    made = [r for r in filed(protocols=("prefix", "sliding")) if r.label == "rope"]
    made = sorted(made, key=lambda r: r.metric)  # the loss first
    folder = tensorboard.write([result(protocol="attention", metric="max_logit"), *made], tmp_path)
    found = dict.fromkeys(tag.split("/")[0] for tag in scalars(folder / "rope"))
    assert sorted(found) == [
        "1 perplexity, prefix",
        "2 perplexity, sliding",
        "3 max logit, attention",
        "4 loss, prefix",
        "5 loss, sliding",
        "6 ends of intervals",
    ]


def test_tasks_and_parts_have_sections_of_their_own(tmp_path):
    made = [*needles(labels=("rope",)), *trained_at(32, labels=("rope",), part=lambda n: "short/ones")]
    made += [answers(protocol="generation"), result(corpus="text")]
    folder = tensorboard.write(made, tmp_path)
    assert {tag.split("/")[0] for tag in scalars(folder / "rope")} == {
        "1 passkey:n_digits=5, exact match",
        "2 short|ones, perplexity",
        "3 even_pairs, token accuracy",
        "4 perplexity",
        "5 passkey:n_digits=5, k max",
        "6 ends of intervals",
    }
    assert {path.name for path in folder.iterdir()} == {"rope", "all schemes"}


def test_lengths_are_counted_from_each_training_length(tmp_path):
    made = trained_at(32, 64, labels=("rope",))
    folder = tensorboard.write(made, tmp_path)
    for run in ("rope, L = 32", "rope, L = 64"):
        assert list(scalars(folder / run)["1 perplexity/all schemes, by doublings"]) == [0, 100]
    said = opened(folder / run).SummaryMetadata("1 perplexity/all schemes, by length").summary_description
    assert "Trained at L = 32, 64." in said


def test_tags_have_no_round_brackets(tmp_path):
    """Custom scalars draw nothing where a tag has one: they look for the run between the first and the last."""
    made = [*crossing(extensions=[f"x{i}" for i in range(6)]), result(part="a (b)")]
    folder = tensorboard.write(made, tmp_path)
    tags = {tag for run in folder.iterdir() for tag in scalars(run)}
    assert {tag.split("/")[0] for tag in tags} >= {"1 perplexity", "2 a [b], perplexity"}
    assert any("relative: t5 [1 of 2], by length" in tag for tag in tags)
    assert not any("(" in tag for tag in tags)


# Intervals


def test_custom_scalars_show_the_interval_of_the_mean(view):
    relative = "relative, by doublings, with 95 % intervals"
    charts = layout(view / "all schemes")
    assert list(charts) == ["1 perplexity"]
    assert list(charts["1 perplexity"])[::-1] == ["none, absolute, bias, by doublings, with 95 % intervals", relative]
    tags = charts["1 perplexity"][relative]
    assert tags == ("1 perplexity/relative, by doublings", LOW, HIGH)
    mean, low, high = (scalars(view / "rope")[tag] for tag in tags)
    kept = groups.select([r for r in filed() if r.label == "rope"], "perplexity", "prefix")
    for step, (length, summary) in zip(mean, statistics.curves(kept)["rope"].items(), strict=True):
        assert (mean[step], low[step], high[step]) == pytest.approx((summary.mean, *summary.interval())), length
        assert low[step] < mean[step] < high[step]


def test_a_band_has_a_point_wherever_its_mean_has_one(view):
    """TensorBoard draws no band at all where their numbers differ; `nope` lost a seed at 16L."""
    tags = layout(view / "all schemes")["1 perplexity"]["none, absolute, bias, by doublings, with 95 % intervals"]
    mean, low, high = (scalars(view / "nope")[tag] for tag in tags)
    assert list(mean) == list(low) == list(high) == [0, 100, 200, 300, 400]
    assert low[400] == mean[400] == high[400]


def test_one_seed_has_no_bands(tmp_path):
    folder = tensorboard.write(filed(seeds=(0,)), tmp_path)
    assert "custom_scalars__config__" not in opened(folder / "all schemes").Tags()["tensors"]
    assert not any("intervals" in tag for tag in scalars(folder / "rope"))


# HParams


def test_hparams_have_a_row_for_each_scheme_and_seed(tmp_path):
    folder = tensorboard.write([*filed(), result("rope | windowed", length=128)], tmp_path)
    rows = tmp_path / "hparams"
    assert {run.name for run in rows.iterdir()} == {f"{label}, seed {n}" for label, *_ in SCHEMES for n in (0, 1)}
    assert facts(rows / "rope+pi, 200 steps @ 8x, seed 1") == {
        "encoding": "rope",
        "extension": "pi",
        "family": "relative",
        "learning rate": 2e-3,
        "scheme": "rope+pi",
        "seed": "1",
        "total parameters": 200_000,
        "tuning length": 512,
        "tuning steps": 200,
    }
    assert facts(rows / "alibi, seed 0")["extension"] == "none"
    columns = ["at L", "at 4L", "at 16L", "stable to, in L", "good to, in L"]
    assert [m.display_name for m in experiment(folder).metric_infos] == [f"perplexity {name}" for name in columns]
    # the best in range is nope, at 5.5; a tenth above its mean is 6.08
    expected = {
        "rope, seed 1": [5.7 * 1.01, 5.7 * 1.01 * 1.35**2, 5.7 * 1.01 * 1.35**4, 1, 1],
        "alibi, seed 0": [6.2, 6.2 * 0.98**2, 6.2 * 0.98**4, 16, 0],
    }
    for name, values in expected.items():
        found = scalars(rows / name)
        assert [found[m.name.tag][0] for m in experiment(folder).metric_infos] == pytest.approx(values), name


def test_a_row_lacks_what_was_not_measured(tmp_path):
    tensorboard.write([*filed(), lost("gone", 64), lost("gone", 128)], tmp_path)
    assert "hparams/perplexity at 16L" not in scalars(tmp_path / "hparams" / "nope, seed 1")
    assert "hparams/perplexity at 16L" in scalars(tmp_path / "hparams" / "nope, seed 0")
    assert scalars(tmp_path / "hparams" / "gone, seed 0") == {
        "hparams/perplexity stable to, in L": {0: 0.0},
        "hparams/perplexity good to, in L": {0: 0.0},
    }


def test_the_first_columns_are_those_that_differ(view):
    """HParams show five at first: what differs comes before what does not, then by name."""
    infos = experiment(view).hparam_infos
    first = sorted(infos, key=lambda info: (not info.differs, info.name))[:5]
    assert [info.name for info in first] == ["encoding", "extension", "family", "scheme", "seed"]


def test_each_task_and_protocol_has_its_rows_or_columns(tmp_path):
    made = [*needles(labels=("rope",)), answers(protocol="generation"), answers(protocol="answers"), result()]
    folder = tensorboard.write(made, tmp_path)
    rows = {run.name: set(scalars(run)) for run in (tmp_path / "hparams").iterdir()}
    assert set(rows) == {
        "passkey n_digits=5 rope, seed 0",
        "passkey n_digits=5 rope, seed 1",
        "even_pairs rope, seed 0",
        "rope, seed 0",
    }
    assert "hparams/exact match at L" in rows["passkey n_digits=5 rope, seed 1"]
    assert {f"hparams/token accuracy, {p}, at 2L" for p in ("generation", "answers")} <= rows["even_pairs rope, seed 0"]
    assert facts(tmp_path / "hparams" / "even_pairs rope, seed 0")["part or task"] == "even_pairs"
    assert "part or task" in {info.name for info in experiment(folder).hparam_infos}


def test_more_rows_than_can_be_opened_are_left_out(tmp_path, monkeypatch):
    tensorboard.write(study(), tmp_path)
    monkeypatch.setattr(tensorboard, "ROWS", 2 * len(SCHEMES) - 1)
    folder = tensorboard.write(study(), tmp_path)
    assert list((tmp_path / "hparams").iterdir()) == []
    assert metadata.EXPERIMENT_TAG not in opened(folder / "all schemes").Tags()["tensors"]


# Files


def test_writing_again_replaces_the_view_and_spares_the_training_logs(tmp_path):
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
    assert not (tmp_path / "hparams" / "rope, seed 0").exists()
    for place in (folder, tmp_path / "hparams"):
        assert all(len(list(run.iterdir())) == 1 for run in place.iterdir() if run.is_dir())
    assert [len(steps) for tag, steps in scalars(folder / "alibi").items() if tag.startswith("2 loss")] == [5, 5]
    assert [e.value for e in opened(tmp_path / "train" / "rope" / "seed0").Scalars("loss")] == [1.0]
    assert kept.read_text() == "mine"


def test_a_full_disk_names_the_folder_of_a_run(tmp_path, small_files, capfd):
    with pytest.raises(OSError, match=f"File too large: '{tmp_path}/test/nope'"):
        tensorboard.write(study(), tmp_path)
    assert "Traceback" not in capfd.readouterr().err


def test_without_results_nothing_is_deleted(tmp_path):
    tensorboard.write(study(), tmp_path)
    with pytest.raises(UserError, match="no results yet"):
        tensorboard.write([], tmp_path)
    assert (tmp_path / "test" / "rope").exists()


# In a browser

ALL = """
const found = [];
(function walk(node) {
  for (const one of node.querySelectorAll("*")) {
    if (one.checkVisibility({visibilityProperty: true})) found.push(one);
    if (one.shadowRoot) walk(one.shadowRoot);
  }
})(document);
"""
"""All elements that a page shows, those inside its components included."""
TEXTS = (
    ALL
    + """
const skipped = /^(STYLE|SCRIPT|TEMPLATE)$/;
return found.filter(one => !skipped.test(one.tagName)).flatMap(
  one => [...one.childNodes].filter(node => node.nodeType == Node.TEXT_NODE).map(node => node.textContent.trim())
).filter(text => text);
"""
)
INPUTS = ALL + "return found.filter(one => one.tagName == 'INPUT').map(one => one.value);"
BANDS = ALL + "return found.filter(one => one.matches('path.area')).length;"
COLOURS = """
return [...document.querySelectorAll("scalar-card")].map(card =>
  [...card.querySelectorAll("tb-data-table .circle, tb-data-table .row-circle span")].map(
    one => getComputedStyle(one).backgroundColor
  )
);
"""


@contextmanager
def served(logdir):
    """The address of a TensorBoard that has read all runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir)]
    with (logdir / "output").open("w") as output:
        server = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], stdout=output, stderr=output)
    runs = {path.parent.relative_to(logdir).as_posix() for path in logdir.rglob("*tfevents*")}

    def there():
        return set(json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/data/runs"))) == runs

    try:
        assert _within(60, there)
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


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


@contextmanager
def browsing(logdir):
    """Open the printed address; yields what goes to a tab, waits for a text there, and returns all that is shown."""
    with served(logdir) as place, chromium(1440, 2400) as browser:
        browser.get(tensorboard.ADDRESS.replace("localhost:6006", place))

        def tabs():
            return {tab.text.upper(): tab for tab in browser.find_elements("css selector", "[role=tab]")}

        def shown(tab, text):
            assert _within(60, lambda: tab in tabs()), f"there is no tab {tab}"
            tabs()[tab].click()
            assert _within(60, lambda: text in browser.execute_script(TEXTS)), browser.execute_script(TEXTS)
            return browser.execute_script(TEXTS)

        yield shown, browser.execute_script


@pytest.mark.slow
def test_the_printed_address_shows_all_of_it(tmp_path):
    """Goes from tab to tab of TensorBoard in a browser."""
    tensorboard.write(filed(), tmp_path)
    with SummaryWriter(tmp_path / "train" / "rope" / "seed0") as writer:
        writer.add_scalar("train/loss", 1.0, 1)
    runs = {f"test/{label}" for label, *_ in SCHEMES} | {"test/all schemes"}

    def runs_of(texts):
        return {text for text in texts if text.startswith(("test/", "train/", "hparams/"))}

    with browsing(tmp_path) as (shown, script):
        texts = shown("TIME SERIES", "/relative, by length")
        assert runs_of(texts) == runs, "others are hidden"
        assert texts.index("1 perplexity") < texts.index("2 loss") < texts.index("3 ends of intervals")
        assert "/none, absolute, bias, by doublings" in texts
        assert not any("training length" in text for text in texts)
        assert "Smoothed" not in texts
        for colours in script(COLOURS)[:4]:
            assert 4 <= len(colours) == len(set(colours)) <= 7

        texts = shown("SCALARS", "1 perplexity/relative, by length")
        assert runs_of(texts) == runs
        assert texts.index("1 perplexity") < texts.index("2 loss")
        assert script(INPUTS)[1:3] == ["0", "^test/"], "smoothing is off, others are hidden"

        texts = shown("CUSTOM SCALARS", "relative, by doublings, with 95 % intervals")
        assert texts.index("none, absolute, bias, by doublings, with 95 % intervals") < texts.index(
            "relative, by doublings, with 95 % intervals"
        )
        assert _within(30, lambda: script(BANDS) == len(SCHEMES))
        assert script(INPUTS)[1:3] == ["0", "^test/"]

        texts = shown("TEXT", "rope+ntk")
        assert texts.index("1 perplexity/all schemes/text_summary") < texts.index("2 loss/all schemes/text_summary")

        texts = shown("HPARAMS", "shape, seed 1")
        head = ["encoding", "extension", "family", "scheme", "seed"]
        head += [f"perplexity {end}" for end in ("at L", "at 4L", "at 16L", "stable to, in L", "good to, in L")]
        start = texts.index("Trial ID") + 2
        assert texts[start : start + 10] == head
        row = texts.index("shape, seed 1") + 1
        assert texts[row : row + 5] == ["sinusoidal", "shift", "absolute", "sinusoidal+shift", "1"]
        assert [float(text) for text in texts[row + 5 : row + 10]] == pytest.approx(
            [8.08, 9.7768, 11.83, 1, 0], abs=1e-3
        )
