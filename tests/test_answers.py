"""Testing tasks: both protocols against a plain loop, what goes wrong at a length, chance, and questions kept apart."""

from statistics import fmean, stdev

import pytest
import torch
from torch.nn import functional as F

from pezoo.data.material import TESTING, TRAINING, Questions
from pezoo.errors import UserError
from pezoo.evaluation import answers
from pezoo.evaluation.answers import ANSWER_PROTOCOLS, evaluate_answers
from pezoo.evaluation.retrieval import k_max
from pezoo.model.transformer import Transformer
from pezoo.registry import list_tasks, register
from pezoo.task import IGNORE, Pairs, Task

DIGITS = "passkey:n_digits=2:n_filler=2"
CAUSAL = {  # task: scheme, training length
    "reverse_string": ("rope", 3),
    "stack_manipulation": ("alibi", 4),  # ragged
    "addition": ("rope+random", 1),  # ragged, at length 2 of another shape in each group
    DIGITS: ("rope+random", 8),  # plain, with depths
    "multi_value:n_values=2:n_filler=2": ("rope+dynamic_ntk", 8),
}
ENCODER = {"reverse_string": ("alibi", 3), "binary_addition": ("rope+random", 5)}
INLINE = {"mqar:n_pairs=2:vocabulary=8": ("t5", 9), "repeat_copy:vocabulary=3": ("rope", 7)}
TESTS = [
    *((name, "causal", "answers") for name in CAUSAL | INLINE),
    *((name, "causal", "generation") for name in CAUSAL),
    *((name, "encoder", "answers") for name in ENCODER),
]
ALL_FORMS = [(name, form) for name in list_tasks() for form in Questions(name, "causal", None).task.forms]


@pytest.fixture(scope="module", autouse=True)
def tasks_of_this_file(same_zoo):
    register("by_depth", title="The answer says how deep it stood")(ByDepth)
    register("fragile", title="Fails at some lengths")(Fragile)


class Watched(Questions):
    """Keeps the questions that it is asked for, and gives the same ones again at once."""

    def __init__(self, *facts):
        super().__init__(*facts)
        self.seen = {}

    def pairs(self, *draw, **place):
        """As usual."""
        key = (*draw, *place.values())
        if key not in self.seen:
            self.seen[key] = super().pairs(*draw, **place)
        return self.seen[key]

    def rows(self):
        """All questions and answers as lists, in order."""
        both = ((pairs.inputs.tolist(), pairs.outputs.tolist()) for pairs in self.seen.values())
        return [row for inputs, outputs in both for row in zip(inputs, outputs, strict=True)]


def make(questions, scheme="rope", length=8, **facts):
    sizes = {"d_model": 16, "n_layers": 2, "n_heads": 2} | facts
    tokens, vocabulary = questions.n_tokens(length), questions.vocab_size
    config = {"scheme": scheme, "train_length": tokens, "vocab_size": vocabulary, "causal": questions.causal}
    return Transformer(config | sizes).eval()


def constant(questions, symbol):
    """A model that says one symbol, whatever it reads."""
    model = make(questions, "nope", d_model=4, n_layers=1, n_heads=1)
    with torch.no_grad():
        model.norm.weight.zero_()
        model.norm.bias.fill_(1)
        model.head.weight.zero_()
        model.head.weight[symbol] = 1
    return model


@pytest.fixture(scope="module")
def trained():
    """A model by task and form, trained until it gets some answers right."""
    made = {}

    def get(name, form):
        if (name, form) not in made:
            scheme, length = (ENCODER if form == "encoder" else CAUSAL | INLINE)[name]
            questions = Questions(name, form, None)
            model = make(questions, scheme, length).train()
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
            for step in range(60):
                tokens, targets = questions.train.batch(step, 32, length, 0)
                positions = model.positions(*tokens.shape, phase="train", rows=range(32 * step, 32 * step + 32))
                F.cross_entropy(model(tokens, positions).flatten(0, 1), targets.flatten()).backward()
                optimizer.step()
                optimizer.zero_grad()
            made[name, form] = model.eval(), length
        return made[name, form]

    return get


