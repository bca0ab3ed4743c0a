"""Schemes as text, as mappings and as modules."""

import json
from dataclasses import dataclass

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import pezoo
from helpers import member
from pezoo.compose import create
from pezoo.contract import Encoding, Positions, Traits
from pezoo.errors import UserError
from pezoo.fitting import offers
from pezoo.registry import entries
from pezoo.scheme import MemberSpec, Spec, parse

SIZES = {"d_model": 16, "n_heads": 2, "n_layers": 2, "train_length": 8}
LAYERS = {"layers": ["rope", "nope"]}
HEADS = {"heads": {"rope+pi:factor=4": 1, "alibi": 1}}


class Alternating(pezoo.Schedule):
    """A windowed layer and a full one in turn."""

    @dataclass
    class Config:
        """Settings of the windowed layer."""

        window: int = pezoo.setting(4, "W", at_least=1)

    @classmethod
    def layers(cls, config):
        return [f"rope+window:size={config.window}:at=train,tune,test", "nope"]


@pytest.fixture
def alternating(monkeypatch):
    monkeypatch.setattr(pezoo.registry, "_entries", dict(pezoo.registry._entries))
    pezoo.register("alternating", title="Layers in turn")(Alternating)


# One scheme, however it is written


@pytest.mark.parametrize(
    "forms",
    [
        ("rope", {"rope": None}, {"rope": {}}, "rope:base=10000", "rope:base=1e4", " rope ", "{rope: }"),
        ("rope+pi", "rope_pi", {"rope": None, "pi": None}, {"rope_pi": None}, "rope+pi:at=tune,test"),
        ("rope+pi:factor=4", "rope_pi:factor=4.0", {"rope": {}, "pi": {"factor": 4}}, "pi:factor=4+rope"),
        ("sinusoidal+shift:max_shift=3", "shape:max_shift=3", "{shape: {max_shift: 3}}"),
        ("rope:base=100+random", "randomized_rope:base=100", "rope:base=1e+2+random"),
        ("bipe:ends=3,4", "bipe:ends=[3,4]", "bipe:ends=[3, 4]"),
        (
            "rope+window:at=train,test",
            "rope+window:at=[train, test]",
            {"rope": None, "window": {"at": ["test", "train"]}},
        ),
        ("alibi+rope+window+pi", "alibi+window+rope+pi"),
        (LAYERS, "{layers: [rope, nope]}", {"layers": [{"rope": {}}, "nope"]}),
        (HEADS, {"heads": [[{"rope": {}, "pi": {"factor": 4}}, 1], ["alibi", 1]]}),
    ],
)
def test_all_forms_collapse_to_one(forms):
    first, *others = map(parse, forms)
    for other in others:
        assert other == first
        assert hash(other) == hash(first)
        assert (str(other), other.canonical) == (str(first), first.canonical)


@pytest.mark.parametrize(
    ("a", "b"),
    [("rope+pi", "rope+pi:factor=2"), ("rope+ntk+yarn", "rope+yarn+ntk"), ("rope", "rope:pairing=half"),
     ("rope+window", "rope+window:at=test"), ("nope", LAYERS)],
)  # fmt: skip
def test_what_differs_is_told_apart(a, b):
    a, b = parse(a), parse(b)
    assert a != b
    assert str(a) != str(b)
    assert a.canonical != b.canonical


@pytest.mark.parametrize(
    ("given", "short"),
    [
        ("rope_pi", "rope+pi"),
        ("rope:base=1e6:fraction=0.5", "rope:base=1e+06:fraction=0.5"),
        ("rope:pairing=half:base=10000", "rope:pairing=half"),
        ("fire_shared", "fire:shared=true"),
        ("rope+window:at=train,test:size=128", "rope+window:size=128:at=train,test"),
        (LAYERS, "{layers: [rope, nope]}"),
        (HEADS, '{heads: {"rope+pi:factor=4": 1, alibi: 1}}'),
        ({"layers": ["rope", HEADS]}, '{layers: [rope, {heads: {"rope+pi:factor=4": 1, alibi: 1}}]}'),
    ],
)
def test_short_form(given, short):
    assert str(parse(given)) == short


