"""What is generated from the code: `python -m tools.docs` renews it, and tests assert that it is current.

`python -m tools.docs runs/survey runs/kerple-gpu` publishes studies first: what people read of them goes to
`experiments/results`, whose tables are renewed as well.

Four pages as a whole: `docs/zoo.md`, an account of each member, with `docs/pictures` (`tools/catalogue.py`);
`docs/grid.md`, which pairs of an encoding and an extension work, each of them tried (`tools/grid.py`);
`docs/scorecard.md`, what became of published findings (`tools/published.py`); and `docs/survey.md`, the survey's tables
with the members that stand for their rows (`tools/survey.py`).

In pages that people write, the blocks between `<!-- name -->` and `<!-- /name -->`. `BLOCKS` says what makes each.
"""

import re
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
import yaml

from pezoo.errors import UserError
from tools import catalogue, choose, grid, published, questions, reading, release, speed, survey, why
from tools.paths import DOCS, PICTURES, README, ROOT

_BLOCK = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- /\2 -->)", re.DOTALL)


def pages() -> list[Path]:
    """The pages that people write and that have blocks."""
    found = [README, *sorted(DOCS.glob("*.md"))]
    return [page for page in found if _BLOCK.search(page.read_text(encoding="utf-8"))]


def renewed(page: str) -> str:
    """The text of a page with its blocks as they are now."""
    return _BLOCK.sub(lambda m: m[1] + BLOCKS[m[2]]() + m[3], page)


def cite() -> str:
    """How to cite pezoo itself, in BibTeX."""
    facts = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    authors = " and ".join("{" + one["name"] + "}" for one in facts["authors"])
    given = {"author": authors, "title": facts["title"], "version": facts["version"]}
    lines = [f"  {key} = {{{value}}}," for key, value in given.items()]
    return "\n".join(["```bibtex", "@software{pezoo,", *lines, "}", "```"]) + "\n"


BLOCKS: dict[str, Callable[[], str]] = {
    "members": catalogue.members_table,
    "recipes": catalogue.recipes_table,
    "descriptions": catalogue.descriptions,
    "keys": catalogue.keys_tables,
    "tasks": catalogue.tasks_tables,
    "cite": cite,
    "papers": catalogue.papers_table,
    "platforms": release.table,
    "speed_schemes": speed.schemes,
    "speed_goals": speed.goals,
    "speed_options": speed.options,
    "answer": lambda: choose.readme(published.studies(), published.judged()),
    "reading": lambda: reading.block(published.studies()["quickstart"]),
    **{
        f"choose_{name}": partial(lambda name: choose.block(name, published.studies()), name)
        for name in questions.QUESTIONS
    },
    "choose_on_books": lambda: choose.on_another_text("on_books", "from_scratch", published.studies()),
    "choose_far_text": lambda: why.far_text(published.studies()),
    "choose_other_models": lambda: choose.claimed("ranking_carries_over_", published.judged()),
    **{f"why_{name}": partial(lambda name: why.block(name, published.studies()), name) for name in why.FIGURES},
}


def draw(names: Iterable[str]) -> None:
    """Draw members into `docs/pictures`, and remove the pictures of those that are gone."""
    from pezoo import drawing as pictures

    for name in names:
        pictures.save(pictures.picture(name), PICTURES / f"{name}.svg")
    known = {e.name for e in catalogue.members(*catalogue.DRAWN)}
    for path in PICTURES.glob("*.svg"):
        if path.stem not in known:
            path.unlink()


def main(folders: Iterable[str] = ()) -> int:
    """Publish studies, then renew README.md, docs/ and published tables in place."""
    torch.set_num_threads(1)
    try:
        for folder in folders:
            print(f"published {published.publish(Path(folder))}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path, text in published.tables().items():
        path.write_text(text, encoding="utf-8")
    columns = {e.name: grid.column(e.name) for e in catalogue.members("encoding")}
    (DOCS / "grid.md").write_text(grid.page(columns), encoding="utf-8")
    for page in pages():
        page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")
    (DOCS / "zoo.md").write_text(catalogue.zoo(), encoding="utf-8")
    (DOCS / "scorecard.md").write_text(published.scorecard_page(), encoding="utf-8")
    (DOCS / "survey.md").write_text(survey.page(), encoding="utf-8")
    draw(e.name for e in catalogue.members(*catalogue.DRAWN))
    why.draw(PICTURES / "why", published.studies())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