def without_cost(result):
    return {k: v for k, v in vars(result).items() if k not in ("seconds", "peak_memory_bytes")}


# ---- a plain loop -------------------------------------------------------------------------------


@torch.no_grad()
def read(model, tokens, declared, row):
    """Logits (n, V) of one sequence."""
    return model(torch.tensor([tokens]), model.positions(1, len(tokens), declared=declared, phase="test", rows=(row,)))[
        0
    ]


def stripped(answer):
    return [token for token in answer if token != IGNORE]


def layout(task, asked, answer):
    """The tokens before the answer, the answer with its mark, and the tokens that the widest answer makes in all."""
    if task.layout == "plain":
        return asked, answer, len(asked) + len(answer) - 1
    return [*asked, task.sep], [*stripped(answer), task.eos], len(asked) + 1 + len(answer)


def teacher_forced(model, questions, row, asked, answer):
    """What is said in place of an answer whose true beginning is read, and the loss of each of its tokens."""
    task, n = questions.task, len(asked)
    if not questions.causal:
        logits = read(model, asked + [task.empty] * len(answer), n + len(answer), row)[n:]
        answer = stripped(answer)
    elif task.layout == "inline":
        logits = torch.stack([read(model, asked[: i + 1], n, row)[-1] for i in range(n) if answer[i] != IGNORE])
        answer = stripped(answer)
    else:
        before, answer, length = layout(task, asked, answer)
        logits = torch.stack([read(model, before + answer[:i], length, row)[-1] for i in range(len(answer))])
    logits = logits[: len(answer)]
    losses = -logits.log_softmax(-1)[torch.arange(len(answer)), torch.tensor(answer)]
    return logits.argmax(-1).tolist(), answer, losses.tolist()


def decoded(model, questions, row, asked, answer):
    """What is said in place of an answer when the model reads its own words."""
    before, answer, length = layout(questions.task, asked, answer)
    said = []
    for _ in answer:
        said.append(int(read(model, before + said, length, row)[-1].argmax()))
    return said, answer, []


def score(questions, questioned):
    """The metrics of (said, answer, losses)."""
    mark = questions.task.eos if questions.causal and questions.task.layout == "marked" else None
    pairs = [list(zip(said, answer, strict=True)) for said, answer, _ in questioned]
    first = [next((i for i, (a, b) in enumerate(row, 1) if a != b), None) for row in pairs]
    right = [a == b for row in pairs for a, b in row if b != mark]
    values = {"exact_match": first.count(None) / len(first), "token_accuracy": sum(right) / len(right)}
    if wrong := [place for place in first if place]:
        values["first_error"] = fmean(wrong)
    if losses := [loss for *_, row in questioned for loss in row]:
        values["loss"] = fmean(losses)
    return values


@pytest.mark.parametrize(("name", "form", "protocol"), TESTS)
def test_a_plain_loop_finds_the_same(name, form, protocol, trained, monkeypatch):
    monkeypatch.setattr(answers, "DRAWN", 3)
    count = 2 if name == DIGITS else 7
    model, length = trained(name, form)
    for tested in (length, length + 1):
        questions = Watched(name, form, length)
        whole, *_ = evaluate_answers(model, questions, [tested], protocol=protocol, count=count, seed=1)
        loop = teacher_forced if protocol == "answers" else decoded
        found = [loop(model, questions, row, *question) for row, question in enumerate(questions.rows())]
        assert len(found) == count * len(questions.task.depths or [None])
        values = {key: value for key, value in whole.values.items() if key != "k_max"}
        assert values == pytest.approx(score(questions, found), abs=1e-5)
        counts = (sum(len(answer) for _, answer, _ in found), len(found))
        assert (whole.n_tokens, whole.n_documents) == counts
        assert (whole.test_length, whole.protocol, whole.depth) == (tested, protocol, None)


