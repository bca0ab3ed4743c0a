"""The conformance kit itself: each of its checks catches the members that are broken for it, and no other does."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import nn

from pezoo import testing
from pezoo.cli import main
from pezoo.contract import PHASES, Encoding, Extension, Traits, Undefined, settle
from pezoo.encodings.interpolation.yarn import NTKByParts, kept_share
from pezoo.encodings.relative._rotary import turn, turns
from pezoo.encodings.relative.rope import RoPE
from pezoo.errors import UserError
from pezoo.philox import whole
from pezoo.registry import _entries, register, setting
from pezoo.testing.properties import CHECKS
from pezoo.testing.subject import CheckFailed

ROOT = Path(__file__).parents[1]
PATH = {"PYTHONPATH": str(ROOT)}
BROKEN: dict[str, tuple[type, set[str]]] = {}
"""Members by name, with all the checks that each fails."""


def fails(*checks: str):
    """Class decorator: a member that fails these checks and no other."""

    def add(cls: type) -> type:
        BROKEN["broken_" + cls.__name__.lower()] = cls, set(checks)
        return cls

    return add


class Sound(Encoding):
    """A learned bias, logarithmic in distance, that passes every check."""

    traits = Traits(shift_invariant=True, bidirectional=False, parameters=lambda shape, c: shape.n_heads)

    def __init__(self, shape, config):
        super().__init__(shape, config)
        self.slopes = nn.Parameter(1 / torch.arange(1.0, shape.n_heads + 1))

    def log_distance(self, distance):
        return -self.slopes.float().view(-1, *(1,) * distance.ndim) * torch.log1p(distance.abs())

    def distance_bias(self, distance):
        return self.log_distance(distance)


class SoundExtension(Extension):
    """Coordinates divided by a factor, which passes every check."""

    traits = Traits(shift_invariant=True, neutral={"factor": 1})

    @dataclass
    class Config:
        factor: float | None = setting(None, "s; unset: max(1, T / L)", at_least=1)

    @property
    def prefix_stable(self):
        return self.config.factor is not None

    def factor(self, positions):
        return positions.factor(self.shape.train_length, self.config.factor)

    def coordinates(self, positions):
        return positions.scaled(1 / self.factor(positions))


BROKEN["sound"] = Sound, set()
BROKEN["sound_extension"] = SoundExtension, set()


@pytest.fixture
def registered():
    """Puts a class into the registry for the time of a test."""
    names = []

    def add(name, cls, **facts):
        names.append(name)
        return register(name, title="A member of the tests", **facts)(cls)

    yield add
    for name in names:
        _entries.pop(name, None)


# Building


@fails("says_what_it_is")
class NoHelp(Sound):
    """A setting that is not explained."""

    @dataclass
    class Config:
        strength: float = 1.0

    def distance_bias(self, distance):
        return self.config.strength * self.log_distance(distance)


@fails("says_what_it_is")
class DeviatesFromNothing(Sound):
    """A deviation from a check that does not exist."""

    traits = Traits(**{**vars(Sound.traits), "deviations": {"works": "never"}})


@fails("hooks_are_spelt_right")
class Misspelt(Sound):
    """A hook under a name that nothing calls."""

    def distanse_bias(self, distance):
        return -distance


@fails("builds_from_name_yaml_and_saved_settings")
class Doubling(Sound):
    """Settings that change each time they are read back."""

    @dataclass
    class Config:
        strength: float = setting(1.0, "of the bias")

        def __post_init__(self):
            self.strength *= 2

    def distance_bias(self, distance):
        return self.config.strength * self.log_distance(distance)


@fails("builds_at_any_size")
class LogOfTrainLength(Sound):
    """Divides by the logarithm of the training length, which can be 1."""

    def distance_bias(self, distance):
        return self.log_distance(distance) / math.log(self.shape.train_length + 1e-300)


@fails("counts_parameters_as_declared")
class Miscounted(Sound):
    """Declares twice as many parameters as it has."""

    traits = Traits(shift_invariant=True, bidirectional=False, parameters=lambda shape, c: 2 * shape.n_heads)


@fails("every_choice_runs")
class OneChoiceIsNaN(Sound):
    """A choice that nobody tried."""

    @dataclass
    class Config:
        kernel: Literal["log", "root"] = setting("log", "how the penalty grows")

    def distance_bias(self, distance):
        bias = self.log_distance(distance)
        return bias if self.config.kernel == "log" else (bias - 1).sqrt()


@fails("every_setting_matters")
class Overwritten(Sound):
    """Reads a setting and then takes a number of its own."""

    @dataclass
    class Config:
        strength: float = setting(1.0, "of the bias")

    def distance_bias(self, distance):
        strength = self.config.strength
        strength = 0.5
        return strength * self.log_distance(distance)


@fails("saves_and_loads")
class NoPickle(Sound):
    """Holds a function that cannot be pickled."""

    def __init__(self, shape, config):
        super().__init__(shape, config)
        self.shrink = lambda x: x / 2

    def distance_bias(self, distance):
        return self.shrink(self.log_distance(distance))


@fails("saves_and_loads")
class UnsavedDraw(Sound):
    """Draws a constant that no state dict holds."""

    def __init__(self, shape, config):
        super().__init__(shape, config)
        self.drawn = torch.rand(()).item()

    def distance_bias(self, distance):
        return self.drawn * self.log_distance(distance)


# Precision


@fails("shapes_and_dtypes")
class HalfInHalf(Sound):
    """Forgets a factor in bfloat16."""

    def mix(self, weights, v, positions):
        return weights @ v * (2 if v.dtype == torch.float32 else 1)


@fails("low_precision_leaves_no_trace")
class KeepsWhatItRounded(Encoding):
    """A constant that is made once, in the dtype of the first queries."""

    traits = Traits(shift_invariant=True, bidirectional=False)

    def __init__(self, shape, config):
        super().__init__(shape, config)
        self.slopes = None

    def content(self, q, k, positions):
        if self.slopes is None:
            self.slopes = (1 / torch.arange(1.0, self.shape.n_heads + 1)).to(q.dtype)
        return -self.slopes.float().view(1, -1, 1, 1) * torch.log1p(positions.distance().abs())[:, None]


@fails("takes_parameters_from_outside")
class AsksForAParameter(Sound):
    """Reads its slopes in a way that refuses plain tensors."""

    def distance_bias(self, distance):
        return -self.get_parameter("slopes").float().view(-1, *(1,) * distance.ndim) * torch.log1p(distance.abs())


@fails("every_parameter_learns")
class StaleCache(Sound):
    """Keeps what it computed from parameters that have changed since."""

    def __init__(self, shape, config):
        super().__init__(shape, config)
        self.kept = None

    def distance_bias(self, distance):
        if torch.is_grad_enabled():
            return self.log_distance(distance)
        if self.kept is None:
            self.kept = self.slopes.detach().clone().float()
        return -self.kept.view(-1, *(1,) * distance.ndim) * torch.log1p(distance.abs())


@fails("every_parameter_learns")
class BeginsAtAnEnd(Sound):
    """Its slopes begin at the end of their range, where some clamps have no gradient: they never leave it."""

    def distance_bias(self, distance):
        begun = 1 / torch.arange(1.0, self.shape.n_heads + 1, device=self.slopes.device)
        slopes = torch.where(self.slopes == begun, begun, self.slopes).float()
        return -slopes.view(-1, *(1,) * distance.ndim) * torch.log1p(distance.abs())


class Rotary(RoPE):
    """A rotation without settings, made anew in each layer: for what follows."""

    Config = Encoding.Config
    prepare = Encoding.prepare
    traits = Traits(shift_invariant=True)

    def __init__(self, shape, config):
        super().__init__(shape, RoPE.Config())

    def inv_freq(self):
        return 100.0 ** -(torch.arange(self.width // 2) / (self.width // 2))

    def turned(self, x, coordinates, positions):
        return turn(x, turns(positions.angles(coordinates)))


@fails("positions_survive_low_precision")
class AnglesInBfloat16(Rotary):
    """Builds angles in the dtype of q."""

    def rotate(self, q, k, positions):
        def rounded(x, p):
            angles = p.to(x.dtype)[..., None] * positions.inv_freq.to(x.dtype)[:, None]
            return turn(x, torch.polar(torch.ones_like(angles.float()), angles.float())[:, None])

        return rounded(q, positions.query), rounded(k, positions.key)


@fails("same_numbers_in_any_precision")
class BiasInBfloat16(Sound):
    """ALiBi's bias as a row of key positions, in the dtype of the queries."""

    traits = Traits(shift_invariant=True, parameters=lambda shape, c: shape.n_heads)

    def content(self, q, k, positions):
        row = self.slopes.view(1, -1, 1, 1).to(q.dtype) * positions.key[:, None, None].to(q.dtype)
        return row.expand(len(q), -1, q.shape[2], -1)

    distance_bias = Encoding.distance_bias


