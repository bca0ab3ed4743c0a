"""The other processes of a training on several devices of one machine.

The process that trains is the first of them, so that nothing has to be sent back: it has the model, saves, and says how
far it is. It starts the others, which make the same call with a copy of what it was given. They end when it ends, in
whatever way, and ignore signals, which are for it.
"""

import contextlib
import io
import json
import mmap
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import IO, Any

import numpy as np
import torch
from torch import distributed

from pezoo.outcome import describe_end, outcome
from pezoo.registry import load_plugin
from pezoo.sources import plugins_loaded
from pezoo.training.config import TrainConfig

START = "import sys; sys.path[:] = {path!r}; from pezoo.training.peers import main; main()"
SIZE = 8
"""Bytes that say how many bytes follow."""
WORD_SECONDS = 2.0
"""That a process which has failed has to say why."""


class PeerFailed(RuntimeError):
    """Another process of the training has failed."""


@contextlib.contextmanager
def together(settings: TrainConfig, device: torch.device, call: Callable[[], str]) -> Iterator[None]:
    """While this holds, the processes of a training are a group of torch.distributed, of which this one is the first.

    Nothing is done where this process is in a group already, as those that it starts are, or where a cluster's job
    starts them.

    Args:
        settings: of the training.
        device: of the first process.
        call: what the others do; it is pickled, and returns why it has failed, or nothing.

    Raises:
        PeerFailed: if another process cannot start, or fails.
    """
    count = settings.devices
    if count == 1 or settings.num_nodes > 1 or distributed.is_initialized():
        yield
        return
    with tempfile.TemporaryDirectory(prefix="pezoo-") as folder, contextlib.ExitStack() as stack:
        group = {"backend": "nccl" if device.type == "cuda" else "gloo", "world_size": count}
        group |= {"init_method": f"file://{folder}/group"}
        told = {"group": group, "threads": torch.get_num_threads(), "plugins": plugins_loaded(), "call": _dump(call)}
        peers = [stack.enter_context(_Peer(rank)) for rank in range(1, count)]
        for peer in peers:
            peer.tell(told)
        for peer in peers:
            if word := peer.hear():
                raise PeerFailed(f"process {peer.rank} of the training could not start: {word}")
        distributed.init_process_group(rank=0, **group)
        try:
            yield
        except Exception as error:
            for peer in peers:
                if word := peer.hear(WORD_SECONDS / len(peers)):
                    raise PeerFailed(f"process {peer.rank} of the training failed: {word}") from error
            raise
        finally:
            distributed.destroy_process_group()


class _Peer:
    """Another process; killed when the block ends."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __enter__(self) -> "_Peer":
        command = [sys.executable, "-P", "-c", START.format(path=sys.path)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()

    def tell(self, told: dict[str, Any]) -> None:
        """Say what it is to do. What is wrong with it is heard later."""
        content = pickle.dumps(told | {"rank": self.rank})
        with contextlib.suppress(BrokenPipeError), os.fdopen(os.dup(self.process.stdin.fileno()), "wb") as stdin:
            stdin.write(len(content).to_bytes(SIZE, "big") + content)

    def hear(self, seconds: float | None = None) -> str:
        """Why it has failed; nothing if it is ready, or has said nothing for so long."""
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            return ""
        line = self.process.stdout.readline()
        return str(json.loads(line)) if line else f"it {describe_end(self.process.wait())}"


class _Pickler(pickle.Pickler):
    """Names the file of an array that is mapped from one, such as a corpus, in place of what is in it."""

    def reducer_override(self, value: Any) -> Any:
        """How a value is pickled."""
        if isinstance(value, np.memmap) and isinstance(value.base, mmap.mmap):
            return np.memmap, (value.filename, value.dtype, "r", value.offset, value.shape)
        return NotImplemented


def _dump(call: Callable[[], Any]) -> bytes:
    """A call as bytes. Tensors are copied: the other processes train copies of the model."""
    with io.BytesIO() as file:
        _Pickler(file).dump(call)
        return file.getvalue()


# ---- in another process -------------------------------------------------------------------------


def main() -> None:
    """Do what the first process does, and say why if that fails."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no message
    code = 1
    try:
        for name in ("SIGINT", "SIGTERM", "SIGUSR2"):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        told = pickle.loads(sys.stdin.buffer.read(int.from_bytes(sys.stdin.buffer.read(SIZE), "big")))
        threading.Thread(target=_leave_with_the_first, daemon=True).start()
        torch.set_num_threads(told["threads"])
        for plugin in told["plugins"]:
            load_plugin(plugin)
        call = pickle.loads(told["call"])
        _say(out, "")
        distributed.init_process_group(rank=told["rank"], **told["group"])
        if why := call():
            _say(out, why)
        else:
            code = 0
    except BaseException as error:
        traceback.print_exc()
        _say(out, outcome(error)[1])
    sys.stderr.flush()
    os._exit(code)  # at once: the thread that reads would be in the way


def _leave_with_the_first() -> None:
    """End when the first process has ended, in whatever way: then nobody can write to it any more."""
    sys.stdin.buffer.read(1)
    os._exit(1)


def _say(out: IO[str], word: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        out.write(json.dumps(word) + "\n")
