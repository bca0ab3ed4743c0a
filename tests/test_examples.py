"""What the documents show, run: Python gives what the text says, and every command line does something."""

import ast
import contextlib
import json
import math
import re
import shlex
from pathlib import Path

import pytest
import torch

import pezoo
from pezoo import cli, registry, testing
from pezoo.study.reading import own_recipes
from tools.paths import DOCS, ROOT

PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md")])
START, OWN = DOCS / "start.md", DOCS / "own.md"
SHIPPED = set(own_recipes())
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(path, language):
    return [code for kind, code in FENCE.findall(path.read_text(encoding="utf-8")) if kind == language]


def run(code, known=()):
    """Run a block; a line `expression  # value` must give that value. Returns its names."""
    names = dict(known)
    exec(compile(code, "<document>", "exec"), names)
    for line in code.splitlines():
        expression, _, comment = line.partition("  # ")
        with contextlib.suppress(SyntaxError, ValueError):
            said = ast.literal_eval(comment.split(";")[0].strip())
            came = eval(expression, names)
            came = came.tolist() if isinstance(came, torch.Tensor) else came
            assert came == said, line
    return names


@pytest.fixture(autouse=True)
def members_of_the_documents_are_forgotten():
    """Several pages may show the same plug-in."""
    known = set(registry.entries())
    yield
    for name in set(registry.entries()) - known:
        del registry._entries[name]


PYTHON = [(path, i) for path in PAGES for i in range(len(blocks(path, "python")))]


def test_every_block_of_python_is_looked_at():
    """Each has a test of its own here, or in test_carry.py or test_docs.py."""
    assert [(path.name, i) for path, i in PYTHON] == [
        ("attach.md", 0),
        ("attach.md", 1),
        ("carry.md", 0),
        ("export.md", 0),
        ("export.md", 1),
        *(("own.md", i) for i in range(3)),
        ("recipes.md", 0),
        ("reports.md", 0),
        ("start.md", 0),
        ("tasks.md", 0),
    ]


def test_the_page_on_models_of_transformers_imports_weights():
    _, code = blocks(DOCS / "attach.md", "python")
    names = run(code)
    with torch.no_grad():
        assert torch.allclose(names["same"], names["theirs"](names["tokens"]).logits, atol=1e-4)
    assert str(names["model"].scheme.spec) == "rope:pairing=half"
    assert names["longer"].head.weight.dtype == torch.bfloat16


def test_the_page_on_models_of_transformers_attaches_and_detaches():
    code, _ = blocks(DOCS / "attach.md", "python")
    names = run(code)
    assert torch.allclose(names["same"], names["before"], atol=1e-5)
    assert not torch.allclose(names["longer"], names["before"], atol=1e-5)
    assert torch.equal(names["model"](names["tokens"]).logits, names["before"])
    assert str(pezoo.attach(names["model"]).own) == "rope:pairing=half"


def test_the_page_on_export_saves_a_model(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = run(blocks(DOCS / "export.md", "python")[0])
    assert torch.allclose(names["same"], names["longer"], atol=1e-4)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_page_on_export_attends_by_other_means(monkeypatch):
    monkeypatch.setattr("torch.nn.attention.flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    names = run(blocks(DOCS / "export.md", "python")[1])
    q, k, v = (names[name] for name in "qkv")
    assert torch.allclose(names["out"], pezoo.attend(names["scheme"], q, k, v, phase="test"), atol=1e-5)


def test_the_page_on_reports_looks_at_a_study_in_a_notebook(monkeypatch):
    monkeypatch.chdir(ROOT)
    [code] = blocks(DOCS / "reports.md", "python")
    names = run(code)
    assert "rope+pi" in set(names["study"].compare("rope+pi", "rope")["label"])


def test_a_value_that_the_text_states_wrongly_is_seen():
    with pytest.raises(AssertionError):
        run("1 + 1  # 3")


@pytest.fixture
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "books").mkdir()
    for i in range(60):
        text = " ".join(f"On day {n * (i + 7) % 9973} it rained, or so they say." for n in range(4000))
        (tmp_path / "books" / f"{i}.txt").write_text(text)
    stories = (f"Story {i}. " + "It rained. " * 4000 for i in range(60))
    (tmp_path / "stories.txt").write_text("\n<|endoftext|>\n".join(stories))
    return tmp_path


@pytest.mark.slow
@pytest.mark.ci
def test_the_first_page_runs_a_study(in_a_folder, monkeypatch):
    asked, whole = [], pezoo.run

    def small(recipe, overrides=(), **rest):
        asked.append((recipe, list(overrides)))
        return whole(recipe, [*overrides, "size=test", "schemes=[nope]"], out="runs/quickstart", **rest)

    monkeypatch.setattr(pezoo, "run", small)
    ran = run(blocks(START, "python")[0])
    results = ran["results"]
    assert len(ran["study"].frame) == len(results)
    assert asked == [("quickstart", ["seeds=[0]"])]
    assert {r.seed for r in results} == {0}
    assert all(r.status == "ok" for r in results)


def test_a_scheme_in_a_model_of_ones_own_is_position_interpolation():
    torch.manual_seed(0)
    names = run(blocks(OWN, "python")[1])
    q, k, v, out = (names[name].double() for name in ("q", "k", "v", "out"))
    assert torch.equal(names["out"], names["same"])
    angles = torch.arange(512)[:, None] / 4 * 10000.0 ** (-torch.arange(0, 32, 2, dtype=torch.float64) / 32)
    turn = torch.polar(torch.ones_like(angles), angles)
    q, k = (torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (16, 2))) * turn).flatten(-2) for x in (q, k))
    logits = (q @ k.mT / 32**0.5).masked_fill(torch.ones(512, 512).triu(1).bool(), -torch.inf)
    torch.testing.assert_close(out, logits.softmax(-1) @ v, atol=1e-5, rtol=1e-4)
    rope = pezoo.create("rope", d_model=256, n_heads=8, n_layers=4, train_length=128)
    assert not torch.allclose(pezoo.attend(rope, names["q"], names["k"], names["v"]), names["out"])


