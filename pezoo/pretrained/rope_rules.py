"""The rope types of transformers, each as members of a scheme: what a config's `rope_parameters` mean.

Everything here works on plain data, without transformers. Formulas are those of its version 5.23.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pezoo.errors import UserError, brief, suggest

Members = dict[str, dict[str, Any]]
"""A plain scheme: settings by member."""
LARGEST = 1e30
"""Numbers are smaller; float32 holds them, and what is made of them."""
BASE = 10000.0
"""What a base is where nothing states it."""


@dataclass
class Rule:
    """The rotation of one kind of layer, as a config states it."""

    parameters: Mapping[str, Any]
    where: str
    """What the parameters are called in messages."""
    head_dim: int
    longest: int | None
    """`max_position_embeddings`."""
    original: int | None
    """`original_max_position_embeddings` beside the parameters, which counts more than the one inside."""
    pairing: str
    nested: bool = False
    """Whether the config has parameters for each kind of layer."""
    latent: bool = False
    """Multi-head latent attention: the head here is the part of it that turns."""
    stretched: bool = False
    """Whether `alpha` stretches the base of the type dynamic, once for all lengths."""
    remarks: list[str] = field(default_factory=list)

    def remark(self, message: str) -> None:
        """Note a contradiction that does not keep the config from being read."""
        self.remarks.append(f"{self.where}: {message}")

    def refuse(self, message: str) -> UserError:
        """Return the error that the config cannot be read."""
        return UserError(f"{self.where}: {message}")

    @property
    def type(self) -> str:
        """The rope type."""
        new, old = self.parameters.get("rope_type"), self.parameters.get("type")
        if new is not None and old is not None and new != old:
            raise self.refuse(f"rope_type is {brief(new)} and type is {brief(old)}; keep rope_type alone")
        found = next((t for t in (new, old) if t is not None), "default")
        found = "longrope" if found == "su" else found  # its name in the first configs of Phi-3
        if not isinstance(found, str) or found not in TYPES:
            known = ", ".join(TYPES)
            raise self.refuse(
                f"no rope_type {brief(found)}.{suggest(str(found), TYPES)} Those that can be read: {known}"
            )
        return str(found)

    def number(self, key: str, default: float | None = None, *, above: float = 0.0, least: float = -math.inf) -> float:
        """The number under a key, within bounds; null is as good as none.

        Raises:
            UserError: if it is missing and has no default, or is no such number.
        """
        value = self.parameters.get(key)
        if value is None:
            if default is None:
                raise self.refuse(f"{key} is missing, which rope_type {self.type} needs")
            return default
        if not _is_number(value) or value <= above or value < least:
            bound = f"above {above:g}" if least < above else f"of at least {least:g}"
            raise self.refuse(f"{key} must be a number {bound}, not {brief(value)}")
        return float(value)

    def or_zero(self, key: str, default: float) -> float:
        """The number under a key; zero is as good as none."""
        return default if self.parameters.get(key) == 0 else self.number(key, default)

    @property
    def width(self) -> int:
        """How many channels of a head turn."""
        share = self.number("partial_rotary_factor", 1.0)
        if share > 1:
            raise self.refuse(f"partial_rotary_factor must be at most 1, not {share:g}")
        width = self.head_dim if self.type == "proportional" else int(self.head_dim * share)
        if width < 2 or width % 2:
            what = f"{width} of {self.head_dim} channels of a head would turn"
            raise self.refuse(f"{what}; they turn in pairs, so it must be an even number")
        return width

    @property
    def states_before(self) -> bool:
        """Whether the length before the extension is stated."""
        return self.original is not None or self.parameters.get("original_max_position_embeddings") is not None

    @property
    def before(self) -> int:
        """Tokens of a training text before its length was extended, L."""
        inside = self.parameters.get("original_max_position_embeddings")
        if self.original is not None and inside is not None and self.original != inside:
            self.remark(
                f"original_max_position_embeddings is {inside}, and {self.original} beside it; "
                f"transformers takes {self.original}"
            )
        found = inside if self.original is None else self.original
        if found is None:
            if self.longest is None:
                raise self.refuse(f"original_max_position_embeddings is missing, which rope_type {self.type} needs")
            self.remark(
                f"original_max_position_embeddings is missing, the length before the extension; "
                f"transformers takes max_position_embeddings = {self.longest}"
            )
            return self.longest
        if type(found) is not int or not 0 < found < LARGEST:
            raise self.refuse(f"original_max_position_embeddings must be a whole number above 0, not {brief(found)}")
        return found

    def factor(self, before: int) -> float:
        """How far the length was extended; the ratio of the two lengths where it is not stated."""
        if self.parameters.get("factor") is None and self.longest is not None and self.longest > before:
            return self.longest / before
        return self.number("factor", least=1.0)

    def compare(self, factor: float, before: int) -> None:
        """Note a factor that is not the ratio of the two lengths."""
        if self.longest is None or not self.states_before or math.isclose(factor * before, self.longest, rel_tol=1e-3):
            return
        if self.longest == before and factor > 1:
            self.remark(
                f"factor is {factor:g}, but max_position_embeddings is {self.longest}, the length before the "
                f"extension, and programs that read it cut texts there. Write {round(factor * before)} there"
            )
        else:
            self.remark(
                f"factor is {factor:g}, but max_position_embeddings / original_max_position_embeddings = "
                f"{self.longest} / {before} = {self.longest / before:g}; transformers takes factor"
            )

    def temperature(self, magnitude: float) -> float:
        """The factor on the tables of cosines and sines, refused where it does not act on the whole head."""
        if magnitude != 1 and self.width < self.head_dim and not self.latent:
            raise self.refuse(
                f"its tables are multiplied by {magnitude:g}, which acts on {self.width} of {self.head_dim} channels; "
                "the temperature of a scheme acts on all of them"
            )
        return magnitude

    def rope(self, **more: Any) -> Members:
        """The rotation before any extension."""
        share = self.width / self.head_dim
        if int(share * self.head_dim) != self.width:
            share = math.nextafter(share, 2)
        base = self.number("rope_theta", BASE, above=1.0)
        return {"rope": {"base": base, "fraction": share, "pairing": self.pairing} | more}

    def read(self) -> tuple[Members, int | None]:
        """The members of the layers' scheme, and the training length that they must be built for (None: any).

        Raises:
            UserError: if the parameters have no meaning.
        """
        function, keys = TYPES[self.type]
        self._look_at_keys(keys)
        return function(self)

    def _look_at_keys(self, keys: tuple[str, ...]) -> None:
        known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings", *keys}
        known |= {"alpha"} if self.stretched and self.type == "dynamic" else set()
        every = {key for _, more in TYPES.values() for key in more} | known
        for key, value in self.parameters.items():
            if key in _ELSEWHERE or key in known or value is None:
                continue
            if key in every:
                self.remark(f"{key} does nothing for rope_type {self.type}")
            else:
                self.remark(f"{key} is read by nothing.{suggest(key, known)}")


_ELSEWHERE = ("llama_4_scaling_beta",)
"""Keys that another reader knows: see `rope_config`."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST < value < LARGEST


