"""Names of files and folders, made from labels that people chose."""

import re
from collections.abc import Iterable


def safe_names(labels: Iterable[str], space: str = " ") -> dict[str, str]:
    """Return for each label a name of a file: as it is, less what some file systems refuse.

    Args:
        labels: different texts.
        space: what stands for a space.

    Returns:
        Label -> name; no two names are the same, also where capitals do not count.

    >>> list(safe_names(["rope+pi, 200 steps @ 8x", "rope+pi:factor=4"]).values())
    ['rope+pi, 200 steps @ 8x', 'rope+pi factor=4']
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for label in labels:
        plain = re.sub(r"\s+", " ", label.replace(":", " "))
        plain = re.sub(r"[^\w +,@=.()\[\]{}-]", "_", plain).strip(" .")[:120] or "_"
        plain = re.sub(r"[ ,]+", space, plain) if space != " " else plain
        name, n = plain, 1
        while name.casefold() in taken:
            n += 1
            name = f"{plain}{space}({n})"
        taken.add(name.casefold())
        names[label] = name
    return names