def test_the_numbers_of_a_scheme_are_shown():
    q, k = torch.randn(2, 1, 8, 512, 32)
    code = blocks(OWN, "python")[2]
    names = run(code, {"pezoo": pezoo, "q": q, "k": k})
    came = [eval(line.partition("  # ")[0], names) for line in code.splitlines()[1:]]
    assert [tuple(t.shape) for t in came] == [(16,), (512,), (8, 512, 512), (1, 8, 512, 512)]
    assert came[1][0] == pytest.approx((0.1 * math.log(4) + 1) ** 2)
    assert came[0][-1] == pytest.approx(10000 ** (-15 / 16) / 4, rel=1e-5)


def test_an_encoding_of_ones_own_halves_its_odds():
    run(blocks(OWN, "python")[0])
    scheme = pezoo.create("half_life", d_model=16, n_heads=2, n_layers=1, train_length=16)
    assert scheme.bias(33)[:, 32, 0].exp().tolist() == pytest.approx([0.5, 0.5], rel=1e-3)
    failed = [o for o in testing.check_encoding("half_life") if o.status == "fail"]
    assert [o.check for o in failed] == ["saves_and_loads"]  # a class of `exec`, which no pickle finds


def test_answers_of_tasks_are_those_of_the_page():
    (code,) = blocks(DOCS / "tasks.md", "python")
    run(code)


# Command lines


def lines():
    """Command lines of all pages and of each command's help."""
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        shown = [line for _, code in FENCE.findall(text) for line in code.splitlines()]
        shown += re.findall(r"`(pezoo [^`]*)`", FENCE.sub("", text))
        yield from ((path.stem, line.strip()) for line in shown if re.match(r"\s*pezoo \w", line))


LINES = list(dict.fromkeys(lines()))
HELP = ("list", "show", "run", "evaluate", "export", "generate", "bench", "check", "new")


@pytest.mark.parametrize(("page", "line"), LINES, ids=lambda value: value)
def test_brackets_and_marks_are_quoted_for_every_shell(page, line):
    """zsh takes unquoted brackets, braces, stars and question marks for names of files, and refuses."""
    bare = re.sub(r"'[^']*'|\"[^\"]*\"|#.*", "", line)
    assert not re.search(r"[\[\]*?{}]", bare), line


@pytest.mark.parametrize("command", HELP)
def test_help_quotes_its_examples(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    examples = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("pezoo ")]
    for line in examples:
        test_brackets_and_marks_are_quoted_for_every_shell(command, line)
    assert examples


def words(line):
    return shlex.split(line, comments=True)[1:]


OFFLINE = [(page, line) for page, line in LINES if "corpus=hub" not in line]  # a hub needs the network
ONCE = list({tuple(words(line)): (page, line) for page, line in reversed(OFFLINE)}.values())[::-1]
STUDIES = [(p, line) for p, line in ONCE if words(line)[0] == "run" and SHIPPED & set(words(line)[1:2])]
OTHERS = [(p, line) for p, line in ONCE if words(line)[0] in ("show", "check", "new") and words(line)[1:]]
NAMES = {"NAME": "alibi", "SCHEME": "rope+pi", "TASK": "addition", "FILE": "picture.svg"}


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize(("page", "line"), STUDIES, ids=lambda value: value)
def test_every_study_that_is_shown_can_be_planned(page, line, in_a_folder, capsys):
    (in_a_folder / "my_bias.py").write_text(blocks(OWN, "python")[0])
    given = [word.replace("NAME", "addition" if "tasks=" in word else "alibi") for word in words(line)]
    given = [word for word in given if word != "--dry-run"]
    assert cli.main([*given, "--dry-run"]) == 0, capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize(("page", "line"), OTHERS, ids=lambda value: value)
def test_every_other_command_that_is_shown_runs(page, line, in_a_folder, capsys):
    command, *given = words(line)
    given = ["mine" if command == "new" and word == "NAME" else NAMES.get(word, word) for word in given]
    if command == "check":
        Path("my_bias.py").write_text(blocks(OWN, "python")[0])
        Path("majority.py").write_text(blocks(DOCS / "recipes.md", "python")[0])
    if "config.json" in given:
        sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "max_position_embeddings": 32}
        Path("config.json").write_text(json.dumps({"model_type": "llama", "rope_theta": 10000.0} | sizes))
    assert cli.main([command, *given]) == 0, capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.ci
def test_a_trained_model_writes_as_shown(in_a_folder, capsys):
    shown = [line for _, line in OFFLINE if words(line)[:1] == ["generate"] and "runs/" in line]
    assert shown
    schemes = f"schemes=[{', '.join(words(line)[2] for line in shown)}]"
    assert cli.main(["run", "quickstart", "size=test", "seeds=[0]", schemes, "--out", "runs/quickstart"]) == 0
    for line in shown:
        assert cli.main([*words(line), "--tokens", "20"]) == 0, capsys.readouterr().err
