"""What a user did wrong, said once and clearly."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave; the command line prints it alone and exits with code 2."""


def suggest(name: str, names: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest of `names`, or an empty string."""
    near = difflib.get_close_matches(name, list(names), n=2, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