def test_canonical_form_holds_every_setting():
    data = json.loads(parse("rope+pi").canonical)
    rope = {"base": 10000.0, "fraction": 1.0, "kept": 1.0, "pairing": "interleaved"}
    assert data == {"rope": rope, "pi": {"factor": None, "at": ["tune", "test"]}}
    assert [part["rope"]["base"] for part in json.loads(parse({"layers": ["rope"]}).canonical)["layers"]] == [1e4]


@pytest.mark.parametrize("name", [n for n, e in entries().items() if e.kind != "task"])
def test_every_name_survives_its_text_and_its_yaml(name):
    spec = parse(name if entries()[name].kind != "extension" else f"{partner(name)}+{name}")
    written = yaml.safe_dump(spec.data, sort_keys=False)  # extensions keep their order
    assert parse(str(spec)) == parse(spec.data) == parse(yaml.safe_load(written)) == spec


def partner(extension):
    """An encoding that an extension fits."""
    for encoding in pezoo.list_encodings():
        try:
            parse(f"{encoding}+{extension}")
        except UserError:
            continue
        return encoding
    raise AssertionError(extension)


numbers = st.floats(1, 1e12, exclude_min=True) | st.integers(2, 10**9)
phases = st.lists(st.sampled_from(["train", "tune", "test"]), min_size=1, unique=True)
plain = st.builds(
    lambda base, pairing, factor, size, at: {
        "rope": {"base": base, "pairing": pairing},
        "pi": {"factor": factor},
        "window": {"size": size, "at": at},
    },
    numbers, st.sampled_from(["half", "interleaved"]), st.none() | numbers, st.none() | st.integers(1, 9), phases,
)  # fmt: skip
mixtures = st.builds(lambda parts: {"layers": parts}, st.lists(plain | st.just("nope"), min_size=1))
halves = st.builds(lambda a, n: {"heads": [[a, n], ["alibi", 1]]}, plain, st.integers(1, 4))


@settings(max_examples=25, deadline=None)
@given(plain | mixtures | halves)
def test_text_and_data_bring_any_scheme_back(mapping):
    spec = parse(mapping)
    assert parse(str(spec)) == spec
    assert parse(json.loads(spec.canonical)) == spec
    assert parse(str(spec)).canonical == spec.canonical


def test_a_spec_is_itself():
    spec = parse("rope")
    assert parse(spec) is spec
    assert spec == Spec((MemberSpec("rope"),))


def test_names_and_families():
    spec = parse({"layers": ["rope+pi", {"heads": {"alibi+pi": 1, "rope": 1}}]})
    assert (spec.encodings, spec.extensions, spec.family) == (("rope", "alibi"), ("pi",), "relative+bias")
    assert set(spec.sources()) == {"rope", "alibi", "pi"}


# Phases


def test_each_phase_keeps_what_acts_in_it():
    spec = parse("rope+pi+rerope+window:size=4:at=train,test")
    assert str(spec.at("train")) == "rope+window:size=4:at=train,test"
    assert str(spec.at("tune")) == "rope+pi+window:size=4:at=train,test"
    assert str(spec.at("test")) == str(spec)
    for scheme in ("rope", "rope+pi", "rope+yarn:factor=8", "rope+window"):
        assert parse(scheme).at("train") == parse("rope")
    for scheme in ("sinusoidal+shift", "rope+random", "alibi+dape"):
        assert parse(scheme).at("train") == parse(scheme)


@pytest.mark.parametrize("extension", ["shift", "random"])
def test_a_table_is_as_long_in_tuning_as_in_training(extension):
    spec = parse(f"learned+{extension}:at=train+pi")
    lengths = [len(next(create(str(s), **SIZES).parameters())) for s in (spec.at("train"), spec.at("tune"), spec)]
    assert lengths[0] == lengths[1] == lengths[2] > SIZES["train_length"]


def test_phases_of_mixtures():
    assert parse({"layers": ["rope+pi", "nope"]}).at("train") == parse(LAYERS)
    assert parse(HEADS).at("train") == parse({"heads": {"rope": 1, "alibi": 1}})


