"""What a user did wrong, said once and clearly, and never on more than a screen."""

import difflib
import re
import reprlib
from collections.abc import Iterable
from typing import Any

LONGEST = 1000
"""Characters of a message."""
SHOWN = 80
"""Characters of what was given, in a message."""
_TYPES = {"Float": "a number", "Integer": "a whole number", "Boolean": "true or false", "String": "a text"}
_WRONG_TYPE = re.compile(r"Value '(.*?)' (?:\(?of type '\w+'\)? )?could not be converted to (\w+)")


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
    """Return what OmegaConf says of a key's value, a wrong type in plain words.

    >>> of_a_key("train.lr", "Value 'abc' of type 'str' could not be converted to Float")
    "train.lr must be a number, got 'abc'"
    """
    wrong = _WRONG_TYPE.fullmatch(problem)
    if wrong is None or wrong[2] not in _TYPES:
        return f"{key}: {cut(problem, 200)}"
    return f"{key} must be {_TYPES[wrong[2]]}, got {cut(wrong[1])!r}"


def suggest(name: str, names: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest of `names`, or an empty string; capitals do not count.

    >>> suggest("ROPE", ["alibi", "rope"])
    " Did you mean 'rope'?"
    """
    known = {known.casefold(): known for known in names}
    if (same := name[:SHOWN].casefold()) in known:
        return f" Did you mean {known[same]!r}?"
    near = difflib.get_close_matches(same, known, n=2, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(known[n]) for n in near)}?" if near else ""
