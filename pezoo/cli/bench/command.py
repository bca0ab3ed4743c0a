"""The command `pezoo bench`: what is measured is chosen, told, and written down."""

import argparse
import json
import os
import platform
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import pezoo
from pezoo.cli.bench import goals
from pezoo.cli.bench.explain import explain
from pezoo.cli.bench.measuring import QUICK, Extent
from pezoo.cli.bench.rows import gradient_memory
from pezoo.cli.bench.sections import SECTIONS, forward_memory
from pezoo.cli.bench.show import show, show_explained
from pezoo.cli.shared import add_json, make_parser, print_json
from pezoo.errors import UserError, suggest
from pezoo.files import replacing
from pezoo.model.devices import find_device

EXAMPLES = (
    "pezoo bench",
    "pezoo bench --only window,decoding",
    "pezoo bench --only goals --save goals.json",
    "pezoo bench --only encodings,extensions --device cuda",
    "pezoo bench --explain alibi+window",
    "pezoo bench --quick",
)


def names(device: str = "cpu") -> list[str]:
    """What `--only` can name: on a CPU goals and sections, on a GPU sections."""
    return [*(row.name for row in goals.ROWS if device == "cpu"), *SECTIONS]


def chosen(only: str | None, device: str) -> list[str]:
    """The names of what is to be measured; "goals" stands for all of them.

    Raises:
        UserError: if there is no such name, or goals are asked for on a GPU.
    """
    if only is None:
        return names(device)
    wanted = [name.strip() for name in only.split(",")]
    found = []
    for name in wanted:
        if name not in (known := ["goals", *names()]):
            raise UserError(f"--only knows no {name!r}.{suggest(name, known)} There is: {', '.join(known)}")
        if device != "cpu" and name not in SECTIONS:
            raise UserError(f"{name} is measured on a CPU; on {device} there is: {', '.join(SECTIONS)}")
        found += [row.name for row in goals.ROWS] if name == "goals" else [name]
    return found


def run(device: str, extent: Extent | None = None, only: Iterable[str] | None = None) -> dict[str, Any]:
    """Measurements as plain data: facts, goals, and each section by its name.

    Args:
        device: cpu, cuda or cuda:1.
        extent: how much is measured.
        only: names of goals and sections; default: all that the device has.

    Raises:
        UserError: if there is no such device.
    """
    extent, only = extent or Extent(), list(names(device) if only is None else only)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {device}, but PyTorch finds no GPU here; type --device cpu")
    if find_device(device).type == "cuda":
        torch.cuda.set_device(device)  # that what waits for a GPU waits for this one
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    console = Console(stderr=True)
    name = hardware() if device == "cpu" else torch.cuda.get_device_name(device)
    facts = {"device": device, "hardware": name, "threads": 1, "torch": torch.__version__, "pezoo": pezoo.__version__}
    facts |= {"cores": os.cpu_count(), "forward": extent.forward, "memory": extent.memory, "long": extent.long}
    found: dict[str, Any] = {"facts": facts}
    try:
        with console.status("measuring ...") as status:

            def tell(what: str) -> None:
                status.update(f"measuring {what.replace('_', ' ')} ...")

            if any(row.name in only for row in goals.ROWS):
                found["goals"] = goals.measure(only, extent, tell)
            for title in (title for title in SECTIONS if title in only):
                tell(title)
                found[title] = SECTIONS[title](device, extent)
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)
    return found


def hardware() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def measure_here(what: str, scheme: str, length: str, backend: str) -> float | None:
    """MiB of a forward, or of attention with its gradient, in this process."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if what == "forward":
        return forward_memory(scheme, int(length), backend=backend)
    return gradient_memory(scheme, int(length))


def bench(argv: list[str] | None = None) -> int:
    """Speed and memory beside their goals, of every encoding and back-end."""
    known = ", ".join(row.name for row in goals.ROWS)
    parser = make_parser(
        "bench",
        bench,
        *EXAMPLES,
        note="Times are CPU times, on a GPU wall times. All that is compared runs in turn in one process.\n"
        "Each ratio is taken within a round. You see the median of all rounds, in brackets the least and the most.\n"
        "Memory is what a fresh process takes more.\n"
        "Without --only all is measured, which takes more than half an hour.\n"
        f"Goals: {known}.\n"
        f"Sections: {', '.join(SECTIONS)}.\n\n",
    )
    add_json(parser)
    parser.add_argument("--device", default="cpu", help="where to measure: cpu, cuda or cuda:1 (default: cpu)")
    parser.add_argument("--only", metavar="NAME,...", help="measure these goals and sections; goals: all of the goals")
    parser.add_argument("--explain", metavar="SCHEME", help="measure nothing: say which back-end it takes, and why")
    parser.add_argument("--quick", action="store_true", help="a few short ones: does it run?")
    parser.add_argument("--save", type=Path, metavar="FILE", help="also write the data to this file")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.measure:
        print(json.dumps(measure_here(*args.measure)))
        return 0
    if args.explain is not None:
        idle = [f"--{name}" for name in ("only", "quick", "save") if getattr(args, name)]
        if idle:
            raise UserError(f"{' and '.join(idle)} say what is measured, and --explain measures nothing; leave it out")
        explained = explain(args.explain)
        print_json(explained) if args.json else show_explained(args.explain, explained, Console())
        return 0
    if not re.fullmatch(r"cpu|cuda(:\d+)?", args.device):
        raise UserError(f"--device is cpu, cuda or cuda:1, not {args.device!r}")
    wanted = chosen(args.only, args.device)
    if args.save:  # now, not after half an hour
        args.save.parent.mkdir(parents=True, exist_ok=True)
    found = run(args.device, QUICK if args.quick else Extent(), wanted)
    text = json.dumps(found, indent=1)
    if args.save:
        with replacing(args.save) as file:
            file.write(f"{text}\n".encode())
    print(text) if args.json else show(found, Console())
    return 0