@fails("distinct_far_positions")
class ReadsPastItsTable(Encoding):
    """A table whose last row serves every position beyond it."""

    traits = Traits(parameters=lambda shape, c: 32 * shape.d_model)

    def __init__(self, shape, config):
        super().__init__(shape, config)
        self.table = nn.Parameter(torch.randn(32, shape.d_model))

    def embed(self, x, positions):
        return x + self.table[positions.query.long().clamp(max=31)].to(x.dtype)


# Lengths


@fails("any_length")
class HalfUndefined(Sound):
    """Gives up in the middle of a forward, at lengths that it calls defined."""

    def embed(self, x, positions):
        if isinstance(positions.length, int) and 60 <= positions.length < 64:
            raise Undefined("no value here")
        return x


@fails("length_order_does_not_matter")
class RemembersTheLongest(Sound):
    """Dynamic scaling that never shrinks back."""

    traits = Traits(
        shift_invariant=True, prefix_stable=False, bidirectional=False, parameters=lambda shape, c: shape.n_heads
    )

    def __init__(self, shape, config):
        super().__init__(shape, config)
        self.longest = shape.train_length

    def prepare(self, positions):
        self.longest = max(self.longest, int(torch.as_tensor(positions.length).max()))

    def bias(self, positions):
        return self.log_distance(positions.distance()).movedim(0, 1) * self.longest / self.shape.train_length

    distance_bias = Encoding.distance_bias