def test_tuning_fixes_unset_factors():
    assert str(parse("rope+pi+window").fixed(64, 8)) == "rope+pi:factor=8+window"
    assert str(parse("rope+yarn:factor=2").fixed(64, 8)) == "rope+yarn:factor=2"
    assert str(parse("rope+ntk").fixed(4, 8)) == "rope+ntk:factor=1"
    assert str(parse("rope+dynamic_ntk").fixed(64, 8)) == "rope+dynamic_ntk"
    assert str(parse("rope+head_scale+pi:at=test").fixed(8, 8)) == "rope+head_scale+pi:at=test"
    assert str(parse("rope+leaky_rerope").fixed(32, 8)) == "rope+leaky_rerope"
    assert str(parse("rope+pi:at=tune").fixed(64, 8)) == "rope+pi:factor=8:at=tune"
    assert str(parse({"layers": ["rope+pi", "nope"]}).fixed(12, 8)) == '{layers: ["rope+pi:factor=1.5", nope]}'
    with_factor, fixed = (create(s, **SIZES) for s in ("rope+pi", str(parse("rope+pi").fixed(64, 8))))
    assert [s.scale_factor(n) for s in (with_factor, fixed) for n in (4, 16)] == [1, 2, 8, 8]
    assert [with_factor.prefix_stable, fixed.prefix_stable] == [False, True]


# Refusals


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ("", "cannot read the scheme ''; write it like rope"),
        ("rope:base", "cannot read the scheme 'rope:base'"),
        ("rope+pi:factor=", "cannot read the scheme"),
        ("rope:=4", "cannot read the scheme"),
        ("ropee", r"no member is called 'ropee'\. Did you mean 'rope'"),
        ("rope+yarm", r"no member is called 'yarm'\. Did you mean 'yarn'"),
        ("rope+pi+", r"cannot read the scheme 'rope\+pi\+'; write it like"),
        ("{rope: [", "it is no YAML"),
        (None, "a scheme is text such as rope[+]pi, or a mapping, not None"),
        (["rope"], "a scheme is text"),
        ({}, "a scheme cannot be empty; name an encoding, such as rope"),
        ({1: None}, "no member is called 1"),
        ({"rope": 5}, "settings of rope are no mapping: 5. Write rope.yarn:factor=8, or {rope: {}, yarn: {factor: 8}}"),
        ("rope_pi:foo=3", r"rope_pi \(rope\+pi\) has no setting 'foo'; its settings: base, .* factor, at"),
        ("rope+rope", "rope occurs twice in rope[+]rope"),
        ("shape+shift", "shift occurs twice in sinusoidal[+]shift[+]shift"),
        ("pi", "pi alone is no scheme: begin with an encoding, such as rope[+]pi"),
        (
            "nope+pi",
            r"pi does not fit nope: it needs coordinates \(nothing .*\)\. It works with: learned, .* and \d+ more: ",
        ),
        ("learned+ntk", r"ntk does not fit learned: it needs frequencies\. It works with: .*rope"),
        ("alibi+t5+yarn", "yarn does not fit alibi[+]t5: it needs frequencies"),
        (
            "sinusoidal+rerope",
            r"needs a .*term of pairs of positions .*\. It works with: shaw, .*alibi and .*more: ",
        ),
        ("t5+tupe", "t5 and tupe cannot be joined: each brings a logit scale of its own"),
        ({"layers": []}, r"layers takes a list of schemes, such as \{layers"),
        ({"layers": "rope"}, "layers takes a list of schemes"),
        ({"layers": ["rope", LAYERS]}, "layers cannot be nested"),
        ({"layers": ["rope"], "rope": None}, "a mixture has one key, layers or heads, not layers, rope"),
        ({"heads": {}}, "heads takes schemes and their numbers of heads"),
        ({"heads": ["rope"]}, "heads takes schemes"),
        ({"heads": [3]}, "heads takes schemes"),
        ({"heads": {"rope": 0}}, "heads takes schemes"),
        ({"heads": {"rope": True}}, "heads takes schemes"),
        ({"heads": [[HEADS, 2]]}, "heads cannot be nested inside heads"),
        ({"layers": ["rope", "sinusoidal"]}, "sinusoidal acts on the input embedding, which layers and heads share"),
        ({"layers": ["rope", "ropee"]}, "no member is called 'ropee'"),
    ],
)
def test_what_cannot_work_is_refused(scheme, message):
    with pytest.raises(UserError, match=message):
        parse(scheme)


