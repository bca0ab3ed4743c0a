"""The measurements that goals are made of: each takes a length and some subjects, and returns what it found of each.

What needs a library that is not there is left out of what is returned.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import pezoo
from pezoo.cli.bench import sampler
from pezoo.cli.bench.measuring import Extent, Spread, child_seconds, over, rounds
from pezoo.cli.bench.models import (
    LLAMA,
    SIZES,
    Plain,
    Run,
    forward,
    ids,
    installed,
    llama,
    long_model,
    operations,
    pezoo_training,
    training,
    x_transformer,
)
from pezoo.outcome import peak_memory, reset_peak_memory

Found = dict[str, Spread]
Measure = Callable[[int, Sequence[str], Extent], Found]
PYTHON = ("-m", "pezoo")


def training_steps(length: int, schemes: Sequence[str], extent: Extent) -> Found:
    """A training step over that of nope."""
    runs = {s: pezoo_training(s, length, extent.batch) for s in dict.fromkeys(("nope", *schemes))}
    return over("nope", rounds(runs, extent.repeats))


def long_forwards(length: int, schemes: Sequence[str], extent: Extent) -> Found:
    """A forward of one text over that of nope; trained on a sixteenth of it."""
    runs = {s: forward(long_model(s, length, **SIZES), length) for s in dict.fromkeys(("nope", *schemes))}
    return over("nope", rounds(runs, extent.repeats))


def attention_alone(length: int, schemes: Sequence[str], extent: Extent) -> Found:
    """Attention without gradients, the scheme made ready each time, over PyTorch's fused causal attention."""
    q, k, v = _heads(length)
    runs: dict[str, Run] = {"": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)}
    for text in schemes:
        scheme = _alone(text, length)
        runs[text] = lambda s=scheme: pezoo.attend(s, q, k, v, phase="test", rows=(0,))
    return over("", rounds({n: torch.inference_mode()(run) for n, run in runs.items()}, extent.repeats))


