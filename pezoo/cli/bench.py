"""`pezoo bench`: speed and memory of every encoding and back-end, side by side.

Times are medians of runs that are interleaved, so that a busy machine slows all candidates alike; read the ratios, not
the milliseconds. Memory is the growth over the loaded model: of a fresh process, or of what PyTorch holds on a GPU.
"""

import argparse
import json
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

import pezoo
from pezoo.attention import BACKENDS, refusal
from pezoo.contract import Undefined
from pezoo.errors import UserError
from pezoo.model.config import TransformerConfig
from pezoo.model.devices import find_device
from pezoo.model.transformer import Transformer
from pezoo.outcome import peak_memory, reset_peak_memory
from pezoo.testing import subjects

LONG_LENGTH = 16384


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    forward: int = 2048
    """Tokens of a forward that is timed."""
    memory: int = 8192
    """Tokens of a forward whose memory is measured."""
    long: int = LONG_LENGTH
    """The same, of a bias of distance alone."""
    curve: int = 4096
    """Tokens of the longest test length."""
    steps: int = 30
    """Training steps."""
    repeats: int = 5
    """How often each is measured."""
    encodings: Sequence[str] | None = None
    """None: all."""
    extensions: Sequence[str] | None = None


QUICK = Extent(256, 512, 1024, 512, 5, 1, ("nope", "alibi", "rope"), ("yarn", "window"))
"""Whether it runs, not how fast it is."""


def interleave(candidates: dict[str, Callable[[], Any]], repeats: int, warm_up: int = 1) -> dict[str, float]:
    """Median seconds of each candidate, all of them run in turn `repeats` times."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(warm_up + repeats):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat >= warm_up:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def build(scheme: Any, device: str, train_length: int = 64, **config: Any) -> Transformer:
    """A model of the quickstart's size."""
    facts = {"d_model": 64, "n_layers": 4, "n_heads": 4} | config
    return Transformer(TransformerConfig(scheme=scheme, train_length=train_length, **facts)).to(device)


def training_step(device: str, extent: Extent) -> dict[str, Any]:
    """A training step through Lightning against a raw PyTorch loop: same model, batches, optimiser and clipping."""
    import numpy as np

    from pezoo.data import Tokens, crops
    from pezoo.training.config import TrainConfig
    from pezoo.training.fit import LanguageModel, fit

    steps = extent.steps
    settings = TrainConfig(steps=steps, warmup_steps=0, log_every=10)
    length, size = settings.length, settings.batch_size
    ids = np.random.default_rng(0).integers(0, 256, 1 << 18).astype(np.uint8)
    tokens = Tokens(ids, np.array([0, len(ids)]), ["noise"])
    seconds: dict[str, list[float]] = {"lightning": [], "raw": []}

    def raw(model: Transformer) -> float:
        optimizer, schedule = LanguageModel(model, settings, "train").configure_optimizers().values()
        model.train().to(device)
        start = time.perf_counter()
        for step in range(steps):
            batch = crops(tokens, length, size, step, 0).to(device)
            rows = tuple(range(step * size, (step + 1) * size))
            logits = model(batch[:, :-1], model.positions(size, length, phase="train", rows=rows))
            loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
            optimizer.step()
            schedule["scheduler"].step()
        loss.item()
        return time.perf_counter() - start

    for _ in range(extent.repeats):
        result = fit(build("rope", device), tokens, None, settings, seed=0, length=length, device=device)
        seconds["lightning"].append(result.train_seconds / steps)
        seconds["raw"].append(raw(build("rope", device)) / steps)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    ratio = statistics.median(a / b for a, b in zip(seconds["lightning"], seconds["raw"], strict=True))
    return {f"{name}_seconds": s for name, s in medians.items()} | {"ratio": ratio}