# Layer schedules


def test_a_schedule_is_a_mixture_with_a_name(alternating):
    layers = ["rope+window:size=6:at=train,tune,test", "nope"]
    forms = ("alternating:window=6", {"alternating": {"window": 6}}, "{alternating: {window: 6}}", {"layers": layers})
    assert {parse(form) for form in forms} == {parse({"layers": layers})}
    assert str(parse("alternating")) == '{layers: ["rope+window:size=4:at=train,tune,test", nope]}'


def test_extensions_join_the_layers_of_a_schedule_that_they_fit(alternating):
    window = "rope+window:size=4:at=train,tune,test"
    assert parse("alternating+yarn:factor=2") == parse({"layers": [f"{window}+yarn:factor=2", "nope"]})
    assert parse("pi+alternating+logn") == parse({"layers": [f"{window}+pi+logn", "nope+logn"]})
    assert parse({"alternating": None, "logn": {}}) == parse("alternating+logn")
    assert create("alternating+yarn", **SIZES).undefined(40) is None


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ("alternating+rope", "rope cannot join alternating, which names the encodings of all layers"),
        ("alternating+gemma3", "alternating and gemma3 cannot be joined: each names the schemes of all layers"),
        ("alternating+window", "window occurs twice in rope[+]window[+]window"),
        ("alternating+nothing", "no member is called 'nothing'"),
        ("alternating+addition", "addition is a task, not an encoding or an extension"),
        ("alternating:window=0", "alternating:window must be at least 1, got 0"),
        ("alternating:windw=3", "alternating has no setting 'windw'. Did you mean 'window'"),
        ("unpositioned+yarn", "yarn does not fit nope: it needs frequencies. It works with: .*rope"),
        ({"layers": ["rope", "alternating"]}, "layers cannot be nested"),
        ({"heads": {"alternating": 2}}, "layers cannot be nested"),
        ("endless", "nested too deeply"),
    ],
)
def test_what_a_schedule_cannot_do_is_refused(scheme, message, alternating):
    for name, layers in (("unpositioned", ["nope", "nope"]), ("endless", ["endless"])):
        members = {"__doc__": "Layers.", "layers": classmethod(lambda cls, config, layers=layers: layers)}
        pezoo.register(name, title=name)(type("Other", (pezoo.Schedule,), members))
    with pytest.raises(UserError, match=message):
        parse(scheme)


def test_a_schedule_is_no_member(alternating):
    with pytest.raises(UserError, match="alternating is a schedule, not an encoding or an extension"):
        MemberSpec.make("alternating", {}).at  # noqa: B018
    with pytest.raises(UserError, match="the scheme repeats 2 layers, and n_layers = 3 is no multiple; set it to 4"):
        create("alternating", **SIZES | {"n_layers": 3})


def test_a_task_is_no_part_of_a_scheme(monkeypatch):
    monkeypatch.setattr(pezoo.registry, "_entries", dict(pezoo.registry._entries))
    pezoo.register("copying", title="Copy")(type("Copying", (pezoo.Task,), {"__doc__": "A task."}))
    with pytest.raises(UserError, match="copying is a task, not an encoding or an extension"):
        parse("rope+copying")


