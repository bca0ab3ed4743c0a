"""The command line, as a user types it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pezoo
from pezoo.cli import main
from pezoo.cli.command import COMMANDS
from pezoo.results import read
from pezoo.task import make_task

ROOT = Path(__file__).parents[1]
PLUGIN = '''
"""A user's own encoding."""

import torch

from pezoo import Encoding, register


@register("recency", title="Prefers the recent", equation="b = -|i - j|")
class Recency(Encoding):
    """Adds minus the distance to the logits."""

    def distance_bias(self, distance):
        return -distance.abs().expand(self.shape.n_heads, *distance.shape)
'''


def lines(capsys, *argv):
    assert main(list(argv)) == 0
    return capsys.readouterr().out.splitlines()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The quickstart at its size for tests, run once through the command, with a plug-in."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "mine.py").write_text(PLUGIN)
    schemes = "schemes=[nope,recency,{scheme: rope+pi, tune: [0, 4]}]"
    argv = ["run", "quickstart", "size=test", schemes, "--plugin", str(folder / "mine.py")]
    argv += ["--out", str(folder / "out")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        done = subprocess.run([sys.executable, "-m", "pezoo", *argv], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return folder / "out", done, argv


def test_without_arguments_every_command_is_named(capsys):
    shown = "\n".join(lines(capsys))
    assert all(f"pezoo {name}" in shown for name in COMMANDS)
    assert shown == "\n".join(lines(capsys, "--help"))


def test_version(capsys):
    assert lines(capsys, "--version") == [f"pezoo {pezoo.__version__}"]


@pytest.mark.parametrize("command", ["list", "show", "run"])
def test_help_has_examples_that_parse(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    examples = shown.partition("examples:\n")[2].split("\n")
    assert len([e for e in examples if e.startswith(f"  pezoo {command} ")]) >= 2


def test_list_is_a_tree_by_family(capsys):
    shown = lines(capsys, "list")
    shown = [line.partition(" (")[0] for line in shown] + shown
    at = [shown.index(name) for name in ("encodings", "  absolute", "  bias", "extensions", "tasks", "  recall")]
    assert at == sorted(at)
    alibi = next(line for line in shown if line.split()[:1] == ["alibi"])
    assert shown.index("  bias") < shown.index(alibi) < shown.index("extensions")
    names = {line.split()[0] for line in shown if line.startswith("    ")}
    assert names == {*pezoo.list_encodings(), *pezoo.list_extensions(), *pezoo.list_schedules(), *pezoo.list_tasks()}


def test_list_takes_patterns_and_kinds(capsys):
    names = {line.split()[0] for line in lines(capsys, "list", "rope*") if line.startswith("    ")}
    assert names == set(pezoo.list_encodings("rope*"))
    assert lines(capsys, "list", "--extensions")[0] == f"extensions ({len(pezoo.list_extensions())})"
    assert "extensions" not in lines(capsys, "list", "--encodings")


def test_list_json_is_what_describe_says(capsys):
    found = json.loads("\n".join(lines(capsys, "list", "alibi", "--json")))
    assert [f["name"] for f in found] == ["alibi"]
    assert found[0]["arxiv"] == pezoo.describe("alibi")["arxiv"]
    everything = json.loads("\n".join(lines(capsys, "list", "--json")))
    names = [*pezoo.list_encodings(), *pezoo.list_extensions(), *pezoo.list_schedules(), *pezoo.list_tasks()]
    assert [f["name"] for f in everything] == names


def test_list_knows_plugins(tmp_path, capsys):
    (tmp_path / "other.py").write_text(PLUGIN.replace("recency", "recency_of_list"))
    shown = lines(capsys, "list", "recency_of_list", "--plugin", str(tmp_path / "other.py"))
    assert "Prefers the recent" in "".join(shown)
    assert shown[-1] == "More about one: pezoo show NAME"


def listed(capsys, *flags):
    return {found["name"] for found in json.loads("\n".join(lines(capsys, "list", "--json", *flags)))}


def test_list_by_need(capsys):
    ready = listed(capsys, "--needs-no-tuning")
    assert {"pi", "yarn", "self_extend", "window"} <= ready <= set(pezoo.list_extensions())
    assert not ready & {"random", "cape", "clex", "dape", "memory"}  # in training, or with parameters
    for_rope = listed(capsys, "--works-with", "rope")
    assert {"pi", "yarn", "window"} <= for_rope <= set(pezoo.list_extensions())
    assert "yarn" not in listed(capsys, "--works-with", "alibi")
    assert "pi" not in listed(capsys, "--works-with", "+PI")
    assert {"rope", "xpos"} <= listed(capsys, "--works-with", "+yarn") <= set(pezoo.list_encodings())
    assert listed(capsys, "--works-with", "rope", "--needs-no-tuning") == ready & for_rope
    free = listed(capsys, "--no-parameters", "--encodings")
    assert {"rope", "rope_pi", "alibi"} <= free
    assert not free & {"t5", "kerple_power"}
    assert "alibi" not in listed(capsys, "--in-encoders")
    assert main(["list", "--works-with", "nope", "--needs-no-tuning", "--tasks"]) == 2
    assert "no member is all of that" in capsys.readouterr().err


def test_names_as_people_write_them(capsys):
    assert lines(capsys, "show", "+pi") == lines(capsys, "show", "pi")
    assert lines(capsys, "show", "ROPE+Yarn") == lines(capsys, "show", "rope+yarn")
    (outcome,) = json.loads("\n".join(lines(capsys, "check", "+ALIBI", "--only", "causal", "--json")))
    assert outcome["status"] == "pass"


def test_show_says_what_each_setting_can_be(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    shown = {line.split()[0]: " ".join(line.split()) for line in lines(capsys, "show", "rope+yarn") if line.strip()}
    assert shown[":pairing"].startswith(":pairing interleaved interleaved or half channels")
    assert shown[":base"].startswith(":base 10000.0 number above 1 ")
    assert shown[":factor"].startswith(":factor unset number at least 1 ")
    assert shown[":truncate"].startswith(":truncate true true or false ")
    assert shown[":at"].startswith(":at tune,test some of train, tune, test ")


@pytest.mark.parametrize("name", [*pezoo.list_encodings(), *pezoo.list_extensions(), *pezoo.list_schedules()])
def test_show_states_the_facts_of_every_member(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    shown = " ".join(" ".join(lines(capsys, "show", name)).split())
    facts = pezoo.describe(name)
    assert " ".join(facts["title"].split()) in shown
    assert " ".join(facts["equation"].split()) in shown
    assert all(f":{setting}" in shown for setting in facts["parameters"])


@pytest.mark.parametrize("name", pezoo.list_tasks())
def test_show_has_an_example_of_every_task(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "600")
    line = next(line for line in lines(capsys, "show", name) if line.split()[0] == "example")
    question, answer = line.split("example", 1)[1].strip().split("  ->  ")
    if name not in ("passkey_text", "facts"):  # of several lines
        assert make_task(name).answer(question) == answer
    assert answer


def test_a_schedule_is_listed_shown_and_checked(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert {line.split()[0] for line in lines(capsys, "list", "--schedules")[2:-2]} == set(pezoo.list_schedules())
    assert "yarn" in listed(capsys, "--works-with", "smollm3")
    assert "gemma3" in listed(capsys, "--in-encoders")
    shown = [" ".join(line.split()) for line in lines(capsys, "show", "gpt_oss:window=0.5+logn")]
    first, second = "rope:base=150000+sink_logits", "+window:share=0.5:at=train,tune,test"
    assert f"layer 1 {first}{second}; in testing {first}{second}+yarn:truncate=false+logn" in shown
    assert "what gpt-oss, layer schedule, models" in shown
    assert "layers 1-3 rope:base=2e+06" in [" ".join(line.split()) for line in lines(capsys, "show", "smollm3")]
    found = json.loads("\n".join(lines(capsys, "show", "gpt_oss", "--json")))
    assert [m["name"] for m in found["members"]] == ["gpt_oss", "rope", "sink_logits", "window", "yarn"]
    (outcome,) = json.loads("\n".join(lines(capsys, "check", "smollm3", "--only", "causal", "--json")))
    assert (outcome["member"], outcome["status"]) == ("smollm3", "pass")


def test_show_says_in_which_phase_what_acts(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    shown = [line.split() for line in lines(capsys, "show", "rope+yarn:factor=8")]
    assert ["in", "training", "rope"] in shown
    assert ["in", "testing", "rope+yarn:factor=8"] in shown
    found = json.loads("\n".join(lines(capsys, "show", "shape", "--json")))
    assert found["scheme"]["scheme"] == "sinusoidal+shift"
    assert [m["name"] for m in found["members"]] == ["sinusoidal", "shift"]


def test_run_ends_with_the_table_the_results_and_tensorboard(finished):
    out, done, _ = finished
    shown = done.stdout.splitlines()
    names = "scheme L 2L 4L 8L 16L stable to good to against baseline"
    head = next(line for line in shown if line.split() == names.split())
    rows = [line.split("  ")[1].strip() for line in shown[shown.index(head) + 2 :][:4]]
    assert rows == ["nope", "recency", "rope+pi", "rope+pi, 4 steps @ 8x"]
    assert sum("±" in line for line in shown) >= 4
    assert any(line.endswith(str(out / "results.jsonl")) for line in shown)
    assert shown[-2].endswith(f"--logdir {out / 'tensorboard'}")
    assert "http://localhost:6006" in shown[-1]
    assert "tensorboard" in shown[-2].split()[1]


def test_run_reports_progress_on_standard_error(finished):
    _, done, _ = finished
    n = 2 * (3 + 1 + 4)
    progress = [line for line in done.stderr.splitlines() if line.startswith("[")]
    assert [line.split("]")[0] for line in progress] == [f"[{i}/{n}" for i in range(1, n + 1)]
    assert any("train recency, seed 1: loss" in line for line in progress)
    assert all(re.search(r" s; (less than a minute|about \d+ min) left$", line) for line in progress[:-1])
    assert not progress[-1].endswith("left")


def test_run_says_at_once_what_will_be_done(finished):
    out, done, _ = finished
    first, second, *begun = done.stderr.splitlines()[:4]
    assert first == f"quickstart in {out}: 6 to train, 8 to evaluate, 2 to tune"
    assert re.match(r"(less than a minute|about \d+ min); 6.4 k tokens to train on; ", second)
    assert [line.partition(":")[0] for line in begun] == ["begins", "begins"]


def test_run_writes_report_and_tensorboard(finished):
    out, _, _ = finished
    assert len(read(out / "results.jsonl")) == 4 * 2 * 5 * 4
    for name in ("report.md", "curves.png", "curves.svg", "loss_by_position.svg"):
        assert (out / "report" / name).stat().st_size > 500
    runs = {p.parent.name for p in (out / "tensorboard" / "test").rglob("events*")}
    assert {"nope", "recency", "rope+pi", "rope+pi, 4 steps @ 8x"} <= runs
    assert (out / "recipe.yaml").is_file()


def test_sigterm_ends_a_command_as_ctrl_c_does(monkeypatch, capsys):
    """Also where no cells run, such as while a report is written."""
    usual = signal.getsignal(signal.SIGTERM)
    monkeypatch.setitem(COMMANDS, "status", ("", lambda _: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(5) or 0))
    assert main(["status", "runs/mine"]) == 143
    assert capsys.readouterr().err == "stopped; to go on: pezoo status runs/mine\n"
    assert signal.getsignal(signal.SIGTERM) == usual


def test_dry_run_shows_what_is_done_and_what_is_left(finished, capsys, monkeypatch):
    out, _, argv = finished
    before = sorted(out.rglob("*"))
    shown = lines(capsys, *argv, "--dry-run")
    assert shown[-1] == "16 cells; left to do: nothing"
    more = [a.replace("[nope,", "[nope,alibi,") for a in argv]
    shown = lines(capsys, *more, "--dry-run")
    assert shown[-3] == "20 cells; left to do: 2 to train, 2 to evaluate"
    assert re.fullmatch(
        r"(less than a minute|about \d+ min); 768 tokens to train on; .* of memory for 2 workers", shown[-2]
    )
    assert shown[-1].startswith("the time comes from 16 finished cells")
    assert sum(line.split()[-2:] == ["done", "│"] for line in shown) == 16
    monkeypatch.setattr("pezoo.cli.run.LISTED", 5)
    few = lines(capsys, *more, "--dry-run")
    assert few[-4] == "... and 15 more"
    assert [line.split()[-3] for line in few if "│" in line] == ["to", "to", "to", "to", "│"]
    assert sorted(out.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.ci
def test_a_failed_cell_is_said_and_gives_exit_code_1(tmp_path, capsys):
    failing = PLUGIN.replace("recency", "failing").replace("return", "assert len(distance) < 9\n        return")
    (tmp_path / "bad.py").write_text(failing)
    argv = ["run", "quickstart", "size=test", "schemes=[failing]", "seeds=[0]", "--out"]
    assert main([*argv, str(tmp_path / "out"), "--plugin", str(tmp_path / "bad.py")]) == 1
    assert "failed:" in capsys.readouterr().out


def test_run_from_python_does_what_the_command_does(finished):
    out, _, argv = finished
    results = pezoo.run("quickstart", overrides=argv[2:4], out=out, plugins=[argv[5]])
    assert results == read(out / "results.jsonl")
