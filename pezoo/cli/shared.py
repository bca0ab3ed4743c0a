"""What the commands share: parsers, and what is printed."""

import argparse
import contextlib
import gc
import json
import re
import shutil
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from pezoo.errors import UserError, brief, suggest
from pezoo.escape import in_terminal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from pezoo.contract import Traits
    from pezoo.registry import Entry


def marks_of(traits: "Traits | None") -> list[str]:
    """What people look for in a member, in words."""
    if traits is None:
        return []
    marks = {
        "shift-invariant": traits.shift_invariant,
        "random": traits.random,
        "reads content": traits.contextual,
        "depends on the total length": not traits.prefix_stable,
        "for decoders only": not traits.bidirectional,
    }
    return [mark for mark, holds in marks.items() if holds]


def written(value: Any) -> str:
    """The value of a setting, as it is typed."""
    if value is None or value == []:
        return "unset"
    if isinstance(value, list | tuple):
        return ",".join(map(written, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def allowed(facts: Mapping[str, Any]) -> str:
    """What a setting can be, in words."""
    from pezoo.contract import PHASES

    kind, limits = facts["type"], facts["range"]
    if kind == "phases":
        return f"some of {', '.join(PHASES)}"
    if facts["choices"]:
        return " or ".join(map(written, facts["choices"]))
    words = {"bool": "true or false", "int": "whole number", "float": "number", "str": "text"}
    what = "numbers" if "list" in kind else next((words[word] for word in words if word in kind), kind)
    bounds = " and ".join(f"{limit.replace('_', ' ')} {value:g}" for limit, value in limits.items())
    return f"{what} {bounds}".strip()


def needs_of(entry: "Entry") -> list[str]:
    """What a member needs of training, in words."""
    if entry.traits is None:
        return []
    needs = {
        "acts in training": entry.kind == "extension" and "train" in entry.cls.default_at,
        "has parameters": learns(entry),
    }
    return [need for need, holds in needs.items() if holds]


def learns(entry: "Entry") -> bool:
    """Whether a member, as it is by default, has parameters."""
    from pezoo.contract import Shape

    return entry.traits.parameters(Shape(64, 4, 1, 64), entry.cls.Config()) > 0


def as_named(text: str) -> str:
    """What was typed, with names as the zoo writes them: `+pi` and `ROPE+PI` are `pi` and `rope+pi`.

    >>> as_named("+pi"), as_named("ROPE:base=500+Pi")
    ('pi', 'rope:base=500+pi')
    """
    from pezoo.registry import entries

    known = entries()

    def fold(match: re.Match[str]) -> str:
        name = match[0]
        return name.lower() if name not in known and name.lower() in known else name

    return re.sub(r"(?<![^+])[A-Za-z]\w*", fold, text.strip().removeprefix("+"))


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Look for no garbage while this holds: after PyTorch's import a search takes longer than all that is read here."""
    usual = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if usual:
            gc.enable()


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one message, like all others."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print."""
        options = re.findall(r"--[a-z-]+", self.format_usage())
        unknown = message.removeprefix("unrecognized arguments: ")  # else the message names what may be typed
        hint = next((h for word in unknown.split() if (h := suggest(word, options))), "") if unknown != message else ""
        raise UserError(f"{message}.{hint} See {self.prog} --help")


def make_parser(command: str, work: Callable[..., int], *examples: str, note: str = "") -> Parser:
    """A parser whose help shows examples, and a note: a line that ends with a sentence stays one."""
    note = re.sub(r"(?<![.:\n])\n(?=[^\n])", " ", note)
    said = ["\n".join(wrapped(line, room_for_text())) for line in (work.__doc__, *note.split("\n"))]
    return Parser(
        prog=f"pezoo {command}",
        description=said[0],
        epilog="\n  ".join(["\n".join([*said[1:-1], "examples:"]), *examples]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def room_for_text() -> int:
    """Columns of the terminal."""
    return shutil.get_terminal_size().columns - 1


def wrapped(text: str, width: int, first: str = "", rest: str = "") -> list[str]:
    """Lines of text for people: of at most `width` columns, with indents; names and options stay whole."""
    return textwrap.wrap(
        text,
        max(20, width),
        initial_indent=first,
        subsequent_indent=rest,
        break_on_hyphens=False,
        break_long_words=False,
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help="print plain data")


def add_plugin(parser: argparse.ArgumentParser) -> None:
    """Add `--plugin`."""
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="FILE.py", help="file that registers members (repeatable)"
    )


def at_least_one(text: str) -> int:
    """A whole number from 1 on, as argparse reads it.

    Raises:
        argparse.ArgumentTypeError: if it is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {brief(text)}")
    return int(text)


@contextlib.contextmanager
def typed_length() -> Iterator[None]:
    """Say of a length that is missing how it is typed."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("pass length=", "type --length N")) from None


def load_plugins(paths: Iterable[str]) -> None:
    """Load what `--plugin` named."""
    from pezoo.registry import load_plugin

    for path in paths:
        load_plugin(path)


def make_console() -> "Console":
    """Standard output, with colours where it is a terminal."""
    from rich.console import Console

    return Console(highlight=False)


def escape(text: str) -> str:
    """A text whose brackets are no markup."""
    from rich.markup import escape

    return escape(text)


def shown(text: str) -> str:
    """A text of the user's, as standard output can show it."""
    return in_terminal(text, make_console().encoding)


def say(line: str) -> None:
    """A line on standard output, with markup, never folded."""
    make_console().print(line, soft_wrap=True)


def print_json(data: Any) -> None:
    """Plain data on standard output."""
    print(json.dumps(data, indent=1, ensure_ascii=False, default=str))


def table_of(title: str, facts: Mapping[str, str]) -> "Table":
    """A title, and a line for each fact that there is."""
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left", title_style="bold", box=None, show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, fact in facts.items():
        if fact:
            table.add_row(escape(name), escape(fact))
    return table