class ByLength(Sound):
    """A bias that depends on the declared length."""

    def ratio(self, length):
        return length / self.shape.train_length

    def bias(self, positions):
        ratio = self.ratio(positions.length)
        ratio = ratio.view(-1, 1, 1, 1) if isinstance(ratio, torch.Tensor) else ratio
        return self.log_distance(positions.distance()).movedim(0, 1) * ratio

    distance_bias = Encoding.distance_bias


@fails("prefix_stable_as_declared", "growing_generation_as_declared")
class SecretlyByLength(ByLength):
    """Depends on the length, and does not say so."""


@fails("prefix_stable_as_declared", "growing_generation_as_declared")
class SaysByLength(Sound):
    """Says that it depends on the length, and does not."""

    traits = Traits(**{**vars(Sound.traits), "prefix_stable": False})


@fails("growing_generation_as_declared")
class OneTokenShortcut(ByLength):
    """A path for one token that is wrong at some of the lengths through which a text grows."""

    def bias(self, positions):
        off = positions.query.shape[1] == 1 and isinstance(positions.length, int) and positions.length == 30
        return self.log_distance(positions.distance()).movedim(0, 1) * (2 if off else 1)


@fails("declared_lengths_by_row")
class LongestOfTheBatch(ByLength):
    """Takes the length of the longest row for all."""

    traits = Traits(**{**vars(Sound.traits), "prefix_stable": False})

    def ratio(self, length):
        return int(torch.as_tensor(length).max()) / self.shape.train_length


# What is seen


@fails(
    "causal",
    "prefix_stable_as_declared",
    "growing_generation_as_declared",
    "decodes_like_the_full_pass",
    "decodes_padded_and_packed_rows",
    "packed_documents_do_not_leak",
    "padding_does_not_leak",
    "tells_order_in_an_encoder_as_declared",
    "distinct_far_positions",
    "stands_beside_any_encoding",
)
class LooksAhead(Sound):
    """Adds some of the next token's embedding to each."""

    def embed(self, x, positions):
        return x + 0.5 * torch.cat((x[:, 1:], torch.zeros_like(x[:, :1])), dim=1)


@fails("packed_documents_do_not_leak")
class CountsDocuments(Sound):
    """Lets the number of a document into its bias: the second has another."""

    def bias(self, positions):
        bias = self.log_distance(positions.distance()).movedim(0, 1)
        number = positions.query_document
        return bias if number is None else bias * (1 + (number == 2))[:, None, :, None]

    distance_bias = Encoding.distance_bias


@fails("padding_does_not_leak")
class MindsPadding(Sound):
    """Reads rows with padding, in which each padding token counts as a document, differently."""

    def bias(self, positions):
        bias, number = self.log_distance(positions.distance()).movedim(0, 1), positions.key_document
        return bias if number is None else bias * (1 + (number.amax(1) > 2))[:, None, None, None]

    distance_bias = Encoding.distance_bias


@fails("decodes_like_the_full_pass", "stands_beside_any_encoding")
class ForgetsTheCache(Rotary):
    """Counts the queries of a call from 0, as if no cache came before them."""

    def query(self, positions):
        cached = positions.key_document is None and 0 < positions.offset < positions.length - positions.query.shape[1]
        return positions.query - positions.query[:, :1] * cached

    def rotate(self, q, k, positions):
        return self.turned(q, self.query(positions), positions), self.turned(k, positions.key, positions)


@fails("decodes_padded_and_packed_rows")
class ForgetsTheCacheOfDocuments(ForgetsTheCache):
    """The same for packed and padded rows alone."""

    def query(self, positions):
        return positions.query - positions.query[:, :1] * (positions.key_document is not None)


@fails("decodes_like_the_full_pass", "decodes_padded_and_packed_rows", "stands_beside_any_encoding")
class TurnsAnew(Rotary):
    """Turns keys by how far they lie from the first query of a call, and says that they may be kept turned."""

    traits = Traits(shift_invariant=True, turns_once=True)

    def rotate(self, q, k, positions):
        first = positions.query[:, :1]
        return self.turned(q, positions.query - first, positions), self.turned(k, positions.key - first, positions)


