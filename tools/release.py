"""Tries a release in fresh environments: `python -m tools.release --try python3.12`.

It builds the source distribution and the wheel. Then, for each environment: the wheel is installed as a user would,
`pezoo list` and the quickstart (`size=test`) run in an empty folder outside the checkout, and the suite runs in the
unpacked source distribution. `--save` adds what came of it to `experiments/results/release.json`, of which `make docs`
makes the table in docs/platforms.md.

An environment is `PYTHON`, `PYTHON:TORCH` or `PYTHON:lowest`: an interpreter, and a version of PyTorch or the lowest
version of each dependency that setup.cfg allows. Everything else is the newest that pip finds.

    python -m tools.release --try python3.14
    python -m tools.release --try python3.11:lowest --try python3.12:2.13.0 --save
    python -m tools.release --try python3.13 --suite none         # a minute
    python -m tools.release --try python3.13 --suite tests/encodings,tests/test_cli.py
"""

import argparse
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TRIED = ROOT / "experiments" / "results" / "release.json"
FACTS = """
import importlib.metadata as m, json, platform, torch
names = ["datasets", "numpy", "pandas", "pytorch-lightning", "torch", "torchmetrics"]
print(json.dumps({
    "python": platform.python_version(), "system": platform.system(), "machine": platform.machine(),
    "pezoo": m.version("pezoo"), "versions": {name: m.version(name) for name in names},
    "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(),
}))
"""


def build(into: Path) -> tuple[Path, Path]:
    """The source distribution, and the wheel built from it."""
    execute(sys.executable, "-m", "venv", into / "builder")
    python = into / "builder" / "bin" / "python"
    execute(python, "-m", "pip", "install", "--quiet", "build")
    execute(python, "-m", "build", "--outdir", into / "dist", ROOT)
    (source,), (wheel,) = (into / "dist").glob("*.tar.gz"), (into / "dist").glob("*.whl")
    return source, wheel


def lowest() -> str:
    """The lowest version of each dependency that setup.cfg allows, as constraints of pip."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = (line.strip() for line in config["options"]["install_requires"].splitlines())
    return "\n".join(line.replace(">=", "==") for line in lines if line and not line.startswith("#")) + "\n"


def attempt(environment: str, source: Path, wheel: Path, suite: str, folder: Path) -> dict[str, Any]:
    """What came of one environment, as plain data.

    Raises:
        subprocess.CalledProcessError: if the wheel cannot be installed, or the quickstart does not run.
    """
    python, _, torch = environment.partition(":")
    execute(python, "-m", "venv", folder / "venv")
    bin, constraints = folder / "venv" / "bin", folder / "constraints.txt"
    constraints.write_text(lowest() if torch == "lowest" else f"torch=={torch}\n" if torch else "")
    pip = (bin / "python", "-m", "pip", "install", "--quiet", "--constraint", constraints)
    execute(*pip, wheel)
    (folder / "empty").mkdir()
    execute(bin / "pezoo", "list", cwd=folder / "empty")
    execute(bin / "pezoo", "run", "quickstart", "size=test", cwd=folder / "empty")
    report = folder / "empty" / "runs" / "quickstart-test" / "report" / "report.html"
    if not report.is_file():
        raise FileNotFoundError(f"the quickstart wrote no {report}")
    found = json.loads(execute(bin / "python", "-c", FACTS, cwd=folder / "empty"))
    found |= {"dependencies": "lowest" if torch == "lowest" else "newest", "quickstart": True}
    if suite != "none":
        execute(*pip, f"{wheel}[test]")
        with tarfile.open(source) as archive:
            archive.extractall(folder, filter="data")
        (unpacked,) = folder.glob("pezoo-*/")
        found["suite"] = run_suite(bin / "python", unpacked, suite)
    return found


def run_suite(python: Path, folder: Path, suite: str) -> dict[str, Any]:
    """Run the suite, or the named parts of it, and count."""
    parts = [] if suite == "default" else suite.split(",")
    command = [python, "-m", "pytest", "--numprocesses=auto", "--dist=loadfile", "--junitxml=tests.xml", "-q", *parts]
    # With the pins a warning is an error. Newer dependencies may call old ones outdated.
    command += [f"-Wdefault::{kind}" for kind in ("DeprecationWarning", "PendingDeprecationWarning", "FutureWarning")]
    subprocess.run([str(part) for part in command], cwd=folder, env=clean(), check=False)
    cases = list(ElementTree.parse(folder / "tests.xml").getroot().iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    return {
        "what": suite,
        "passed": len(cases) - len(failed) - len(skipped),
        "skipped": len(skipped),
        "failed": [f"{case.get('classname')}.{case.get('name')}" for case in failed],
    }


def clean() -> dict[str, str]:
    """Our environment variables without those by which Python finds modules."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}


def execute(*command: object, cwd: Path | None = None) -> str:
    """Run a program, show what it is, and return what it prints."""
    print("+", *command, flush=True)
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=clean(), stdout=subprocess.PIPE, text=True)
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        done.check_returncode()
    return done.stdout


def keep(found: dict[str, Any]) -> None:
    """Add a row to what was tried; it takes the place of the row of the same environment."""

    def name(row: dict[str, Any]) -> tuple[str, ...]:
        minor = re.match(r"\d+\.\d+", row["python"])[0]
        return row["system"], row["machine"], minor, row["versions"]["torch"], row["dependencies"]

    rows = json.loads(TRIED.read_text(encoding="utf-8")) if TRIED.exists() else []
    rows = [row for row in rows if name(row) != name(found)] + [found]
    TRIED.write_text(json.dumps(sorted(rows, key=name), indent=1) + "\n", encoding="utf-8")


def table() -> str:
    """What was tried, as a Markdown table."""
    lines = ["| Python | PyTorch | dependencies | system | wheel and quickstart | suite |", "|---|---|---|---|---|---|"]
    for row in json.loads(TRIED.read_text(encoding="utf-8")):
        suite, shown = row.get("suite"), "not run"
        if suite:
            shown = f"{suite['passed']:,} passed, {suite['skipped']:,} skipped, {len(suite['failed'])} failed"
            shown += "" if suite["what"] == "default" else " (a part of it)"
        system = f"{row['system']}, {row['machine']}"
        cells = (row["python"], row["versions"]["torch"], row["dependencies"], system, "run", shown)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Build, try each environment, and say what came of it."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.release",
        description=__doc__.split("\n")[0],
        epilog=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--try", dest="environments", metavar="PYTHON[:TORCH]", action="append", required=True)
    parser.add_argument("--suite", default="default", help="default, none, or tests by comma (default: default)")
    parser.add_argument("--save", action="store_true", help="keep what came of it")
    args = parser.parse_args()
    for python in (environment.partition(":")[0] for environment in args.environments):
        if shutil.which(python) is None:
            parser.error(f"there is no interpreter {python}; give its name or path, such as python3.12")
    ended_well = True
    with tempfile.TemporaryDirectory(prefix="pezoo-release-") as folder:
        source, wheel = build(Path(folder))
        for number, environment in enumerate(args.environments):
            place = Path(folder) / str(number)
            place.mkdir()
            found = attempt(environment, source, wheel, args.suite, place)
            print(json.dumps(found, indent=1))
            ended_well = ended_well and not found.get("suite", {}).get("failed")
            if args.save:
                keep(found)
            shutil.rmtree(place)  # a CUDA build of PyTorch takes 5 GB
    return 0 if ended_well else 1


if __name__ == "__main__":
    sys.exit(main())
