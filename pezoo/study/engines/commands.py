"""Slurm's commands: whether they are here, which jobs run, and how they are told to go. Nothing here needs submitit."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from pezoo.errors import UserError, cut
from pezoo.study.launcher import SAVE_SECONDS
from pezoo.study.recipe import SlurmConfig

JOBS = "jobs.json"
"""File in the study's folder that names jobs which may still run."""


def require_slurm(asked: SlurmConfig) -> None:
    """Refuse a machine that can submit no job.

    Raises:
        UserError: with what to type.
    """
    if not asked.local and shutil.which("sbatch") is None:
        raise UserError(
            "launcher=slurm needs Slurm's command sbatch, which is not here; "
            "to try the study's jobs on this machine, type slurm.local=true"
        )


def end_leftover(study: Path) -> None:
    """End the jobs of a run that was killed, before another works in its folder; trainings save their state.

    Raises:
        UserError: if they do not end, or cannot be ended from here.
    """
    try:
        left = json.loads((study / JOBS).read_bytes())
    except (OSError, ValueError):
        return
    if left["local"] and left["host"] != socket.gethostname():
        raise UserError(f"{study} may be in use by jobs on {left['host']}; if not, remove {study / JOBS}")
    if not left["local"] and not all(map(shutil.which, ("scancel", "squeue"))):
        raise UserError(
            f"jobs of Slurm may still be at work in {study}, {cut(', '.join(left['jobs']), 200)}, and Slurm's commands "
            f"are not here; go on where they are, or if those jobs have ended, remove {study / JOBS}"
        )
    for work in (study / "logs" / "slurm").glob("*.messages"):
        work.with_suffix(".stop").touch()
    tell(left["jobs"], left["local"])
    until = time.monotonic() + SAVE_SECONDS
    while there := running(left["jobs"], left["local"]):
        if time.monotonic() > until:
            raise UserError(f"jobs of an earlier run are still at work in {study}: {', '.join(there[:5])}; end them")
        time.sleep(0.2 if left["local"] else 2.0)
    (study / JOBS).unlink(missing_ok=True)


def tell(numbers: Iterable[str], local: bool) -> None:
    """Tell jobs to go: SIGTERM, with which Slurm ends jobs as well."""
    numbers = running(numbers, local) if local else list(numbers)
    for number in numbers if local else ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(number), signal.SIGTERM)
    if numbers and not local:
        subprocess.run(["scancel", *numbers], check=False, capture_output=True)


def running(numbers: Iterable[str], local: bool) -> list[str]:
    """Those of these jobs that run, or may."""
    if local:
        commands = {number: Path(f"/proc/{number}/cmdline") for number in numbers}
        return [number for number, file in commands.items() if file.exists() and b"submitit" in file.read_bytes()]
    if not (numbers := list(numbers)):
        return []
    arrays = ",".join(dict.fromkeys(number.partition("_")[0] for number in numbers))
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--jobs={arrays}"]
    told = subprocess.run(command, check=False, capture_output=True, text=True)
    if told.returncode and "Invalid job id" not in told.stderr:  # nobody knows
        return numbers
    return [number for number in numbers if number in told.stdout.split()]
