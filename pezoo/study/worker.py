"""A process that runs cells, one after the other: `python -m pezoo.study.worker STUDY_FOLDER`.

Every cell runs in such a process, however many there are, so that one worker and many give the same
numbers. Messages are JSON, a line each: in come the study (once) and then cells, or several of which a little
is to be tried; out go `ready`, `progress`, `note`, and `done` or `failed`, or `tried` and `all_tried`. It ends
at once when its input ends, which is also what happens when its parent dies, in whatever way. SIGTERM ends it
when a training has saved its state, else at once.
"""

import gc
import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

PROGRESS_SECONDS = 0.2  # between two progress messages


def main() -> None:
    """Serve until the input ends; whatever ends it earlier is told, and the process has a true exit code."""
    try:
        _serve()
    except BaseException as error:
        traceback.print_exc()
        sys.stderr.flush()
        code = error.code if isinstance(error, SystemExit) else 1
        os._exit(code if isinstance(code, int) else 1)  # at once: the thread that reads would be in the way


def _serve() -> None:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints must not get between the messages
    messages = _messages(sys.stdin)
    study = next(messages)
    get_ready()

    from pezoo.study.plan import Cell
    from pezoo.study.process import Process
    from pezoo.study.store import Store
    from pezoo.study.trials import tried

    process, store = Process(study), Store(Path(sys.argv[1]))
    _send(out, {"event": "ready"})
    for message in messages:
        if "try" in message:
            for key, seconds, memory in tried([Cell(**cell) for cell in message["try"]], process.corpora):
                _send(out, {"event": "tried", "key": key, "seconds": seconds, "memory": memory})
            _send(out, {"event": "all_tried"})
            continue
        _send(out, process.run(Cell(**message), store, lambda said: _send(out, said), _log, PROGRESS_SECONDS))


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def get_ready() -> None:
    """Import what cells need, and the zoo. Python looks for no garbage meanwhile, nor later in what is there now."""
    usual = gc.isenabled()
    gc.disable()

    import torch.utils.tensorboard  # noqa: F401

    import pezoo.study.process
    import pezoo.study.trials  # noqa: F401
    from pezoo.registry import entries

    entries()
    gc.freeze()
    if usual:
        gc.enable()


def draw_anew() -> None:
    """Seed what a forked process shares with others, and a new one does not: cells seed what they draw from."""
    import numpy as np
    import torch

    np.random.seed()
    torch.default_generator.seed()


def _messages(stream: IO[str]) -> Iterator[dict[str, Any]]:
    """Messages in order; leaves the process when the stream ends, whatever else is going on."""
    arrived: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in stream:
            arrived.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield json.loads(arrived.get())


def _send(out: IO[str], message: dict[str, Any]) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()


if __name__ == "__main__":
    main()