@pytest.mark.parametrize("name", CAUSAL)
def test_up_to_the_first_error_both_protocols_are_one(name, trained):
    model, length = trained(name, "causal")
    questions = Watched(name, "causal", None)
    lengths = [length, length + 2]
    forced, greedy = (
        evaluate_answers(model, questions, lengths, protocol=protocol, count=30) for protocol in ANSWER_PROTOCOLS
    )
    for one, other in zip(forced, greedy, strict=True):
        assert "loss" in one.values
        assert "loss" not in other.values
        for metric in ("exact_match", "first_error", "k_max"):
            assert one.values.get(metric) == pytest.approx(other.values.get(metric), abs=1e-12)
        assert (one.test_length, one.depth, one.n_tokens) == (other.test_length, other.depth, other.n_tokens)
    assert 0 < fmean(r.values["exact_match"] for r in forced) < 1, "some answers are right, some wrong"
    assert [r.values["token_accuracy"] for r in forced] != [r.values["token_accuracy"] for r in greedy]


@pytest.mark.parametrize("protocol", ANSWER_PROTOCOLS)
@pytest.mark.parametrize("name", ["addition", DIGITS])
def test_the_size_of_a_forward_pass_changes_nothing(name, protocol, trained):
    model, length = trained(name, "causal")
    questions = Watched(name, "causal", length)
    found = [
        evaluate_answers(model, questions, [length, 2 * length], protocol=protocol, count=9, batch_tokens=tokens)
        for tokens in (16384, 70, 1)
    ]
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            assert one.values == pytest.approx(other.values, abs=1e-5)
            assert without_cost(one) | {"values": {}} == without_cost(other) | {"values": {}}


@pytest.mark.parametrize("protocol", ANSWER_PROTOCOLS)
def test_the_output_layer_reads_what_is_asked_alone(protocol, trained):
    model, length = trained(DIGITS, "causal")
    seen = []
    hook = model.head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].flatten(0, -2).shape[0]))
    found = evaluate_answers(model, Questions(DIGITS, "causal", length), [2 * length], protocol=protocol, count=9)
    hook.remove()
    assert sum(seen) == found[0].n_tokens


def test_questions_are_those_of_the_seed_and_new_at_each_length_depth_and_group(monkeypatch):
    monkeypatch.setattr(answers, "DRAWN", 4)
    questions = Watched("passkey:n_digits=6", "causal", 12)
    model = make(questions)
    for seed in (0, 0, 1):
        evaluate_answers(model, questions, [20, 21], count=8, seed=seed)
    assert len(questions.seen) == 2 * 2 * 11 * 2  # seeds, lengths, depths, groups
    keys = [tuple(answer) for _, answer in questions.rows()]
    assert len(keys) == len(set(keys)) == 2 * 2 * 11 * 8


# ---- depths -------------------------------------------------------------------------------------


class ByDepth(Task):
    """At depth i / 4 the answer is 1 to i of four questions, 0 to the others."""

    layout, forms, n_symbols = "plain", ("causal",), 2
    depths = (0.0, 0.25, 0.5, 0.75, 1.0)

    def output_length(self, length):
        """One symbol."""
        return 1

    def sample(self, batch_size, length, generator, depth=None):
        """Zeros as questions."""
        ones = torch.arange(batch_size) % 4 < 4 * depth
        return Pairs(torch.zeros(batch_size, length, dtype=torch.int64), ones[:, None].long())

    def distance(self, length, depth):
        """Places from the end; several depths share one where the question is short."""
        return length - round(depth * (length - 1))


def test_depths_have_results_of_their_own_and_all_together_is_their_mean(trained):
    model, length = trained(DIGITS, "causal")
    questions = Questions(DIGITS, "causal", None)
    task = questions.task
    for protocol in ANSWER_PROTOCOLS:
        whole, *parts = evaluate_answers(model, questions, [2 * length], protocol=protocol, count=40)
        assert tuple(r.depth for r in parts) == task.depths
        assert all(r.n_documents == 40 and r.n_tokens == 80 and "k_max" not in r.values for r in parts)
        assert (whole.n_documents, whole.n_tokens) == (11 * 40, 11 * 80)
        for metric in {"exact_match", "token_accuracy", "loss"} & set(ANSWER_PROTOCOLS[protocol]):
            assert whole.values[metric] == pytest.approx(fmean(r.values[metric] for r in parts))
        wrong = [(r.values["first_error"], 1 - r.values["exact_match"]) for r in parts if "first_error" in r.values]
        mean = sum(place * share for place, share in wrong) / sum(share for _, share in wrong)
        assert whole.values["first_error"] == pytest.approx(mean)
        success = {task.distance(2 * length, r.depth): r.values["exact_match"] for r in parts}
        assert 0 < whole.values["exact_match"] < 1
        assert whole.values["k_max"] in (0, *success)


