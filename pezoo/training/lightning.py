"""While Lightning trains: what it would say to the user, and do with Ctrl-C."""

import contextlib
import logging
import signal
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep from the user Lightning's remarks, and its use of a name that PyTorch gave up."""
    log = logging.getLogger("pytorch_lightning")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", "The `srun` command is available")  # one process needs none
            yield
    finally:
        log.setLevel(level)


@contextlib.contextmanager
def ctrl_c() -> Iterator[None]:
    """Let Ctrl-C through: Lightning would end the process, and leave it deaf to a second one."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None
