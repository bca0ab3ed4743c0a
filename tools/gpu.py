"""What there is to see on a GPU, in three stages: `make gpu`, or `make gpu STAGE=tests`.

    tests    the tests marked gpu
    bench    pezoo bench --device cuda
    recipes  three recipes at size=gpu, cut to one seed and 300 steps

A stage is meant to take less than five minutes on one GPU. It begins anew each time, so that it can be repeated; what
it leaves is in runs/gpu/cuda: its output, its results, and in summary.json the hardware and how each stage ended. With
DEVICE=cpu the same stages run smaller and without a GPU, into runs/gpu/cpu.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

import pezoo

ROOT = Path(__file__).parents[1]
RECIPES = {
    # text, random shifts and positions, and tuning; decoders that look things up far back; encoders
    "quickstart": ("train.steps=300",),
    "recall": ("parts.lookup.train.steps=300", "parts.retrieval.train.steps=300", "parts.repetition.train.steps=300",
               "parts.retrieval.tasks=[induction, passkey]"),
    "randomized": ("train.steps=300", "tasks=[reverse_string, missing_duplicate_string, bucket_sort]"),
}  # fmt: skip


def tests(device: str, out: Path) -> list[list[str]]:
    """The tests marked gpu, with a line for each in tests.xml."""
    return [["-m", "pytest", "tests/test_gpu.py", "-m", "gpu", "-q", "-p", "no:xdist", f"--junit-xml={out}/tests.xml"]]


def bench(device: str, out: Path) -> list[list[str]]:
    """Speed and memory, in bench.json."""
    quick = ["--quick"] if device == "cpu" else []
    return [["-m", "pezoo", "bench", "--device", device, "--save", f"{out}/bench.json", *quick]]


def recipes(device: str, out: Path) -> list[list[str]]:
    """Three studies, each in a folder of its own."""
    commands = []
    for name, cuts in RECIPES.items():
        shutil.rmtree(out / name, ignore_errors=True)
        size = ["size=test"] if device == "cpu" else ["size=gpu", *cuts]
        commands.append(["-m", "pezoo", "run", name, *size, "seeds=[0]", f"device={device}", "--out", str(out / name)])
    return commands


STAGES = {"tests": tests, "bench": bench, "recipes": recipes}


def hardware(device: str) -> dict[str, object]:
    """What the results were measured on."""
    facts: dict[str, object] = {"device": device, "python": platform.python_version(), "torch": torch.__version__}
    facts |= {"pezoo": pezoo.__version__, "cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    if device != "cpu":
        gpu = torch.cuda.get_device_properties(device)
        facts |= {"gpu": gpu.name, "gpu_bytes": gpu.total_memory, "cuda": torch.version.cuda}
    return facts


def run(stage: str, device: str, out: Path) -> dict[str, object]:
    """Run the commands of a stage, show what they print, and keep it in a file."""
    start, failed = time.perf_counter(), 0
    variables = os.environ | {"PEZOO_TEST_DEVICE": device, "PYTHONUNBUFFERED": "1"}
    with (out / f"{stage}.txt").open("w") as log:
        for command in STAGES[stage](device, out):
            print("$ python", *command, flush=True)
            with subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, env=variables, text=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            ) as child:  # fmt: skip
                for line in child.stdout:
                    print(line, end="", flush=True)
                    log.write(line)
            failed += child.returncode != 0
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"ok": not failed, "seconds": round(time.perf_counter() - start, 1), "date": date} | hardware(device)


def main(argv: list[str] | None = None) -> int:
    """Run one stage or all, and return 1 if one failed."""
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__.split("\n\n")[0])
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"{', '.join(STAGES)}; default: all")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu; default: cuda")
    parser.add_argument("--out", type=Path, help="folder of the results; default: runs/gpu/DEVICE")
    args = parser.parse_args(argv)
    if unknown := [s for s in args.stages if s not in STAGES]:
        parser.error(f"no stage {', '.join(unknown)}; the stages are {', '.join(STAGES)}")
    if args.device != "cpu" and not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA device; make gpu DEVICE=cpu runs a smaller form without one")
    out = (args.out or ROOT / "runs" / "gpu" / args.device.replace(":", "")).absolute()
    out.mkdir(parents=True, exist_ok=True)
    path, stages = out / "summary.json", args.stages or list(STAGES)
    for stage in stages:
        ended = run(stage, args.device, out)
        summary = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(summary | {stage: ended}, indent=1) + "\n")
    summary = json.loads(path.read_text())
    for stage in stages:
        print(f"{stage}: {'ok' if summary[stage]['ok'] else 'FAILED'}, {summary[stage]['seconds']:.0f} s")
    print(f"results: {os.path.relpath(out)}")
    return int(not all(summary[stage]["ok"] for stage in stages))


if __name__ == "__main__":
    sys.exit(main())