@pytest.mark.parametrize(("length", "symbol", "reached"), [(9, 0, 0), (9, 1, 7), (2, 0, 0), (1, 0, 1)])
def test_k_max_is_that_of_the_share_of_right_answers_at_each_distance(length, symbol, reached):
    questions = Questions("by_depth", "causal", None)
    whole, *parts = evaluate_answers(constant(questions, symbol), questions, [length], count=8)
    shares = {}
    for r in parts:
        shares.setdefault(ByDepth().distance(length, r.depth), []).append(r.values["exact_match"])
    assert whole.values["k_max"] == k_max({k: fmean(v) for k, v in shares.items()}) == reached


@pytest.mark.parametrize("protocol", ANSWER_PROTOCOLS)
def test_there_is_no_k_max_without_depths(protocol):
    questions = Questions("reverse_string", "causal", None)
    [found] = evaluate_answers(make(questions), questions, [4], protocol=protocol, count=4)
    assert "k_max" not in found.values


# ---- what goes wrong ----------------------------------------------------------------------------


class Fragile(Task):
    """Each length from 5 on fails in its own way."""

    n_symbols = 2

    def output_length(self, length):
        """One symbol."""
        return 1

    def sample(self, batch_size, length, generator):
        """Zeros, or an error."""
        errors = {5: UserError("no such length"), 6: MemoryError(), 9: KeyError("a bug")}
        if length in errors:
            raise errors[length]
        zeros = torch.zeros(batch_size, length, dtype=torch.int64)
        return Pairs(zeros, zeros[:, :1])


@pytest.mark.parametrize("protocol", ANSWER_PROTOCOLS)
def test_beyond_a_table_a_scheme_is_undefined_and_other_lengths_keep_their_results(protocol):
    questions = Questions("reverse_string", "causal", 6)
    model = make(questions, "learned", 6)
    lengths = [6, 9, 5]
    found = evaluate_answers(model, questions, lengths, protocol=protocol, count=5)
    assert [r.status for r in found] == ["ok", "undefined", "ok"]
    assert found[1].values == {}
    assert found[1].n_tokens == 0
    assert "learned" in found[1].reason
    assert [without_cost(r) for r in found[::2]] == [
        without_cost(r)
        for length in lengths[::2]
        for r in evaluate_answers(model, questions, [length], protocol=protocol, count=5)
    ]