@fails("settles_keys_as_they_come", "decodes_like_the_full_pass", "decodes_padded_and_packed_rows")
class CountsBack(Extension):
    """Coordinates from the last key on, which all move when another comes."""

    traits = Traits(shift_invariant=True)

    def coordinates(self, positions):
        return positions.map(lambda p, index: p - positions.key[:, -1:] * 2)


@fails("stands_beside_any_encoding", "distinct_far_positions")
class CancelsInTheProductAlone(Sound):
    """Factors on q and k from the first query of a call on, which stay where another encoding then adds to q or k.

    Far out they are 0.
    """

    def __init__(self, shape, config):
        super().__init__(shape, config)
        if not shape.causal:
            raise UserError("for decoders only")

    def rotate(self, q, k, positions):
        begin = positions.query[:, :1]
        by_q, by_k = ((begin - p).mul(0.02)[:, None, :, None] for p in (positions.query, positions.key))
        return (q * by_q.exp()).to(q.dtype), (k * by_k.neg().exp()).to(k.dtype)


# What is declared


@fails("tells_order_in_an_encoder_as_declared")
class OneRowForTheFuture(Sound):
    """A table for keys behind the query, whose first row all keys ahead of it read."""

    traits = Traits(shift_invariant=True, parameters=lambda shape, c: shape.n_heads)

    def distance_bias(self, distance):
        return self.log_distance(distance.clamp(min=0))


@fails("tells_order_in_an_encoder_as_declared")
class Symmetric(Sound):
    """Says that it tells the past from the future, and does not."""

    traits = Traits(shift_invariant=True, parameters=lambda shape, c: shape.n_heads)


@fails("tells_order_in_an_encoder_as_declared")
class TellsTheSides(Sound):
    """Says that it does not tell the past from the future, and does."""

    def distance_bias(self, distance):
        return self.log_distance(distance) * (1 + (distance < 0))


@fails("shift_invariant_as_declared", "rounding_decides_nothing")
class HiddenAbsolute(Sound):
    """Declares shift invariance, and reads a position by itself."""

    traits = Traits(shift_invariant=True, parameters=lambda shape, c: shape.n_heads)

    def embed(self, x, positions):
        return x + (positions.query / 10).sin()[..., None].to(x.dtype) * torch.arange(x.shape[-1]).to(x.dtype).sin()


@fails("shift_invariant_as_declared")
class HiddenRelative(Sound):
    """Shift-invariant without saying so."""

    traits = Traits(bidirectional=False, parameters=lambda shape, c: shape.n_heads)


@fails("rounding_decides_nothing")
class FloorsRoundedDistances(Sound):
    """A table of distances, whose row rounding decides where coordinates are no whole numbers."""

    traits = Traits(shift_invariant=True, bidirectional=False, parameters=lambda shape, c: 16 * shape.n_heads)

    def __init__(self, shape, config):
        Encoding.__init__(self, shape, config)
        self.table = nn.Parameter(torch.randn(16, shape.n_heads))

    def distance_bias(self, distance):
        return self.table.float()[distance.abs().floor().clamp(max=15).long()].movedim(-1, 0)


@fails("contextual_as_declared")
class SaysContextual(Sound):
    """Claims to count by content, and reads coordinates."""

    traits = Traits(**{**vars(Sound.traits), "contextual": True})


@fails("phases_alike_as_declared")
class SilentlyPhased(Extension):
    """Acts in all phases, in testing in another way, and does not say so."""

    traits = Traits(shift_invariant=True)
    default_at = PHASES

    def scale(self, positions):
        return 2.0 if positions.phase == "test" else 1.5


class Shifting(Extension):
    """Each sequence starts at a drawn coordinate."""

    traits = Traits(shift_invariant=True, random=True)
    default_at = ("train", "tune")

    def start(self, positions):
        return positions.draw("start", lambda: whole(positions.bits("start", 1), 0, 99))

    def extent(self, extent):
        return extent + 100

    def coordinates(self, positions):
        start = self.start(positions)
        return positions.map(lambda p, index: p + start)


@fails("random_as_declared")
class SecretDraw(Shifting):
    """Draws, and does not say so."""

    traits = Traits(shift_invariant=True)


@fails("random_as_declared")
class SaysRandom(SoundExtension):
    """Says that it draws, and does not."""

    traits = Traits(shift_invariant=True, random=True, neutral={"factor": 1})


@fails("prefix_stable_as_declared")
class DrawsByLength(Shifting):
    """Draws another start for each length, in training only."""

    def start(self, positions):
        return super().start(positions) + torch.as_tensor(positions.length).reshape(-1, 1)

    def extent(self, extent):
        return extent + 1000


@fails("draws_by_seed_and_sequence_alone")
class GlobalGenerator(Shifting):
    """Draws from what torch.manual_seed sets."""

    def start(self, positions):
        generator = torch.Generator().manual_seed(torch.initial_seed() % 1000 + positions.seed)
        return torch.randint(100, (1, 1), generator=generator)


