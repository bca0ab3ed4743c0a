"""The properties that make a member of the zoo, each a small function named after it: `pezoo check` runs them.

A check sees a member in a scheme (`Subject`) and raises `CheckFailed` with what was expected and what came. Checks
choose themselves by what a member declares and overrides: `unless` gives the reason why one has nothing to look at;
where that shows in a scheme only, it raises `NotApplicable`. A check compares behaviour with a declaration, or one way
of computing with another; values of formulas are for the tests of each member.
"""

# ruff: noqa: F401, I001 - importing adds a file's checks to the kit, and they are shown in this order
from pezoo.testing.properties import building
from pezoo.testing.properties import precision
from pezoo.testing.properties import lengths
from pezoo.testing.properties import seen
from pezoo.testing.properties import declared
from pezoo.testing.properties import changes
from pezoo.testing.properties import computing
from pezoo.testing.properties import learning
from pezoo.testing.subject import CHECKS
