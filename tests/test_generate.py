"""Text from trained models: decoding through the cache, the models of a study, and the command that shows them."""

import json
import re
import shutil
import signal
from math import log

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import far_from_start, write_words
from pezoo.cli import main, page
from pezoo.cli.page import Page, stretches
from pezoo.contract import Undefined
from pezoo.data import load, windows
from pezoo.data.tokenizer import load_tokenizer
from pezoo.errors import UserError
from pezoo.model import decode as decoding
from pezoo.model.decode import decode, stream
from pezoo.registry import Entry
from pezoo.results import read
from pezoo.study import Study
from pezoo.study.models import find_model
from pezoo.study.reading import load_recipe
from pezoo.training.checkpoint import load as load_checkpoint

SIZES = {"vocab_size": 11, "d_model": 16, "n_heads": 2, "n_layers": 2, "train_length": 8}
SCHEMES = [
    "nope",
    "sinusoidal",
    "dynamic_sinusoidal",
    "rope",
    "rope+pi",
    "rope+dynamic_ntk",
    "rope+dynamic_yarn",
    "rope+random",
    "rope+random:draw=layer",
    "learned+random",
    "rope+rerope",
    "rope+self_extend",
    "rope+yarn+logn",
    "rope+memory",
    "shape",
    "alibi",
    "alibi+sinks",
    "alibi+dape",
    "fire+random",
    "shaw",
    "deberta",
    "cope",
    "transformer_xl",
    {"layers": ["rope", "nope"]},
    {"layers": ["shaw", {"heads": {"rope+pi": 1, "alibi": 1}}]},
]


def build(scheme, **config):
    return far_from_start({"scheme": scheme} | SIZES | config)


def prompts(batch=2, length=5):
    return torch.randint(11, (batch, length), generator=torch.Generator().manual_seed(3))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# ---- decoding -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_decoding_is_reading_everything_anew_for_each_token(scheme):
    model, text, n_new = build(scheme), prompts(), 20
    steps = list(stream(model, text, n_new))
    for ids, logs in steps:
        positions = model.positions(*text.shape, declared=25, rows=range(len(text)))
        with torch.no_grad():
            expected, best = model(text, positions)[:, -1].log_softmax(-1).max(-1)
        assert ids.equal(best)
        torch.testing.assert_close(logs, expected, rtol=1e-4, atol=1e-4)
        text = torch.cat([text, ids[:, None]], dim=1)
    assert text.shape == (2, 25)
    assert decode(model, prompts(), n_new).equal(text[:, 5:])


def test_length_is_what_length_dependent_schemes_are_told():
    for scheme, depends in (("rope+dynamic_ntk", True), ("rope+random", True), ("rope", False)):
        model = build(scheme)
        near, far = ([logs for _, logs in stream(model, prompts(), 4, length=n)] for n in (9, 100))
        assert depends != all(torch.allclose(a, b) for a, b in zip(near, far, strict=True))


def test_the_length_may_leave_out_the_last_token_which_is_not_read():
    model, text = build("rope+dynamic_ntk"), prompts()
    new = decode(model, text, 10, length=14)
    with torch.no_grad():
        logits = model(torch.cat([text, new[:, :-1]], dim=1))
    assert logits[:, 4:].argmax(-1).equal(new)


def test_a_row_is_continued_alike_in_any_batch():
    model = build("rope+random")
    together = decode(model, prompts(3), 12)
    alone = [decode(model, prompts(3)[i : i + 1], 12, rows=(i,)) for i in range(3)]
    assert together.equal(torch.cat(alone))
    (_, here), *_ = stream(model, prompts(3)[1:2], 12, rows=(1,))
    (_, there), *_ = stream(model, prompts(3)[1:2], 12)
    assert not here.equal(there)  # row 1, and row 0


def test_nothing_is_drawn_when_decoding_greedily():
    model = build("rope")
    before = torch.get_rng_state()
    assert decode(model, prompts(), 9).equal(decode(model, prompts(), 9))
    assert torch.get_rng_state().equal(before)