@fails("training_stays_in_its_extent")
class LeavesItsExtent(Extension):
    """Trains with larger coordinates than it tells encodings."""

    traits = Traits(shift_invariant=True)
    default_at = ("train", "tune", "test")

    def coordinates(self, positions):
        return positions.scaled(4.0)


# What an extension may change


@fails("neutral_settings_change_nothing")
class NotNeutral(SoundExtension):
    """Calls a factor of 2 neutral."""

    traits = Traits(shift_invariant=True, neutral={"factor": 2})


@fails("unset_factor_spares_training_lengths")
class OffByOne(SoundExtension):
    """Scales from the training length on instead of beyond it."""

    def factor(self, positions):
        return self.config.factor or (positions.length + 1) / self.shape.train_length

    def coordinates(self, positions):
        factor = self.factor(positions)
        return positions.scaled(1 / (factor[:, None] if isinstance(factor, torch.Tensor) else factor))


@fails("slows_the_slow_frequencies_most")
class InvertedRamp(NTKByParts):
    """YaRN's blend the wrong way round: fast pairs are slowed, slow ones kept."""

    traits = Traits(shift_invariant=True, neutral={"factor": 1})

    def frequencies(self, inv_freq, positions):
        c = self.config
        kept = 1 - kept_share(inv_freq, self.shape.train_length, c.beta_slow, c.beta_fast, c.ramp, c.truncate)
        return torch.lerp(inv_freq / self.factor(positions), inv_freq, kept)


@fails("positions_matter")
class NoOrder(Encoding):
    """Changes attention, and tells no order."""

    traits = Traits(shift_invariant=True, bidirectional=False, contextual=True)

    def mix(self, weights, v, positions):
        return 2 * (weights @ v)


@fails("positions_matter")
class NoChange(Extension):
    """Maps coordinates onto themselves."""

    traits = Traits(shift_invariant=True)

    def coordinates(self, positions):
        return positions.map(lambda p, index: p, positions.spacing)


# Computing


@fails("back_ends_equal_eager")
class DroppedGradient(Sound):
    """Loses its gradient where a back-end asks for one row of distances."""

    def distance_bias(self, distance):
        bias = self.log_distance(distance)
        return bias.detach() + 0 * self.slopes.sum() if distance.shape == (65,) else bias


@fails(
    "back_ends_equal_eager",
    "packed_documents_do_not_leak",
    "padding_does_not_leak",
    "positions_matter",
    "rounding_decides_nothing",
    "every_parameter_learns",
)
class DroppedBias(Sound):
    """Has no bias where a back-end asks for one row of distances."""

    def distance_bias(self, distance):
        return self.log_distance(distance) * (distance.ndim > 1)


@fails("memory_is_linear")
class AllPairs(Sound):
    """Builds the whole matrix for every slice of it."""

    def bias(self, positions):
        pairs = positions.key[:, :, None] - positions.key[:, None]
        rows = slice(positions.offset, positions.offset + positions.query.shape[1])
        return self.log_distance(pairs)[:, :, rows].movedim(0, 1)

    distance_bias = Encoding.distance_bias


@fails("every_parameter_learns")
class UnusedParameter(Sound):
    """Has a parameter that nothing reads."""

    traits = Traits(shift_invariant=True, bidirectional=False, parameters=lambda shape, c: shape.n_heads + 1)

    def __init__(self, shape, config):
        super().__init__(shape, config)
        self.unused = nn.Parameter(torch.zeros(1))


@fails("every_parameter_learns")
class IgnoredBySoftmax(Sound):
    """Adds a number to the logits of all keys of a head: its gradient is rounding, not zero."""

    traits = Traits(shift_invariant=True, bidirectional=False, parameters=lambda shape, c: 2 * shape.n_heads)

    def __init__(self, shape, config):
        super().__init__(shape, config)
        self.offsets = nn.Parameter(torch.randn(shape.n_heads))

    def distance_bias(self, distance):
        return self.log_distance(distance) + self.offsets.float().view(-1, *(1,) * distance.ndim)


@fails("every_parameter_learns", "every_row_learns", "back_ends_equal_eager")
class NaNGradient(Sound):
    """A root whose slope at distance 0 is infinite."""

    def distance_bias(self, distance):
        return -(self.slopes.view(-1, *(1,) * distance.ndim) ** 2 * distance.abs()).sqrt()


@fails("every_row_learns")
class IdleRows(Sound):
    """A table of which every second row is never read."""

    traits = Traits(shift_invariant=True, bidirectional=False, parameters=lambda shape, c: 32 * shape.n_heads)

    def __init__(self, shape, config):
        Encoding.__init__(self, shape, config)
        self.table = nn.Parameter(torch.randn(32, shape.n_heads))

    def distance_bias(self, distance):
        rows = settle(distance).abs().clamp(max=15).long() * 2
        return self.table.float()[rows].movedim(-1, 0)


