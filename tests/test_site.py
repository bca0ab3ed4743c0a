"""The documentation site: equations as mathematics, pages of members, moved links; all of it built and looked at."""

import html
import importlib.util
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser import chromium

import pezoo
from pezoo import cli
from pezoo.registry import entry
from pezoo.report.claims import read_claims
from pezoo.report.finished import load
from pezoo.report.verdicts import judge_all
from pezoo.scheme import parse
from tools import catalogue, grid
from tools import published as studies
from tools.paths import PUBLISHED, ROOT
from tools.website import api, gallery, results
from tools.website.links import as_github_reads, moved, place
from tools.website.mathml import GREEK, equation, with_equations

MEMBERS = catalogue.members(*catalogue.DRAWN)
EQUATIONS = {e.name: e.equation for e in MEMBERS if e.equation}


# Equations


def symbols(text):
    """Letters and numbers of a text, one by one."""
    return re.findall(r"\d+(?:\.\d+)?|\w", text)


@pytest.mark.parametrize("name", EQUATIONS)
def test_an_equation_says_what_the_member_says(name):
    """In its order, no symbol lost and none added: but for signs that have another form, and dots of multiplication."""
    said = EQUATIONS[name]
    said = re.sub(r"\b(sum|prod|int|floor|ceil|sqrt|inf)(?=\b|_)", "", said)
    said = re.sub(r"(?<=\d) x (?=\(|[A-Z])", " ", said).replace(" in {", " {")
    said = re.sub(rf"(?<![a-z])({'|'.join(GREEK)})(?![a-z])", lambda m: GREEK[m[1]], said)
    said = re.sub(r"\^T\b", "", said)
    came = html.unescape(re.sub(r"<[^>]*>", " ", equation(EQUATIONS[name])))
    assert symbols(came) == symbols(said.replace("_", " "))


@pytest.mark.parametrize(
    ("text", "markup"),
    [
        ("a / b", "<mfrac><mrow><mi>a</mi></mrow><mrow><mi>b</mi></mrow></mfrac>"),
        ("c + (a + 1) / 2", "<mfrac><mrow><mi>a</mi><mo>+</mo><mn>1</mn></mrow><mrow><mn>2</mn></mrow></mfrac>"),
        ("8h/H", "<mn>8</mn><mi>h</mi><mo>/</mo><mi>H</mi>"),
        ("l_ij", "<msub><mrow><mi>l</mi></mrow><mrow><mi>i</mi><mi>j</mi></mrow></msub>"),
        ("f_s^c", "<msubsup><mrow><mi>f</mi></mrow><mrow><mi>s</mi></mrow><mrow><mi>c</mi></mrow></msubsup>"),
        ("base'^(-2k)", "<mrow><mo>′</mo><mo form=\"prefix\">−</mo><mn>2</mn><mi>k</mi></mrow>"),
        ("sum_{s<=t} x", "<munder><mo>∑</mo><mrow><mi>s</mi><mo>≤</mo><mi>t</mi></mrow></munder>"),
        ("sqrt(2 d)", "<msqrt><mn>2</mn>"),
        ("q_i.k_j", "<mo>·</mo>"),
        ("v in {0..n}", "<mo>∈</mo>"),
        ("i in a chunk", "<mtext>\u00a0in a chunk</mtext>"),
        ("1 < n", "<mo>&lt;</mo>"),
        ("aK[c]", "<msup><mi>a</mi><mi>K</mi></msup>"),
    ],
)  # fmt: skip
def test_an_equation_is_set_as_mathematics(text, markup):
    assert markup in equation(text)


def test_a_fraction_takes_the_product_before_it_and_no_more():
    made = equation("x = p_i L / T + 1")
    (above,) = re.findall(r"<mfrac><mrow>(.*?)</mrow><mrow><mi>T</mi></mrow></mfrac>", made)
    assert symbols(re.sub(r"<[^>]*>", " ", above)) == ["p", "i", "L"]


def test_statements_have_a_line_each():
    assert equation("a = b,  c = d;  e").count("<p>") == 3


@pytest.mark.parametrize("text", ["(a", "a)", "sum_{s", "|a"])
def test_a_bracket_without_a_partner_is_refused(text):
    with pytest.raises(ValueError, match=r"lacks a|did not open"):
        equation(text)


def test_latex_of_documents_is_set_as_mathematics():
    pytest.importorskip("latex2mathml")
    text = "Key $j$ costs $5, and `$i$`:\n\n$$\\frac{a}{b}$$\n\n```\n$a$\n```\nfor `$OUT` and $L$."
    before, block, after = re.fullmatch(
        r"(.*)<div class=\"equation\"><p>(.*)</p></div>(.*)", with_equations(text), re.DOTALL
    ).groups()
    assert re.sub(r"<span><math.*?</math></span>", "@", before) == "Key @ costs $5, and `$i$`:\n\n"
    assert "<mfrac><mrow><mi>a</mi></mrow><mrow><mi>b</mi></mrow></mfrac>" in block
    assert re.sub(r"<span><math.*?</math></span>", "@", after) == "\n\n```\n$a$\n```\nfor `$OUT` and @."


