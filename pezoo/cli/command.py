"""The command `pezoo`: which commands there are, and how each of them ends.

Exit codes: 0 all went well (a scheme that is undefined or diverges is a result); 1 a cell failed;
2 the user's mistake, said in one message; 130 stopped with Ctrl-C, 143 with SIGTERM.
"""

import contextlib
import errno
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pezoo.cli.check import check, new
from pezoo.cli.clean import clean
from pezoo.cli.evaluate import evaluate
from pezoo.cli.export import export
from pezoo.cli.gather import gather
from pezoo.cli.generate import generate
from pezoo.cli.list import list_members
from pezoo.cli.report import compare, report
from pezoo.cli.run import run_study
from pezoo.cli.shared import room_for_text, wrapped
from pezoo.cli.show import show
from pezoo.cli.status import status
from pezoo.errors import NeedsPlugins, UserError, brief, suggest
from pezoo.escape import in_terminal, use_plain_streams

if TYPE_CHECKING:
    pass

PATHS = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EEXIST),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
)
"""What is wrong with a path that the user gave; a full disk and its like are no mistake in it."""
DESCRIPTION = "Trains one small Transformer under many positional encodings, and tests it long."


def bench(argv: list[str]) -> int:
    """Speed and memory, beside their goals; which back-end a scheme takes, and why."""
    from pezoo.cli.bench.command import bench as measure

    return measure(argv)


COMMANDS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "list": ("list [PATTERN] [--json]", list_members),
    "show": ("show SCHEME [--config FILE] [--save FILE] [--json]", show),
    "run": ("run RECIPE|DIR [key=value ...] [--out DIR] [--plugin FILE.py] [--dry-run] [--replace]", run_study),
    "status": ("status DIR [--json]", status),
    "clean": ("clean DIR [--remove]", clean),
    "evaluate": ("evaluate PATH --data FOLDER [--schemes LIST] [--lengths LIST] [--tune N]", evaluate),
    "report": ("report DIR [DIR ...] [--out FOLDER]", report),
    "compare": ("compare DIR DIR", compare),
    "gather": ("gather DIR [DIR ...] --out FILE.parquet", gather),
    "export": ("export DIR SCHEME FOLDER [--length N]", export),
    "generate": ("generate DIR SCHEME [--prompt TEXT] [--tokens N]", generate),
    "bench": ("bench [--only NAME,...] [--explain SCHEME] [--json]", bench),
    "check": ("check NAME|FILE.py [--slow] [--json]", check),
    "new": ("new NAME [--kind extension|task] [--out FILE.py]", new),
}


def main(argv: list[str] | None = None) -> int:
    """The command `pezoo`; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    use_plain_streams()
    try:
        with _sigterm_like_ctrl_c():
            return _dispatch(argv)
    except NeedsPlugins as error:
        named = [part for file in error.files for part in ("--plugin", file)]
        _complain(UserError(f"{error.why}; type: {shlex.join(['pezoo', *argv, *named])}"))
        return 2
    except UserError as error:
        _complain(error)
        return 2
    except BrokenPipeError:  # `pezoo list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:
        why = "it is a file" if error.errno == errno.EEXIST else error.strerror
        what = f"{error.filename}: {why}" if error.filename and why else str(error)
        _complain(UserError(what))
        return 2 if error.errno in PATHS else 1
    except KeyboardInterrupt as error:
        print(in_terminal(f"stopped; to go on: {shlex.join(['pezoo', *argv])}"), file=sys.stderr)
        return 128 + (error.args or (signal.SIGINT,))[0]


@contextlib.contextmanager
def _sigterm_like_ctrl_c() -> Iterator[None]:
    """SIGTERM is an exception too, wherever it strikes: what a command has begun is ended, and it says how to go on."""

    def stop(number: int, _: Any) -> None:
        raise KeyboardInterrupt(number)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread hears of signals
        return
    usual = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, usual)


def _complain(error: UserError) -> None:
    print("\n".join(in_terminal(line) for line in f"error: {error}".split("\n")), file=sys.stderr)


def _dispatch(argv: list[str]) -> int:
    name, *rest = argv or ["--help"]
    if name == "help" and rest and rest[0] in COMMANDS:
        name, rest = rest[0], ["--help"]
    if name in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if name in ("--version", "version"):
        import pezoo

        print(f"pezoo {pezoo.__version__}")
        return 0
    if name not in COMMANDS:
        raise UserError(f"no command {brief(name)}.{suggest(name, COMMANDS)} Commands: {', '.join(COMMANDS)}")
    return COMMANDS[name][1](rest)


def _overview() -> str:
    """What there is; a line for each command where the terminal is wide enough."""
    width, room = max(len(usage) for usage, _ in COMMANDS.values()), room_for_text()
    lines = [f"  pezoo {usage:<{width}}  {work.__doc__}" for usage, work in COMMANDS.values()]
    if max(map(len, lines)) > room:
        lines = []
        for usage, work in COMMANDS.values():
            lines += wrapped(f"pezoo {usage}", room, "  ", "      ") + wrapped(work.__doc__, room, "    ", "    ")
    more = "pezoo COMMAND --help says more; pezoo --version says which pezoo this is."
    first = "To begin: pezoo run quickstart"
    return "\n".join([*wrapped(DESCRIPTION, room), "", *lines, "", *wrapped(more, room), first])
