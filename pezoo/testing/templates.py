"""What `pezoo new` writes: a commented file that is a member of the zoo, or a task, at once; to be made your own."""

import keyword
import re
from pathlib import Path

from pezoo.errors import UserError
from pezoo.registry import entries

ENCODING = '''"""$title: one sentence on how positions enter the model.

    l_ij = q_i . k_j / sqrt(d) - strength m_h ln(1 + |p_i - p_j|)        m_h: learned for each head, 1 at first

Shapes: distances (...) -> (H, ...). Training and testing: the same.

Source: authors, year, arXiv number.
Departures: none.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pezoo import Encoding, Shape, Traits, register, setting


@register(
    "$name",
    title="$title",
    equation="l_ij = q_i.k_j / sqrt(d) - strength m_h ln(1 + |i - j|)",
    # year=2026, authors="...", arxiv="...", family="bias"
)
class $class_name(Encoding):
    """A learned penalty that grows with the logarithm of distance."""

    # What `pezoo check` holds the code to; see pezoo.Traits for the others.
    traits = Traits(
        shift_invariant=True,  # adding a constant to all coordinates changes nothing
        bidirectional=False,  # |p_i - p_j| does not tell the past from the future
        parameters=lambda shape, config: shape.n_heads,
    )

    @dataclass
    class Config:
        """Settings, written $name:strength=2 in a scheme."""

        strength: float = setting(1.0, "factor on the penalty", above=0)

    def __init__(self, shape: Shape, config: Config) -> None:
        super().__init__(shape, config)  # shape: d_model, n_heads, n_layers, train_length, extent, causal
        self.slopes = nn.Parameter(torch.ones(shape.n_heads))

    # Override the hooks that your idea changes, and no other:
    #   embed(x, positions)              token embeddings (B, L, D)
    #   rotate(q, k, positions)          queries and keys (B, H, L, d)
    #   distance_bias(distance)          added to the logits; of distance alone, so that long texts are cheap
    #   bias(positions)                  added to the logits, (R, H, Lq, Lk); for all else that positions give
    #   content(q, k, positions)         added to the logits; reads queries or keys as well
    #   product(q, k, positions)         stands for q k^T
    #   normalise(logits, positions)     logits to weights, instead of softmax
    #   mix(weights, v, positions)       values
    #   read(x, positions)               what it needs of the layer's input; the hooks above then find it, for all
    #                                    keys, in positions.read, and `pezoo check` holds it against decoding
    # positions.query and positions.key are real, float32 coordinates, which extensions may have changed.
    # Keep parameters and constants, never the length of a text.

    def distance_bias(self, distance: Tensor) -> Tensor:
        """The penalty at real distances (...) of any shape, (H, ...), float32."""
        slopes = self.slopes.float().view(-1, *(1,) * distance.ndim)
        return -self.config.strength * slopes * torch.log1p(distance.abs())
'''

EXTENSION = '''"""$title: one sentence on what carries an encoding past its training length.

    p -> p / s        s: the setting `factor`, else max(1, T / L) for a text of T tokens and training length L

Shapes: coordinates (R, L) -> the same. Not in training; in tuning and testing.

Source: authors, year, arXiv number.
Departures: none.
"""

from dataclasses import dataclass

from pezoo import Extension, Positions, Traits, register, setting


@register(
    "$name",
    title="$title",
    equation="p -> p / s",
    # year=2026, authors="...", arxiv="...", family="interpolation"
)
class $class_name(Extension):
    """Coordinates divided by the factor by which the text is longer than those of training."""

    # What `pezoo check` holds the code to; see pezoo.Traits for the others.
    traits = Traits(
        shift_invariant=True,  # leaves a shift-invariant encoding so
        neutral={"factor": 1},  # settings at which nothing changes
    )
    default_at = ("tune", "test")  # phases in which it acts: some of train, tune, test

    @dataclass
    class Config:
        """Settings, written rope+$name:factor=4 in a scheme."""

        factor: float | None = setting(None, "s; unset: max(1, T / L)", at_least=1)

    @property
    def prefix_stable(self) -> bool:
        """Only a fixed factor leaves the logits of a prefix as they are when the text grows."""
        return self.config.factor is not None

    # Override the hooks that your idea changes, and no other:
    #   coordinates(positions)           other coordinates, for every encoding
    #   frequencies(inv_freq, positions) other frequencies (R, n), for encodings that have some
    #   branches(positions)              far regions of pairs with positions of their own
    #   scale(positions)                 a factor on the content logits, a number, (R, Lq) or (R, H, Lq)
    #   sink()                           one more logit for each head, (H,), without a value
    #   mask(positions)                  what a query sees, (R, Lq, Lk)
    #   reach(first, last)               ranges of keys that the mask shows to these queries
    # With the trait tokens=True, coordinates may be made of the tokens' ids, positions.tokens (B, Lk).
    # positions.length is the length T of the text, self.shape.train_length that of training; keep neither.

    def coordinates(self, positions: Positions) -> Positions:
        """Coordinates divided by s."""
        return positions.scaled(1 / positions.factor(self.shape.train_length, self.config.factor))
'''

