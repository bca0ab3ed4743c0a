"""Models of pezoo in lm-evaluation-harness; runs where that is installed."""

import json

import pytest
import torch

import pezoo
from pezoo.data.tokenizer import load_tokenizer
from pezoo.errors import UserError

lm_eval = pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of the harness and of what it brings

TASKS = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}],
    },
    "texts": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    "written": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{written}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match"}],
    },
}
QUESTIONS = ["The sky is", "Two and two are", "A "]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = pezoo.Transformer(
        {"scheme": "alibi", "d_model": 32, "n_heads": 2, "n_layers": 2, "train_length": 16, "vocab_size": 256}
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.3)
    return made.eval()


@pytest.fixture(scope="module")
def harness(model):
    from pezoo.study.harness import Harness

    return Harness(model, load_tokenizer(None))


def log_probability(model, context, continuation):
    """By the naive way, in float64: each token after all before it."""
    ids, start = list((context + continuation).encode()), len(context.encode())
    total, greedy = 0.0, True
    for i in range(start, len(ids)):
        logits = model(torch.tensor([ids[:i]]))[0, -1].double()
        total += float(logits.log_softmax(-1)[ids[i]])
        greedy &= int(logits.argmax()) == ids[i]
    return total, greedy


def written(model, context, n):
    ids = list(context.encode())
    for _ in range(n):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return bytes(ids[len(context.encode()) :]).decode(errors="replace").split("\n")[0]


@torch.no_grad()
def test_a_local_task_file_gives_what_the_model_thinks(model, harness, tmp_path):
    from lm_eval.tasks import TaskManager

    rows = [
        {"question": q, "choices": [" blue", " four"], "answer": i % 2, "written": written(model, q, 8)}
        for i, q in enumerate(QUESTIONS)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    for name, task in TASKS.items():
        where = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
        (tmp_path / f"{name}.yaml").write_text(json.dumps({"task": name, **where, **task}))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = lm_eval.simple_evaluate(harness, tasks=list(TASKS), task_manager=manager, bootstrap_iters=0)["results"]
    guesses = [max((0, 1), key=lambda c, r=r: log_probability(model, r["question"], r["choices"][c])[0]) for r in rows]
    right = [guess == row["answer"] for guess, row in zip(guesses, rows, strict=True)]
    assert found["choices"]["acc,none"] == pytest.approx(sum(right) / 3)
    nats = sum(log_probability(model, "\n", r["question"])[0] for r in rows)
    n_bytes = sum(len(r["question"].encode()) for r in rows)
    assert found["texts"]["bits_per_byte,none"] == pytest.approx(-nats / n_bytes / 0.6931471805599453, rel=1e-4)
    assert found["written"]["exact_match,none"] == 1.0


@torch.no_grad()
def test_likelihoods_are_those_of_token_by_token(model, harness):
    requests = [("", "one two"), ("one", " two"), ("é", "ü")]
    encoded = [(pair, harness.tok_encode(pair[0] or "\n"), harness.tok_encode(pair[1])) for pair in requests]
    answers = harness._loglikelihood_tokens(encoded)
    for (context, continuation), (total, greedy) in zip(requests, answers, strict=True):
        naive = log_probability(model, context or "\n", continuation)
        assert total == pytest.approx(naive[0], rel=1e-4)
        assert greedy == naive[1]
    ((total, _),) = harness._loglikelihood_tokens([(None, *harness._encode_pair("  ", "a"))])
    assert total == pytest.approx(log_probability(model, "\n", "  a")[0], rel=1e-4)  # no context is left


@torch.no_grad()
def test_no_more_is_read_than_may_be(model):
    from pezoo.study.harness import Harness

    short = Harness(model, load_tokenizer(None), max_length=8)
    ((found, _),) = short._loglikelihood_tokens([(None, list(b"a long context, and"), list(b" on"))])
    assert found == pytest.approx(log_probability(model, ", and", " on")[0], rel=1e-4)
    with pytest.raises(UserError, match="a continuation has 9 tokens, and max_length=8"):
        short._loglikelihood_tokens([(None, list(b"a"), list(b"123456789"))])


def test_a_study_that_is_not_there_is_one_message(tmp_path):
    from pezoo.study.harness import Harness

    with pytest.raises(UserError, match="is no folder of a study"):
        Harness.of(tmp_path, "rope")