def _heads(length: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of one text, (1, H, L, d) each."""
    heads, width = SIZES["n_heads"], SIZES["d_model"]
    drawn = torch.randn(3, 1, heads, length, width // heads, generator=torch.Generator().manual_seed(0))
    q, k, v = drawn.unbind()
    return q, k, v


def _alone(scheme: str, length: int) -> pezoo.Scheme:
    return pezoo.create(scheme, **SIZES | {"n_layers": 1}, train_length=max(1, length // 16))


def table_memory(length: int, schemes: Sequence[str], extent: Extent) -> Found:
    """MiB at the peak of attention, forward and backward, above what causal attention alone takes there."""
    found = []
    for _ in range(extent.processes):
        mib = {s: fresh("gradient", s, length) or 0.0 for s in ("nope", *schemes)}
        found.append({s: mib[s] - mib["nope"] for s in schemes})
    return {s: Spread.of(row[s] for row in found) for s in schemes}


def fresh(what: str, scheme: str, length: int, backend: str = "auto", timeout: float = 600) -> float | None:
    """What `--measure` prints in a fresh process: what an earlier run left to the allocator would not count."""
    command = [sys.executable, "-m", "pezoo.cli.bench", "--measure", what, scheme, str(length), backend]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        raise RuntimeError(f"{scheme} at {length} tokens: {done.stderr.strip().splitlines()[-1]}")
    mib: float | None = json.loads(done.stdout)
    return mib


def gradient_memory(scheme: str, length: int) -> float:
    """MiB that attention takes in this process, forward and backward, beside q, k and v."""
    cpu = torch.device("cpu")
    made = _alone(scheme, length)

    def run(length: int) -> None:
        q, k, v = (t.requires_grad_() for t in _heads(length))
        reset_peak_memory(cpu)
        before.append(peak_memory(cpu) or 0)
        pezoo.attend(made, q, k, v, phase="train", rows=(0,)).sum().backward()

    before: list[int] = []
    run(2)  # libraries load what they need
    run(length)
    return ((peak_memory(cpu) or 0) - before[-1]) / 2**20


def decoding(length: int, schemes: Sequence[str], extent: Extent) -> Found:
    """Steps of one token after so many, over those of transformers' Llama with its cache."""
    if not installed("transformers"):
        return {}
    from transformers import DynamicCache

    prompt, steps = ids(1, length), 16
    new = [ids(1, 1) for _ in range(steps)]
    model, kept = llama(length + steps).eval(), DynamicCache()

    def llama_steps() -> None:
        for token in new:
            model(token, past_key_values=kept, use_cache=True)
        kept.crop(length - kept.get_seq_length())

    runs: dict[str, Run] = {"": llama_steps}
    with torch.inference_mode():
        model(prompt, past_key_values=kept, use_cache=True)
        for scheme in schemes:
            runs[scheme] = _decoder(scheme, prompt, new)
    return over("", rounds({n: torch.inference_mode()(run) for n, run in runs.items()}, 3 * extent.repeats))


def _decoder(scheme: str, prompt: Tensor, new: Sequence[Tensor]) -> Run:
    length = prompt.shape[1]
    model = long_model(scheme, length + len(new), share=1, **SIZES)
    positions, cache = model.positions(1, length + len(new), rows=(0,)), model.cache(1, length + len(new))
    model(prompt, positions, cache)

    def steps() -> None:
        for token in new:
            model(token, positions, cache)
        cache.filled = length  # back to where it began

    return steps


def beside_x_transformers(length: int, schemes: Sequence[str], extent: Extent) -> Found:
    """A training step over that of x-transformers' fastest form of the same encoding."""
    forms = {
        "rope": {"rotary_pos_emb": True, "attn_flash": True},
        "alibi": {"alibi_pos_bias": True, "alibi_num_heads": SIZES["n_heads"], "attn_flash": True},
        "t5": {"rel_pos_bias": True},
    }
    found: Found = {}
    for scheme in schemes if installed("x_transformers") else ():
        model = x_transformer(length, **forms[scheme])
        runs = {"": training(model, model.parameters(), length, extent.batch)}
        runs[scheme] = pezoo_training(scheme, length, extent.batch)
        found[scheme] = over("", rounds(runs, extent.repeats))[scheme]
    return found


def beside_llama(length: int, schemes: Sequence[str], extent: Extent) -> Found:
    """A training step with Llama's body over that of transformers' Llama."""
    if not installed("transformers"):
        return {}
    model = llama(length)
    runs = {"": training(lambda t: model(t, use_cache=False).logits, model.parameters(), length, extent.batch)}
    runs |= {s: pezoo_training(s, length, extent.batch, **LLAMA) for s in schemes}
    return over("", rounds(runs, extent.repeats))


def floors(length: int, subjects: Sequence[str], extent: Extent) -> Found:
    """Nope over a plain PyTorch model, in training at 256 or in a forward, and over its products at full speed."""
    found: Found = {}
    if "forward over a plain model" in subjects:
        plain, text = Plain().eval(), ids(1, length)
        runs = {
            "": torch.inference_mode()(lambda: plain(text)),
            "nope": forward(long_model("nope", length, **SIZES), length),
        }
        return {subjects[0]: over("", rounds(runs, extent.repeats))["nope"]}
    plain, side = Plain(), 1024
    a, b = torch.randn(2, side, side).unbind()
    runs = {
        "nope": pezoo_training("nope", length, extent.batch),
        "plain": training(plain, plain.parameters(), length, extent.batch),
        "product": lambda: a @ b,
    }
    times = rounds(runs, extent.repeats)
    products = operations(length, extent.batch) / (2.0 * side**3)
    times["product"] = [products * seconds for seconds in times["product"]]
    for subject, base in (("training over a plain model", "plain"), ("training over its products alone", "product")):
        found[subject] = over(base, times)["nope"]
    return found


def commands(_: int, subjects: Sequence[str], extent: Extent) -> Found:
    """CPU time of a command, over another that Python runs: subjects are "pezoo --help over pass"."""
    lines: dict[str, tuple[str, ...]] = {}
    for subject in subjects:
        command, code = subject.split(" over ")
        lines |= {command: (*PYTHON, *command.split()[1:]), code: ("-c", code)}
    times: dict[str, list[float]] = {name: [] for name in lines}
    for repeat in range(extent.processes + 1):
        for name, line in lines.items():
            seconds = child_seconds([sys.executable, *line])
            if repeat:  # the first writes what Python compiles
                times[name].append(seconds)
    return {s: over(s.split(" over ")[1], times)[s.split(" over ")[0]] for s in subjects}


def worker_start(_: int, subjects: Sequence[str], extent: Extent) -> Found:
    """CPU time of a small study with several workers less that with one, a worker, over that of `import torch`."""
    quickstart = (*PYTHON, "run", "quickstart", "size=test", "seeds=[0]", "schemes=[nope, alibi, rope, kerple, xpos]")
    child_seconds([sys.executable, *quickstart, "--dry-run"])  # reads the text once
    found = []
    for _ in range(extent.processes):
        base = child_seconds([sys.executable, "-c", "import torch"])
        seconds = []
        for workers in (1, extent.workers):
            with tempfile.TemporaryDirectory() as folder:
                out = ("--out", f"{folder}/study")
                seconds.append(child_seconds([sys.executable, *quickstart, f"workers={workers}", *out]))
        found.append((seconds[1] - seconds[0]) / (extent.workers - 1) / base)
    return dict.fromkeys(subjects, Spread.of(found))


def study_share(_: int, subjects: Sequence[str], extent: Extent) -> Found:
    """Share of a study's CPU time, the report's too, that its trainings and tests take; see `sampler.py`."""
    found = []
    for _ in range(1 if extent.most else max(1, extent.processes - 1)):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "samples").mkdir()
            shutil.copy(sampler.__file__, folder / "sitecustomize.py")
            line = ["run", "quickstart", "seeds=[0]", "workers=1", *extent.study, "--out", f"{name}/study"]
            paths = os.pathsep.join(filter(None, [name, os.environ.get("PYTHONPATH")]))
            variables = {"PYTHONPATH": paths, "PEZOO_BENCH_SAMPLES": f"{name}/samples"}
            total, spent = child_seconds([sys.executable, *PYTHON, *line], **variables), Counter[str]()
            for file in (folder / "samples").iterdir():
                for sample in file.read_text().splitlines():
                    kind, seconds = sample.split()
                    spent[kind] += float(seconds)
        found.append((spent["train"] + spent["test"]) / total)
    return dict.fromkeys(subjects, Spread.of(found))