def test_an_equation_that_begins_a_line_stays_in_its_sentence():
    pytest.importorskip("latex2mathml")
    markdown = pytest.importorskip("markdown")
    shown = markdown.markdown(with_equations("A score depends on the distance\n$i - j$ alone."))
    assert re.sub(r"<span>.*</span>", "@", shown) == "<p>A score depends on the distance\n@ alone.</p>"


# Links


@pytest.mark.parametrize(
    ("path", "anchor", "page"),
    [
        ("README.md", "", "index.md"),
        ("CONTRIBUTING.md", "", "contributing.md"),
        ("docs/grid.md", "reasons", "grid.md"),
        ("docs/pictures/rope.svg", "", "pictures/rope.svg"),
        ("docs/zoo.md", "rope", "gallery/rope.md"),
        ("docs/zoo.md", "extensions", "gallery/index.md"),
        ("experiments/results/survey/table.md", "", "results/survey.md"),
        ("experiments/results/survey/curves.png", "", "results/survey/curves.png"),
        ("encodings/bias/alibi.py", "", "files/encodings/bias/alibi.py.md"),
        ("LICENSE", "", "files/LICENSE.md"),
        ("experiments/results/survey/losses.npz", "", "results/survey/losses.npz"),
    ],
)
def test_every_file_has_its_place_on_the_site(path, anchor, page):
    assert place(path, {"rope"}, anchor) == page


def test_links_move_with_their_page():
    def find(path, anchor):
        return place(path, {"rope"}, anchor)

    text = (
        "[`rope`](zoo.md#rope), [why](grid.md#reasons), [there](#here), [far](https://arxiv.org/abs/1), "
        "[table](../experiments/results/survey/table.md)\n`[x](zoo.md)`\n```\n[x](zoo.md)\n```\n"
    )
    assert moved(text, "docs/a.md", "a.md", find) == (
        "[`rope`](gallery/rope.md), [why](grid.md#reasons), [there](#here), [far](https://arxiv.org/abs/1), "
        "[table](results/survey.md)\n`[x](zoo.md)`\n```\n[x](zoo.md)\n```\n"
    )
    picture = "[![a](pictures/a.svg)](pictures/a.svg)"
    assert moved(picture, "docs/zoo.md", "gallery/a.md", find) == "[![a](../pictures/a.svg)](../pictures/a.svg)"


def test_lists_and_blocks_of_github_are_those_of_the_site():
    text = "<!-- tasks -->\n- a\n  - b\n    - c\n```\n  - code\n```\n<!-- /tasks -->\n"
    assert as_github_reads(text) == "\n- a\n    - b\n        - c\n```\n  - code\n```\n\n"


# Pages of members


@pytest.fixture
def published(monkeypatch):
    """Make one study all that is published: all of them take long to read."""

    def alone(name):
        study = load(PUBLISHED / name)
        monkeypatch.setattr(studies, "finished", lambda: {PUBLISHED / name: study})
        monkeypatch.setattr(studies, "judged", lambda: judge_all(read_claims(), study.results, study.losses))
        forget()
        return study

    def forget():
        results.rankings.cache_clear()
        results.claims.cache_clear()

    yield alone
    forget()


FEW = [e for e in MEMBERS if e.name in ("alibi", "yarn", "gemma3")]
slow = (pytest.mark.slow, pytest.mark.ci)


@pytest.mark.parametrize("members", [FEW, pytest.param(MEMBERS, marks=slow)], ids=["few", "all"])
def test_a_page_has_all_that_is_known_of_its_member(members, published):
    published("quickstart")
    for e in members:
        page = gallery.page(e)
        assert all(sentence in page for sentence in gallery.idea(e))
        assert equation(e.equation) in page
        assert f"pictures/{e.name}.svg" in page
        assert all(f"`{e.name}:{name}`" in page for name in e.parameters)
        assert all(line in page for line in gallery.commands(e))
        assert not e.arxiv or f"https://arxiv.org/abs/{e.arxiv}" in page
        assert re.findall(r"^## .*", page, re.MULTILINE)[:4] == [
            "## Try it",
            "## Settings",
            "## What fits",
            "## Results",
        ]


def test_the_gallery_leads_to_every_member():
    shown = re.findall(r"\(zoo\.md#(\w+)\)", gallery.index())
    assert shown == [e.name for e in MEMBERS]


@pytest.mark.parametrize("e", MEMBERS, ids=lambda e: e.name)
def test_an_idea_is_two_sentences(e):
    first, second = gallery.idea(e)
    assert first.endswith(".")
    assert second.endswith(".")
    assert first[0].isupper()
    assert 20 < len(first) < 200