@pytest.mark.parametrize(
    ("scheme", "sizes", "message"),
    [
        ("rope", {"d_model": 15}, "d_model = 15 is not divisible by n_heads = 2"),
        ("rope", {"n_heads": 0}, "n_heads must be positive, got 0"),
        ("rope", {"n_layers": 0}, "n_layers must be positive, got 0"),
        ("rope", {"d_model": 2}, "head_dim = 1 leaves none to turn"),
        ({"layers": ["rope", "nope", "nope"]}, {}, "the scheme repeats 3 layers, and n_layers = 2 is no multiple"),
        ({"heads": {"rope": 2, "alibi": 1}}, {}, "heads names 3 heads in all, but n_heads = 2"),
        ("rope+dape", {}, r"rope\+dape cannot work: rope has no bias for the network"),
        ("rope+ntk", {"d_model": 4}, "NTK scaling needs at least two frequencies; raise head_dim"),
        ("rope+dynamic_ntk", {"d_model": 4}, "NTK scaling needs at least two frequencies"),
        ("rope+random:relative=toeplitz", {}, "rope reads each position by itself"),
        ("rope+sinusoidal+clex", {}, "clex is built for 4 frequencies and sinusoidal has 8"),
    ],
)
def test_what_the_model_cannot_hold_is_refused(scheme, sizes, message):
    with pytest.raises(UserError, match=message):
        create(scheme, **SIZES | sizes)


def test_a_bias_is_corrected_beside_an_encoding_without():
    create("alibi+rope+dape", **SIZES)


def test_an_extension_acts_where_it_fits():
    scheme = create("sinusoidal+alibi+ntk+rerope", **SIZES)
    prepared = scheme.prepare(Positions.build(32, phase="test"))
    sinusoid, alibi = prepared.input
    assert alibi.positions.inv_freq is None
    assert sinusoid.positions.inv_freq[0, -1] < member(scheme, "sinusoidal").inv_freq()[-1]
    assert len(prepared.layers[0][0].composition.regions) == 2


# Built


def test_members_of_all_layers_or_of_each():
    shared = create("t5", **SIZES).prepare(Positions.build(4, phase="test")).layers
    assert shared[0][0].composition.base[0].encoding is shared[1][0].composition.base[0].encoding
    own = create("shaw", **SIZES).prepare(Positions.build(4, phase="test")).layers
    assert own[0][0].composition.base[0].encoding is not own[1][0].composition.base[0].encoding
    assert [g.composition.base[0].positions.layer for (g,) in own] == [0, 1]


def test_layers_repeat_to_the_depth_of_the_model():
    scheme = create({"layers": ["shaw", "nope"]}, **SIZES | {"n_layers": 6})
    layers = scheme.prepare(Positions.build(4, phase="test")).layers
    names = [type(g.composition.base[0].encoding).__name__ for (g,) in layers]
    assert names == ["Shaw", "NoPE"] * 3
    assert len({id(layers[i][0].composition.base[0].encoding) for i in (0, 2, 4)}) == 3


def test_heads_are_cut_in_the_given_order():
    scheme = create({"heads": {"alibi": 1, "rope": 3}}, **SIZES | {"d_model": 32, "n_heads": 4})
    (alibi, rope), _ = scheme.prepare(Positions.build(4, phase="test")).layers
    assert (alibi.heads, rope.heads) == (slice(0, 1), slice(1, 4))
    assert alibi.composition.base[0].encoding.shape.n_heads == 1
    assert rope.composition.base[0].encoding.shape.head_dim == 8


@pytest.mark.parametrize(
    ("scheme", "extent"),
    [
        ("learned", 8),
        ("learned+pi", 8),
        ("learned+random", 16 * 8),
        ("learned+random:max_length=50", 50),
        ("learned+shift:max_shift=5", 8 + 4),
        ("learned+random:at=test", 8),
        ("learned+random:max_length=50+shift:max_shift=5", 54),
    ],
)
def test_tables_are_as_long_as_what_training_shows(scheme, extent):
    built = create(scheme, **SIZES)
    assert len(member(built, "learned").table) == extent


def test_undefined_lengths_are_declared():
    learned = create("learned", **SIZES)
    assert learned.undefined(8) is None
    assert "learned has 8 positions; coordinate 8 has none" in learned.undefined(9)
    assert create("learned+pi", **SIZES).undefined(128) is None
    assert create("learned+pi:factor=2", **SIZES).undefined(16) is None
    assert create("learned+pi:factor=2", **SIZES).undefined(17)
    assert create("rope+random:max_length=20", **SIZES).undefined(21)
    assert create("rope", **SIZES).undefined(10**6) is None


