"""The conformance kit: holds a member of the zoo, or one of your own, to the properties in `pezoo.testing.properties`.

    outcomes = check_encoding("alibi")          # or a class, or: pezoo check alibi, pezoo check my_encoding.py
    outcomes = check_task("mqar:n_pairs=8")     # a task, to those in `pezoo.testing.tasks`

    @parametrize("my_encoding")                 # in a test of your own: one case per property
    def test_my_encoding(conformance):
        conformance()

An extension is checked on one host of each kind of encoding that it fits and changes, a layer schedule in a model with
as many layers as it names. Deviations that a member declares are shown with their reason.
"""

import sys
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.markup import escape

from pezoo.contract import Encoding, Shape, overrides
from pezoo.errors import UserError, suggest
from pezoo.fitting import fits
from pezoo.registry import Entry, entries, entry, list_encodings, list_extensions, load_plugin, make_config
from pezoo.scheme import parse
from pezoo.sources import PLUGIN
from pezoo.task import make_task, parse_task
from pezoo.testing.properties import CHECKS
from pezoo.testing.subject import HOOKS, Check, CheckFailed, NotApplicable, Subject, acts
from pezoo.testing.tasks import TASK_CHECKS

if TYPE_CHECKING:
    import pytest

STATUSES = {"pass": "green", "known": "yellow", "skip": "dim", "fail": "bold red"}


@dataclass(frozen=True)
class Outcome:
    """How one check ended."""

    member: str
    scheme: str
    check: str
    status: str
    """pass, known (a declared deviation), skip (not applicable) or fail."""
    reason: str = ""
    """Of a deviation or a skip."""
    expected: str = ""
    came: str = ""
    snippet: str = ""
    """Python that shows the failure, with its traceback."""


# ---- what is checked ----------------------------------------------------------------------------


def subjects(member: str | type) -> list[Subject]:
    """The schemes in which a member is checked: itself, or an extension on one host of each kind that it fits.

    Raises:
        UserError: if there is no such member, or no encoding that it fits.
    """
    if isinstance(member, type):
        found = next((e for e in entries().values() if e.cls is member), None)
        if found is None:
            raise UserError(f"{member.__name__} is not registered; decorate it with @pezoo.register(...)")
    else:
        found = entry(member)
    return list(_subjects(found))


@cache
def _subjects(found: Entry) -> tuple[Subject, ...]:
    if found.kind == "task":
        raise UserError(f"{found.name} is a task, not an encoding or an extension; use check_task")
    if found.kind in ("alias", "schedule") or issubclass(found.cls, Encoding):
        return (Subject(_tested(found), parse(found.name)),)
    kinds = [_hosted(found, hook) for hook in ("rotate", "distance_bias", "embed", "content")]
    chosen = [next(filter(_acts, kind), None) for kind in kinds]
    # If it changes nothing anywhere, a check says so.
    chosen = [s for s in chosen if s] or [kind[0] for kind in kinds if kind]
    if not chosen:
        raise UserError(f"{found.name} fits no encoding of the zoo")
    return tuple(chosen)


def _tested(found: Entry) -> Entry:
    """The member itself; of a literature name, the last member of its scheme."""
    return entry(parse(found.name).members[-1].name) if found.kind == "alias" else found


def _hosted(found: Entry, hook: str) -> list[Subject]:
    """An extension on every encoding of the zoo that brings positions in by one hook alone, plain ones first."""
    shape = Shape(48, 3, 2, 16)

    def plainness(e: Entry) -> tuple[bool, bool, bool]:
        traits, (config, _) = e.cls.traits, make_config(e.name, {})
        return not traits.prefix_stable, traits.parameters(shape, config) > 0, not traits.shift_invariant

    zoo = [e for e in entries().values() if e.kind == "encoding" and e.cls.__module__.startswith("pezoo.encodings.")]
    hosts = [e for e in zoo if [h for h in HOOKS if overrides(e.cls, h)] == [hook] and not fits(found.cls, e.cls)]
    schemes = (Subject(found, parse(f"{e.name}+{found.name}")) for e in sorted(hosts, key=plainness))
    return [s for s in schemes if _accepted(s)]


def _accepted(subject: Subject) -> bool:
    try:
        subject.model()
    except UserError:
        return False
    except Exception:  # a check says so
        return True
    return True