@fails("bias_is_not_constant")
class SilentHead(Sound):
    """A bias whose coefficient is 0 in one head."""

    traits = Traits(shift_invariant=True, bidirectional=False)

    def __init__(self, shape, config):
        Encoding.__init__(self, shape, config)

    @property
    def slopes(self):
        return torch.arange(float(self.shape.n_heads))


@fails("reach_holds_what_is_seen", "back_ends_equal_eager", "rounding_decides_nothing")
class ShortReach(Extension):
    """A window, and a reach that leaves out its last key."""

    traits = Traits(shift_invariant=True)

    def mask(self, positions):
        return positions.steps().abs() < 6

    def reach(self, first, last):
        return ((first - 4, last + 6),)


@fails(
    "mask_by_distance_is_the_mask",
    "back_ends_equal_eager",
    "packed_documents_do_not_leak",
    "padding_does_not_leak",
    "rounding_decides_nothing",
)
class WiderByDistance(Extension):
    """A window that is wider where it is asked by distance."""

    traits = Traits(shift_invariant=True)

    def mask(self, positions):
        return positions.steps().abs() < 6

    def distance_mask(self, steps):
        return steps.abs() < 7

    def reach(self, first, last):
        return ((first - 6, last + 7),)


@fails("tokens_as_declared")
class ReadsTokens(Extension):
    """Coordinates that move a token of one kind, without saying that it reads tokens."""

    traits = Traits(shift_invariant=True)

    def coordinates(self, positions):
        if positions.tokens is None:
            return positions
        key = positions.key + (positions.tokens == 3) / 4
        return positions.replace(query=positions.of_queries(key), key=key, spacing=None)


@fails(
    "decodes_like_the_full_pass",
    "decodes_padded_and_packed_rows",
    "growing_generation_as_declared",
    "stands_beside_any_encoding",
)
class SumsWhileReading(Encoding):
    """A forget gate whose sum begins anew with each call."""

    traits = Traits(shift_invariant=True, contextual=True, bidirectional=False)

    def __init__(self, shape, config):
        super().__init__(shape, config)
        if not shape.causal:
            raise UserError("for decoders only")

    def read(self, x, positions):
        return nn.functional.logsigmoid(x[..., : self.shape.n_heads]).cumsum(1)

    def bias(self, positions):
        total = positions.read.mT
        return positions.of_queries(total, 2)[..., None] - total[:, :, None]


@fails("heads_of_any_width")
class WidthOfTheModel(Sound):
    """A scale of the head width that d_model and n_heads would give."""

    def scale(self):
        return (self.shape.d_model / self.shape.n_heads) ** -0.5


@fails("compiles")
class OtherwiseCompiled(Sound):
    """Computes something else once it is compiled."""

    def distance_bias(self, distance):
        return self.log_distance(distance) * (2 if torch.compiler.is_compiling() else 1)


def failing(name, monkeypatch, **options):
    """Checks that a member fails, an extension on its first host, with their outcomes."""
    torch.manual_seed(0)  # for a member that reads the global seed
    first = testing.subjects(name)[:1]
    monkeypatch.setattr(testing, "subjects", lambda member: first)
    return {o.check: o for o in testing.check_encoding(name, **options) if o.status == "fail"}


SLOW = [name for name, (_, checks) in BROKEN.items() if any(c in CHECKS and CHECKS[c].slow for c in checks)]


@pytest.mark.parametrize(("name", "check"), [(n, c) for n in BROKEN if n not in SLOW for c in sorted(BROKEN[n][1])])
def test_each_broken_member_fails_its_checks(name, check, registered, monkeypatch):
    registered(name, BROKEN[name][0])
    assert set(failing(name, monkeypatch, only=check)) == {check}