def test_scale_factors_are_those_in_force():
    assert create("rope", **SIZES).scale_factor(64) is None
    assert create("rope+pi", **SIZES).scale_factor(64) == 8
    assert create("rope+yarn:factor=2", **SIZES).scale_factor(64) == 2
    assert create("rope+pi:at=tune", **SIZES).scale_factor(64) is None


def test_prefix_stability_counts_what_acts_in_testing():
    for scheme, stable in {
        "rope": True,
        "rope+pi": False,
        "rope+pi:factor=2": True,
        "rope+pi:at=tune": True,
        "rope+random": False,
        "rope+random:at=train": True,
        "dynamic_sinusoidal": False,
        "rope+window+rerope": True,
    }.items():
        assert create(scheme, **SIZES).prefix_stable is stable, scheme


def test_parameters_come_from_the_seed_alone():
    torch.manual_seed(1)
    first = create("kerple+learned", **SIZES).state_dict()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again, other = (create("kerple+learned", **SIZES, seed=seed).state_dict() for seed in (0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("trained", "used"),
    [
        ("t5", "t5+pi"),
        ("alibi+dape", "alibi+window+dape+pi"),
        ("kerple+shaw+dape", "kerple+shaw+rerope+dape"),
        ({"layers": ["fire", "fire"]}, {"layers": ["fire+window", "fire+pi"]}),
        ({"layers": ["t5", "t5"]}, {"layers": ["t5+window", "t5"]}),
        ({"heads": [["shaw", 1], ["shaw", 1]]}, {"heads": [["shaw+pi", 1], ["shaw", 1]]}),
    ],
)
def test_parameters_carry_over_to_other_extensions(trained, used):
    assert parse(used).at("train") == parse(trained)
    trained, used = create(trained, **SIZES, seed=1), create(used, **SIZES, seed=2)
    with torch.no_grad():
        for p in trained.parameters():
            p.add_(torch.rand_like(p))
    used.load_from(trained)
    q, k, v = torch.randn(3, 1, 2, 8, 8)
    for layer in range(2):
        expected, came = (pezoo.attend(s, q, k, v, layer=layer, phase="train") for s in (trained, used))
        assert torch.equal(expected, came)


# People's own models


def test_attend_reads_the_last_queries_of_the_keys():
    scheme = create("rope+alibi", **SIZES).eval()
    q, k, v = torch.randn(3, 2, 2, 9, 8)
    full = pezoo.attend(scheme, q, k, v, phase="test")
    last = pezoo.attend(scheme, q[:, :, -3:], k, v, phase="test")
    torch.testing.assert_close(last, full[:, :, -3:])


def test_attend_takes_fewer_key_heads_and_positions():
    scheme = create("rope", **SIZES | {"d_model": 32, "n_heads": 4}).eval()
    q, (k, v) = torch.randn(1, 4, 6, 8), torch.randn(2, 1, 2, 6, 8)
    repeated = (t.repeat_interleave(2, dim=1) for t in (k, v))
    torch.testing.assert_close(
        pezoo.attend(scheme, q, k, v, phase="test"), pezoo.attend(scheme, q, *repeated, phase="test")
    )
    two = Positions.build(6, documents=torch.tensor([[0, 0, 0, 1, 1, 1]]), phase="test")
    out = pezoo.attend(scheme, q, k, v, positions=two, backend="eager")
    alone = pezoo.attend(scheme, *(t[:, :, 3:] for t in (q, k, v)), phase="test")
    torch.testing.assert_close(out[:, :, 3:], alone)


# What fits what


@pytest.mark.parametrize("hook", ["embed", "rotate", "bias"])
@pytest.mark.parametrize("contextual", [True, False])
def test_what_counts_content_offers_no_coordinates(hook, contextual):
    body = {"traits": Traits(contextual=contextual), hook: lambda self, *given: given[0]}
    assert offers(type("Counting", (Encoding,), body))["coordinates"] is not contextual