def _acts(subject: Subject) -> bool:
    try:
        with torch.no_grad():
            return acts(subject)
    except Exception:  # a check says so
        return True


# ---- running ------------------------------------------------------------------------------------


def check_encoding(member: str | type, *, slow: bool = False, only: str | None = None) -> list[Outcome]:
    """Hold an encoding, an extension or a layer schedule to the kit.

    Args:
        member: a name, or a registered class of one's own.
        slow: run torch.compile's check too.
        only: one check by name.

    Returns:
        One outcome a check and scheme, failures included.

    Raises:
        UserError: if there is no such member or check.
    """
    schemes = subjects(member)
    names = [n for n in _named(_kit(schemes[0].entry), only) if only or slow or not CHECKS[n].slow]
    outcomes = [[run(subject, name) for subject in (schemes[:1] if CHECKS[name].once else schemes)] for name in names]
    return [o for group in outcomes for o in _overdue(group)]


def check_task(task: str, *, only: str | None = None) -> list[Outcome]:
    """Hold a task to the kit.

    Args:
        task: name and settings, such as mqar:n_pairs=8.
        only: one check by name.

    Returns:
        One outcome a check, failures included.

    Raises:
        UserError: if there is no such task, setting or check.
    """
    spec = parse_task(task)
    return [_run(entry(spec.name), str(spec), name, {}) for name in _named(TASK_CHECKS, only)]


def _kit(found: Entry) -> dict[str, Check]:
    """The checks that there are for a kind of entry."""
    if found.kind == "schedule":
        return {name: check for name, check in CHECKS.items() if check.schedules}
    return TASK_CHECKS if found.kind == "task" else CHECKS


def _named(checks: Iterable[str], only: str | None) -> list[str]:
    if only is not None and only not in checks:
        raise UserError(f"no check is called {only!r}.{suggest(only, checks)} They are: {', '.join(checks)}")
    return list(checks) if only is None else [only]


def _check(target: str, *, slow: bool = False, only: str | None = None) -> list[Outcome]:
    """Whatever kind of member it is."""
    known = entries().get(target.partition(":")[0])
    is_task = known is not None and known.kind == "task"
    return check_task(target, only=only) if is_task else check_encoding(target, slow=slow, only=only)


def run(subject: Subject, name: str) -> Outcome:
    """Run one check on one scheme."""
    reasons = {k: v for m in subject.spec.all_members() for k, v in known_deviations(entry(m.name)).items()}
    return _run(subject.entry, str(subject.spec), name, reasons)


def _run(found: Entry, scheme: str, name: str, reasons: Mapping[str, str]) -> Outcome:
    outcome = partial(Outcome, found.name, scheme, name)
    try:
        reproduce(scheme, name, found.name)
    except NotApplicable as reason:
        return outcome("skip", str(reason))
    except CheckFailed as error:
        if name in reasons:
            return outcome("known", reasons[name], error.expected, error.came)
        return outcome("fail", "", error.expected, error.came, _snippet(found, scheme, name))
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        came = f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"
        return outcome("fail", "", "no exception", came, _snippet(found, scheme, name))
    return outcome("pass")


def reproduce(scheme: str, check: str, member: str) -> None:
    """Run one check on one scheme, or task, and let what it raises through, for a look at the traceback.

    Args:
        scheme: such as "rope+pi", or a task such as "mqar:n_pairs=8".
        check: a name from `pezoo.testing.properties.CHECKS` or `pezoo.testing.tasks.TASK_CHECKS`.
        member: which member of the scheme is under test; of a task its name.
    """
    found = entry(member)
    wanted = _kit(found)[check]
    if reason := wanted.unless(found):
        raise NotApplicable(reason)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        wanted.function(make_task(scheme) if found.kind == "task" else Subject(found, parse(scheme)))


def _snippet(found: Entry, scheme: str, name: str) -> str:
    lines = ["from pezoo import load_plugin, testing"]
    module = found.cls.__module__
    if module.startswith(PLUGIN):
        lines.append(f"load_plugin({sys.modules[module].__file__!r})")
    lines.append(f"testing.reproduce({scheme!r}, {name!r}, {found.name!r})")
    return "\n".join(lines)


def known_deviations(found: Entry) -> Mapping[str, str]:
    """What a member is known to fail, with reasons."""
    return found.traits.deviations if found.traits else {}


