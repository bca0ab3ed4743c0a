"""What else `pezoo bench` measures: every member and back-end side by side, on a CPU or a GPU."""

import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

import pezoo
from pezoo.attention import BACKENDS, refusal
from pezoo.attention.flex import missing
from pezoo.cli.bench.measuring import Extent, over, rounds
from pezoo.cli.bench.models import Run, build, forward, ids, long_model, noise
from pezoo.cli.bench.options import options
from pezoo.cli.bench.rows import fresh
from pezoo.cli.bench.seeds import seeds
from pezoo.contract import Undefined
from pezoo.model.transformer import Transformer
from pezoo.outcome import peak_memory, reset_peak_memory
from pezoo.testing import subjects


def training_step(device: str, extent: Extent) -> dict[str, Any]:
    """A training step through Lightning over one of a raw PyTorch loop: same model, batches, optimiser and clipping.

    Each is run for so many steps and for twice as many, and the difference is told: set-up falls out.
    """
    from pezoo.data import crops
    from pezoo.training.config import TrainConfig
    from pezoo.training.fit import LanguageModel, fit

    tokens = noise()

    def settings(steps: int) -> TrainConfig:
        return TrainConfig(steps=steps, warmup_steps=0, log_every=10)

    def lightning(steps: int) -> None:
        chosen = settings(steps)
        fit(build("rope", device), tokens, None, chosen, seed=0, length=chosen.length, device=device)

    def raw(steps: int) -> None:
        model, chosen = build("rope", device).train(), settings(steps)
        length, size = chosen.length, chosen.batch_size
        optimizer, schedule = LanguageModel(model, chosen, "train").configure_optimizers().values()
        for step in range(steps):
            batch = crops(tokens, length, size, step, 0).to(device)
            rows = tuple(range(step * size, (step + 1) * size))
            logits = model(batch[:, :-1], model.positions(size, length, phase="train", rows=rows))
            loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), chosen.grad_clip)
            optimizer.step()
            schedule["scheduler"].step()
        loss.item()

    steps = extent.steps
    runs: dict[str, Run] = {
        f"{loop.__name__} {n}": lambda loop=loop, n=n: loop(n) for loop in (lightning, raw) for n in (steps, 2 * steps)
    }
    times = rounds(runs, extent.repeats, device)
    seconds = {
        name: [(b - a) / steps for a, b in zip(times[f"{name} {steps}"], times[f"{name} {2 * steps}"], strict=True)]
        for name in ("lightning", "raw")
    }
    medians = {f"{name}_seconds": statistics.median(values) for name, values in seconds.items()}
    return medians | {"ratio": vars(over("raw", seconds)["lightning"])}


