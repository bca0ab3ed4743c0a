"""What a user can get wrong: one clear message, exit code 2, no traceback, nothing half-written."""

import errno
import os
import re
import tempfile
from pathlib import Path

import pytest

from pezoo.cli import main

ROOT = Path(__file__).parents[1]
TINY = """
schemes: [rope]
data: {corpus: text, path: text}
model: {d_model: 8, n_layers: 1, n_heads: 2}
train: {length: 16, steps: 2, batch_size: 2, warmup_steps: 1}
tune: {length: 32, warmup_steps: 1}
test: {lengths: [16, 64], windows: 2}
"""

UNFIT = """
from pezoo import Encoding, register

@register("unfit", title="Forgets the heads")
class Unfit(Encoding):
    def bias(self, positions):
        raise IndexError("no such head")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a good recipe, tiny.yaml, and things that are no recipe."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").mkdir()
    for i in range(10):
        (tmp_path / "text" / f"{i}.txt").write_text(f"document {i}: " + "some words " * 20)
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "broken.yaml").write_text("schemes: [rope\ntrain: {")
    (tmp_path / "tab.yaml").write_text("schemes:\n\t- rope\n")
    (tmp_path / "indented.yaml").write_text("schemes: [rope]\n train: {steps: 3}\n")
    (tmp_path / "twice.yaml").write_text("seeds: [0]\nseeds: [1]\n")
    (tmp_path / "comment.yaml").write_text("# nothing yet\n")
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "results.jsonl").write_text("")
    (tmp_path / "list.yaml").write_text("- rope\n- alibi\n")
    (tmp_path / "typo.yaml").write_text(TINY + "sedes: [0]\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank").mkdir()
    (tmp_path / "blank" / "a.txt").write_text("")
    (tmp_path / "a_file").write_text("not a folder")
    (tmp_path / "plain.py").write_text("x = 1\n")
    (tmp_path / "crash.py").write_text("1 / 0\n")
    (tmp_path / "exits.py").write_text("import sys\nsys.exit(3)\n")
    (tmp_path / "unfit.py").write_text(UNFIT)
    return tmp_path


def refused(capsys, *argv):
    """Run a command that must be refused; return its one message."""
    before = sorted(p for p in Path().rglob("*") if "__pycache__" not in p.parts)
    code = main(list(argv))
    after = sorted(p for p in Path().rglob("*") if "__pycache__" not in p.parts)
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert after == before, "something was written"
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1, "more than one message"
    return captured.err


MISTAKES = {
    # unknown names
    "schemes=[ropee]": "no member is called 'ropee'.*Did you mean 'rope'",
    "schemes=[rope+pie]": "Did you mean 'pi'",
    "schemes=[rope+pi:facto=4]": "no setting 'facto'.*Did you mean 'factor'",
    "trian.steps=3": "unknown key 'trian'.*Did you mean 'train'",
    "train.stps=3": r"unknown key 'train.stps'.*Did you mean 'train.steps'",
    "train.steps.x=3": "train.steps is a single value",
    "schemes=[{scheme: rope, tun: [3]}]": "no key 'tun'.*Did you mean 'tune'",
    "test.protocols=[prefx]": "Did you mean 'prefix'",
    "backend=spda": "backend must be auto, .*, got 'spda'. Did you mean 'sdpa'",
    "size=tst": "no size 'tst'",
    "data.corpus=pyton": "data.corpus must be package, python, text or hub, got 'pyton'. Did you mean 'python'",
    "model.activation=gel": "model.activation must be .*Did you mean 'gelu'",
    "sizes.gpu.train.stps=3": r"sizes.gpu: unknown key 'train.stps'",
    "device=gpu": "device.*cuda",
    # wrong types
    "train.steps=many": "train.steps.*'many'",
    "train.steps=1.5": "train.steps.*1.5",
    "train.lr=true": "train.lr.*True",
    "train.steps=": "train.steps must be a whole number, got nothing$",
    "study=null": "study must be a text, got nothing$",
    "description=[1]": r"description must be a text, got \[1\]$",
    "test.companion=maybe": "test.companion must be true or false, got 'maybe'$",
    "train.lrs=0.1": r"train.lrs must be a list such as \[0.001, 0.002\], got 0.1",
    "tasks=rope": r"tasks must be a list such as \[language_modelling\], got 'rope'",
    "train=3": "train must be a group of keys",
    "train=null": "train must be a group of keys",
    "seeds=3": "seeds must be a list",
    "seeds=[a]": "seeds.*'a'",
    "seeds.5=1": "seeds has items 0 to 0",
    "schemes=rope": "schemes must be a list",
    "schemes=[7]": "schemes.0 must be a scheme",
    "schemes=[{}]": "schemes.0 must be a scheme",
    "schemes=[{scheme: rope, tune: 3}]": "schemes.0.tune must be a list of step counts",
    "schemes=[{scheme: rope, tune: {lenght: 4x}}]": "'schemes.0.tune.lenght'.* Did you mean 'schemes.0.tune.length'",
    "schemes=[{scheme: rope, tune: {steps: 3}}]": "schemes.0.tune.steps must be a list such as",
    "schemes=[{scheme: rope, tune: {steps: []}}]": "schemes.0.tune.steps must be a list of step counts",
    "schemes=[{scheme: rope, tune: {lr: fast}}]": "schemes.0.tune.lr.*'fast'",
    "schemes=[{scheme: rope, tune: {batch_size: 0}}]": "schemes.0.tune.batch_size must be at least 1, got 0",
    "schemes=[{scheme: rope, tune: {steps: [3], length: 1}}]": "schemes.0.tune.length=1 is shorter than the training",
    "schemes=[{scheme: rope, tune: {length: far}}]": "schemes.0.tune.length must be a number of tokens",
    "schemes=[{scheme: rope, tune: {weights: half}}]": "schemes.0.tune.weights: .*half",
    "schemes=['']": "cannot read the scheme",
    "schemes=['rope+']": "cannot read the scheme 'rope.'; write it like",
    "schemes=['rope+yarn factor=8']": "cannot read the scheme",
    "schemes=[rope+yarn:factor=8:factor=4]": "sets factor twice; keep one of them",
    "schemes=[{schem: rope}]": "schemes.0 has no key 'scheme', and 'schem' is no member; write {scheme: ",
    "schemes=[{layers: [rope, nope], tune: [0, 3]}]": "schemes.0 has no key 'scheme', and 'tune' is no member",
    "schemes=[rope+pi:factor=x]": "factor",
    "study=a/b": "study must be a name without slashes",
    "nonsense": "'nonsense' is no override",
    "train.steps=[1": "cannot read the value",
    "schemes=[rope": r"a bracket is not closed; quote the whole, such as 'schemes=\[rope, alibi\]'",
    "schemes=[{scheme: rope]": "cannot read the value",
    "description=${oc.env:HOME}": "cannot hold",
    # zero, negative, empty
    "train.steps=0": "train.steps must be at least 1, got 0",
    "train.steps=-5": "train.steps must be at least 1, got -5",
    "train.batch_size=0": "train.batch_size must be at least 1",
    "train.length=-1": "train.length must be at least 1",
    "train.lr=0": "train.lr must be above 0",
    "train.lr=-1": "train.lr must be above 0",
    "train.lr=nan": "train.lr must be above 0, got nan",
    "train.grad_clip=-1": "train.grad_clip must be at least 0",
    "model.d_model=0": "model.d_model must be at least 1",
    "model.n_layers=-2": "model.n_layers must be at least 1",
    "model.n_heads=0": "model.n_heads must be at least 1",
    "model.dropout=1": r"model.dropout must be in \[0, 1\)",
    "test.windows=0": "test.windows must be at least 1",
    "test.batch_tokens=-1": "test.batch_tokens must be at least 1",
    "test.lengths=[0]": "test.lengths.0 must be at least 1",
    "test.lengths=[-16]": "test.lengths.0 must be at least 1",
    "workers=0": "workers must be at least 1",
    "threads=0": "threads must be at least 1",
    "data.max_bytes=0": "data.max_bytes",
    "tune.steps=[-1]": "tune.steps must be a list of step counts",
    "schemes=[]": "schemes must be a list",
    "seeds=[]": "seeds must be different whole numbers",
    "test.lengths=[]": "test.lengths must be a list",
    # what does not go together
    "model.n_heads=3": "model.d_model=8 is not divisible by model.n_heads=3; type model.d_model=9",
    "model.head_dim=0": "model.head_dim must be at least 1, got 0",
    "model.norm_eps=0": "model.norm_eps must be above 0, or null, got 0.0",
    "model.qk_norm_scope=all": "model.qk_norm_scope must be head, unless model.qk_norm=true, got 'all'",
    "model.attention_bias=q": "model.attention_bias",
    "model.n_kv_heads=3": "model.n_kv_heads must be a divisor",
    "test.lengths=[8]": "shorter than the training length train.length=16",
    "test.lengths=[0.5x]": "shorter than the training length",
    "test.lengths=[long]": "such as 8x, got 'long'",
    "test.last=17": "more than the shortest test length, 16",
    "train.warmup_steps=2": "train.warmup_steps=2 must be less than the 2 steps",
    "seeds=[1,1]": "seeds must be different",
    "train.precision=16-mixed": "needs a GPU",
    "schemes=[nope+ntk]": "ntk does not fit nope.*works with:.*rope",
    "schemes=[pi]": "alone is no scheme",
    "schemes=[{layers: [rope, nope]}]": "the scheme repeats 2 layers, and n_layers = 1 is no multiple; set it to 2",
    "schemes=[{heads: {rope: 3}}]": "heads names 3 heads",
    "schemes=[rope, rope]": "the same scheme",
    "schemes=[shape, sinusoidal+shift]": "the same scheme",
    "schemes=[{scheme: rope, label: a}, {scheme: alibi, label: a}]": "two rows are called 'a'",
    # data
    "data.path=missing": "data.path=missing does not exist",
    "data.path=empty": "no file in empty",
    "data.path=blank": "empty",
    "test.lengths=[16, 4096]": "no test document is longer than 4096 tokens",
}


@pytest.mark.parametrize("override", MISTAKES)
def test_mistake_in_a_key(folder, capsys, override):
    message = refused(capsys, "run", "tiny.yaml", override)
    assert re.search(MISTAKES[override], message), message


COMMANDS = {
    "run": "RECIPE",
    "run quickstrt": "Did you mean 'quickstart'",
    "run missing.yaml": "no recipe 'missing.yaml'",
    "run empty": "a folder without a recipe.yaml",
    "run broken.yaml": "not a YAML recipe.*line",
    "run tab.yaml": "not a YAML recipe: line 2: it begins with a tab; indent with spaces$",
    "run indented.yaml": "line 2: it is indented otherwise than the keys above it$",
    "run twice.yaml": "line 2: found duplicate key seeds$",
    "run comment.yaml": "comment.yaml is not a recipe: it must hold keys",
    "run list.yaml": "must hold keys",
    "gather empty --out all.parquet": "empty is no folder of a study",
    "gather unfinished --out all.parquet": "unfinished has no results yet; type: pezoo run unfinished$",
    "generate unfinished rope": "unfinished has no results yet",
    "export unfinished rope there": "unfinished has no results yet",
    "run typo.yaml": "unknown key 'sedes'.*Did you mean 'seeds'",
    "run tiny.yaml --plugin missing.py": "missing.py: no such Python file",
    "run tiny.yaml --plugin plain.py": "registers nothing",
    "run tiny.yaml --plugin crash.py": "ZeroDivisionError",
    "run tiny.yaml schemes=[unfit] --plugin unfit.py": "fails with IndexError.*unfit.py, line",
    "run tiny.yaml --outt there": "Did you mean '--out'",
    "run tiny.yaml --out a_file": "a_file is a file",
    "run tiny.yaml --out a_file/inside": "a_file is a file",
    "run tiny.yaml tune.steps=[2] tune.length=8": "tune.length=8 is shorter than",
    "run tiny.yaml tune.steps=[1,4]": "tune.warmup_steps=1 must be less than the 1 steps",
    "run tiny.yaml train.length=5000 test.lengths=[1x]": "too few for sequences of 5000",
    "rnu": "Did you mean 'run'",
    "list zzz": "nothing is called 'zzz'",
    "list rope --extensions": "'rope' is of another kind; to see it: pezoo list rope$",
    "list --encodings --extensions": "not allowed with argument --encodings. See pezoo list --help$",
    "evaluate m": "required: --data. See pezoo evaluate --help$",
    "list ropee": "Did you mean 'rope'",
    "show ropee": "Did you mean 'rope'",
    "run tiny.yaml schemes=[ROPE]": r"Did you mean 'rope'\?",
    "run tiny.yaml schemes=[nope+pi]": "It works with: learned, .* and [0-9]+ more: pezoo list --works-with pi$",
    "run tiny.yaml --size test": "--size is no option.*type size=test$",
    "run tiny.yaml --train.steps=5": "type train.steps=5$",
    "list --works-with ropee": "Did you mean 'rope'",
    "list --plugin exits.py": "exits.py: SystemExit: 3 .*exits.py, line 2",
    "list --plugin crash.py": "ZeroDivisionError: division by zero .*crash.py, line 1",
    "check rope+yarn": "'rope.yarn' is a scheme, and members are checked; type pezoo check yarn$",
    "show rope --length 5": "type both: show SCHEME --config FILE$",
    "show rope --save a_file/x.png": "a_file: it is a file$",
    "status a_file": "there is no folder a_file",
    "bench --only floor --save a_file/x.json": "a_file: it is a file$",
    "bench --explain rope --save x.json": "--save say what is measured, and --explain measures nothing",
    "evaluate m --data text --lr 1e-3": "--lr: no tuning is asked for; add --tune 200",
    "export a b c --length 0": "--length: must be a whole number from 1 on, got '0'",
    "list --works-with {layers:[rope,nope]}": "is a mixture",
    "show": "name a scheme, such as pezoo show rope",
    "show rope --jsn": "Did you mean '--json'",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_mistake_in_a_command(folder, capsys, command):
    message = refused(capsys, *command.split())
    assert re.search(COMMANDS[command], message), message


def test_the_recipe_that_the_mistakes_are_made_in_is_good(folder, capsys):
    assert main(["run", "tiny.yaml", "--dry-run"]) == 0
    assert "1 to train" in capsys.readouterr().out
    assert not Path("runs").exists()


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs POSIX users")
def test_no_permission_to_write(folder, capsys, monkeypatch):
    """As an ordinary user, whoever runs the tests: root may write anywhere."""
    with tempfile.TemporaryDirectory() as locked:
        folder.chmod(0o755)
        Path(locked).chmod(0o555)
        root = os.geteuid() == 0
        if root:
            main(["run", "tiny.yaml", "--dry-run"])  # imports what only root may be able to read
            os.seteuid(65534)
        try:
            code = main(["run", "tiny.yaml", "--out", f"{locked}/study"])
        finally:
            if root:
                os.seteuid(0)
        assert not os.listdir(locked)
        Path(locked).chmod(0o755)
    assert code == 2
    assert f"no permission to write to {locked}" in capsys.readouterr().err


def test_a_study_that_cannot_be_written_can_be_looked_at(folder, capsys, monkeypatch):
    assert main(["run", "tiny.yaml", "test.lengths=[16]", "--out", "done"]) == 0
    monkeypatch.setattr(os, "access", lambda path, mode, **_: mode & os.W_OK == 0)
    assert main(["run", "done", "--dry-run"]) == 0
    assert main(["clean", "done"]) == 0
    capsys.readouterr()
    assert "no permission to write to done" in refused(capsys, "run", "done")


def test_a_file_that_cannot_be_written_is_named_as_it_was_typed(folder, capsys, monkeypatch):
    def forbidden(path, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", forbidden)
    code = main(["gather", str(ROOT / "experiments" / "results" / "quickstart"), "--out", "all.parquet"])
    assert code == 2
    assert capsys.readouterr().err == "error: all.parquet: Permission denied\n"


def test_a_model_that_is_typed_takes_the_place_of_the_recipe_s(folder, capsys):
    """Else `model.d_model` of the recipe, or of a size, would be refused, and nothing could be typed against it."""
    message = refused(capsys, "run", "tiny.yaml", "model.from={model_type: nothing}")
    assert "has no effect beside model.from" not in message
    message = refused(capsys, "run", "tiny.yaml", "model.from={model_type: llama}", "model.d_ff=3")
    assert "model.d_ff=3 has no effect beside model.from" in message


def test_of_published_results_it_is_said_what_can_be_done_with_them(folder, capsys):
    published = str(ROOT / "experiments" / "results" / "quickstart")
    assert "results without models; to train them: pezoo run" in refused(capsys, "generate", published, "rope")
    assert "published results, and no run; to see them: pezoo report" in refused(capsys, "status", published)


def test_a_folder_that_another_run_is_at_work_in(folder, capsys):
    import fcntl

    out = folder / "out"
    out.mkdir()
    with (out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("123")
        lock.flush()
        message = refused(capsys, "run", "tiny.yaml", "--out", "out")
    assert "another run (process 123)" in message