def _overdue(group: list[Outcome]) -> list[Outcome]:
    """Outcomes of one check; a deviation that is declared and shows in no scheme is a failure."""
    declared = known_deviations(entry(group[0].member))
    statuses = {o.status for o in group}
    if group[0].check not in declared or "pass" not in statuses or "known" in statuses:
        return group
    text = f"a failure, declared as a deviation: {declared[group[0].check]}"
    return [replace(o, status="fail", expected=text, came="it passes") if o.status == "pass" else o for o in group]


# ---- reporting ----------------------------------------------------------------------------------


def report(outcomes: list[Outcome], console: Console) -> None:
    """Print one line per check, and for a failure what was expected, what came, and what shows it."""
    width = max(len(o.check) for o in outcomes)
    for scheme in dict.fromkeys(o.scheme for o in outcomes):
        console.print(f"[bold]{escape(scheme)}[/bold]")
        for o in (o for o in outcomes if o.scheme == scheme):
            status = "FAIL" if o.status == "fail" else o.status
            about = (CHECKS | TASK_CHECKS)[o.check].summary if o.status == "fail" else o.reason
            line = f"  [{STATUSES[o.status]}]{status:<5}[/] {o.check:<{width}}  {escape(about)}"
            console.print(line.rstrip(), soft_wrap=True)
            details = {"expected": o.expected, "came": o.came} if o.status in ("fail", "known") else {}
            for title, text in details.items():
                console.print(f"          {title + ':':<9} {escape(text)}", soft_wrap=True)
            for i, code in enumerate(o.snippet.splitlines()):
                console.print(f"          {'to see it:' if i == 0 else '':<10} {escape(code)}", soft_wrap=True)


def summary(outcomes: list[Outcome]) -> str:
    """How many checks ended in which way."""
    words = {"pass": "passed", "known": "known deviations", "skip": "not applicable", "fail": "failed"}
    counts = (f"{sum(o.status == s for o in outcomes)} {word}" for s, word in words.items())
    return ", ".join(counts)


def command(target: str, *, slow: bool, only: str | None, console: Console | None) -> tuple[int, list[dict[str, Any]]]:
    """What `pezoo check` does.

    Args:
        target: a name, of a task with settings if need be, or a Python file, all of whose members are checked.
        slow: run torch.compile's check too.
        only: one check by name.
        console: where to print; None prints nothing.

    Returns:
        The exit code, and the outcomes as plain data.
    """
    outcomes = []
    for name in load_plugin(target) if target.endswith(".py") else [target]:
        came = _check(name, slow=slow, only=only)
        if console is not None:
            report(came, console)
            console.print(f"{name}: {summary(came)}", soft_wrap=True)
        outcomes += came
    return int(any(o.status == "fail" for o in outcomes)), [asdict(o) for o in outcomes]


# ---- pytest -------------------------------------------------------------------------------------


def parametrize(*members: str, checks: Iterable[str] | None = None) -> "pytest.MarkDecorator":
    """A pytest decorator: one case a member and check, with ids such as `rope-causal`.

    The test takes one argument, `conformance`, and calls it. Checks that do not apply to a member are left out; a
    declared deviation counts as an expected failure.

    Args:
        members: names, tasks with settings if need be; default: every encoding and extension.
        checks: names of checks; default: all but the slow ones.
    """
    import pytest

    cases = []
    for member in members or (*list_encodings(), *list_extensions()):
        found = _tested(entry(member.partition(":")[0]))
        kit = _kit(found)
        names = [n for n, c in kit.items() if not c.slow] if checks is None else list(checks)
        cases += [(member, name) for name in names if name in kit and kit[name].unless(found) is None]
    return pytest.mark.parametrize("conformance", [pytest.param(partial(_case, *c), id="-".join(c)) for c in cases])


def _case(member: str, check: str) -> None:
    import pytest

    outcomes = _check(member, only=check)
    failed = [f"{o.scheme}: expected {o.expected}; came {o.came}\n{o.snippet}" for o in outcomes if o.status == "fail"]
    if failed:
        pytest.fail("\n".join(failed), pytrace=False)
    statuses = {o.status: o.reason for o in outcomes}
    if "known" in statuses:
        pytest.xfail(statuses["known"])
    if "pass" not in statuses:
        pytest.skip(statuses["skip"])