def length_curve(device: str, extent: Extent) -> dict[str, Any]:
    """Perplexity at L, 2L, ... 16L of a prefix-stable scheme over one forward of the longest length."""
    from pezoo.data import Windows
    from pezoo.evaluation import evaluate

    longest, count = extent.curve, 4
    texts = ids(count, longest + 1)
    windows = Windows(texts, torch.arange(count).numpy(), torch.zeros(count).long().numpy())
    lengths = [longest // 16 * 2**n for n in range(5)]
    model = build("alibi", device, lengths[0]).eval()

    @torch.inference_mode()
    def longest_forward() -> None:
        for text in texts.to(device):
            model(text[None, :-1])

    def curve() -> None:
        evaluate(model, windows, lengths, protocol="prefix", last=lengths[0], batch_tokens=longest, device=device)

    times = rounds({"curve": curve, "forward": longest_forward}, extent.repeats, device)
    medians = {f"{name}_seconds": statistics.median(values) for name, values in times.items()}
    return medians | {"ratio": vars(over("forward", times)["curve"])}


def growth(scheme: str, length: int, device: str = "cpu", backend: str = "auto") -> float | None:
    """MiB that one forward of `length` tokens takes beside the model; None if the scheme is undefined there."""
    if torch.device(device).type == "cpu":
        return fresh("forward", scheme, length, backend)
    return forward_memory(scheme, length, device, backend)


@torch.inference_mode()
def forward_memory(scheme: str, length: int, device: str = "cpu", backend: str = "auto") -> float | None:
    """The same in this process: the peak over a forward, less what is there before it."""
    where = torch.device(device)
    model = long_model(scheme, length, device, backend=backend, n_layers=2)
    tokens = ids(1, length, device)
    try:
        model(tokens[:, :2], model.positions(1, 2, rows=(0,)))  # libraries load what they need
        reset_peak_memory(where)
        before = peak_memory(where)
        model(tokens, model.positions(1, length, rows=(0,)))
    except Undefined:
        return None
    after = peak_memory(where)
    return None if before is None or after is None else (after - before) / 2**20


def encodings(device: str, extent: Extent) -> list[dict[str, Any]]:
    """Every encoding: a training step, a longer forward under each back-end that can run it, and memory."""
    rows, batch = [], ids(32, 64, device)
    everything = [n for n in pezoo.list_encodings() if pezoo.describe(n)["kind"] == "encoding"]
    for scheme in extent.encodings or everything:
        steps = {name: step(build(name, device), batch) for name in dict.fromkeys(("nope", scheme))}
        row: dict[str, Any] = {"scheme": scheme}
        row["train_step"] = vars(over("nope", rounds(steps, extent.repeats, device))[scheme])
        runs = {b: run for b in BACKENDS if (run := under(b, scheme, device, extent.forward))}
        base = {"nope": forward(long_model("nope", extent.forward, device, 2, backend="sdpa"), extent.forward, device)}
        ratios = over("nope", rounds(runs | base, extent.repeats, device))
        row |= {b: vars(ratios[b]) if b in ratios else None for b in BACKENDS}
        rows.append(row | {"mib": growth(scheme, extent.memory, device)})
    return rows


def step(model: Transformer, batch: torch.Tensor) -> Run:
    """Forward and backward of a batch of ids, (B, L)."""
    model, facts = model.train(), {"phase": "train", "rows": range(len(batch))}
    return lambda: model(batch, model.positions(*batch.shape, **facts)).logsumexp(-1).mean().backward()


def under(backend: str, scheme: str, device: str, length: int) -> Run | None:
    """A forward of `length` tokens under a back-end; None if it refuses the scheme, or the device has it not."""
    model = long_model(scheme, length, device, 2, backend=backend)
    prepared = model.scheme.prepare(model.positions(1, 2, rows=(0,), tokens=torch.zeros(1, 2)))
    refused = missing(backend, torch.device(device)) or refusal(backend, prepared.layers[0][0].composition)
    return None if refused else forward(model, length, device)


def flex_attention(device: str, extent: Extent) -> list[dict[str, Any]]:
    """On a GPU, FlexAttention over the back-end that is taken by itself: forward and backward, and a longer forward."""
    rows: list[dict[str, Any]] = []
    if missing("flex", torch.device(device)):
        return rows
    batch = ids(8, extent.forward // 2, device)
    for scheme in ("nope", "rope", "alibi", "t5", "fire", "rope+window:size=256", "rope+sink_logits"):
        models = {b: build(scheme, device, batch.shape[1], backend=b) for b in ("auto", "flex")}
        steps = {b: step(model, batch) for b, model in models.items()}
        longer = {b: long_model(scheme, extent.memory, device, backend=b) for b in ("auto", "flex")}
        forwards = {b: forward(model, extent.memory, device) for b, model in longer.items()}
        timed = (over("auto", rounds(runs, extent.repeats, device))["flex"] for runs in (steps, forwards))
        rows.append({"scheme": scheme} | dict(zip(("train_step", "forward"), map(vars, timed), strict=True)))
    return rows


def extensions(device: str, extent: Extent) -> list[dict[str, Any]]:
    """Every extension on a host that it fits: a longer forward over the host's, and memory."""
    rows = []
    for name in extent.extensions or pezoo.list_extensions():
        spec = subjects(name)[0].spec
        scheme, host, length = str(spec), spec.encodings[0], extent.forward
        runs = {s: forward(long_model(s, length, device, 2), length, device) for s in (scheme, host)}
        ratio = over(host, rounds(runs, extent.repeats, device))[scheme]
        rows.append({"scheme": scheme, "forward": vars(ratio), "mib": growth(scheme, extent.memory, device)})
    return rows


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

        seconds = rounds({scheme: run}, 2 * extent.repeats + 1, device)[scheme]
        rows.append({"scheme": scheme, "ms": 1000 * statistics.median(seconds)})
    return rows


SECTIONS: dict[str, Callable[[str, Extent], Any]] = {
    section.__name__: section
    for section in (
        training_step,
        length_curve,
        encodings,
        flex_attention,
        extensions,
        long_memory,
        draws,
        options,
        seeds,
    )
}
"""In the order in which they are measured."""
