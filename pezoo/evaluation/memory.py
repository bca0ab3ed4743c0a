"""Peak memory of a stretch of work."""

import contextlib
import re
from pathlib import Path

import torch


def reset_peak_memory(device: torch.device) -> None:
    """Start a new peak: of the GPU's allocator, or of the process's resident memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int | None:
    """Bytes at the peak since `reset_peak_memory`; None where the system does not tell.

    On a GPU what PyTorch allocated there; on a CPU the resident memory of the whole process,
    libraries included (and since the process began, where the system lets no one reset it).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()):
            return int(found[1]) * 1024
    return None
