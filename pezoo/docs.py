"""What is generated from the registry: `python -m pezoo.docs` renews it, a test asserts that it is current."""

import re
import sys
from pathlib import Path

from pezoo.registry import Entry, entries

README = Path(__file__).resolve().parent.parent / "README.md"
_BLOCK = re.compile(r"(<!-- members -->\n).*?(<!-- /members -->)", re.DOTALL)


def members_table() -> str:
    """Every member as a Markdown table: name, kind, family, title, year, source."""
    lines = ["| name | family | what it is | year | paper |", "|---|---|---|---|---|"]
    order = {"encoding": 0, "alias": 1, "extension": 2}
    members = [e for e in entries().values() if e.kind in order and e.family != "custom"]
    for e in sorted(members, key=lambda e: (order[e.kind], e.family)):
        paper = f"[{e.arxiv}](https://arxiv.org/abs/{e.arxiv})" if e.arxiv else ""
        lines.append(f"| `{_shown(e)}` | {e.family} | {e.title} | {e.year or ''} | {paper} |")
    return "\n".join(lines) + "\n"


def _shown(e: Entry) -> str:
    return {"extension": f"+{e.name}", "alias": f"{e.name} = {e.scheme}"}.get(e.kind, e.name)


def renewed(readme: str) -> str:
    """README's text with the table of members as it is now."""
    return _BLOCK.sub(lambda m: m[1] + members_table() + m[2], readme)


def main() -> int:
    """Renew README.md in place."""
    README.write_text(renewed(README.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
