"""The folder of a study: whose it is, how a run goes on in it, and that it never contradicts itself."""

import contextlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import pezoo
from helpers import run_cells
from pezoo.cli import main
from pezoo.errors import NeedsPlugins, UserError
from pezoo.results import read
from pezoo.study import Study, folder, study
from pezoo.study.reading import load_recipe

ROOT = Path(__file__).parents[1]
PLUGIN = '''
"""Adds minus the distance to the logits."""

from pathlib import Path

from pezoo import Encoding, register

Path(__file__).with_suffix(".ran").touch()


@register("NAME", title="Prefers the recent", equation="b = -|i - j|")
class Recent(Encoding):
    """Adds minus the distance to the logits."""

    def distance_bias(self, distance):
        return -distance.abs().expand(self.shape.n_heads, *distance.shape)
'''


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    text = tmp_path_factory.mktemp("text") / "words.txt"
    text.write_text("one two three four five six seven eight nine ten\n" * 60)
    return {
        "study": "mine",
        "schemes": ["nope"],
        "data": {"corpus": "text", "path": str(text)},
        "model": {"d_model": 8, "n_layers": 1, "n_heads": 2},
        "train": {"length": 8, "steps": 2, "batch_size": 2, "warmup_steps": 1},
        "test": {"lengths": ["1x", "2x"], "windows": 2},
    }


def report(made, results):
    """Stands for the real one: what people look at, of these results."""
    for place in ("report/report.md", "tensorboard/test/row/events.1", "tensorboard/hparams/row/events.1"):
        (made.out / place).parent.mkdir(parents=True, exist_ok=True)
        (made.out / place).write_text(told(results))


def told(results):
    return json.dumps([(r.study, r.label, r.config_hash, r.value) for r in results])


def finish(made):
    """Run what is not done in this process, without workers, then end the run as the command does."""
    run_cells(made)
    return made.run(report=report)


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    """A study and another recipe's cells, in one folder."""
    out = tmp_path_factory.mktemp("finished") / "mine"
    made = Study.prepare(recipe, ["schemes=[alibi]"], out)
    (out / "tensorboard" / "train" / "nope").mkdir(parents=True)
    run_cells(made)
    finish(Study.prepare(recipe, out=out))
    return out


@pytest.fixture
def mine(finished, tmp_path):
    """A copy of that folder, of its own."""
    return Path(shutil.copytree(finished, tmp_path / "runs" / "mine"))