TASK = '''"""$title: one sentence on what is asked, with its source.

input: n symbols; output: the same, moved round by `steps` places, n symbols

0120 -> 1200        steps = 1

Departures: none.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pezoo import Pairs, Task, register, setting


@register(
    "$name",
    title="$title",
    equation="y_i = x_{(i + steps) mod n}",
    # year=2026, authors="...", arxiv="...", family="..."
)
class $class_name(Task):
    """The input, moved round; length: symbols."""

    @dataclass
    class Config:
        """Settings, written $name:steps=2 in a recipe."""

        symbols: int = setting(5, "different symbols", at_least=2)
        steps: int = setting(1, "places", at_least=0)

    # Where they differ, state as well (see pezoo.Task):
    #   layout = "plain" or "inline"       how a question and its answer become one sequence
    #   forms = ("causal",)                for a task without an encoder form
    #   least_length = 3                   the shortest length with questions; `sample` refuses shorter ones
    #   chance                             what the best constant guess gets, if that is not 1 / n_symbols
    #   input_length(length)               most symbols of a question, if that is not the length
    #   depths = (0.0, 0.5, 1.0)           places of a needle; `sample` then takes depth=None, or one of 0 ... 1
    #   symbols = "012+-"                  what the ids are called in text, if not by their numbers

    @property
    def n_symbols(self) -> int:
        """Ids 0 ... n_symbols - 1 are the task's own; marks follow."""
        return self.config.symbols

    def output_length(self, length: int) -> int:
        """As long as the input."""
        return length

    def solve(self, inputs: Tensor) -> Tensor:
        """(B, n) -> (B, m) int64, read from the question alone; a shorter answer is filled up with pezoo.IGNORE."""
        # Questions can come from a user too: refuse what is none by self.require(good, inputs, "what questions are").
        return inputs.roll(-self.config.steps, dims=1)

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Uniform symbols, (B, n) int64, and the answers; all draws are from the generator."""
        inputs = torch.randint(self.n_symbols, (batch_size, length), generator=generator)
        return Pairs(inputs, self.solve(inputs))
'''

TEMPLATES = {"encoding": ENCODING, "extension": EXTENSION, "task": TASK}


def write(name: str, kind: str = "encoding", out: str | Path | None = None) -> Path:
    """Write a file that registers a member called `name`.

    Args:
        name: of the member, in lower case.
        kind: "encoding", "extension" or "task".
        out: file to write; default: <name>.py in the current folder.

    Returns:
        Where it was written.

    Raises:
        UserError: if the name is malformed or taken, or the file exists or cannot be written.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise UserError(f"{name!r} is no name for a member: use a-z, 0-9 and _, such as my_encoding")
    if name in entries():
        raise UserError(f"the name {name!r} is taken: see pezoo show {name}; choose another")
    path = Path(out or f"{name}.py")
    if path.suffix != ".py":
        raise UserError(f"--out names a Python file, such as {name}.py, not {str(path)!r}")
    text = TEMPLATES[kind]
    words = name.split("_")
    class_name, title = "".join(w.capitalize() for w in words), " ".join(words).capitalize()
    for key, value in (("$class_name", class_name), ("$title", title), ("$name", name)):
        text = text.replace(key, value)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(f"{path} exists; name another file with --out") from None
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    return path
