"""What a user did wrong, said once and clearly, and never on more than a screen."""

import difflib
import re
import reprlib
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

LONGEST = 1000
"""Characters of a message."""
SHOWN = 80
"""Characters of what was given, in a message."""
_TYPES = {
    "Float": "a number",
    "float": "a number",
    "Integer": "a whole number",
    "int": "a whole number",
    "bool": "true or false",
    "str": "a text",
}
_NO_TYPE = re.compile(r"Value '(.*?)' (?:\(?of type '\w+'\)? )?could not be converted to (\w+)")
_NO_BOOL = re.compile(r"Value '(.*?)' is not a valid (bool) .*")
_NOTHING = re.compile(r"Incompatible value '(None)' for field of type '(\w+)'")
_NO_TEXT = re.compile(r"Cannot convert '\w+' to (?:string|str): '(.*)'")
_NO_CHOICE = re.compile(r"Invalid value '(.*?)', expected one of \[(.*)\]")


class UserError(ValueError):
    """A mistake in what the user gave; the command line prints it alone and exits with code 2.

    A message that would fill more than a screen loses its middle.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(cut(str(message), LONGEST))


class NeedsPlugins(UserError):
    """Files with code were not named that a study was run with; `files` are those to name.

    The command line prints the command to type instead.
    """

    def __init__(self, why: str, files: list[str]) -> None:
        super().__init__(f"{why}; pass plugins={files}")
        self.why, self.files = why, files


def cut(text: str, most: int = SHOWN) -> str:
    """Return a text without its middle if it is longer than `most` characters: what to type stands at the end.

    >>> cut("abcdefghijklmnopqrstuvwxyz", 15)
    'abcdefg ... xyz'
    """
    if len(text) <= most:
        return text
    end = max(0, most - 5) // 3
    return f"{text[: most - 5 - end]} ... {text[len(text) - end :]}"


def brief(value: Any, most: int = SHOWN) -> str:
    """Return what was given as Python writes it, in at most `most` characters, however long or deep it is."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxlong, short.maxother = 4, most, most, most
    short.maxlist = short.maxtuple = short.maxdict = short.maxset = most // 3
    try:
        return cut(short.repr(value), most)
    except (ValueError, RecursionError):  # Python writes no whole number of thousands of digits
        return f"a very long {type(value).__name__}"


def of_a_key(key: str, problem: str) -> str:
    """Return what OmegaConf says of a key's value in plain words: what is allowed, and what was given.

    >>> of_a_key("train.lr", "Value 'abc' of type 'str' could not be converted to Float")
    "train.lr must be a number, got 'abc'"
    >>> of_a_key("device", "Invalid value 'gpu', expected one of ['cpu', 'cuda']")
    "device must be cpu or cuda, got 'gpu'. Did you mean 'cpu'?"
    """
    if choice := _NO_CHOICE.fullmatch(problem):
        names = re.findall(r"'(.*?)'", choice[2])
        hint = suggest(choice[1], names)
        return f"{key} must be {either(names)}, got {cut(choice[1])!r}{'.' * bool(hint)}{hint}"
    if text := _NO_TEXT.fullmatch(problem):
        return f"{key} must be a text, got {cut(text[1])}"
    for wrong in filter(None, (known.fullmatch(problem) for known in (_NO_TYPE, _NO_BOOL, _NOTHING))):
        if wrong[2] in _TYPES:
            return f"{key} must be {_TYPES[wrong[2]]}, got {'nothing' if wrong[1] == 'None' else repr(cut(wrong[1]))}"
    return f"{key}: {cut(problem, 200)}"


def failed(error: BaseException, file: Path | None = None) -> str:
    """Return what somebody's code failed with, and the line: the last one of `file` that was passed, if it is given."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if file is None or Path(f.filename) == file]
    said = f"{type(error).__name__}: {cut(str(error), 300)}".removesuffix(": ")
    return f"{said} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else said


def either(names: Sequence[str]) -> str:
    """Return names as a choice.

    >>> either(["a", "b", "c"])
    'a, b or c'
    """
    return " or ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def suggest(name: str, names: Iterable[str], before: str = "") -> str:
    """Return " Did you mean 'x'?" for the nearest of `names`, or an empty string; capitals do not count.

    >>> suggest("ROPE", ["alibi", "rope"])
    " Did you mean 'rope'?"
    >>> suggest("stepps", ["steps"], before="train.")
    " Did you mean 'train.steps'?"
    """
    known = {known.casefold(): known for known in names}
    if (same := name[:SHOWN].casefold()) in known:
        return f" Did you mean {before + known[same]!r}?"
    near = difflib.get_close_matches(same, known, n=2, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(before + known[n]) for n in near)}?" if near else ""