def length_curve(device: str, extent: Extent) -> dict[str, float]:
    """Perplexity at L, 2L, ... 16L of a prefix-stable scheme against one forward of the longest length."""
    from pezoo.data import Windows
    from pezoo.evaluation import evaluate

    longest, count = extent.curve, 4
    ids = torch.randint(256, (count, longest + 1), generator=torch.Generator().manual_seed(0))
    windows = Windows(ids, torch.arange(count).numpy(), torch.zeros(count).long().numpy())
    lengths = [longest // 16 * 2**n for n in range(5)]
    model = build("alibi", device, train_length=lengths[0]).eval()

    @torch.inference_mode()
    def forward() -> None:
        for window in ids.to(device):
            model(window[None, :-1])

    def curve() -> None:
        evaluate(model, windows, lengths, protocol="prefix", last=lengths[0], batch_tokens=longest, device=device)

    medians = interleave({"curve": curve, "forward": forward}, extent.repeats)
    return {f"{k}_seconds": s for k, s in medians.items()} | {"ratio": medians["curve"] / medians["forward"]}


def growth(scheme: str, length: int, device: str, backend: str = "auto", timeout: float = 600) -> float | None:
    """MiB that one forward of `length` tokens takes beside the model; None if the scheme is undefined there."""
    if torch.device(device).type != "cpu":
        return _measure(scheme, length, device, backend)
    # A fresh process: what an earlier forward left to the allocator would not count.
    command = [sys.executable, "-m", "pezoo.cli.bench", "--measure", scheme, str(length), device, backend]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        raise RuntimeError(f"{scheme} at {length} tokens: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


@torch.inference_mode()
def _measure(scheme: str, length: int, device: str, backend: str) -> float | None:
    """Peak over a forward, less what is there before it."""
    where = torch.device(device)
    model = build(scheme, device, train_length=max(1, length // 16), backend=backend, n_layers=2).eval()
    if model.scheme.undefined(length):  # a table must be as long as what it is asked for
        model = build(scheme, device, train_length=length, backend=backend, n_layers=2).eval()
    tokens = torch.randint(256, (1, length), device=where)
    try:
        model(tokens[:, :2], model.positions(1, 2, rows=(0,)))  # libraries load what they need
        reset_peak_memory(where)
        before = peak_memory(where)
        model(tokens, model.positions(1, length, rows=(0,)))
    except Undefined:
        return None
    return (peak_memory(where) - before) / 2**20


def encodings(device: str, extent: Extent) -> list[dict[str, Any]]:
    """Every encoding: a training step, a longer forward under each back-end that can run it, and memory."""
    rows = []
    batch = torch.randint(256, (32, 64), generator=torch.Generator().manual_seed(0)).to(device)

    def step(model: Transformer) -> Callable[[], None]:
        facts = {"phase": "train", "rows": range(len(batch))}
        return lambda: model(batch, model.positions(*batch.shape, **facts)).logsumexp(-1).mean().backward()

    everything = [n for n in pezoo.list_encodings() if pezoo.describe(n)["kind"] == "encoding"]
    for scheme in extent.encodings or everything:
        steps = {name: step(build(name, device).train()) for name in dict.fromkeys(("nope", scheme))}
        medians = interleave(steps, extent.repeats)
        row = {"scheme": scheme, "train_step": medians[scheme] / medians["nope"]}
        runs = {b: run for b in BACKENDS if (run := forward(scheme, device, extent.forward, b))}
        medians = interleave(runs | {"nope": forward("nope", device, extent.forward, "sdpa")}, extent.repeats)
        row |= {b: medians[b] / medians["nope"] if b in medians else None for b in BACKENDS}
        rows.append(row | {"mib": growth(scheme, extent.memory, device)})
    return rows


def extensions(device: str, extent: Extent) -> list[dict[str, Any]]:
    """Every extension on a host that it fits: a longer forward over the host's, and memory."""
    rows = []
    for name in extent.extensions or pezoo.list_extensions():
        spec = subjects(name)[0].spec
        scheme, host = str(spec), spec.encodings[0]
        medians = interleave({s: forward(s, device, extent.forward) for s in (scheme, host)}, extent.repeats)
        ratio = medians[scheme] / medians[host]
        rows.append({"scheme": scheme, "forward": ratio, "mib": growth(scheme, extent.memory, device)})
    return rows


def forward(scheme: str, device: str, length: int, backend: str = "auto") -> Callable[[], Any] | None:
    """A forward of `length` tokens; None if the back-end refuses the scheme."""
    ids = torch.randint(256, (1, length), generator=torch.Generator().manual_seed(1)).to(device)
    model = build(scheme, device, train_length=length // 2, backend=backend).eval()
    if model.scheme.undefined(length):
        model = build(scheme, device, train_length=length, backend=backend).eval()
    prepared = model.scheme.prepare(model.positions(1, 2, rows=(0,), tokens=torch.zeros(1, 2)))
    if backend != "auto" and refusal(backend, prepared.layers[0][0].composition):
        return None
    return torch.inference_mode()(lambda: model(ids, model.positions(1, length, rows=(0,))))


def long_memory(device: str, extent: Extent) -> list[dict[str, Any]]:
    """Growth in a forward of the longest text, of a bias of distance alone beside no encoding."""
    return [{"scheme": s, "mib": growth(s, extent.long, device)} for s in ("nope", "alibi")]


def draws(device: str, extent: Extent) -> list[dict[str, Any]]:
    """Milliseconds to draw random positions for a batch of 256 rows of 512 tokens, once and for 12 layers apart."""
    rows = []
    for scheme in ("rope+random", "rope+random:draw=layer", "rope+pose", "rope+cream", "rope+shift"):
        built = pezoo.create(scheme, d_model=64, n_heads=1, n_layers=12, train_length=512)
        positions = built.positions(256, 512, phase="train", rows=range(256), device=device)
        layers = range(12 if "layer" in scheme else 1)
        (part,) = built.parts

        def run(part: Any = part, positions: Any = positions, layers: range = layers) -> None:
            for layer in layers:
                part.positions_at(positions, layer)

        rows.append({"scheme": scheme, "ms": 1000 * interleave({scheme: run}, 2 * extent.repeats + 1)[scheme]})
    return rows


def run(device: str, extent: Extent | None = None) -> dict[str, Any]:
    """All measurements as plain data.

    Raises:
        UserError: if there is no such device.
    """
    extent = extent or Extent()
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {device}, but PyTorch finds no GPU here; type --device cpu")
    if find_device(device).type == "cuda":
        torch.cuda.set_device(device)  # that what waits for a GPU waits for this one
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    console = Console(stderr=True)
    sections = {
        "training_step": training_step,
        "length_curve": length_curve,
        "encodings": encodings,
        "extensions": extensions,
        "long_memory": long_memory,
        "draws": draws,
    }
    on_cpu = device == "cpu"
    name = platform.processor() or platform.machine() if on_cpu else torch.cuda.get_device_name(device)
    facts = {"device": device, "hardware": name, "threads": 1, "torch": torch.__version__, "pezoo": pezoo.__version__}
    facts |= {"forward": extent.forward, "memory": extent.memory, "long": extent.long}
    found: dict[str, Any] = {"facts": facts}
    for title, section in sections.items():
        with console.status(f"measuring {title.replace('_', ' ')} ..."):
            found[title] = section(device, extent)
    return found


def show(found: dict[str, Any], console: Console) -> None:
    """Print the measurements as tables."""

    def number(value: float | None, digits: int = 2) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    facts = found["facts"]
    console.print(f"{facts['hardware']}, {facts['device']}, {facts['threads']} thread, torch {facts['torch']}")
    summary = Table("what", "against", "ratio", title="Overheads")
    step, curve = found["training_step"], found["length_curve"]
    summary.add_row("training step through Lightning", "raw PyTorch loop", number(step["ratio"], 3))
    summary.add_row("length curve, prefix-stable scheme", "one forward of the longest", number(curve["ratio"], 3))
    console.print(summary)
    table = Table("encoding", "train step", *BACKENDS, "MiB", title="Encodings: time over that of nope, and memory")
    for row in found["encodings"]:
        times = (number(row[b]) for b in ("train_step", *BACKENDS))
        table.add_row(row["scheme"], *times, number(row["mib"], 0))
    console.print(table)
    table = Table("scheme", "forward", "MiB", title="Extensions: time over that of the encoding alone, and memory")
    for row in found["extensions"]:
        table.add_row(row["scheme"], number(row["forward"]), number(row["mib"], 0))
    console.print(table)
    drawn = ", ".join(f"{row['scheme']} {row['ms']:.1f} ms" for row in found.get("draws", ()))
    long = ", ".join(f"{row['scheme']} {number(row['mib'], 0)} MiB" for row in found["long_memory"])
    console.print(
        f"train step: 32 x 64 tokens, forward and backward. {', '.join(BACKENDS)}: forward of {facts['forward']} "
        f"tokens over nope's sdpa; - where the back-end refuses. MiB: growth in a forward of {facts['memory']} tokens, "
        f"2 layers; - where undefined. At {facts['long']} tokens: {long}. "
        f"Positions drawn for 256 rows of 512 tokens, with draw=layer in each of 12 layers: {drawn}."
    )


def main(argv: list[str] | None = None) -> int:
    """The command `pezoo bench`."""
    parser = argparse.ArgumentParser(prog="pezoo bench", description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="print plain data")
    parser.add_argument("--device", default="cpu", help="where to measure: cpu, cuda or cuda:1; default: cpu")
    parser.add_argument("--quick", action="store_true", help="a few short ones: does it run?")
    parser.add_argument("--save", type=Path, help="also write the data to this file")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.measure:
        scheme, length, device, backend = args.measure
        torch.set_num_threads(1)
        print(json.dumps(_measure(scheme, int(length), device, backend)))
        return 0
    if not re.fullmatch(r"cpu|cuda(:\d+)?", args.device):
        raise UserError(f"--device is cpu, cuda or cuda:1, not {args.device!r}")
    found = run(args.device, QUICK if args.quick else Extent())
    text = json.dumps(found, indent=1)
    if args.save:
        args.save.write_text(text + "\n")
    print(text) if args.json else show(found, Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