@pytest.mark.parametrize("protocol", ANSWER_PROTOCOLS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_model_that_is_not_finite_has_diverged(protocol, value):
    questions = Questions("reverse_string", "causal", 6)
    model = make(questions, "rope", 6)
    with torch.no_grad():
        model.norm.weight[0] = value
    found = evaluate_answers(model, questions, [6, 7], protocol=protocol, count=5)
    assert {(r.status, r.reason) for r in found} == {("diverged", "the output is not finite")}
    assert all(r.values == {} for r in found)


def test_each_length_has_the_status_of_its_own_failure():
    questions = Questions("fragile", "causal", None)
    calls = []
    found = evaluate_answers(
        make(questions),
        questions,
        [4, 5, 6, 8],
        count=70,
        batch_tokens=99,
        progress=lambda *call: calls.append(call),
    )
    assert [r.status for r in found] == ["ok", "undefined", "out_of_memory", "ok"]
    assert [r.reason for r in found] == ["", "no such length", "not enough memory", ""]
    assert calls[-1] == (23 * 70, 23 * 70)
    assert calls == sorted(set(calls))
    with pytest.raises(KeyError, match="a bug"):
        evaluate_answers(make(questions), questions, [8, 9], count=70)


@pytest.mark.parametrize("error", [UserError("mine"), FloatingPointError("mine"), RuntimeError("mine")])
@pytest.mark.parametrize("protocol", ANSWER_PROTOCOLS)
def test_what_the_model_raises_is_no_result(error, protocol, monkeypatch):
    def hidden(*_, **__):
        raise error

    questions = Questions("reverse_string", "causal", 6)
    model = make(questions, "rope", 6)
    monkeypatch.setattr(Transformer, "hidden", hidden)
    with pytest.raises(type(error), match="mine"):
        evaluate_answers(model, questions, [6], protocol=protocol, count=5)


@pytest.mark.parametrize("protocol", ANSWER_PROTOCOLS)
@pytest.mark.parametrize("name", ["addition", "passkey"])
def test_where_memory_runs_out_fewer_questions_are_asked_at_a_time(name, protocol, monkeypatch):
    questions, calls, sizes = Questions(name, "causal", None), [], []
    model = make(questions)
    whole = evaluate_answers(model, questions, [9, 12], protocol=protocol, count=40)

    def hidden(self, tokens, *args, inner=Transformer.hidden, **facts):
        sizes.append(len(tokens))
        if len(tokens) > 2 and len(sizes) > 1:
            raise MemoryError
        return inner(self, tokens, *args, **facts)

    monkeypatch.setattr(Transformer, "hidden", hidden)
    found = evaluate_answers(
        model, questions, [9, 12], protocol=protocol, count=40, progress=lambda *call: calls.append(call)
    )
    assert max(sizes) > 2
    for a, b in zip(whole, found, strict=True):
        assert (a.depth, a.status, a.n_tokens, a.n_documents) == (b.depth, b.status, b.n_tokens, b.n_documents)
        assert a.values == pytest.approx(b.values, rel=1e-5)
    assert calls[-1][0] == calls[-1][1]


@pytest.mark.parametrize("protocol", ANSWER_PROTOCOLS)
@pytest.mark.parametrize("name", ["addition", "passkey"])
def test_progress_reaches_its_end(name, protocol):
    questions = Watched(name, "causal", None)
    calls = []
    evaluate_answers(
        make(questions),
        questions,
        [9, 12],
        protocol=protocol,
        count=5,
        batch_tokens=50,
        progress=lambda *call: calls.append(call),
    )
    assert len(calls) > 5
    assert calls == sorted(set(calls))
    total = calls[-1][1]
    assert calls[-1] == (total, total)
    assert {total for _, total in calls} == {total}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("protocol", ANSWER_PROTOCOLS)
def test_the_mode_is_left_as_it_was(training, protocol):
    questions = Questions("reverse_string", "causal", 4)
    model = make(questions, dropout=0.5).train(training)
    first, again = (evaluate_answers(model, questions, [4], protocol=protocol, count=8) for _ in range(2))
    assert without_cost(first[0]) == without_cost(again[0]), "no dropout"
    assert model.training is training
    with pytest.raises(KeyboardInterrupt):
        evaluate_answers(model, questions, [4], protocol=protocol, count=4, progress=interrupt)
    assert model.training is training
    assert all(p.grad is None for p in model.parameters())


def interrupt(done, total):
    raise KeyboardInterrupt


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device")
@pytest.mark.parametrize("protocol", ANSWER_PROTOCOLS)
def test_a_gpu_gives_the_model_back_and_finds_the_same(protocol, trained):
    model, length = trained("stack_manipulation", "causal")
    questions = Questions("stack_manipulation", "causal", None)
    there, here = (
        evaluate_answers(model, questions, [length], protocol=protocol, count=30, device=device)
        for device in ("cuda", "cpu")
    )
    assert next(model.parameters()).device.type == "cpu"
    assert there[0].values == pytest.approx(here[0].values, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "form", "protocol", "message"),
    [
        ("reverse_string", "causal", "answer", "no protocol 'answer' for tasks. Did you mean 'answers'?"),
        ("reverse_string", "causal", "prefix", "no protocol 'prefix' for tasks.* Known: answers, generation"),
        ("reverse_string", "encoder", "generation", "reverse_string, encoder form, has no answer to generate"),
        ("mqar", "causal", "generation", "mqar, causal form, has no answer to generate.*use the protocol answers"),
    ],
)
def test_a_protocol_that_does_not_suit_is_refused(name, form, protocol, message):
    questions = Questions(name, form, None)
    with pytest.raises(UserError, match=message):
        evaluate_answers(make(questions, length=16), questions, [16], protocol=protocol, count=2)


