"""How work ends, in words, and the memory that it takes: its peak, and smaller pieces where there is not enough."""

import contextlib
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from pezoo.contract import Undefined
from pezoo.results import Status

T = TypeVar("T")
OUT_OF_MEMORY = ("not enough memory", "out of memory", "allocate memory")


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


def lacks_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)
    )


def halving(attempt: Callable[[int], T], tokens: int, context: int, device: torch.device) -> T:
    """What `attempt(tokens)` returns, with half as many tokens at a time until memory suffices.

    Args:
        attempt: does all the work from its beginning, with so many tokens in one forward pass.
        tokens: how many at first.
        context: tokens of the shortest context; one is read at a time at least.
        device: where it computes.

    Raises:
        Exception: whatever else goes wrong, and the lack of memory for a single context.
    """
    while True:
        try:
            return attempt(tokens)
        except Exception as error:
            if not lacks_memory(error) or tokens < 2 * context:
                raise
        tokens //= 2  # out here, where what the pass had in memory is free
        if device.type == "cuda":
            torch.cuda.empty_cache()


def outcome(error: BaseException) -> tuple[Status, str]:
    """The status and the reason that an exception stands for."""
    reason = str(error).strip().partition("\n")[0]
    if isinstance(error, Undefined):
        return "undefined", reason or "the scheme has no value here"
    if lacks_memory(error):
        return "out_of_memory", reason or "not enough memory"
    return "failed", f"{type(error).__name__}: {reason}"


def describe_end(code: int | None) -> str:
    """How a process with an exit code ended, in words; None: it had not."""
    if code is None:
        return "closed its output"
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = f" ({signal.Signals(-code).name})"
    except ValueError:
        name = ""
    why: dict[int, str] = {
        signal.SIGKILL: ", as happens when memory runs out",
        signal.SIGSEGV: ": a crash in compiled code",
        signal.SIGABRT: ": compiled code gave up",
    }
    return f"was killed by signal {-code}{name}{why.get(-code, '')}"