@pytest.mark.slow
@pytest.mark.ci(one_in=9)
@pytest.mark.parametrize("name", [name for name in BROKEN if name not in SLOW])
def test_each_broken_member_fails_its_checks_and_no_other(name, registered, monkeypatch):
    cls, expected = BROKEN[name]
    registered(name, cls)
    failed = failing(name, monkeypatch)
    assert set(failed) == expected, {k: (v.expected, v.came) for k, v in failed.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_each_slow_check_catches_its_broken_member(name, registered, monkeypatch):
    cls, expected = BROKEN[name]
    registered(name, cls)
    assert set(failing(name, monkeypatch, slow=True)) == expected


def test_every_check_has_a_broken_member_that_it_catches():
    assert set().union(*(checks for _, checks in BROKEN.values())) == set(CHECKS)


# What the kit says


def test_a_failure_says_what_was_expected_and_what_came_and_its_snippet_shows_it(registered, monkeypatch):
    registered("miscounted", Miscounted)
    (outcome,) = failing("miscounted", monkeypatch).values()
    assert (outcome.expected, outcome.came) == ("6 parameters with its settings", "3")
    with pytest.raises(CheckFailed, match="expected 6 parameters with its settings; came 3"):
        exec(outcome.snippet)


def test_an_exception_is_a_failure_that_names_its_line_even_where_a_deviation_is_declared(registered, monkeypatch):
    class Crashing(Sound):
        """Fails where a check expects a deviation."""

        traits = Traits(**{**vars(Sound.traits), "deviations": {"causal": "not a reason to crash"}})

        def distance_bias(self, distance):
            raise ZeroDivisionError("no distance")

    registered("crashing", Crashing)
    outcome = failing("crashing", monkeypatch, only="causal")["causal"]
    assert "ZeroDivisionError: no distance" in outcome.came
    assert f"{__file__}:" in outcome.came


def test_a_declared_deviation_is_shown_with_its_reason(registered):
    class Known(Miscounted):
        """Declares that it is miscounted."""

        traits = Traits(**{**vars(Miscounted.traits), "deviations": {"counts_parameters_as_declared": "on purpose"}})

    registered("known", Known)
    (outcome,) = testing.check_encoding("known", only="counts_parameters_as_declared")
    assert (outcome.status, outcome.reason, outcome.came) == ("known", "on purpose", "3")
    with pytest.raises(pytest.xfail.Exception, match="on purpose"):
        testing.parametrize("known", checks=["counts_parameters_as_declared"]).args[1][0].values[0]()


def test_a_declared_deviation_that_does_not_show_is_a_failure(registered):
    class Overdue(Sound):
        """Declares a deviation that it does not have."""

        traits = Traits(**{**vars(Sound.traits), "deviations": {"causal": "once upon a time"}})

    registered("overdue", Overdue)
    (outcome,) = testing.check_encoding("overdue", only="causal")
    assert (outcome.status, outcome.came) == ("fail", "it passes")
    assert "once upon a time" in outcome.expected


def test_a_deviation_need_not_show_on_every_host(registered):
    class Deviating(SoundExtension):
        """Is not causal on some hosts."""

        traits = Traits(**{**vars(SoundExtension.traits), "deviations": {"causal": "on some hosts"}})

    registered("deviating", Deviating)
    hosts = {"rope+deviating": "known", "alibi+deviating": "pass"}
    outcomes = [testing.Outcome("deviating", host, "causal", status) for host, status in hosts.items()]
    assert testing._overdue(outcomes) == outcomes
    assert testing._overdue(outcomes[1:])[0].status == "fail"


def test_pytest_cases_have_readable_names_and_leave_out_what_does_not_apply():
    mark = testing.parametrize("nope", "pi")
    ids = [case.id for case in mark.args[1]]
    assert {"nope-causal", "pi-causal", "pi-neutral_settings_change_nothing"} <= set(ids)
    assert not {"nope-neutral_settings_change_nothing", "nope-bias_is_not_constant", "nope-compiles"} & set(ids)
    mark.args[1][0].values[0]()


def test_a_failing_pytest_case_shows_expectation_and_snippet(registered):
    registered("miscounted", Miscounted)
    (case,) = testing.parametrize("miscounted", checks=["counts_parameters_as_declared"]).args[1]
    with pytest.raises(pytest.fail.Exception, match=r"(?s)miscounted: expected 6 .*; came 3\n.*testing\.reproduce"):
        case.values[0]()


def test_extensions_are_checked_on_hosts_that_they_change():
    assert [str(s.spec) for s in testing.subjects("pi")] == ["rope+pi", "alibi+pi", "sinusoidal+pi", "deberta+pi"]
    shifted = [str(s.spec) for s in testing.subjects("shift")]
    assert shifted == ["fope+shift", "sinusoidal+shift"]  # the others read distances alone
    assert [str(s.spec) for s in testing.subjects("dape")] == ["alibi+dape"]


def test_a_class_can_be_checked(registered):
    with pytest.raises(UserError, match="Sound is not registered"):
        testing.check_encoding(Sound)
    registered("a_sound_class", Sound)
    assert [o.status for o in testing.check_encoding(Sound, only="causal")] == ["pass"]


# The commands


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = set(_entries)
    yield tmp_path
    for name in set(_entries) - names:
        del _entries[name]


def test_check_prints_a_line_a_check(capsys):
    assert main(["check", "rope", "--only", "causal"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown == ["rope", "  pass  causal", "rope: 1 passed, 0 known deviations, 0 not applicable, 0 failed"]
    assert main(["check", "rope", "--only", "bias_is_not_constant"]) == 0
    assert "  skip  bias_is_not_constant  no bias" in capsys.readouterr().out


def test_check_prints_plain_data(capsys):
    assert main(["check", "pi", "--only", "causal", "--json"]) == 0
    outcomes = json.loads(capsys.readouterr().out)
    assert [o["scheme"] for o in outcomes] == ["rope+pi", "alibi+pi", "sinusoidal+pi", "deberta+pi"]
    assert {o["status"] for o in outcomes} == {"pass"}


BROKEN_FILE = '''
"""One sound member and one that is not."""

from pezoo import Encoding, Traits, register


@register("file_sound", title="Sound")
class Sound(Encoding):
    """A bias."""

    traits = Traits(shift_invariant=True, bidirectional=False)

    def distance_bias(self, distance):
        return -0.1 * distance.abs().expand(self.shape.n_heads, *distance.shape)


@register("file_broken", title="Broken")
class Broken(Sound):
    """The same bias, said to be something else."""

    traits = Traits(bidirectional=False)
'''


def test_check_of_a_file_checks_all_it_registers_and_fails_with_a_snippet(in_folder, capsys):
    (in_folder / "mine.py").write_text(BROKEN_FILE)
    assert main(["check", "mine.py"]) == 1
    shown = capsys.readouterr().out
    assert re.search(r"^file_sound: \d+ passed, 0 known deviations, \d+ not applicable, 0 failed$", shown, re.MULTILINE)
    _, broken = shown.split("\nfile_broken\n")
    (line,) = (line for line in broken.splitlines() if "FAIL" in line)
    assert "shift_invariant_as_declared" in line
    assert "expected: logits at coordinates moved by 5 to differ (shift_invariant is False)" in broken
    assert "came:     the same" in broken
    snippet = [line[len("          to see it:") :].strip() for line in broken.splitlines() if line.startswith(" " * 10)]
    code = "\n".join(snippet[2:])
    assert str(in_folder / "mine.py") in code
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | PATH)
    assert run.returncode == 1
    assert "CheckFailed: expected logits at coordinates moved by 5 to differ" in run.stderr


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["check", "ropee"], "no member is called 'ropee'. Did you mean 'rope'"),
        (["check", "mqar:n_pair=8"], "Did you mean 'n_pairs'"),
        (["check", "mqar", "--only", "chanse"], "no check is called 'chanse'. Did you mean 'chance'"),
        (["check", "rope", "--only", "causality"], "no check is called 'causality'. Did you mean 'causal'"),
        (["check", "none.py"], "no such Python file"),
        (["new", "Rope"], "'Rope' is no name for a member: use a-z, 0-9 and _"),
        (["new", "class"], "'class' is no name"),
        (["new", "rope"], "the name 'rope' is taken: see pezoo show rope"),
        (
            ["new", "none"],
            "'none' is a word of Python, YAML or recipes, or a package; choose another name, such as my_none",
        ),
        (["new", "heads"], "'heads' is a word"),
        (["new", "queue"], "'queue' is a word"),
        (["new", "torch"], "'torch' is a word"),
        (["new", "mine", "--kind", "study"], "invalid choice: 'study'"),
        (["new", "mine", "--out", "mine.txt"], "--out names a Python file"),
        (["new", "mine", "--out", "nowhere/mine.py"], "cannot write nowhere/mine.py: No such file or directory"),
    ],
)
def test_mistakes_are_said(argv, message, in_folder, capsys):
    assert main(argv) == 2
    assert message in capsys.readouterr().err
    assert not list(in_folder.iterdir())