# ---- chance, and questions kept apart -----------------------------------------------------------


def lengths_of(name):
    """A training length at which a task has enough questions, and a longer one at which its chance is as declared."""
    least = Questions(name, "causal", None).task.least_length
    return max(8, least + 2), max(40, least + 2)


@pytest.mark.parametrize(("name", "form"), ALL_FORMS)
def test_one_guess_for_all_is_right_as_often_as_the_task_says(name, form):
    """The guess is the commonest token of the training questions' answers."""
    questions, (_, length) = Watched(name, form, None), lengths_of(name)
    outputs = Questions(name, form, None).pairs(TRAINING, 0, 256, length, 0).outputs
    guess = int(outputs[outputs != IGNORE].mode().values)
    count = 16 if questions.task.depths else 128
    whole, *_ = evaluate_answers(constant(questions, guess), questions, [length], count=count)
    found = [stripped(answer) for _, answer in questions.rows()]
    assert len(found) == count * len(questions.task.depths or [None])
    error = stdev(answer.count(guess) / len(answer) for answer in found) / len(found) ** 0.5
    share = sum(answer.count(guess) for answer in found) / sum(map(len, found))
    assert whole.values["token_accuracy"] == pytest.approx(share)
    assert whole.values["token_accuracy"] <= questions.task.chance + 4 * error


@pytest.mark.parametrize(("name", "form"), ALL_FORMS)
def test_an_untrained_model_does_no_better_than_chance(name, form):
    """Rows of an untrained output layer are alike: over many models each token is as likely to be said, anywhere."""
    questions, length = Watched(name, form, None), lengths_of(name)[0]
    count = 3 if questions.task.depths else 16
    found = []
    for seed in range(8):
        model = make(questions, "rope", length, n_layers=1, seed=seed)
        found.append(evaluate_answers(model, questions, [length], count=count)[0].values["token_accuracy"])
    assert fmean(found) <= questions.task.chance + 4 * stdev(found) / len(found) ** 0.5
    assert max(found) < 1


@pytest.mark.parametrize("name", list_tasks())
def test_training_and_testing_share_no_question_from_the_training_length_on(name):
    length, _ = lengths_of(name)
    questions = Questions(name, "causal", length)
    # One shorter, too: an expression of 8 symbols has 7 in `modular_arithmetic`.
    drawn = {TRAINING: [length - 1, length, length + 1], TESTING: [length, length + 1]}
    train, test = (
        {
            tuple(row)
            for step in range(4)
            for tested in lengths
            for row in questions.pairs(purpose, step, 48, tested, 7).inputs.tolist()
        }
        for purpose, lengths in drawn.items()
    )
    assert not train & test
    assert len(train) > 100
    assert len(test) > 20


@pytest.mark.parametrize(("name", "shorter", "length"), [("modular_arithmetic", 5, 6), ("scan", 22, 23)])
def test_lengths_that_mean_the_same_questions_are_kept_apart_together(name, shorter, length):
    def inputs(purpose, at):
        pairs = (questions.pairs(purpose, step, 64, at, 0) for step in range(8))
        return {tuple(row) for found in pairs for row in found.inputs.tolist()}

    questions = Questions(name, "causal", None)
    assert inputs(TRAINING, shorter) & inputs(TESTING, length), "they are few enough to meet"
    questions = Questions(name, "causal", length)
    assert not inputs(TRAINING, shorter) & inputs(TESTING, length)
