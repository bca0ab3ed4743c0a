"""Where the site shows a file of the repository, and documents with their links moved there.

Documents are written for GitHub: links are paths from the file that holds them. The site has pages that the repository
has not, and shows other files as pages of their own:

    README.md                           index.md
    CONTRIBUTING.md                     contributing.md
    docs/grid.md                        grid.md
    docs/zoo.md#rope                    gallery/rope.md
    experiments/results/survey/table.md results/survey.md
    encodings/bias/alibi.py             files/encodings/bias/alibi.py.md
"""

import os
import re
from collections.abc import Callable, Collection
from pathlib import Path, PurePosixPath

TEXTS = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".cfg": "ini", ".toml": "toml", ".txt": "", ".csv": ""}
"""Files that are shown as pages, by suffix, with the language that they are in."""
_PART = re.compile(
    r"(?P<code>^(?P<fence>`{3,}).*?^(?P=fence)`*$|(?P<tick>`+)(?!`).+?(?<!`)(?P=tick)(?!`))|\]\((?P<link>[^)\s]+)\)",
    re.DOTALL | re.MULTILINE,
)
_LIST = re.compile(r"^( +)(?=(?:[-*]|\d+\.) )", re.MULTILINE)
_MARK = re.compile(r"^<!-- /?\w+ -->$", re.MULTILINE)


def place(path: str, members: Collection[str] = (), anchor: str = "") -> str:
    """Return the page or file of the site that shows a file of the repository.

    Args:
        path: from the repository's root.
        members: names that have a page in the gallery.
        anchor: of the link; the page of the zoo has one for each member.
    """
    where = PurePosixPath(path)
    if path == "docs/zoo.md":
        return f"gallery/{anchor if anchor in members else 'index'}.md"
    if path == "README.md":
        return "index.md"
    if where.parts[0] == "docs":
        return str(where.relative_to("docs"))
    if where.parts[:2] == ("experiments", "results"):
        inside = where.relative_to("experiments/results")
        return f"results/{inside.parent}.md" if where.name == "table.md" else f"results/{inside}"
    if where.suffix == ".md" and where.parent == PurePosixPath("."):
        return path.lower()
    return f"files/{path}.md" if where.suffix in TEXTS or not where.suffix else f"files/{path}"


def moved(text: str, source: str, page: str, find: Callable[[str, str], str]) -> str:
    """Return a document with its relative links as they are on the site.

    Args:
        text: in Markdown.
        source: the file that it is, or is written as, from the repository's root.
        page: the page that it becomes.
        find: gives the page of the site for a file and an anchor.
    """

    def move(match: re.Match[str]) -> str:
        link = match["link"]
        if link is None or re.match(r"[a-z]+:|#", link):
            return match[0]
        file, _, anchor = link.partition("#")
        path = os.path.normpath(Path(source).parent / file)
        there = find(path, anchor)
        kept = "" if path == "docs/zoo.md" or not anchor else f"#{anchor}"
        return f"]({os.path.relpath(there, Path(page).parent)}{kept})"

    return _PART.sub(move, text)


def as_github_reads(text: str) -> str:
    """Return Markdown of GitHub as Python-Markdown reads it: four spaces to a level of a list, no marks of blocks.

    Args:
        text: in Markdown.
    """
    return _outside_code(lambda part: _MARK.sub("", _LIST.sub(r"\1\1", part)), text)


def _outside_code(change: Callable[[str], str], text: str) -> str:
    made, end = [], 0
    for match in _PART.finditer(text):
        if match["fence"]:
            made += [change(text[end : match.start()]), match[0]]
            end = match.end()
    return "".join([*made, change(text[end:])])
