"""Adds to setup.cfg what a package index shows: README, whose links to files of a checkout are plain text there.

The project has no address yet, under which such links could be whole.
"""

import re
from pathlib import Path

from setuptools import setup

README = Path(__file__).parent / "README.md"
setup(long_description=re.sub(r"!?\[([^\]]*)\]\((?!https?:|#)[^)]*\)", r"\1", README.read_text(encoding="utf-8")))