def test_samples_come_from_their_generator_alone():
    model, how = build("rope"), {"temperature": 1.5}
    before = torch.get_rng_state()
    first, again, other = (decode(model, prompts(), 30, generator=seeded(i), **how) for i in (0, 0, 1))
    assert first.equal(again)
    assert not first.equal(other)
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("how", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-6}], ids=str)
def test_a_choice_of_one_is_greedy(how):
    model = build("alibi")
    drawn = decode(model, prompts(), 12, **{"temperature": 1.0} | how, generator=seeded(0))
    assert drawn.equal(decode(model, prompts(), 12))


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({}, [0.15, 0.5, 0.05, 0.3]),
        ({"top_k": 2}, [0, 5 / 8, 0, 3 / 8]),
        ({"top_k": 9}, [0.15, 0.5, 0.05, 0.3]),
        ({"top_p": 0.45}, [0, 1, 0, 0]),
        ({"top_p": 0.6}, [0, 5 / 8, 0, 3 / 8]),
        ({"top_k": 3, "top_p": 0.9}, [15 / 95, 50 / 95, 0, 30 / 95]),
        ({"temperature": 0.5}, [0.0225 / 0.365, 0.25 / 0.365, 0.0025 / 0.365, 0.09 / 0.365]),
    ],
    ids=str,
)
def test_samples_have_the_stated_distribution(how, expected):
    logits = torch.tensor([0.15, 0.5, 0.05, 0.3]).log().expand(20_000, 4)
    how = {"temperature": 1.0, "top_k": None, "top_p": 1.0} | how
    drawn = decoding._choose(logits, **how, generator=seeded(0)).bincount(minlength=4) / 20_000
    assert drawn.tolist() == pytest.approx(expected, abs=0.015)
    assert all(share == 0 for share, stated in zip(drawn, expected, strict=True) if not stated)


def test_the_model_decodes_in_evaluation_mode_and_gets_its_own_back():
    model = build("rope", dropout=0.5)
    expected = decode(model, prompts(), 9)
    model.train()
    assert decode(model, prompts(), 9).equal(expected)
    assert all(module.training for module in model.modules())
    steps = stream(model, prompts(), 9)
    next(steps)
    assert not model.training
    steps.close()
    assert model.training
    with pytest.raises(Undefined):
        decode(build("learned").train(), prompts(), 9)


def test_what_is_decoded_is_an_ordinary_tensor():
    decoded = decode(build("rope"), prompts(), 3)
    assert decoded.dtype == torch.int64
    assert not decoded.is_inference()
    assert decode(build("rope"), prompts(), 0).shape == (2, 0)


