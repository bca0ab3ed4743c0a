"""Questions in text for models that read by a tokenizer: told in tokens, they are the same questions."""

import pytest

pytest.importorskip("transformers")

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pezoo.data.material import TESTING, Questions
from pezoo.data.retold import Retold
from pezoo.data.tasks.passkey_text import FILLER, KEY, QUESTION, TASK
from pezoo.errors import UserError
from pezoo.evaluation.answers import evaluate_answers
from pezoo.model.transformer import Transformer
from pezoo.task import IGNORE


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A byte-level tokenizer of pairs of bytes, whose tokens may begin with a space, as GPT-2's."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    text = [TASK, FILLER, KEY.format(12345), QUESTION, *(f" {n}" for n in range(0, 100000, 77))]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(text, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False))
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("length", [150, 200, 333])
@pytest.mark.parametrize("task", ["passkey_text", "facts"])
def test_a_question_in_tokens_is_the_question_in_bytes(task, length, tokenizer):
    told, theirs = Retold(task, tokenizer), AutoTokenizer.from_pretrained(tokenizer)
    pairs = told.pairs(TESTING, 3, 16, length, 5)
    example = told.example(pairs)
    assert length - 12 < example.tokens.shape[1] <= length
    assert example.tokens.shape == example.targets.shape
    for tokens, targets, question, answer in zip(*example, pairs.inputs, pairs.outputs, strict=True):
        asked = (targets != IGNORE).nonzero().flatten()
        assert torch.equal(asked, torch.arange(asked[0], asked[-1] + 1))
        assert torch.equal(tokens[asked[1:]], targets[asked[:-1]])  # each is read before the next is asked
        read = [*tokens[: asked[0] + 1].tolist(), *targets[asked].tolist()]
        assert theirs.decode(read) == bytes(question.tolist()).decode() + bytes(answer.tolist()).decode()
        said = theirs.decode(targets[asked])
        assert said.strip() == bytes(i for i in answer.tolist() if i != IGNORE).decode()
        assert (tokens[asked[-1] + 1 :] == 0).all()


def test_as_many_bytes_are_told_as_fit(tokenizer):
    told = Retold("passkey_text", tokenizer)
    for length in (150, 400):
        n_bytes = told.n_bytes(length)
        longest = [told._longest(Questions.pairs(told, TESTING, 0, 8, n, 0)) for n in (n_bytes, n_bytes + 1)]
        assert longest[0] <= length < longest[1]
        near, far = told.distance(length, 1.0), told.distance(length, 0.0)
        assert 0 < near < far < length
    with pytest.raises(UserError, match=r"passkey_text needs a length of at least \d+ tokens, got 20"):
        told.n_bytes(20)


def test_a_model_that_knows_the_answer_is_right(tokenizer, monkeypatch):
    """Where the logits are those of the targets, everything is right; with any others, nothing is."""
    told = Retold("passkey_text", tokenizer)
    model = Transformer({"vocab_size": told.vocab_size, "d_model": 8, "n_heads": 1, "n_layers": 1, "train_length": 100})
    model.head, keyed = torch.nn.Identity(), {}
    usual = Retold.example

    def remember(self, pairs):
        example = usual(self, pairs)
        for tokens, targets in zip(*example, strict=True):
            keyed[tuple(tokens.tolist())] = targets
        return example

    monkeypatch.setattr(Retold, "example", remember)
    for shift, share in ((0, 1.0), (1, 0.0)):

        def hidden(tokens, positions=None, cache=None, shift=shift):
            rows = [keyed[tuple(row.tolist())].clamp(min=0) + shift for row in tokens]
            return torch.nn.functional.one_hot(torch.stack(rows) % told.vocab_size, told.vocab_size).float()

        monkeypatch.setattr(model, "hidden", hidden)
        results = evaluate_answers(model, told, [150, 20], count=3, seed=1)
        whole = next(r for r in results if r.test_length == 150 and r.depth is None)
        assert whole.values["exact_match"] == whole.values["token_accuracy"] == share
        assert (whole.values["k_max"] > 0) == bool(share)
        assert next(r for r in results if r.test_length == 20).status == "undefined"


def test_only_tasks_in_text_can_be_told(tokenizer):
    with pytest.raises(UserError, match="passkey is no task in text"):
        Retold("passkey", tokenizer)