def test_results_are_those_of_the_study(published):
    study = published("quickstart")
    last = study.compare("alibi")
    last = last[last.test_length == last.test_length.max()].iloc[0]
    value = {r.test_length: r for r in study.results if (r.label, r.metric) == ("alibi", "perplexity")}
    assert last.test_length == max(value)
    page = gallery.page(entry("alibi"))
    (row,) = re.findall(r"^\| alibi \|.*$", page, re.MULTILINE)
    assert f"×{last.effect:.2f} better | [{last.low:.2f}, {last.high:.2f}] |" in row
    table = study.table().loc["alibi"]
    assert row.startswith(f"| alibi | {table.iloc[0]} | {table.iloc[1]} |")
    assert "../experiments/results/quickstart/table.md" in page
    assert "rope+pi, 200 steps @ 8x" in gallery.page(entry("pi"))
    assert "No published study has it yet" in gallery.page(entry("kerple"))


def test_claims_stand_at_the_members_that_they_speak_of(published):
    published("shift")
    judged = [one for one in studies.judged() if one.claim.test.label]
    assert judged
    for one in judged:
        for name in parse(one.claim.test.label[0]).encodings:
            assert one.claim.claim in gallery.page(entry(name))


def test_what_fits_is_what_the_grid_says(published):
    published("quickstart")
    page = gallery.page(entry("yarn"))
    fits = page.partition("## What fits")[2].partition("## Results")[0]
    works, _, refused = fits.partition("- **Refused:**")
    for name, column in gallery.grid().items():
        assert f"[`{name}`](zoo.md#{name})" in (refused if column["yarn"].sign == grid.REFUSED else works)


@pytest.mark.parametrize("e", MEMBERS, ids=lambda e: e.name)
def test_the_commands_of_a_page_are_about_its_member(e):
    show, run = gallery.commands(e)
    assert show == f"pezoo show {e.name}"
    schemes = re.search(r"'schemes=\[(.*), (.*)\]'", run)
    first, second = map(parse, schemes.groups())
    assert first != second
    assert e.kind == "schedule" or e.name in (*second.encodings, *second.extensions)
    assert ("n_layers" in run) == (e.kind == "schedule")


@pytest.mark.slow
@pytest.mark.ci(one_in=10)
@pytest.mark.parametrize("e", MEMBERS, ids=lambda e: e.name)
def test_the_commands_of_a_page_can_be_run(e, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for line in gallery.commands(e):
        words = shlex.split(line)[1:]
        words += ["size=test", "--dry-run"] if words[0] == "run" else []
        assert cli.main(words) == 0, capsys.readouterr().err


def test_the_api_has_every_promised_name():
    names = {name: home for _, _, names in api.PAGES.values() for name, home in names.items()}
    assert {f"pezoo.{name}" for name in pezoo.__all__} <= set(names)
    for name, home in names.items():
        module, _, inside = home.rpartition(".")
        if module.startswith("pezoo.pretrained."):  # which imports transformers, and that takes long
            code = Path(importlib.util.find_spec(module).origin).read_text(encoding="utf-8")
            assert re.search(rf"^(def|class) {inside}\b", code, re.MULTILINE)
            continue
        found = getattr(importlib.import_module(module), inside)
        if name.startswith("pezoo."):
            place, _, shown = name.rpartition(".")
            public = getattr(importlib.import_module(place), shown)
            assert public is found or f"see `{home.removesuffix('.run')}" in public.__doc__


# The site as a whole


class _Page(HTMLParser):
    """What a page leads to and can be led to."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.anchors = [], [], {""}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if tag in ("script", "img", "iframe", "link"):
            loaded = found.get("href" if tag == "link" else "src")
            self.loads += [loaded] if loaded and found.get("rel") not in ("prev", "next", "canonical") else []


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built strictly."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return folder


@pytest.mark.slow
@pytest.mark.ci
def test_no_link_of_the_site_is_broken_and_nothing_is_fetched(site):
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 100
    for path, page in pages.items():
        for link in page.loads + page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                assert link not in page.loads, f"{path.name} loads {link}"
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            there = there / "index.html" if there.is_dir() else there
            assert there.is_file(), f"{path.relative_to(site)} leads to {link}"
            if parts.fragment and there in pages and link in page.links:
                assert unquote(parts.fragment) in pages[there].anchors, f"{path.relative_to(site)} leads to {link}"


LOOKED_AT = (
    "index",
    "start",
    "choose",
    "why",
    "gallery/index",
    "gallery/rope",
    "gallery/dca",
    "grid",
    "scorecard",
    "api/schemes",
)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1400, 390])
def test_pages_are_no_wider_than_the_window(site, width):
    with chromium(width) as browser:
        for name in LOOKED_AT:
            browser.get((site / f"{name}.html").as_uri())
            wide, shown = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
            assert wide <= shown, name
            pictures = "return [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
            assert browser.execute_script(pictures) == [], name
            flat = (
                "return [...document.querySelectorAll('math')].filter(m => m.getBoundingClientRect().height < 8).length"
            )
            assert browser.execute_script(flat) == 0, name
            assert browser.get_log("browser") == [], name