def test_an_undefined_scheme_yields_all_that_it_can():
    steps, found = stream(build("learned"), prompts(), 20), []
    with pytest.raises(Undefined, match="learned has 8 positions"):
        found.extend(ids for ids, _ in steps)
    assert len(found) == 4  # the eighth token is the last that is read


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prompt": prompts(2, 0)}, "prompt is empty"),
        ({"n_new": -1}, "at least 0, got -1"),
        ({"length": 6}, "length = 6, but 5 tokens of a prompt and 3 new ones need 7"),
        ({"temperature": -0.1}, "temperature must be at least 0"),
        ({"temperature": float("nan")}, "temperature must be at least 0"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_p": 1.1}, "top_p must be above 0 and at most 1"),
        ({"model": build("rope", causal=False)}, "an encoder cannot"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_arguments_out_of_range_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        decode(**{"model": build("rope"), "prompt": prompts(), "n_new": 3} | wrong)


# ---- tokens to text -----------------------------------------------------------------------------


@given(st.binary(), st.text())
@settings(deadline=None, max_examples=30)
def test_bytes_become_text_as_they_come(noise, text):
    content = noise + text.encode("utf-8", "replace")
    decoded = load_tokenizer(None).decoder()
    assert "".join(decoded([byte]) for byte in content) + decoded([], final=True) == content.decode(errors="replace")


def test_a_character_comes_with_its_last_byte():
    decoded = load_tokenizer(None).decoder()
    assert [decoded([byte]) for byte in "aé€".encode()] == ["a", "", "é", "", "", "€"]


def test_subword_tokens_become_the_text_of_their_tokenizer(tmp_path):
    pytest.importorskip("transformers", reason="needs transformers, an optional dependency")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    for i, (before, after) in enumerate(
        [
            (pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()),  # characters of several tokens
            (pre_tokenizers.Metaspace(), decoders.Metaspace()),  # a text's first space is dropped
        ]
    ):
        built = Tokenizer(models.BPE(unk_token="<unk>"))
        built.pre_tokenizer, built.decoder = before, after
        alphabet = pre_tokenizers.ByteLevel.alphabet() if i == 0 else []
        trainer = trainers.BpeTrainer(
            vocab_size=320, special_tokens=["<unk>"], initial_alphabet=alphabet, show_progress=False
        )
        built.train_from_iterator(["some words and some more words , of many letters é € 😀 "], trainer)
        PreTrainedTokenizerFast(tokenizer_object=built, unk_token="<unk>").save_pretrained(tmp_path / str(i))
        tokenizer = load_tokenizer(str(tmp_path / str(i)))
        text = "some letters , é and 😀 and more"
        (ids,) = tokenizer.encode([text])
        decoded = tokenizer.decoder()
        pieces = [decoded([token]) for token in ids.tolist()]
        assert "".join(pieces) + decoded([], final=True) == text
        assert sum(map(bool, pieces)) > 5
        decoded = tokenizer.decoder()
        assert decoded(ids.tolist()) + decoded([], final=True) == text


# ---- what a page shows --------------------------------------------------------------------------


def test_stretches_tell_where_a_text_runs_in_circles():
    tokens = [1, 2, 3, 4, 5, 6, *[7, 8] * 4, 9]
    found = stretches(tokens, [-1.0] * 6 + [-2.0] * 8 + [-9.0], start=2, width=8)
    assert [(s.first, s.last) for s in found] == [(3, 8), (9, 16), (17, 17)]
    assert [s.log_probability for s in found] == [-1, -2, -9]
    assert [s.distinct for s in found] == [1, 2 / 5, None]


@pytest.mark.parametrize(("start", "n", "width"), [(0, 1, 1), (3, 5, 4), (7, 1000, 2), (90, 40, 16), (8, 64, 8)])
def test_stretches_hold_every_token_once(start, n, width):
    found = stretches(range(n), [0.0] * n, start, width)
    covered = [i for s in found for i in range(s.first, s.last + 1)]
    assert covered == list(range(start + 1, start + n + 1))
    assert len(found) <= page.STRETCHES + 1


def test_a_terminal_gets_no_control_characters(capsys, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = "a\x1b[2J\r\x9b\tb\n€"
    Page().write(text)
    assert capsys.readouterr().out == text
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    page = Page()
    page.write("prompt", dim=True)
    page.write(text)
    page.mark("here")
    page.write("c\n")
    page.end()
    shown = capsys.readouterr()
    assert shown.out == "\x1b[2mprompt\x1b[22ma\ufffd[2J\ufffd\ufffd\tb\n€\nc\n"
    assert shown.err == "── here ──\n"


# ---- the models of a study ----------------------------------------------------------------------

OVERRIDES = [
    "size=test",
    "schemes=[learned, {scheme: alibi, label: biased}, {scheme: rope+pi, tune: [0, 3], label: stretched}]",
    *("seeds=[1, 0]", "workers=1", "test.lengths=[1x, 4x]", "test.windows=3", "tune.length=4x", "data.max_bytes=null"),
]
TUNED = "stretched, 3 steps @ 4x"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The quickstart, as small as can be, on a text of its own."""
    folder = tmp_path_factory.mktemp("generate")
    write_words(folder / "text", 60)
    data = ["data.corpus=text", f"data.path={folder / 'text'}"]
    Study.prepare("quickstart", [*OVERRIDES, *data], folder / "out").run()
    return folder / "out"


@pytest.fixture
def copy(study, tmp_path):
    """The study, to be spoilt."""
    return shutil.copytree(study, tmp_path / "copy")


def relabel(folder, **fields):
    """Change fields of all results of a study."""
    path = folder / "results.jsonl"
    changed = [json.dumps(json.loads(line) | fields) for line in path.read_text().splitlines()]
    path.write_text("\n".join(changed))


@pytest.mark.slow
@pytest.mark.ci(one_in=3)
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("label", ["biased", "stretched", TUNED])
def test_a_found_model_gives_the_numbers_of_the_study(study, label, seed):
    found = find_model(study, label, seed)
    recipe = load_recipe(study / "recipe.yaml")
    ids = windows(load(recipe.data).test, 64, recipe.test.windows, recipe.test.seed).ids
    checked = 0
    for result in read(study / "results.jsonl"):
        if (result.label, result.seed, result.metric) == (label, seed, "loss"):
            with torch.no_grad():
                logits = found.model(ids[:, : result.test_length])
            loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1 : result.test_length + 1].flatten())
            assert float(loss) == pytest.approx(result.value, abs=1e-5)
            assert abs(result.value - log(256)) > 1e-4
            checked += 1
    assert checked == 2


def test_a_tuned_model_has_the_tuned_weights_and_both_lengths(study):
    zero_shot, tuned = find_model(study, "stretched"), find_model(study, TUNED)
    assert not zero_shot.model.head.weight.equal(tuned.model.head.weight)
    weights = load_checkpoint(study / "cells" / tuned.inputs["parent"] / "model.pt")[0].head.weight
    assert tuned.model.head.weight.equal(weights)
    assert [zero_shot.lengths, tuned.lengths] == [{16: "training"}, {16: "training", 64: "tuning"}]
    assert str(tuned.model.scheme.spec) == "rope+pi:factor=4"
    assert not tuned.model.training


def test_rows_are_found_by_label_and_by_scheme_in_any_spelling(study):
    assert find_model(study, "alibi").label == "biased"
    assert find_model(study, " rope_pi").label == "stretched"
    assert find_model(study, "rope+pi:factor=4.0").label == TUNED
    assert [find_model(study, "biased", seed).seed for seed in (None, 0, 1)] == [1, 0, 1]


@pytest.mark.parametrize(
    ("scheme", "seed", "message"),
    [
        (None, None, r"say which scheme\. It has: 'learned'; 'biased'; 'stretched'; 'stretched, 3 steps @ 4x'$"),
        ("biassed", None, r"has no 'biassed'\. Did you mean 'biased'\? It has: 'learned'"),
        ("rope", None, "has no 'rope'.*It has: 'learned'"),
        ("rope+p", None, r"Did you mean 'rope\+pi'"),
        ("biased", 7, r"'biased' was not trained with seed 7; its seeds: 1, 0"),
    ],
)
def test_what_the_study_lacks_is_said_with_what_it_has(study, scheme, seed, message):
    with pytest.raises(UserError, match=message):
        find_model(study, scheme, seed)


def test_a_folder_without_a_study_or_a_language_model_is_refused(copy):
    with pytest.raises(UserError, match=r"cells is no folder of a study: it has no results\.jsonl"):
        find_model(copy / "cells", "rope")
    with pytest.raises(UserError, match=r"part 'text' of .* has no tested language model"):
        find_model(copy, "biased", part="text")
    relabel(copy, task="copy")
    with pytest.raises(UserError, match="has no tested language model"):
        find_model(copy, "biased")


def test_a_scheme_in_several_rows_or_parts_has_to_be_named(copy):
    lines = (copy / "results.jsonl").read_text()
    relabel(copy, scheme="alibi")
    with pytest.raises(UserError, match=r"several rows of .* are alibi: 'learned'; 'biased'"):
        find_model(copy, "alibi")
    relabel(copy, part="b")
    with (copy / "results.jsonl").open("a") as file:
        file.write("\n" + lines)
    with pytest.raises(UserError, match=r"several parts .*type --part b"):
        find_model(copy, "biased")
    assert find_model(copy, "biased", part="b").part == "b"


def test_a_missing_model_is_said_with_the_reason(copy):
    for path in copy.glob("cells/*/model.pt"):
        path.unlink()
    with pytest.raises(UserError, match="no trained model of 'biased', seed 1: its files are gone or damaged"):
        find_model(copy, "biased")
    relabel(copy, status="diverged", value=None, reason="no trained model: the loss is not finite")
    with pytest.raises(UserError, match="no trained model of 'biased', seed 1: the loss is not finite"):
        find_model(copy, "biased")


def test_changed_sources_are_noticed(copy, capsys, monkeypatch):
    assert not find_model(copy, "biased").changed
    monkeypatch.setattr(Entry, "source_hash", property(lambda entry: "edited"))
    assert find_model(copy, "biased").changed
    assert main(["generate", str(copy), "biased", "--tokens", "1"]) == 0
    assert "the code of this scheme has changed" in capsys.readouterr().err


# ---- the command --------------------------------------------------------------------------------


def told(capsys, study, *argv, code=0):
    """What a command writes: standard output, and the lines of standard error."""
    assert main(["generate", str(study), *map(str, argv)]) == code
    captured = capsys.readouterr()
    return captured.out, captured.err.splitlines()


def test_the_text_is_the_prompt_and_what_the_model_makes_of_it(study, capsys):
    text, notes = told(capsys, study, "biased", "--prompt", "two é", "--tokens", 40, "--greedy")
    prompt = torch.tensor([list("two é".encode())])
    new = decode(find_model(study, "biased").model, prompt, 40)
    assert text == bytes(torch.cat([prompt, new], 1)[0].tolist()).decode(errors="replace")
    assert notes[:2] == ["biased, seed 1; prompt: as given", "── 16 tokens: the training length ──"]
    assert [line.split()[0] for line in notes[3:]] == ["7-16", "17-32", "33-46"]
    again, _ = told(capsys, study, "biased", "--seed", 0, "--prompt", "two é", "--tokens", 40, "--greedy")
    assert again != text


def test_the_prompt_is_the_beginning_of_a_test_window_by_default(study, capsys):
    recipe = load_recipe(study / "recipe.yaml")
    test = load(recipe.data).test
    text, notes = told(capsys, study, TUNED)
    where = re.fullmatch(r".*; prompt: 8 tokens of the test document (.+), from token (\d+) on", notes[0])
    start = test.offsets[test.names.index(where[1])] + int(where[2])
    assert text.startswith(bytes(test.ids[start : start + 8]).decode())
    assert [line for line in notes if "──" in line] == [
        "── 16 tokens: the training length ──",
        "── 64 tokens: the tuning length ──",
    ]
    assert notes[-1].split()[0] == "65-72"  # 4 training lengths of new tokens


def test_another_sample_is_another_text(study, capsys):
    first, again, other, cold = (
        told(capsys, study, "alibi", "--tokens", 20, *how)[0] for how in ([], [], ["--sample", 1], ["--temperature", 0])
    )
    assert first == again != other
    assert cold == told(capsys, study, "alibi", "--tokens", 20, "--greedy")[0]


def test_an_undefined_scheme_writes_what_it_can(study, capsys):
    text, notes = told(capsys, study, "learned", "--prompt", "one two ")
    assert text.startswith("one two ")
    (stopped,) = (line for line in notes if "stopped" in line)
    assert stopped.startswith("── stopped before token 18 of 72: the scheme is undefined from here on: learned has 16")
    assert notes[-1].split()[0] == "17-17"


@pytest.mark.parametrize(
    ("raised", "code", "name"), [((), 130, "Ctrl-C"), ((signal.SIGINT,), 130, "Ctrl-C"), ((15,), 143, "SIGTERM")]
)
def test_ctrl_c_leaves_the_text_so_far(study, capsys, monkeypatch, raised, code, name):
    def interrupted(*args, **how):
        yield from list(stream(*args, **how))[:3]
        raise KeyboardInterrupt(*raised)

    monkeypatch.setattr(decoding, "stream", interrupted)
    text, notes = told(capsys, study, "alibi", "--prompt", "one two ", code=code)
    assert text.startswith("one two ")
    assert notes[1] == f"── stopped before token 12 of 72: {name} ──"
    assert notes[-1].split()[0] == "9-11"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "say which scheme"),
        (["biased", "--prompt", ""], "the prompt is empty"),
        (["biased", "--tokens", "-3"], "at least 0, got -3"),
        (["biased", "--tokens", "x"], "--tokens.*'x'"),
        (["biased", "--length", "9"], "length = 9, but 8 tokens"),
        (["biased", "--top-p", "2"], "top_p must be above 0"),
        (["biased", "--greedy", "--temperature", "1"], "not allowed with"),
        (["biased", "--token", "1"], "Did you mean '--tokens'"),
    ],
)
def test_mistakes_are_one_message(study, capsys, argv, message):
    text, notes = told(capsys, study, *argv, code=2)
    assert text == ""
    assert re.search(message, notes[-1])
    assert sum(line.startswith("error: ") for line in notes) == 1


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["generate", "--help"])
    assert ended.value.code == 0
    examples = capsys.readouterr().out.partition("examples:\n")[2]
    assert examples.count("  pezoo generate runs/quickstart ") == 3
