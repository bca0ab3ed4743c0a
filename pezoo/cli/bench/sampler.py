"""Tells what the CPU time of a Python process goes to: training, testing, or all else.

Python runs this file at its start where it stands in PYTHONPATH as `sitecustomize.py`. Every few milliseconds of CPU
time it looks where the main thread is, and adds the time since it last looked to the process's file in the folder
PEZOO_BENCH_SAMPLES. A call into compiled code cannot be interrupted: the whole of it goes where it was called.
"""

import atexit
import os
import signal
import time
from pathlib import Path
from types import FrameType

EVERY = 0.005
_last = 0.0


def kind(frame: FrameType | None) -> str:
    """What a stack is at: "train" in a step of Lightning's loop over batches, "test" in pezoo's evaluation."""
    while frame is not None:
        file = frame.f_code.co_filename.replace(os.sep, "/")
        if file.endswith(("/loops/evaluation_loop.py", "/study/trials.py")):
            return "else"  # validation on the way; what is tried before a study
        if "/pezoo/evaluation/" in file:
            return "test"
        if file.endswith("/loops/training_epoch_loop.py") and frame.f_code.co_name == "advance":
            return "train"
        frame = frame.f_back
    return "else"


def _look(_: int, frame: FrameType | None) -> None:
    global _last
    now = time.process_time()
    with (Path(os.environ["PEZOO_BENCH_SAMPLES"]) / str(os.getpid())).open("a") as out:
        out.write(f"{kind(frame)} {now - _last}\n")
    _last = now


def start() -> None:
    """Begin to look."""
    global _last
    _last = time.process_time()
    signal.signal(signal.SIGPROF, _look)
    signal.setitimer(signal.ITIMER_PROF, EVERY, EVERY)


if __name__ == "sitecustomize":
    start()
    os.register_at_fork(after_in_child=start)  # a child of fork inherits no timer
    atexit.register(signal.setitimer, signal.ITIMER_PROF, 0)  # at its end Python forgets who takes the signal