def _default(rule: Rule) -> tuple[Members, int | None]:
    return rule.rope(), None


def _linear(rule: Rule) -> tuple[Members, int | None]:
    return rule.rope() | {"pi": {"factor": rule.number("factor", least=1.0)}}, None


def _dynamic(rule: Rule) -> tuple[Members, int | None]:
    if rule.stretched and rule.parameters.get("alpha"):
        if rule.head_dim <= 2:
            raise rule.refuse("alpha stretches the base of heads of more than one pair of channels")
        alpha, base = rule.number("alpha"), rule.number("rope_theta", BASE, above=1.0)
        return rule.rope(base=base * alpha ** (rule.head_dim / (rule.head_dim - 2))), None
    if rule.longest is None:
        raise rule.refuse("max_position_embeddings is missing, which rope_type dynamic needs")
    inside = rule.parameters.get("original_max_position_embeddings")
    before = rule.original if inside is None else inside
    if before not in (None, rule.longest):
        rule.remark(
            f"original_max_position_embeddings is {before}, which rope_type dynamic does not read; "
            f"its base grows beyond max_position_embeddings = {rule.longest}"
        )
    return rule.rope() | {"dynamic_ntk": {"strength": rule.number("factor")}}, rule.longest


def _yarn(rule: Rule) -> tuple[Members, int | None]:
    before = rule.before
    factor = rule.factor(before)
    rule.compare(factor, before)
    fast, slow = rule.or_zero("beta_fast", 32.0), rule.or_zero("beta_slow", 1.0)
    if fast <= slow:
        raise rule.refuse(f"beta_fast = {fast:g} must exceed beta_slow = {slow:g}")
    truncate = rule.parameters.get("truncate", True)
    if truncate not in (None, True, False):
        raise rule.refuse(f"truncate must be true or false, not {brief(truncate)}")
    if truncate is False and rule.nested:
        rule.remark("truncate is read by nothing here: transformers looks for it beside the kinds of layers alone")
    elif truncate is None and not rule.nested:
        rule.remark("truncate is null, which transformers takes for false")
    settings: dict[str, Any] = {
        "factor": factor,
        "beta_fast": fast,
        "beta_slow": slow,
        "truncate": bool(truncate) or rule.nested,
    }
    return rule.rope() | {"yarn": settings | _yarn_temperature(rule, factor)}, before