@pytest.mark.parametrize(
    ("kind", "study"),
    [
        ("encoding", "quickstart 'schemes=[brand_new,rope]'"),
        pytest.param(
            "extension", "quickstart 'schemes=[rope+brand_new,rope]'", marks=(pytest.mark.slow, pytest.mark.ci)
        ),
        ("task", "length_generalization 'tasks=[brand_new]'"),
    ],
)
def test_what_new_writes_passes_at_once(kind, study, in_folder, capsys):
    assert main(["new", "brand_new", "--kind", kind]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "wrote brand_new.py; next:"
    assert lines[1:] == [
        "  pezoo check brand_new.py",
        f"  pezoo run {study} --plugin brand_new.py --out runs/brand_new",
    ]
    written = (in_folder / "brand_new.py").read_text()
    assert main(["check", "brand_new.py"]) == 0, capsys.readouterr().out
    assert "0 known deviations" in capsys.readouterr().out
    ruff = [sys.executable, "-m", "ruff", "check", "--config", str(ROOT / "pyproject.toml"), "brand_new.py"]
    assert subprocess.run(ruff, capture_output=True).returncode == 0
    del _entries["brand_new"]
    assert main(["new", "brand_new"]) == 2
    assert "brand_new.py exists" in capsys.readouterr().err
    assert (in_folder / "brand_new.py").read_text() == written


def test_the_documents_example_passes(in_folder):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "own.md").read_text(), re.DOTALL)
    (code,) = (block for block in blocks if "@register" in block)
    (in_folder / "my_bias.py").write_text(code)
    assert main(["check", "my_bias.py"]) == 0
