"""What `pezoo new` writes: a commented file that is a member of the zoo, or a task, at once; to be made your own."""

import keyword
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

from pezoo.errors import UserError
from pezoo.registry import entries

TEMPLATES = Path(__file__).parent / "templates"
RESERVED = ("none", "true", "false", "null", "yes", "no", "on", "off", "nan", "inf", "layers", "heads", "own", "pezoo")
"""Words that Python, YAML or a recipe reads otherwise; as the name of a file, a module would hide pezoo."""


def write(name: str, kind: str = "encoding", out: str | Path | None = None) -> Path:
    """Write a file that registers a member called `name`.

    Args:
        name: of the member, in lower case.
        kind: "encoding", "extension" or "task".
        out: file to write; default: <name>.py in the current folder.

    Returns:
        Where it was written.

    Raises:
        UserError: if the name is malformed, taken or means something else, or the file exists or cannot be written.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise UserError(f"{name!r} is no name for a member: use a-z, 0-9 and _, such as my_encoding")
    if name in RESERVED or name in sys.stdlib_module_names or name in packages_distributions():
        what = "a word of Python, YAML or recipes, or a package"
        raise UserError(f"{name!r} is {what}; choose another name, such as my_{name}")
    if name in entries():
        raise UserError(f"the name {name!r} is taken: see pezoo show {name}; choose another")
    path = Path(out or f"{name}.py")
    if path.suffix != ".py":
        raise UserError(f"--out names a Python file, such as {name}.py, not {str(path)!r}")
    text = (TEMPLATES / f"{kind}.txt").read_text(encoding="utf-8")
    words = name.split("_")
    class_name, title = "".join(w.capitalize() for w in words), " ".join(words).capitalize()
    for key, value in (("$class_name", class_name), ("$title", title), ("$name", name)):
        text = text.replace(key, value)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(f"{path} exists; name another file with --out") from None
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    return path
