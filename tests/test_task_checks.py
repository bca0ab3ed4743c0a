"""The kit for tasks: each of its checks catches the tasks that are broken for it, and no other does."""

import pytest
import torch

from pezoo import testing
from pezoo.errors import UserError
from pezoo.registry import _entries, register
from pezoo.task import IGNORE, Pairs, Task
from pezoo.testing.subject import CheckFailed
from pezoo.testing.tasks import TASK_CHECKS

BROKEN: dict[str, tuple[type, set[str]]] = {}
"""Tasks by name, with all the checks that each fails."""


def fails(*checks):
    """Class decorator: a task that fails these checks and no other."""

    def add(cls):
        BROKEN["broken_" + cls.__name__.lower()] = cls, set(checks)
        return cls

    return add


class Sound(Task):
    """Says the input again."""

    n_symbols = 4

    def output_length(self, length):
        return length

    def inputs(self, batch_size, length, generator):
        return torch.randint(4, (batch_size, length), generator=generator)

    def sample(self, batch_size, length, generator):
        inputs = self.inputs(batch_size, length, generator)
        return Pairs(inputs, inputs.clone())


class Needle(Sound):
    """The symbol at a place; lengths from 3 on."""

    least_length = 3
    depths = (0.0, 1.0)

    def output_length(self, length):
        return 1

    def distance(self, length, depth):
        return length - round(depth * (length - 1))

    def sample(self, batch_size, length, generator, depth=None):
        if length < 3:
            raise UserError(f"lengths from 3 on, got {length}")
        if depth is not None and not 0 <= depth <= 1:
            raise UserError(f"no depth {depth}")
        inputs = self.inputs(batch_size, length, generator)
        inputs[:, round((depth or 0) * (length - 1))] = 3
        return Pairs(inputs, 3 * torch.ones(batch_size, 1, dtype=torch.int64))

    chance = 1.0


class Solved(Sound):
    """Answers given questions."""

    def solve(self, inputs):
        return inputs.clone()


class Counted(Sound):
    """How often the first symbol comes, as ones; so that rows of one shape have answers of their own length."""

    chance = 1.0

    def solve(self, inputs):
        ones = (inputs == inputs[:, :1]).long().sort(descending=True).values
        return ones.where(ones > 0, IGNORE)

    def sample(self, batch_size, length, generator):
        inputs = self.inputs(batch_size, length, generator)
        return Pairs(inputs, self.solve(inputs))


BROKEN |= {
    name: (cls, set()) for name, cls in (("sound", Sound), ("needle", Needle), ("solved", Solved), ("counted", Counted))
}


@fails("rows", "forms", "long_lengths")
class Longer(Sound):
    """Longer questions than declared."""

    def sample(self, batch_size, length, generator):
        inputs = self.inputs(batch_size, length + 1, generator)
        return Pairs(inputs, inputs[:, :length])


@fails("rows")
class Narrow(Sound):
    """Ids in int32."""

    forms = ("encoder",)

    def sample(self, batch_size, length, generator):
        inputs = self.inputs(batch_size, length, generator)
        return Pairs(inputs.int(), inputs)


@fails("rows")
class Strange(Sound):
    """Questions with an id that is a mark's."""

    def inputs(self, batch_size, length, generator):
        return torch.randint(5, (batch_size, length), generator=generator)

    def sample(self, batch_size, length, generator):
        inputs = self.inputs(batch_size, length, generator)
        return Pairs(inputs, inputs.clamp(max=3))

    chance = 0.4


@fails("rows")
class Gaps(Sound):
    """Asks nothing amid an answer."""

    def sample(self, batch_size, length, generator):
        inputs = self.inputs(batch_size, length, generator)
        outputs = inputs.clone()
        outputs[:, :-1:2] = IGNORE
        return Pairs(inputs, outputs)