def _yarn_temperature(rule: Rule, factor: float) -> dict[str, Any]:
    def magnitude(share: float) -> float:
        return 0.1 * share * math.log(factor) + 1

    stated = rule.parameters.get("attention_factor")
    above, below = rule.or_zero("mscale", 0.0), rule.or_zero("mscale_all_dim", 0.0)
    if bool(above) != bool(below) and stated is None and not rule.latent:
        one, other = ("mscale", "mscale_all_dim") if above else ("mscale_all_dim", "mscale")
        rule.remark(f"{one} does nothing without {other}")
    if stated is not None:
        found = rule.number("attention_factor")
    elif above and below:
        found = magnitude(above) / magnitude(below)
    else:
        found = magnitude(1.0)
    if rule.latent and below:  # there the logits get the denominator's square back
        found *= magnitude(below)
    rule.temperature(found)
    return {} if math.isclose(found, magnitude(1.0), rel_tol=1e-12) else {"attention_factor": found}


def _longrope(rule: Rule) -> tuple[Members, int | None]:
    before, n = rule.before, rule.width // 2
    factor = rule.factor(before) if rule.parameters.get("factor") or rule.longest != before else 1.0
    rule.compare(factor, before)
    lists = {}
    for key in ("short_factor", "long_factor"):
        found = rule.parameters.get(key)
        if not isinstance(found, list | tuple) or not all(_is_number(x) and x > 0 for x in found):
            raise rule.refuse(f"{key} must be a list of {n} numbers above 0, one for each pair, not {brief(found)}")
        if len(found) != n:
            raise rule.refuse(f"{key} has {len(found)} numbers, but {n} pairs of channels turn")
        lists[key] = [float(x) for x in found]
    own = math.sqrt(1 + math.log(factor) / math.log(max(2, before)))
    stated = rule.number("attention_factor", own)
    rule.temperature(stated)
    settings = {"factor": factor, "short": lists["short_factor"], "long": lists["long_factor"]}
    settings |= {} if math.isclose(stated, own, rel_tol=1e-12) else {"magnitude": stated}
    return rule.rope() | {"longrope": settings}, before


def _llama3(rule: Rule) -> tuple[Members, int | None]:
    before = rule.before
    factor = rule.number("factor", least=1.0)
    low, high = rule.number("low_freq_factor"), rule.number("high_freq_factor")
    if high <= low:
        raise rule.refuse(f"high_freq_factor = {high:g} must exceed low_freq_factor = {low:g}")
    if rule.longest is not None and rule.longest <= before and factor > 1 and rule.states_before:
        rule.remark(
            f"factor is {factor:g}, but max_position_embeddings = {rule.longest} is not above "
            f"original_max_position_embeddings = {before}"
        )
    return rule.rope() | {"llama3": {"factor": factor, "low": low, "high": high}}, before


def _proportional(rule: Rule) -> tuple[Members, int | None]:
    members = rule.rope(kept=rule.number("partial_rotary_factor", 1.0))
    factor = rule.number("factor", 1.0, least=1.0)
    return members | ({"pi": {"factor": factor}} if factor > 1 else {}), None


TYPES: dict[str, tuple[Callable[[Rule], tuple[Members, int | None]], tuple[str, ...]]] = {
    "default": (_default, ()),
    "linear": (_linear, ("factor",)),
    "dynamic": (_dynamic, ("factor",)),
    "yarn": (
        _yarn,
        ("factor", "attention_factor", "beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim"),
    ),
    "longrope": (_longrope, ("factor", "attention_factor", "short_factor", "long_factor")),
    "llama3": (_llama3, ("factor", "low_freq_factor", "high_freq_factor")),
    "proportional": (_proportional, ("factor",)),
}
"""What reads each type, and the keys that it reads beside those that all have."""
