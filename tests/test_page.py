"""The page of a report: in a browser, and what makes it."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import pezoo
from pezoo.report.figure import spread
from pezoo.report.lines import MOST, families
from pezoo.report.page import within
from tests.browser import chromium

PUBLISHED = Path(__file__).parents[1] / "experiments" / "results"
VOID = {"meta", "input", "br", "hr", "img", "link", "path", "use", "rect"}


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    pezoo.load(PUBLISHED / "survey").write(folder)
    return folder


class Ids(HTMLParser):
    """Collects ids, and what refers to them."""

    def __init__(self):
        super().__init__()
        self.ids, self.used, self.sources = [], set(), []

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "xlink:href") and value.startswith("#"):
                self.used.add(value[1:])
            if name in ("src", "href") and not value.startswith("#"):
                self.sources.append(value)
            self.used |= set(re.findall(r"url\(#([^)]+)\)", value or ""))


@pytest.mark.slow
def test_the_page_of_a_study_holds_all_that_it_shows(survey):
    text = (survey / "report.html").read_text(encoding="utf-8")
    assert len(text) < 3_000_000
    found = Ids()
    found.feed(text)
    assert len(set(found.ids)) == len(found.ids)
    assert found.used <= set(found.ids)
    assert not found.sources
    assert not re.search(r"@import|src=|https?://(?!www\.w3\.org)", text)
    assert {path.suffix for path in survey.iterdir()} == {".html", ".md", ".csv", ".tex", ".svg", ".png", ".pdf"}


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height", "dark"), [(1440, 900, False), (390, 844, False), (1440, 900, True)])
def test_the_first_screen_answers(survey, width, height, dark):
    axe = pytest.importorskip("axe_core_python", reason="needs axe-core-python")
    with chromium(width, height, dark) as driver:
        driver.get((survey / "report.html").as_uri())
        assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []
        answer = driver.find_element("id", "answer")
        assert len(answer.find_elements("tag name", "li")) >= 3
        assert answer.rect["y"] + answer.rect["height"] <= height
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        chart = driver.find_element("css selector", "figure.chart")
        assert chart.rect["y"] < height
        if width > 600:
            assert driver.find_element("tag name", "table").rect["y"] < height

        shown = "return [...document.querySelectorAll('.%s [id*=\"-line-\"]:not(.off)')].length"
        form = "narrow" if width < 600 else "wide"
        before = driver.execute_script(shown % form)
        off = driver.find_element("css selector", "[data-line]:not(:checked)")
        driver.execute_script("arguments[0].click()", off)
        assert driver.execute_script(shown % form) == before + 1

        driver.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
        driver.execute_script((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
        driver.set_script_timeout(120)
        found = driver.execute_async_script("const done = arguments[0]; axe.run({exclude: [['svg']]}).then(done)")
        serious = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
        assert [(one["id"], one["nodes"][0]["html"][:200]) for one in serious] == []


@pytest.mark.slow
def test_the_pointer_reads_a_value(survey):
    with chromium() as driver:
        driver.get((survey / "report.html").as_uri())
        mark = driver.execute_script(
            "const box = document.querySelector('.wide [id*=\"-line-\"]:not(.off) use').getBoundingClientRect();"
            "return [box.x + box.width / 2, box.y + box.height / 2]"
        )
        move = {"type": "mouseMoved", "x": mark[0], "y": mark[1]}
        driver.execute_cdp_cmd("Input.dispatchMouseEvent", move)
        tip = driver.find_element("id", "tip")
        assert tip.is_displayed()
        assert re.search(r"L = \d+: [\d.]+", tip.text)


@pytest.mark.parametrize("seed", range(20))
def test_names_are_moved_apart_and_no_further(seed):
    rng = np.random.default_rng(seed)
    middles, heights = rng.uniform(-100, 100, 1 + seed % 12), rng.uniform(1, 30, 1 + seed % 12)
    found = spread(middles, heights)
    order = np.argsort(middles, kind="stable")
    gaps = np.diff(found[order]) - (heights[order][1:] + heights[order][:-1]) / 2
    assert (gaps > -1e-9).all()
    wanted = np.diff(middles[order]) - (heights[order][1:] + heights[order][:-1]) / 2
    if (wanted >= 0).all():
        assert np.allclose(found, middles)
    alike = spread(middles, np.full(len(middles), 9.0))
    assert np.isclose(alike.mean(), middles.mean())


def test_panels_hold_each_scheme_once_and_no_more_than_can_be_told_apart():
    results = pezoo.load(PUBLISHED / "survey").results
    panels = families(results)
    labels = [label for each in panels.values() for label in each]
    assert sorted(labels) == sorted({r.label for r in results})
    assert all(0 < len(each) <= MOST for each in panels.values())
    for name, each in panels.items():
        assert {r.family for r in results if r.label in each} == {name.partition(":")[0].partition(" (")[0]}


def test_svg_in_a_page_keeps_its_references():
    svg = '<?xml?>\n<svg width="9pt" height="3pt" viewBox="0 0 9 3"><defs><path id="m"/></defs><use href="#m"/></svg>'
    assert within(svg, "a-") == '<svg viewBox="0 0 9 3"><defs><path id="a-m"/></defs><use href="#a-m"/></svg>'


def test_labels_cannot_leave_the_text_they_stand_in(tmp_path):
    from dataclasses import replace

    odd = "</script><script>alert(1)</script>"
    results = [replace(r, label=odd) for r in pezoo.load(PUBLISHED / "quickstart").results if r.label == "rope"] + [
        r for r in pezoo.load(PUBLISHED / "quickstart").results if r.label == "alibi"
    ]
    pezoo.results.write(tmp_path / "results.jsonl", [r for r in results if r.metric == "perplexity"])
    pezoo.load(tmp_path).write(tmp_path / "report")
    text = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text
    values = re.search(r'id="values">(.*?)</script>', text, re.DOTALL)[1]
    assert odd in {one["label"] for one in json.loads(values)}
