"""Hooks of MkDocs: they make the pages that are not in `docs/`, and move links to where the site has what they lead to.

`make site` builds it; `mkdocs.yml` has the settings.
"""

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel

from tools.catalogue import DRAWN, KINDS, members
from tools.paths import PUBLISHED, ROOT
from tools.website import api, gallery
from tools.website.links import TEXTS, as_github_reads, moved, place
from tools.website.mathml import with_equations


def on_config(config: MkDocsConfig) -> None:
    """Put members, family by family, and published studies into the navigation."""
    studies = [
        {path.parent.name: place(path.relative_to(ROOT).as_posix())} for path in sorted(PUBLISHED.glob("*/table.md"))
    ]
    for section in config.nav or ():
        if "Gallery" in section:
            section["Gallery"] += _families()
        for part in section.get("Results", ()):
            if "Published studies" in part:
                part["Published studies"] = studies


def _families() -> list[dict[str, Any]]:
    found: dict[str, list[dict[str, str]]] = {}
    for e in members(*DRAWN):
        title = KINDS[e.kind] if e.kind == "schedule" else f"{KINDS[e.kind]}: {e.family}"
        found.setdefault(title, []).append({e.name: f"gallery/{e.name}.md"})
    return [{title: pages} for title, pages in found.items()]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages, those of `docs/` with their links moved, and every file of the repository that they lead to."""
    texts = {f"docs/{file.src_uri}": file.content_string for file in files.documentation_pages()}
    texts |= {path.name: path.read_text(encoding="utf-8") for path in ROOT.glob("*.md")}
    for table in sorted(PUBLISHED.glob("*/table.md")):
        pictures = sorted(table.parent.glob("*.png"))
        shown = "".join(f"![{picture.stem}]({picture.name})\n\n" for picture in pictures)
        text = table.read_text(encoding="utf-8")
        texts[table.relative_to(ROOT).as_posix()] = text.replace("\n## ", f"\n{shown}## ", 1)
        for picture in pictures:
            files.append(_copied(picture.relative_to(ROOT).as_posix(), config))
    names = {e.name for e in members(*DRAWN)}
    pages = {place(name): (name, text) for name, text in texts.items() if name != "docs/zoo.md"}
    pages |= {f"gallery/{name}.md": ("docs/zoo.md", text) for name, text in gallery.pages().items()}
    others: dict[str, str] = {}

    def find(path: str, anchor: str) -> str:
        there = place(path, names, anchor)
        if there not in pages and not files.get_file_from_path(there):
            if not (ROOT / path).is_file():
                raise PluginError(f"a page leads to {path}, which is no file")
            others[there] = path
        return there

    if zoo := files.get_file_from_path("zoo.md"):
        files.remove(zoo)
    for page, (source, text) in pages.items():
        head = "---\nhide: [navigation]\n---\n\n" if page == "index.md" else ""
        _put(files, page, head + with_equations(as_github_reads(moved(text, source, page, find))), config)
    for name, text in api.pages().items():
        _put(files, f"api/{name}.md", text, config)
    for there, path in others.items():
        if there.endswith(".md"):
            _put(files, there, _listing(path), config, InclusionLevel.NOT_IN_NAV)
        else:
            files.append(_copied(path, config))
    return files


def _put(
    files: Files, page: str, text: str, config: MkDocsConfig, level: InclusionLevel = InclusionLevel.UNDEFINED
) -> None:
    """Add a page, in place of one of that name."""
    if old := files.get_file_from_path(page):
        files.remove(old)
    files.append(File.generated(config, page, content=text, inclusion=level))


def _copied(path: str, config: MkDocsConfig) -> File:
    return File.generated(config, place(path), abs_src_path=str(ROOT / path))


def _listing(path: str) -> str:
    """Return the page of a file that is text: its lines, which the search leaves out."""
    text = (ROOT / path).read_text(encoding="utf-8")
    fence = "`" * 8
    return (
        f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n{fence}{TEXTS.get(Path(path).suffix, '')}\n{text}{fence}\n"
    )