@fails("forms")
class Ragged(Sound):
    """Shorter answers, in a layout without an end mark."""

    layout = "plain"
    forms = ("causal",)

    def sample(self, batch_size, length, generator):
        inputs = self.inputs(batch_size, length, generator)
        outputs = inputs.clone()
        outputs[:, length // 2 + 1 :] = IGNORE
        return Pairs(inputs, outputs)


@fails("forms")
class Silent(Sound):
    """Rows that are asked nothing."""

    forms = ("encoder",)

    def sample(self, batch_size, length, generator):
        pairs = super().sample(batch_size, length, generator)
        pairs.outputs[pairs.inputs[:, 0] == 0] = IGNORE
        return pairs


@fails("declared_length")
class Boastful(Sound):
    """Declares far longer answers than it gives."""

    def output_length(self, length):
        return 9 * length


@fails("draws")
class Global(Sound):
    """Draws from PyTorch's global generator."""

    def inputs(self, batch_size, length, generator):
        return torch.randint(4, (batch_size, length))


@fails("draws", "split")
class Constant(Sound):
    """One question."""

    def inputs(self, batch_size, length, generator):
        return (torch.arange(length) % 4).expand(batch_size, -1)


@fails("one_answer")
class Whim(Sound):
    """Any answer."""

    def sample(self, batch_size, length, generator):
        inputs, outputs = (self.inputs(batch_size, length, generator) for _ in range(2))
        return Pairs(inputs, outputs)


@fails("answers")
class Other(Sound):
    """Answers in another way than it draws."""

    def solve(self, inputs):
        return inputs.flip(1)


@fails("answers")
class Short(Sound):
    """Answers in another width than it draws."""

    def solve(self, inputs):
        return torch.nn.functional.pad(inputs, (0, 1), value=IGNORE)


@fails("answers")
class FirstRow(Sound):
    """Turns the symbols by a step that it draws for all rows, and reads off the first alone."""

    def sample(self, batch_size, length, generator):
        step = torch.randint(4, (batch_size, 1), generator=generator)[:1]
        rest = self.inputs(batch_size, length, generator)[:, 1:]
        inputs = torch.cat([step.expand(batch_size, 1), rest], 1)
        return Pairs(inputs, self.solve(inputs))

    def solve(self, inputs):
        return (inputs + inputs[0, 0]) % 4


@fails("answers")
class Clumsy(Sound):
    """Changes the question."""

    def solve(self, inputs):
        answers = inputs.clone()
        inputs[:] = 0
        return answers


@fails("answers")
class Picky(Sound):
    """Refuses some of its questions."""

    def solve(self, inputs):
        self.require(inputs < 3, inputs, "free of threes")
        return inputs.clone()


@fails("answers")
class Twins(Solved):
    """Calls two symbols by one name."""

    symbols = ("a", "b", "c", "c")


@fails("answers")
class Muddled(Solved):
    """Has names that are read as others."""

    symbols = ("a", "b c", "b", "c")


@fails("chance")
class Modest(Sound):
    """Says that guessing gets less than it does."""

    chance = 0.1


@fails("split")
class Few(Sound):
    """A handful of questions."""

    def inputs(self, batch_size, length, generator):
        first = torch.randint(8, (batch_size, 1), generator=generator)
        return torch.cat([first % 4, first // 4, (first.expand(-1, length) + torch.arange(length)) % 4], 1)[:, :length]


@fails("short_lengths")
class Lenient(Sound):
    """Has questions below its least length."""

    least_length = 3


@fails("short_lengths")
class Vague(Needle):
    """Refuses short questions without naming the least."""

    def sample(self, batch_size, length, generator, depth=None):
        if length < 3:
            raise UserError("too short")
        return super().sample(batch_size, length, generator, depth)


@fails("long_lengths")
class Weary(Sound):
    """Breaks off at long questions."""

    def inputs(self, batch_size, length, generator):
        if length > 300:
            raise IndexError("out of names")
        return super().inputs(batch_size, length, generator)


@fails("depths")
class Rising(Needle):
    """Counts the distance from the wrong end."""

    def distance(self, length, depth):
        return 1 + round(depth * (length - 1))


@fails("depths")
class Unmoved(Needle):
    """Puts the needle anywhere, whatever the depth."""

    def sample(self, batch_size, length, generator, depth=None):
        if depth is not None and not 0 <= depth <= 1:
            raise UserError(f"no depth {depth}")
        return super().sample(batch_size, length, generator)


@fails("depths")
class Unbounded(Needle):
    """Takes any depth."""

    def sample(self, batch_size, length, generator, depth=None):
        return super().sample(batch_size, length, generator, depth and min(1.0, max(0.0, depth)))


@pytest.fixture
def registered():
    """Puts a class into the registry for the time of a test."""
    names = []

    def add(name, cls):
        names.append(name)
        return register(name, title="A task of the tests")(cls)

    yield add
    for name in names:
        _entries.pop(name, None)


@pytest.mark.parametrize("name", BROKEN)
def test_each_broken_task_fails_its_checks_and_no_other(name, registered):
    cls, expected = BROKEN[name]
    registered(name, cls)
    failed = {o.check: (o.expected, o.came) for o in testing.check_task(name) if o.status == "fail"}
    assert set(failed) == expected, failed


def test_every_check_has_a_broken_task_that_it_catches():
    assert set().union(*(checks for _, checks in BROKEN.values())) == set(TASK_CHECKS)


def test_a_failure_says_what_came_and_its_snippet_shows_it(registered):
    registered("modest", Modest)
    (outcome,) = testing.check_task("modest", only="chance")
    assert outcome.expected.endswith("the share of the commonest symbol")
    assert outcome.came == "0.100"
    with pytest.raises(CheckFailed, match=r"came 0.100"):
        exec(outcome.snippet)


def test_an_encoding_is_no_task_and_a_task_no_encoding():
    with pytest.raises(UserError, match="'rope' is no task"):
        testing.check_task("rope")
    with pytest.raises(UserError, match="addition is a task, not an encoding or an extension; use check_task"):
        testing.check_encoding("addition")
