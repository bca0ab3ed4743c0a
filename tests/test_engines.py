"""Where cells run moves no number: in this machine's processes, on a cluster of Ray, as jobs of submitit."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from helpers import MAY_DIFFER
from pezoo.errors import UserError
from pezoo.results import read
from pezoo.study import Study
from pezoo.study.launcher import setup_of, told_of

# Trainings are long enough for a machine to be killed meanwhile.
OVERRIDES = ("size=test", "schemes=[alibi, rope+pi]", "seeds=[0]", "train.steps=1000")
OFTEN = "save_minutes=0.005"
"""A state every 0.3 seconds."""
SECONDS = 240
"""After which a test does not wait any longer."""


def prepare(out, *overrides):
    return Study.prepare("quickstart", [*OVERRIDES, "workers=2", *overrides], out)


def told(study):
    """The results without what is of an hour; they name the machine, which is this one."""
    may_differ = set(MAY_DIFFER) - {"config_hash"}
    return [{k: v for k, v in vars(r).items() if k not in may_differ} for r in read(study.results_path)]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    study = prepare(tmp_path_factory.mktemp("local"), "workers=1")
    study.run()
    assert {r.status for r in read(study.results_path)} == {"ok"}
    return told(study)


@contextmanager
def meanwhile(act):
    """Do something in another thread, which must come to its end."""
    errors = []

    def run():
        try:
            act()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join(SECONDS)
    assert not thread.is_alive()
    assert not errors, errors


def wait_for(what, seconds=SECONDS):
    """What a function returns, as soon as that is something."""
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)
    return found


def in_training(out):
    """Whether trainings have saved their states."""
    return len(list((out / "cells").glob("[!.]*.state.pt"))) >= 2


@pytest.mark.slow
def test_two_workers_give_the_numbers_of_one(expected, tmp_path):
    study = prepare(tmp_path / "out")
    study.run()
    assert told(study) == expected


# ---- Ray ----------------------------------------------------------------------------------------


@pytest.fixture
def cluster(monkeypatch):
    """A cluster of Ray: a head without room for cells, and two machines with room for one each."""
    pytest.importorskip("ray", reason="pezoo[ray] is not installed")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    memory = 80 << 20
    made = Cluster(True, head_node_args={"num_cpus": 0, "object_store_memory": memory, "include_dashboard": False})
    made.workers = [made.add_node(num_cpus=1, object_store_memory=memory) for _ in range(2)]
    yield made
    made.shutdown()


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.filterwarnings("ignore")  # Ray's own, of files and sockets
def test_on_a_cluster_of_ray_of_which_a_machine_dies_the_numbers_are_the_same(expected, cluster, tmp_path, capsys):
    out = tmp_path / "out"
    study = prepare(out, "launcher=ray", f"ray.address={cluster.address}", OFTEN)

    def kill():
        wait_for(lambda: in_training(out))
        cluster.remove_node(cluster.workers[0], allow_graceful=False)

    with meanwhile(kill):
        study.run()
    assert not study.failures
    assert told(study) == expected
    shown = capsys.readouterr().err
    assert f"Ray at {cluster.address}: 2 CPUs and 0 GPUs on 3 machines" in shown
    assert "begins again, on" in shown, shown
    assert "goes on at step" in shown, "its state was in the folder"
    assert not (out / ".here").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_machines_that_do_not_see_the_folder_send_what_they_make(expected, cluster, tmp_path, capsys, monkeypatch):
    """Stopped by Ctrl-C in the middle of a training, whose state comes back too."""
    from pezoo.study.engines import ray

    monkeypatch.setattr(ray, "MARK", ".elsewhere")  # the machines look for another file
    out = tmp_path / "out"
    study = prepare(out, "launcher=ray", f"ray.address={cluster.address}")

    def stop():
        wait_for(lambda: '"loss"' in (out / "status.json").read_text() if (out / "status.json").exists() else False)
        os.kill(os.getpid(), signal.SIGINT)

    with meanwhile(stop), pytest.raises(KeyboardInterrupt):
        study.run()
    assert list((out / "cells").glob("*.state.pt"))
    assert not (out / "logs").exists(), "to stop is no failure"
    study.run()
    assert told(study) == expected
    shown = capsys.readouterr().err
    assert f"does not see {out}" in shown
    assert "goes on at step" in shown
    assert any((out / "tensorboard" / "train").rglob("events*"))


@pytest.mark.slow
@pytest.mark.parametrize("address", ["127.0.0.1:1", "auto"])
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_that_does_not_answer_is_named(address, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="pezoo[ray] is not installed")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(UserError) as error:
        prepare(tmp_path / "out", "launcher=ray", f"ray.address={address}").run()
    where = "on this machine" if address == "auto" else f"at {address}"
    assert str(error.value).startswith(f"no cluster of Ray answers {where} (")
    assert "start one with `ray start --head`" in str(error.value)


# ---- Slurm --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.ci
def test_as_jobs_of_submitit_the_numbers_are_the_same_whatever_becomes_of_a_job(expected, tmp_path, capsys):
    """One job nears its time limit and is queued again; in a first run another was killed, which is told."""
    pytest.importorskip("submitit", reason="pezoo[slurm] is not installed")
    out = tmp_path / "out"
    study = prepare(out, "launcher=slurm", "slurm.local=true", OFTEN)
    train = {cell.title: key for key, cell in study.plan.cells.items() if cell.kind == "train"}

    def process(title):
        messages = (out / "logs" / "slurm" / f"{train[title]}.messages").read_text().splitlines()
        return next(m["process"] for m in map(json.loads, messages) if m["event"] == "begun")

    def disturb():
        wait_for(lambda: in_training(out))
        os.kill(process("train alibi, seed 0"), signal.SIGKILL)
        os.kill(process("train rope, seed 0"), signal.SIGUSR2)

    with meanwhile(disturb):
        study.run()
    assert [study.plan.cells[key].title for key in study.failures] == ["train alibi, seed 0"]
    (failure,) = study.failures.values()
    assert "has ended without a word" in failure.reason
    shown = capsys.readouterr().err
    assert "train rope, seed 0: begins again, on" in shown
    assert "train rope, seed 0: goes on at step" in shown

    again = prepare(out, "launcher=slurm", "slurm.local=true", OFTEN)
    again.run()
    assert not again.failures
    assert told(again) == expected
    assert "train alibi, seed 0: goes on at step" in capsys.readouterr().err
    assert not (out / "logs").exists()
    assert not (out / "jobs.json").exists()


@pytest.mark.slow
def test_a_run_ends_the_jobs_of_one_that_was_killed_and_goes_on(expected, tmp_path):
    pytest.importorskip("submitit", reason="pezoo[slurm] is not installed")
    out = tmp_path / "out"
    arguments = [*OVERRIDES, "workers=2", OFTEN, "--launcher", "slurm", "slurm.local=true", "--out", str(out)]
    run = subprocess.Popen([sys.executable, "-m", "pezoo", "run", "quickstart", *arguments])
    wait_for(lambda: in_training(out))
    run.kill()
    run.wait()
    assert json.loads((out / "jobs.json").read_text())["jobs"]
    study = prepare(out)
    study.run()
    assert told(study) == expected
    assert not (out / "jobs.json").exists()


def test_without_slurm_the_message_says_how_to_try(tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="pezoo[slurm] is not installed")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"needs Slurm's command sbatch, which is not here; .* type slurm.local=true"):
        prepare(tmp_path / "out", "launcher=slurm").run()


SBATCH = """#!/bin/sh
cp "$1" "$(dirname "$0")/$(date +%s%N).sh"
echo "Submitted batch job 7"
"""


def test_what_slurm_is_asked_for(tmp_path, monkeypatch):
    """A stand-in for sbatch keeps the script; no job runs, so the study is stopped."""
    pytest.importorskip("submitit", reason="pezoo[slurm] is not installed")
    from pezoo.study.engines.slurm import OnSlurm

    for name in ("sbatch", "srun", "scancel", "sacct"):
        (tmp_path / name).write_text(SBATCH if name == "sbatch" else "#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    asked = "slurm={partition: long, account: us, minutes: 90, cpus: 3, gpus: 1, memory_gb: 1.5, signal_seconds: 70}"
    study = prepare(tmp_path / "out", "launcher=slurm", asked, "device=cpu")
    ready = [cell for cell in study.plan.cells.values() if cell.kind == "train"]
    monkeypatch.setattr(OnSlurm, "_await_end", lambda *_: None)
    study.out.mkdir()
    with OnSlurm(study.plan, study.store, []) as engine:
        assert engine.take(ready) == ready
        assert json.loads((study.out / "jobs.json").read_text())["jobs"] == ["7_0", "7_1"]
    (script,) = tmp_path.glob("*.sh")
    lines = script.read_text().splitlines()
    given = dict(shlex.split(line)[1][2:].split("=", 1) for line in lines if line.startswith("#SBATCH") and "=" in line)
    wanted = {"partition": "long", "account": "us", "time": "90", "cpus-per-task": "3", "gpus-per-node": "1"}
    wanted |= {"mem": "1536M", "signal": "USR2@70", "array": "0-1%2", "job-name": "pezoo-train"}
    assert given.items() >= wanted.items()


FULL_SBATCH = """#!/bin/sh
last=$(sed -n 's/#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
asked=$(( ${last:-0} + 1 ))
left=$(cat "$(dirname "$0")/left")
echo $asked >> "$(dirname "$0")/asked"
if [ $asked -gt $left ]; then echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1; fi
echo $((left - asked)) > "$(dirname "$0")/left"
echo "Submitted batch job $$"
"""


def test_what_slurm_takes_no_more_waits_for_what_runs(tmp_path, monkeypatch, capsys):
    """A stand-in for sbatch lets the user have so many jobs as a file says."""
    pytest.importorskip("submitit", reason="pezoo[slurm] is not installed")
    from pezoo.study.engines import slurm

    for name in ("sbatch", "srun", "scancel", "sacct"):
        (tmp_path / name).write_text(FULL_SBATCH if name == "sbatch" else "#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "GATHER_SECONDS", 0)
    monkeypatch.setattr(slurm.OnSlurm, "_await_end", lambda *_: None)
    study = prepare(tmp_path / "out", "launcher=slurm", "device=cpu", "seeds=[0, 1, 2]")
    ready = [cell for cell in study.plan.cells.values() if cell.kind == "train"]
    study.out.mkdir()
    with slurm.OnSlurm(study.plan, study.store, []) as engine:
        for left, taken, asked in ((4, 4, [6, 3, 3, 1, 2, 1]), (0, 0, [1]), (2, 2, [1, 1])):
            (tmp_path / "left").write_text(str(left))
            (tmp_path / "asked").write_text("")
            assert engine.take(ready) == ready[:taken]
            assert list(map(int, (tmp_path / "asked").read_text().split())) == asked
            ready = ready[taken:]
        assert len(engine.jobs) == 6
        notes = [message["line"] for _, message in engine.news if "refuses" in message["line"]]
        assert notes == [
            "Slurm refuses the jobs: sbatch: error: QOSMaxSubmitJobPerUserLimit; the others wait for those that run"
        ]
        ready = list(study.plan.cells.values())[:1]
        engine.jobs.clear()
        (tmp_path / "left").write_text("0")
        with pytest.raises(UserError, match=r"Slurm refuses the jobs: .*QOSMaxSubmit"):
            engine.take(ready)
    assert "sbatch: error" not in capsys.readouterr().err


def test_a_training_on_several_machines_is_a_job_of_as_many(tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="pezoo[slurm] is not installed")
    from pezoo.study.engines.slurm import OnSlurm

    asked = []
    monkeypatch.setattr(OnSlurm, "_submit", lambda self, *given: asked.append(given[:3]))
    for overrides, shape in (
        (["train.num_nodes=2", "train.devices=4"], (2, 4)),
        (["train.devices=4"], (1, 1)),
    ):
        study = prepare(tmp_path / "out", "launcher=slurm", "train.batch_size=8", "tune.batch_size=8", *overrides)
        engine = OnSlurm(study.plan, study.store, [])
        engine.take([cell for cell in study.plan.cells.values() if cell.kind in ("train", "evaluate")])
        assert set(asked) == {("train", *shape), ("evaluate", 1, 1)}
        asked.clear()


JOB = """
import json, sys
from pezoo.study.engines.job import Work
if __name__ == "__main__":
    Work(*json.loads(sys.stdin.read()))()
"""


@pytest.mark.slow
def test_the_processes_of_a_job_on_two_machines_train_one_model(tmp_path):
    """As Slurm would start them, by its variables alone: two "machines" with a process each, both here."""
    pytest.importorskip("submitit", reason="pezoo[slurm] is not installed")
    found = []
    for machines in (1, 2):
        overrides = [
            "launcher=slurm",
            "device=cpu",
            "schemes=[rope+random]",
            "train.steps=60",
            f"train.num_nodes={machines}",
        ]
        study = prepare(tmp_path / str(machines), *overrides)
        (cell,) = [cell for cell in study.plan.cells.values() if cell.kind == "train"][:1]
        given = [setup_of(study.plan, []) | {"folder": str(study.out)}, told_of(cell), str(tmp_path / f"job{machines}")]
        job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_NTASKS": str(machines), "SLURM_NNODES": str(machines)}
        job |= {"SLURM_NTASKS_PER_NODE": "1", "SLURM_LOCALID": "0", "SLURM_NODELIST": "127.0.0.1"}
        job |= {"SUBMITIT_EXECUTOR": "slurm"}
        runs = []
        for rank in range(machines):
            named = job | {"SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank)}
            runs.append(
                subprocess.Popen([sys.executable, "-c", JOB], stdin=subprocess.PIPE, env=os.environ | named, text=True)
            )
        for run in runs:
            run.stdin.write(json.dumps(given))
            run.stdin.close()
        assert [run.wait(300) for run in runs] == [0] * machines
        messages = [json.loads(line) for line in (tmp_path / f"job{machines}.messages").read_text().splitlines()]
        assert [m["event"] for m in messages if m["event"] != "progress"] == ["begun", "done"]
        found.append(messages[-1]["fit"])
        assert study.store.done(cell.key)
    one, two = found
    assert two["validation_loss"] == pytest.approx(one["validation_loss"], abs=1e-5)
    assert two["final_loss"] == pytest.approx(one["final_loss"], abs=1e-5)


def test_jobs_of_a_run_that_was_killed_are_ended_before_another_begins(tmp_path):
    from pezoo.study.engines.commands import end_leftover

    code = "import time; print('here', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, "submitit"], stdout=subprocess.PIPE) as left:
        left.stdout.read(4)
        record = {"local": True, "host": os.uname().nodename, "jobs": [str(left.pid), "999999999"]}
        (tmp_path / "jobs.json").write_text(json.dumps(record))
        end_leftover(tmp_path)
        assert left.wait(10) == -signal.SIGTERM
    assert not (tmp_path / "jobs.json").exists()
    end_leftover(tmp_path)
    (tmp_path / "jobs.json").write_text(json.dumps(record | {"host": "elsewhere"}))
    with pytest.raises(UserError, match="may be in use by jobs on elsewhere"):
        end_leftover(tmp_path)


def test_jobs_of_slurm_that_cannot_be_ended_from_here_are_named(tmp_path, monkeypatch):
    from pezoo.study.engines.commands import end_leftover

    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "jobs.json").write_text(json.dumps({"local": False, "host": "head", "jobs": ["7_0", "7_1"]}))
    with pytest.raises(
        UserError, match=r"jobs of Slurm may .* 7_0, 7_1, .* if those jobs have ended, remove .*jobs.json"
    ):
        end_leftover(tmp_path)
