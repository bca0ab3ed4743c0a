"""Text that people chose, made safe where it is shown: in a terminal, in Markdown, in a figure, as the name of a file.

What is stored, in recipes and results, is what they chose.
"""

import codecs
import hashlib
import re
import sys
from collections.abc import Iterable

PLAIN = {
    **{"±": "+-", "≥": ">=", "≤": "<=", "×": "x", "→": "->", "…": "...", "≈": "~", "·": "*", "√": "sqrt"},
    **dict.fromkeys("–—−─", "-"),
    **dict.fromkeys("│┃", "|"),
    **dict.fromkeys("‘’", "'"),
    **dict.fromkeys("“”", '"'),
    "\N{REPLACEMENT CHARACTER}": "?",
}
"""What stands for a character where it cannot be printed."""
_HANDLER = "pezoo.plain"
_LONGEST = 120
"""Bytes of a file's name, so that what is added to it has room."""


def _plain(error: UnicodeError) -> tuple[str, int]:
    """What is printed instead of what a stream cannot encode: the sign in plain characters, or its number."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    return "".join(PLAIN.get(c) or c.encode("unicode_escape").decode() for c in lost), error.end


codecs.register_error(_HANDLER, _plain)


def use_plain_streams() -> None:
    """Have standard output and error write signs such as ± in plain characters where their encoding lacks them."""
    for stream in (sys.stdout, sys.stderr):
        encoding = (getattr(stream, "encoding", None) or "utf-8").lower().replace("_", "-")
        if hasattr(stream, "reconfigure") and encoding not in ("utf-8", "utf8"):
            stream.reconfigure(errors=_HANDLER)


def in_terminal(text: str, encoding: str = "utf-8") -> str:
    r"""Return a text on one line, its control characters written out, in characters that an encoding has.

    >>> in_terminal("a\x1b[31m\nb ± c", "ascii")
    'a\\x1b[31m\\nb +- c'
    """
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text.encode(encoding, _HANDLER).decode(encoding)


def in_markdown(text: str) -> str:
    r"""Return a text that Markdown shows as it is: no link, no tag, no formula, no new cell of a table.

    >>> in_markdown("a | <b> [c](d)")
    'a \\| &lt;b> [c]\\(d)'
    """
    text = in_terminal(text).replace("&", "&amp;").replace("<", "&lt;")
    text = re.sub(r"[\\`*|$~]|(?<=\])\(|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)
    return re.sub(r"^[#>]", r"\\\g<0>", text)


def in_figure(text: str) -> str:
    r"""Return a text that matplotlib draws as it is: `$` begins no formula.

    >>> print(in_figure("$x$"))
    \$x\$
    """
    return in_terminal(text).replace("$", r"\$")


def safe_names(labels: Iterable[str], space: str = " ") -> dict[str, str]:
    """Return for each label a name of a file: as it is, less what some file systems refuse.

    Labels that would have one name get a piece of their hash as well, so that a name does not depend on the order.

    Args:
        labels: different texts.
        space: what stands for a space.

    Returns:
        Label -> name, of at most some hundred bytes; no two names are the same, also where capitals do not count.

    >>> list(safe_names(["rope+pi, 200 steps @ 8x", "rope+pi:factor=4"]).values())
    ['rope+pi, 200 steps @ 8x', 'rope+pi factor=4']
    """
    names = {label: _safe(label, space) for label in labels}
    folded = [name.casefold() for name in names.values()]
    twice = {name for name in folded if folded.count(name) > 1}
    for label, name in names.items():
        if name.casefold() in twice:
            digest = hashlib.sha256(label.encode("utf-8", "surrogatepass")).hexdigest()[:8]
            names[label] = f"{name}{space}({digest})"
    return names


def _safe(label: str, space: str) -> str:
    plain = re.sub(r"\s+", " ", label.replace(":", " "))
    plain = re.sub(r"[^\w +,@=.()\[\]{}-]", "_", plain)
    plain = plain.encode()[:_LONGEST].decode(errors="ignore").strip(" .") or "_"
    return re.sub(r"[ ,]+", space, plain) if space != " " else plain
