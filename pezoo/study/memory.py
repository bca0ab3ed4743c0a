"""How much memory a cell with somebody's model needs, told before it begins, and whether there is so much.

Counted are weights in float32, in a training also gradients and AdamW's two averages of what it moves, and what a
forward keeps. So it is the least that is needed: what PyTorch sets aside beside it is not known.
"""

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from pezoo.study.plan import Cell
from pezoo.training.loss import loss_bytes
from pezoo.training.weights import ALL

NUMBER = 4
"""Bytes of one number."""
KEPT = 16
"""Vectors of the model's width that a training keeps of each token and layer, roughly: inputs of norms and matrices."""


def least(cell: Cell) -> int | None:
    """Bytes that a cell needs at least; None for pezoo's own models, which are small enough to be tried."""
    sizes = cell.inputs.get("body", {}).get("sizes")
    if not sizes:
        return None
    width, layers, vocabulary = sizes["width"], sizes["layers"], cell.inputs["data"]["vocab_size"]
    if cell.kind == "evaluate":
        longest = max(cell.inputs["lengths"])
        tokens = max(longest, min(cell.inputs["batch_tokens"], longest * cell.inputs["windows"]["count"]))
        return NUMBER * (sizes["parameters"] + 8 * tokens * width)
    if cell.kind == "choose":
        return None
    settings, parameters = cell.settings(), sizes["parameters"]
    tokens = -(-settings.batch_size // settings.processes) * settings.length
    vectors = layers + KEPT if settings.checkpointing else KEPT * layers
    moved = 3 * parameters if cell.weights() == ALL else 0  # adapters and the scheme's own weights are few
    logits = loss_bytes(torch.device(cell.inputs["device"]), vocabulary, tokens)
    return NUMBER * (parameters + moved + tokens * vectors * width) + logits


def room(device: str) -> int | None:
    """Bytes of a GPU, or those that are free on this machine; None where the system does not tell."""
    if device.startswith("cuda") and torch.cuda.is_available():  # what is free, only a process at work there is told
        return torch.cuda.get_device_properties(device).total_memory
    if device == "cpu":
        with contextlib.suppress(OSError):
            if found := re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text()):
                return int(found[1]) * 1024
    return None


def remark(needed: Mapping[str, int]) -> str:
    """What to do where a device has too little of what is needed there, or nothing."""
    for device, bytes_ in needed.items():
        there = room(device)
        if there is not None and bytes_ > there:
            lacks = "is free now" if device == "cpu" else f"{device} has"
            return f"that is more than {lacks}: set smaller batches (train, tune, test.batch_tokens), or fewer workers"
    return ""