@pytest.fixture
def file(recipe, tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    return str(tmp_path / "tiny.yaml")


def files(out):
    """What is there, but for what a run says of itself."""
    unlike = (".lock", "status.json")
    return {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name not in unlike}


def check(out):
    """Everything in a folder speaks of the same results, and these of the recipe that stands there."""
    results = read(out / "results.jsonl") if (out / "results.jsonl").exists() else None
    for place in ("report/report.md", "tensorboard/test/row/events.1", "tensorboard/hparams/row/events.1"):
        if (out / place).exists():
            assert (out / place).read_text() == told(results)
    there = folder.read_record(out)
    for result in results or []:
        assert result.study == there.study
        assert result.label in there.schemes
        assert result.steps == there.train.steps
    return there, results


# ---- whose it is --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [f"{name}/x" for name in folder.WRITTEN[:4]] + [*folder.WRITTEN[4:], "cells/a/b.csv"])
def test_files_that_are_no_study_s_are_not_written_over(recipe, tmp_path, name):
    path = tmp_path / "mine" / name
    path.parent.mkdir(parents=True)
    path.write_text("a thesis")
    for replace in (False, True):
        with pytest.raises(UserError, match=f"holds no study, but {name.split('/')[0]}, which a run would write over"):
            Study.prepare(recipe, [], tmp_path / "mine", replace=replace).run()
    assert path.read_text() == "a thesis"
    assert [p.name for p in (tmp_path / "mine").iterdir()] == [name.split("/")[0]]


@pytest.mark.parametrize("name", ["a1/done.json", "a1.state.pt", ".unfinished-a1/model.pt"])
def test_what_only_a_study_leaves_makes_its_folder(recipe, tmp_path, name):
    """Also where a file such as .lock was not copied."""
    path = tmp_path / "mine" / "cells" / name
    path.parent.mkdir(parents=True)
    path.touch()
    assert Study.prepare(recipe, [], tmp_path / "mine").changes() == ""


def test_a_change_from_nothing_is_seen():
    assert list(folder.changes({"baseline": ""}, {"baseline": "rope"})) == ["baseline '' -> rope"]


def test_a_changed_recipe_goes_on_and_says_what_changed(recipe, mine, file, capsys):
    changes = ["schemes=[nope, alibi]", "workers=2"]
    assert main(["run", file, *changes, "--out", str(mine), "--dry-run"]) == 0
    shown = capsys.readouterr()
    line = "changed since the last run: schemes: + alibi, workers 1 -> 2"
    assert shown.err.splitlines() == [line]
    assert shown.out.splitlines()[-1] == "4 cells; left to do: nothing"
    finish(Study.prepare(recipe, changes, mine))
    assert line in capsys.readouterr().err.splitlines()
    there, results = check(mine)
    assert there.schemes == ["nope", "alibi"]
    assert {r.label for r in results} == {"nope", "alibi"}
    finish(Study.prepare(recipe, changes, mine))
    assert "changed" not in capsys.readouterr().err, "it is the same now"


def test_the_line_of_changes_stays_short(recipe, mine):
    overrides = [f"train.{key}={value}" for key, value in {"steps": 400, "lr": 0.5, "accumulate": 2}.items()]
    overrides += [f"parts.{'p' * 300}{i}.train.min_lr_ratio=0.{i}" for i in range(1, 4)]
    many = recipe | {"schemes": ["nope", *({"scheme": "alibi", "label": f"{i:09}"} for i in range(20))]}
    made = load_recipe(many, [*overrides, "test.protocols=[last]", "seeds=[1, 0]", "tune.length=9x", "threads=2"])
    line, replaced = folder.claim(mine, made, [], replace=False)
    assert not replaced
    assert "schemes: + {scheme: alibi, label: '000000000'}, + " in line
    assert "seeds: + 1, threads 1 -> 2, train.steps 2 -> 400" in line
    assert re.search(r", and \d+ more$", line)
    assert len(line) < 1000


@pytest.mark.parametrize("change", ["study=other", "size=small"])
def test_another_study_is_refused_by_name(mine, recipe, change, tmp_path, capsys):
    before = files(mine)
    path = tmp_path / "other.yaml"
    path.write_text(yaml.safe_dump(recipe | {"sizes": {"small": {"train": {"steps": 3}}}}))
    other = "other" if change == "study=other" else r"mine \(size=small\)"
    allowed = (
        f"{re.escape(str(mine))} holds the study mine, and this is {other}; choose another --out, or type --replace"
    )
    for more in ([], ["--dry-run"]):
        assert main(["run", str(path), change, "--out", str(mine), *more]) == 2
        assert re.search(allowed, capsys.readouterr().err)
    with pytest.raises(UserError, match=allowed):
        pezoo.run(str(path), [change], mine)
    assert files(mine) == before


def test_a_study_that_comes_in_between_is_refused_under_the_lock(mine, recipe):
    late = Study.prepare(recipe | {"study": "late"}, out=mine, replace=True)
    late.replace = False
    before = files(mine)
    with pytest.raises(UserError, match="holds the study mine, and this is late"):
        late.run(report=report)
    assert files(mine) == before


def test_replaced_nothing_of_the_old_study_is_left_but_its_cells(mine, recipe, capsys):
    cells = {path.name for path in (mine / "cells").iterdir()}
    other = recipe | {"study": "other", "schemes": ["alibi"]}
    finish(Study.prepare(other, out=mine, replace=True))
    there, results = check(mine)
    assert there.study == "other"
    assert {r.label for r in results} == {"alibi"}
    assert f"replacing the study mine in {mine} by other" in capsys.readouterr().err
    assert not (mine / "tensorboard" / "train").exists()
    assert {path.name for path in (mine / "cells").iterdir()} == cells
    before = files(mine)
    finish(Study.prepare(other, out=mine, replace=True))
    assert "replacing" not in capsys.readouterr().err, "the command to go on has --replace as well"
    assert files(mine) == before


def test_a_damaged_recipe_does_not_give_a_folder_away(mine, recipe):
    (mine / "recipe.yaml").write_text("")
    with pytest.raises(UserError, match="holds the study mine, and this is other"):
        Study.prepare(recipe | {"study": "other"}, out=mine)


@pytest.mark.parametrize("change", ["the same", "another recipe", "another study"])
def test_at_every_moment_a_folder_speaks_of_one_study(finished, recipe, tmp_path, monkeypatch, change):
    """The process ends before each thing that it does to the folder, one after the other."""
    given = {
        "the same": (recipe, []),
        "another recipe": (recipe, ["schemes=[alibi]"]),
        "another study": (recipe | {"study": "other"}, []),
    }[change]

    class Killed(BaseException):
        pass

    planned = Study.prepare(*given, tmp_path / "mine").plan
    for n in range(20):
        shutil.rmtree(tmp_path / "mine", ignore_errors=True)
        out, left = Path(shutil.copytree(finished, tmp_path / "mine")), n

        def counted(work):
            def step(*arguments, **named):
                nonlocal left
                left -= 1
                if left < 0:
                    raise Killed
                return work(*arguments, **named)

            return step

        with monkeypatch.context() as patch:
            for name in ("remove", "write_record", "write"):
                patch.setattr(study, name, counted(getattr(study, name)))
            patch.setattr(Path, "unlink", counted(Path.unlink))
            try:
                Study(planned, out, replace=True).run(report=counted(report))
            except Killed:
                check(out)
            else:
                break
    assert n > 4
    there, results = check(out)
    assert there.study == given[0]["study"]
    assert (out / "report" / "report.md").read_text() == told(results)


@pytest.mark.parametrize("study_name", ["mine", "other"])
def test_a_stopped_run_leaves_no_report_of_other_results(mine, recipe, monkeypatch, study_name):
    def stop(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(study.Launcher, "run", stop)
    made = Study.prepare(recipe | {"study": study_name}, ["schemes=[alibi, rope]"], mine, replace=True)
    with pytest.raises(KeyboardInterrupt):
        made.run(report=report)
    there, results = check(mine)
    assert there.schemes == ["alibi", "rope"]
    assert {r.label for r in results} == {"alibi"}
    assert not (mine / "report").exists()
    assert not (mine / "tensorboard" / "test").exists()
    assert not (mine / "tensorboard" / "hparams").exists()


def test_a_finished_study_keeps_its_report_when_nothing_is_to_do(mine, recipe, monkeypatch):
    def stop(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(study.Launcher, "run", stop)
    with pytest.raises(KeyboardInterrupt):
        Study.prepare(recipe, out=mine).run(report=report)
    assert (mine / "report" / "report.md").exists()


@pytest.mark.parametrize(("launcher", "package"), [("slurm", "submitit"), ("ray", "ray"), ("slurm", None)])
def test_a_launcher_that_is_not_here_changes_nothing_and_is_not_missed_when_nothing_is_to_do(
    mine, recipe, monkeypatch, launcher, package
):
    if package is None:
        pytest.importorskip("submitit", reason="pezoo[slurm] is not installed")
        monkeypatch.setenv("PATH", str(mine))
    else:
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(sys.modules, f"pezoo.study.engines.{launcher}", raising=False)
    before = files(mine)
    with pytest.raises(UserError, match=f"launcher={launcher} needs "):
        Study.prepare(recipe, [f"launcher={launcher}", "schemes=[rope]"], mine).run(report=report)
    assert files(mine) == before
    assert Study.prepare(recipe, [f"launcher={launcher}"], mine).run(report=report)
    check(mine)


def test_ones_own_recipe_is_not_written_over(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text("# by hand\n" + yaml.safe_dump(recipe))
    with pytest.raises(UserError, match=r"recipe.yaml is not pezoo's and would be written over; choose another --out"):
        Study.prepare("recipe.yaml", out=".")
    assert Study.prepare("recipe.yaml").out == Path("runs/mine")


# ---- going on by the folder ---------------------------------------------------------------------


@pytest.mark.parametrize("named", ["", "/", "/recipe.yaml"])
def test_a_folder_is_gone_on_with(mine, named, capsys, monkeypatch):
    monkeypatch.chdir(mine.parents[1])
    assert main(["run", f"runs/mine{named}", "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[0].strip() == "mine in runs/mine"
    assert shown.out.splitlines()[-1] == "2 cells; left to do: nothing"
    assert shown.err == ""
    assert Study.prepare(f"runs/mine{named}", out="other").out == Path("other")


def test_overrides_and_sizes_go_on_in_the_same_folder(recipe, tmp_path, capsys):
    sizes = {"sizes": {"small": {"train": {"length": 4}}}}
    made = Study.prepare(recipe | sizes, ["size=small"], tmp_path / "mine-small")
    finish(made)
    again = Study.prepare(made.out)
    assert again.out == made.out
    assert again.plan.cells == made.plan.cells
    assert main(["run", str(made.out), "train.steps=5", "schemes=[alibi]", "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert "changed since the last run: schemes: + alibi, - nope, train.steps 2 -> 5" in shown.err
    assert "2 cells; left to do: 1 to train, 1 to evaluate" in shown.out


def test_the_command_that_goes_on_is_the_one_that_was_typed(mine, monkeypatch, capsys):
    def stop(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(study.Launcher, "run", stop)
    moved = mine.rename(mine.with_name("with space"))
    argv = ["run", str(moved), "schemes=[nope, alibi]", "study=other", "--replace"]
    assert main(argv) == 130
    line = capsys.readouterr().err.splitlines()[-1]
    assert shlex.split(line.removeprefix("stopped; to go on: pezoo ")) == argv
    assert main([*argv, "--dry-run"]) == 0
    assert capsys.readouterr().err == ""


def test_folders_without_a_study_say_so(mine, tmp_path):
    with pytest.raises(UserError, match=r"without a recipe.yaml.*pezoo run RECIPE --out"):
        Study.prepare(tmp_path)
    published = tmp_path / "published"
    published.mkdir()
    for name in ("recipe.yaml", "results.jsonl"):
        shutil.copy(mine / name, published)
    with pytest.raises(UserError, match=rf"no study was run in .*: pezoo run {published}/recipe.yaml"):
        Study.prepare(published)
    assert Study.prepare(published / "recipe.yaml").out == Path("runs/mine")


def test_a_damaged_recipe_is_said_and_written_anew(mine, recipe, file, capsys):
    path, whole = mine / "recipe.yaml", (mine / "recipe.yaml").read_bytes()
    damages = [whole[:n] for n in range(0, len(whole), 37)]
    places = range(whole.index(b"\n") + 1, len(whole), 101)
    damages += [whole[:n] + bytes([whole[n] ^ 1]) + whole[n + 1 :] for n in places]
    for content in damages:
        path.write_bytes(content)
        with pytest.raises(UserError, match=re.escape(f"pezoo run RECIPE --out {mine}")):
            folder.folder_of(mine)
    for content in (damages[0], damages[7], damages[-1], None):
        path.write_bytes(content) if content is not None else path.unlink()
        assert main(["run", str(mine)]) == 2
        assert "recipe.yaml" in capsys.readouterr().err
        made = Study.prepare(recipe, out=mine)
        said = "recipe.yaml was not whole, and is written anew" if content is not None else ""
        assert said in made.changes()
        made._begin()
        assert path.read_bytes() == whole


def test_the_first_line_may_be_damaged(mine):
    path, whole = mine / "recipe.yaml", (mine / "recipe.yaml").read_bytes()
    expected = load_recipe(path)
    for n in [*range(0, 20, 3), *range(20, whole.index(b"\n") - 9, 17), whole.index(b"\n")]:
        path.write_bytes(whole[:n] + bytes([whole[n] ^ 1]) + whole[n + 1 :])
        with contextlib.suppress(UserError):
            assert folder.read_record(mine) == expected


def test_a_recipe_that_was_edited_can_be_run(mine):
    path = mine / "recipe.yaml"
    path.write_text(path.read_text().replace("steps: 2\n", "steps: 3\n"))
    with pytest.raises(UserError, match=f"If you changed it: pezoo run {path} --out {mine}"):
        Study.prepare(mine)
    assert Study.prepare(path, out=mine).recipe.train.steps == 3


def test_a_recipe_from_before_there_were_digests_goes_on(mine):
    path = mine / "recipe.yaml"
    path.write_text(path.read_text().partition("\n")[2])
    made = Study.prepare(mine)
    assert made.changes() == ""
    assert all(map(made.store.done, made.plan.cells))


@pytest.mark.parametrize(
    "text", ["1e-3", "1_0e3", "1e5", "12", "1.5", ".inf", "nan", "true", "2020-01-01", "~", "0x1f"]
)
def test_texts_that_look_like_numbers_stay_texts(mine, recipe, text):
    overrides = [f"schemes=[{{scheme: nope, label: '{text}'}}]", f"parts={{'{text}': {{train: {{steps: 2}}}}}}"]
    made = load_recipe(recipe, overrides)
    folder.write_record(mine, made, [])
    there = folder.read_record(mine)
    assert (there.schemes, there.parts) == (made.schemes, made.parts)
    assert made.schemes[0]["label"] == text


def test_a_folder_that_was_run_on_a_named_cluster_goes_on(mine, recipe, capsys):
    folder.write_record(mine, load_recipe(recipe, ["launcher=ray", "ray.address=far.example:6379"]), [])
    assert folder.folder_of(mine) == mine
    with pytest.raises(UserError, match=r"type ray\.address=far\.example:6379, or ray\.address=null"):
        Study.prepare(mine)
    assert Study.prepare(mine, ["ray.address=null"]).recipe.ray.address is None
    assert main(["clean", str(mine)]) == 0
    assert main(["generate", str(mine), "nope", "--tokens", "1"]) == 0


# ---- plug-ins -----------------------------------------------------------------------------------


@pytest.fixture
def with_plugin(recipe, tmp_path, request):
    """A finished study with a plug-in beside its folder, and the name of what that registers."""
    name = re.sub(r"\W", "_", request.node.name)[-40:].strip("_").lower()
    plugin = tmp_path / "a place" / "my code.py"
    plugin.parent.mkdir()
    plugin.write_text(PLUGIN.replace("NAME", name))
    out = tmp_path / "a place" / "runs" / "mine"
    finish(Study.prepare(recipe, [f"schemes=[{name}]"], out, [plugin]))
    plugin.with_suffix(".ran").unlink()
    return out, plugin, name


def forget(name):
    """As in a new process."""
    from pezoo import registry

    del registry._entries[name]
    for module in [module for module in sys.modules if module.startswith("pezoo_plugin_")]:
        del sys.modules[module]


def test_plugins_are_recorded_and_never_run_unasked(with_plugin, capsys):
    out, plugin, name = with_plugin
    assert load_recipe(out / "recipe.yaml").plugins == ["../../my code.py"]
    forget(name)
    for argv in (["run", str(out), "--dry-run"], ["generate", str(out), name]):
        assert main(argv) == 2
        line = capsys.readouterr().err
        assert "needs the plug-in my code.py; code runs only if you name it" in line
        command = line.partition("; type: pezoo ")[2]
        assert shlex.split(command) == [*argv, "--plugin", str(plugin)]
    with pytest.raises(NeedsPlugins, match=re.escape(f"pass plugins=['{plugin}']")):
        pezoo.run(out)
    with pytest.raises(NeedsPlugins, match=r"the study in .* needs the plug-in"):
        Study.prepare(out / "recipe.yaml")
    assert not plugin.with_suffix(".ran").exists(), "it was run"
    assert main(["run", str(out), "--dry-run", "--plugin", str(plugin)]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1] == "2 cells; left to do: nothing"
    assert shown.err == ""
    assert main(["generate", str(out), name, "--tokens", "1", "--plugin", str(plugin)]) == 0


def test_folder_and_plugin_can_be_moved(with_plugin, tmp_path, capsys):
    _, _, name = with_plugin
    forget(name)
    moved = (tmp_path / "a place").rename(tmp_path / "elsewhere")
    with pytest.raises(NeedsPlugins) as refused:
        Study.prepare(moved / "runs" / "mine")
    assert refused.value.files == [str(moved / "my code.py")], "moved together"
    code = (moved / "my code.py").rename(tmp_path / "my code.py")
    out = moved / "runs" / "mine"
    assert main(["run", str(out)]) == 2
    line = capsys.readouterr().err
    assert f"not found: {moved / 'my code.py'}; type: pezoo run {out} --plugin 'PATH/my code.py'" in line
    made = Study.prepare(out, plugins=[code])
    assert made.changes() == "changed since the last run: plugins: + ../../../my code.py, - ../../my code.py"
    assert all(map(made.store.done, made.plan.cells))


def test_without_its_plugin_a_study_goes_on_if_that_is_said(with_plugin):
    out, _, name = with_plugin
    forget(name)
    made = Study.prepare(out, ["schemes=[nope]", "plugins=[]"])
    assert f"schemes: + nope, - {name}, plugins: - ../../my code.py" in made.changes()
    with pytest.raises(UserError, match=f"no member is called '{name}'"):
        Study.prepare(out, ["plugins=[]"])


def test_what_shares_no_folder_keeps_its_path(tmp_path):
    out = tmp_path / "mine"
    assert folder._recorded(out, ["/opt/code.py", str(tmp_path / "b.py")]) == ["/opt/code.py", "../b.py"]


@pytest.mark.parametrize("name", ["x\0y.py", "n" * 5000, "$(touch x).py", "-rf", "\x1b[31m.py", "../../../../etc"])
def test_a_recipe_that_names_strange_plugins_is_only_read(recipe, tmp_path, capsys, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("sent.yaml").write_text(yaml.safe_dump(recipe | {"plugins": [name]}))
    assert main(["run", "sent.yaml"]) == 2
    line = capsys.readouterr().err
    assert "mine needs the plug-in" in line
    assert "\x1b" not in line
    assert {path.name for path in tmp_path.iterdir()} == {"sent.yaml"}


# ---- the report ---------------------------------------------------------------------------------


def test_the_report_is_written_while_the_folder_is_held(mine, recipe, monkeypatch):
    """By the command and from Python: whoever comes meanwhile is sent away."""
    refused = []

    def write(*_):
        with pytest.raises(UserError, match="is at work in") as error:
            Study.prepare(mine).run()
        refused.append(error)

    monkeypatch.setattr("pezoo.report.write.write_report", write)
    pezoo.run(mine)
    assert main(["run", str(mine)]) == 0
    assert len(refused) == 2


@pytest.mark.slow
@pytest.mark.ci
def test_three_runs_at_once_leave_one_event_file_each(mine):
    shutil.rmtree(mine / "tensorboard")
    command = [sys.executable, "-m", "pezoo", "run", str(mine)]
    runs = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)]
    ended = [(run.communicate()[1].decode(), run.returncode) for run in runs]
    assert {code for _, code in ended} <= {0, 2}, ended
    assert 0 in {code for _, code in ended}
    for row in (mine / "tensorboard" / "test").iterdir():
        assert len(list(row.glob("events.out.tfevents.*"))) == 1
